//! Two questions to descriptors that no crate in use answers without `unsafe`.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use vmm_sys_util::eventfd::EventFd;

/// The descriptor of an eventfd, to be polled.
pub(super) fn event_fd(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the eventfd owns the descriptor, and is borrowed for as long as the result lives.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}

/// Bytes that can be read from a socket, over all its messages. A peek would stop at the first
/// one that carries descriptors.
pub(super) fn bytes_waiting(stream: &UnixStream) -> io::Result<usize> {
    let mut count: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int, to a local of that type.
    let result = unsafe { libc::ioctl(stream.as_raw_fd(), libc::FIONREAD, &raw mut count) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(usize::try_from(count).unwrap_or(0))
}
