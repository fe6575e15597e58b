//! Why a request is refused before anything of it is done.

use crate::blk::reply::Status;
use crate::device::Op;
use crate::ratelimit::Kind;

/// What is wrong with a request that can be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("a device-readable descriptor comes after a device-writable one")]
    Order,
    #[error("its header is short or lies outside of guest memory")]
    Header,
    #[error("it has data in the wrong direction")]
    Direction,
    #[error("its data is not a whole number of sectors or ranges")]
    Length,
    #[error("it has more data than a request may have")]
    TooLong,
    #[error("its data lies outside of guest memory")]
    Outside,
    #[error("it has more sectors than a request may free")]
    TooManySectors,
    #[error("it would change a read-only disk")]
    ReadOnly,
    #[error("its type {0} is not offered")]
    Type(u32),
    #[error("it has more ranges than a request may have")]
    Ranges,
    #[error("its flags {0:#x} are not offered")]
    Flags(u32),
}

impl Refusal {
    /// The status that the guest receives (VIRTIO 1.2, 5.2.6.2).
    pub(crate) fn status(self) -> Status {
        match self {
            Refusal::Type(_) | Refusal::Ranges | Refusal::Flags(_) => Status::Unsupported,
            _ => Status::IoErr,
        }
    }

    /// The kind of warning for it.
    pub(crate) fn kind(self) -> Kind {
        match self {
            Refusal::ReadOnly => Kind::ReadOnly,
            Refusal::Type(_) | Refusal::Ranges | Refusal::Flags(_) => Kind::Unsupported,
            _ => Kind::Malformed,
        }
    }
}

/// A refusal of a request that is known to be a read or a change, or is not known to be either.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refused {
    pub(crate) why: Refusal,
    pub(crate) op: Option<Op>,
}
