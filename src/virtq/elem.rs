//! A head on its way from the available ring to the used ring (VIRTIO 1.2, 2.7.6 and 2.7.8).
//!
//! Neither type can be copied, and dropping a head on the way is an error that is logged.

use super::chain::ChainError;

/// A head that was taken from the available ring and has to be given back.
#[derive(Debug)]
#[must_use = "a head that is not given back is a request that the guest waits for forever"]
pub(crate) struct Head {
    head: u16,
    given_back: bool,
}

impl Head {
    pub(crate) fn new(head: u16) -> Self {
        Self { head, given_back: false }
    }

    /// The index of its first descriptor, which names the request.
    pub(crate) fn index(&self) -> u16 {
        self.head
    }

    /// Puts the head back into the available ring, from which it will be taken again.
    pub(crate) fn put_back(mut self) -> u16 {
        self.given_back = true;
        self.head
    }

    /// Leaves the request unanswered. Its record in the ring's in-flight log stays as it is.
    pub(crate) fn abandon(mut self) {
        self.given_back = true;
    }

    /// Ends the request, with so many bytes written to its writable part. One of them is a status:
    /// the caller has written it.
    pub(crate) fn finish(mut self, written: u32) -> UsedElem {
        self.given_back = true;
        UsedElem { head: self.head, written }
    }
}

impl Drop for Head {
    fn drop(&mut self) {
        if !self.given_back && !std::thread::panicking() {
            log::error!("request {} was dropped and not completed", self.head);
            debug_assert!(self.given_back, "request {} was dropped and not completed", self.head);
        }
    }
}

/// A request whose status is written; what is left is its used element.
#[derive(Debug)]
#[must_use = "a finished request has to be put into the used ring"]
pub(crate) struct UsedElem {
    pub(crate) head: u16,
    pub(crate) written: u32,
}

/// Why a request cannot be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unanswerable {
    /// No byte that such a chain names is certain to be a status.
    #[error("its descriptor chain is malformed ({0})")]
    Chain(#[from] ChainError),
    #[error("it has no writable byte for a status")]
    NoStatus,
    #[error("its status byte lies outside of guest memory")]
    Outside,
    #[error("its status byte lies in guest memory that was truncated")]
    Lost,
}
