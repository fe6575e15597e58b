//! The two conversions of raw descriptors that the standard library cannot vouch for.
#![allow(unsafe_code)]

use std::{
    fs::File,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, RawFd},
};

use vmm_sys_util::eventfd::EventFd;

/// Takes ownership of a descriptor that has just come with a message.
pub(crate) fn own(fd: RawFd) -> File {
    // SAFETY: the kernel has made this descriptor for us with SCM_RIGHTS; no other code has it.
    unsafe { File::from_raw_fd(fd) }
}

/// Borrows an eventfd's descriptor.
pub(crate) fn borrow(fd: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the descriptor is open as long as the EventFd lives, and the result borrows it.
    unsafe { BorrowedFd::borrow_raw(fd.as_raw_fd()) }
}
