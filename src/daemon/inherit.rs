//! What the parent process passed on: descriptors, and signals that are ignored.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::sys::signal::Signal;
use nix::sys::socket::{AddressFamily, SockType, SockaddrLike, SockaddrStorage};
use nix::sys::socket::{getsockname, getsockopt, sockopt};
use nix::sys::stat::{SFlag, fstat};

use super::SocketError;

/// An inherited socket.
#[derive(Debug)]
pub enum Inherited {
    /// A socket to accept connections from.
    Listening(UnixListener),
    /// A connection.
    Connected(UnixStream),
}

/// Takes over descriptor `fd`, a stream socket of the Unix domain. `SO_ACCEPTCONN` tells whether it
/// listens: the conventions of vhost-user back ends differ on which one `--fd` means.
///
/// # Errors
/// The descriptor is not open, or is not such a socket. It is not closed then.
pub(super) fn adopt(fd: RawFd) -> Result<Inherited, SocketError> {
    let refused = |why| SocketError::Inherited { fd, why };
    if fd < 0 {
        return Err(refused("it is negative"));
    }
    // SAFETY: only queried, which fails if the descriptor is not open.
    let asked = unsafe { BorrowedFd::borrow_raw(fd) };
    match fcntl(asked, FcntlArg::F_GETFD) {
        Err(Errno::EBADF) => return Err(refused("it is not open")),
        Err(_) => return Err(refused("its flags cannot be read")),
        Ok(_) => {}
    }
    match getsockopt(&asked, sockopt::SockType) {
        Ok(SockType::Stream) => {}
        Ok(_) => return Err(refused("it is not a stream socket")),
        Err(_) => return Err(refused("it is not a socket")),
    }
    let family = getsockname::<SockaddrStorage>(fd).ok().and_then(|address| address.family());
    if family != Some(AddressFamily::Unix) {
        return Err(refused("it is not a Unix socket"));
    }
    let listening = getsockopt(&asked, sockopt::AcceptConn).unwrap_or(false);
    // SAFETY: open, as just checked, and this process's to own; taken once, at the start.
    let owned = unsafe { OwnedFd::from_raw_fd(fd) };
    fcntl(owned.as_fd(), FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))
        .map_err(|_| refused("its flags cannot be set"))?;
    // The parent may have made it non-blocking; replies are written with blocking calls.
    let flags = fcntl(owned.as_fd(), FcntlArg::F_GETFL).map(OFlag::from_bits_retain);
    flags
        .and_then(|flags| fcntl(owned.as_fd(), FcntlArg::F_SETFL(flags - OFlag::O_NONBLOCK)))
        .map_err(|_| refused("its flags cannot be set"))?;
    Ok(if listening {
        Inherited::Listening(owned.into())
    } else {
        Inherited::Connected(owned.into())
    })
}

/// Whether the parent process had this signal ignored, as nohup(1) does with SIGHUP.
pub(super) fn is_ignored(signal: Signal) -> bool {
    // SAFETY: a sigaction is plain data, and all zeroes are a valid value of it.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: without a new action the call only stores the present one in `action`.
    let asked =
        unsafe { libc::sigaction(signal as libc::c_int, std::ptr::null(), &raw mut action) };
    asked == 0 && action.sa_sigaction == libc::SIG_IGN
}

/// Takes over descriptors of files, which the process owns.
///
/// # Errors
/// A descriptor is not open, or is not a file. No descriptor is taken over then.
pub(super) fn files(fds: impl Iterator<Item = RawFd>) -> io::Result<Vec<File>> {
    let fds: Vec<RawFd> = fds.collect();
    for fd in &fds {
        // SAFETY: only queried, which fails if the descriptor is not open.
        let asked = unsafe { BorrowedFd::borrow_raw(*fd) };
        let kind = SFlag::from_bits_truncate(fstat(asked)?.st_mode & SFlag::S_IFMT.bits());
        if kind != SFlag::S_IFREG {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("descriptor {fd} is not a file"),
            ));
        }
    }
    let own = fds.into_iter().map(|fd| {
        // SAFETY: open, as just checked, and this process's to own; taken once, at the start, and
        // closed at exec by the code that listed them.
        File::from(unsafe { OwnedFd::from_raw_fd(fd) })
    });
    Ok(own.collect())
}
