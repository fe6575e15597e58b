//! System calls that no crate in use has without `unsafe`.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use vmm_sys_util::eventfd::EventFd;

/// The descriptor of an eventfd, to be polled.
pub(crate) fn event_fd(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the eventfd owns the descriptor, and is borrowed for as long as the result lives.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}

/// Bytes that can be read from a socket, over all its messages. A peek would stop at the first
/// one that carries descriptors.
pub(crate) fn bytes_waiting(stream: &UnixStream) -> io::Result<usize> {
    let mut count: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int, to a local of that type.
    let result = unsafe { libc::ioctl(stream.as_raw_fd(), libc::FIONREAD, &raw mut count) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(usize::try_from(count).unwrap_or(0))
}

/// A new, empty file of secret memory (memfd_secret(2), Linux 5.14; since 6.5 on by default).
///
/// # Errors
/// The host does not offer secret memory.
pub(crate) fn secret_memory() -> io::Result<OwnedFd> {
    let flags = libc::c_long::from(libc::O_CLOEXEC);
    // SAFETY: a system call with one argument, which is not a pointer.
    let fd = unsafe { libc::syscall(libc::SYS_memfd_secret, flags) };
    let fd = RawFd::try_from(fd).ok().filter(|fd| *fd >= 0);
    let fd = fd.ok_or_else(io::Error::last_os_error)?;
    // SAFETY: a descriptor that the kernel just made, which no other code has.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Takes over a descriptor that was received with a message.
pub(crate) fn received(fd: RawFd) -> Option<OwnedFd> {
    // SAFETY: the kernel has just made it for this process, and its number is kept nowhere else.
    (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd) })
}
