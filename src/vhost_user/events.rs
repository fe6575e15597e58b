//! The eventfds of a front end, which the daemon waits for or signals: kicks, calls and errors.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;

use nix::fcntl::{FcntlArg, OFlag, fcntl};

/// Why a descriptor is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EventError {
    #[error("the descriptor is not an eventfd")]
    Kind,
    #[error("the eventfd cannot be used")]
    Use(#[source] io::Error),
}

/// Accepts a descriptor if it is an eventfd, and makes it non-blocking: it delays no thread, however full
/// or empty it is.
///
/// Like all anonymous inodes, an eventfd has no file type. Among these it is the only one that accepts a
/// write of eight zero bytes, which add nothing to its counter. A thread that waits for a call wakes up and
/// finds nothing; a call that is set is signalled anyway.
pub(crate) fn event(file: File) -> Result<File, EventError> {
    let meta = file.metadata().map_err(EventError::Use)?;
    if meta.mode() & libc::S_IFMT != 0 {
        return Err(EventError::Kind);
    }
    let flags = fcntl(&file, FcntlArg::F_GETFL).map(OFlag::from_bits_retain);
    let set = flags.and_then(|flags| fcntl(&file, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)));
    set.map_err(|errno| EventError::Use(errno.into()))?;
    match (&file).write(&[0; 8]) {
        Ok(8) => Ok(file),
        _ => Err(EventError::Kind),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsFd, OwnedFd};

    use nix::sys::epoll::{Epoll, EpollCreateFlags};
    use nix::sys::eventfd::{EfdFlags, EventFd};
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use nix::sys::signal::SigSet;
    use nix::sys::signalfd::SignalFd;

    use super::*;

    #[test]
    fn an_eventfd_is_taken_with_what_it_has_counted() {
        for flags in [EfdFlags::empty(), EfdFlags::EFD_SEMAPHORE] {
            for count in [0, 7, u64::MAX - 1] {
                let theirs = EventFd::from_value_and_flags(0, flags).unwrap();
                if count > 0 {
                    theirs.write(count).unwrap();
                }
                let ours = theirs.as_fd().try_clone_to_owned().unwrap();
                let mut ours = event(File::from(ours)).unwrap();
                let mut got = [0; 8];
                let read = io::Read::read(&mut ours, &mut got);
                let semaphore = flags == EfdFlags::EFD_SEMAPHORE;
                #[expect(
                    clippy::disallowed_methods,
                    reason = "the kernel counts in its own byte order"
                )]
                match count {
                    0 => assert_eq!(read.unwrap_err().kind(), io::ErrorKind::WouldBlock),
                    _ => assert_eq!(u64::from_ne_bytes(got), if semaphore { 1 } else { count }),
                }
            }
        }
    }

    #[test]
    fn nothing_else_is() {
        let (read, write) = nix::unistd::pipe().unwrap();
        let (socket, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
        let others: Vec<(&str, OwnedFd)> = vec![
            ("a pipe to read", read),
            ("a pipe to write", write),
            ("a socket", socket.into()),
            ("a file", memfd_create("x", MFdFlags::MFD_CLOEXEC).unwrap()),
            ("a device", File::options().write(true).open("/dev/null").unwrap().into()),
            ("a directory", File::open("/").unwrap().into()),
            ("an epoll", Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap().0),
            ("a signalfd", signals()),
        ];
        for (name, fd) in others {
            let taken = event(File::from(fd));
            assert!(matches!(taken, Err(EventError::Kind)), "{name}: {taken:?}");
        }
    }

    fn signals() -> OwnedFd {
        SignalFd::new(&SigSet::empty()).unwrap().as_fd().try_clone_to_owned().unwrap()
    }
}
