//! What a request asks of the device, where its bytes are, and what may become of it.

use std::fmt;

use vm_memory::VolatileSlice;

use crate::codec::CodecError;
use crate::pool::PoolError;
use crate::store::StoreError;

/// What a request does with its range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Delivers the range's bytes to the payload.
    Read,
    /// Takes the range's bytes from the payload.
    Write,
    /// Frees the whole pages of the range. They read as zeroes afterwards; ragged edges stay.
    Discard,
    /// Frees the whole pages of the range, and zeroes its ragged edges.
    WriteZeroes,
}

/// The bytes of a request could not be moved, because the memory they lie in is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the request's memory cannot be reached")]
pub struct PayloadFault;

/// Where a request's bytes come from or go to. Each byte is moved once.
pub trait Payload {
    /// Copies the bytes from `offset` of the request on into `into`.
    ///
    /// # Errors
    /// The memory is gone.
    fn fetch(&mut self, offset: u64, into: &mut [u8]) -> Result<(), PayloadFault>;

    /// Copies `from` to the request's bytes from `offset` on.
    ///
    /// # Errors
    /// The memory is gone.
    fn deliver(&mut self, offset: u64, from: &[u8]) -> Result<(), PayloadFault>;

    /// Has `fill` write the `len` bytes from `offset` of the request on in place, if they lie in one piece of
    /// memory. The guest may read and write them at the same time. `None` if they do not, and `fill` is
    /// not called then.
    ///
    /// # Errors
    /// The memory is gone.
    fn fill<R>(
        &mut self,
        offset: u64,
        len: usize,
        fill: impl FnOnce(VolatileSlice<'_>) -> R,
    ) -> Result<Option<R>, PayloadFault> {
        let _ = (offset, len, fill);
        Ok(None)
    }
}

/// Why a request failed. What it had not got to by then is as it was.
#[derive(Debug, thiserror::Error)]
pub enum IoError {
    /// The range does not lie within the disk; nothing was done.
    #[error("sectors from {sector} on, {bytes} bytes, do not lie within the disk")]
    OutOfRange {
        /// First sector.
        sector: u64,
        /// Length.
        bytes: u64,
    },
    /// The length is not a multiple of a sector; nothing was done.
    #[error("a length of {bytes} bytes is not a multiple of a sector")]
    Unaligned {
        /// Length.
        bytes: u64,
    },
    /// The request's own memory is gone.
    #[error(transparent)]
    Payload(#[from] PayloadFault),
    /// A page could not be compressed.
    #[error("a page cannot be compressed")]
    Compress(#[source] CodecError),
    /// A stored page could not be decompressed: its object is damaged.
    #[error("page {index} cannot be decompressed")]
    Decompress {
        /// Number of the page.
        index: u64,
        /// What the codec says.
        source: CodecError,
    },
    /// A page that an earlier process left is not what that had stored.
    #[error("page {index} is damaged: its check sum does not match")]
    Damaged {
        /// Number of the page.
        index: u64,
    },
    /// An object could not be stored.
    #[error("a page cannot be stored")]
    Pool(#[from] PoolError),
    /// The slot table could not grow.
    #[error("the slot table cannot grow")]
    Table(#[from] StoreError),
}

/// What a request waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitReason {
    /// The slot of this number, which another owner holds.
    Slot(u64),
    /// The engine.
    Engine,
    /// The engine, while it holds the slot of this number for a change of a part of its page.
    EngineWithSlot(u64),
}

impl fmt::Display for WaitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WaitReason::Slot(index) => write!(f, "slot {index}"),
            WaitReason::Engine => write!(f, "the engine"),
            WaitReason::EngineWithSlot(index) => {
                write!(f, "the engine, holding slot {index} to change a part of it")
            }
        }
    }
}

/// What a request does to the disk, for those that report on it.
#[derive(Debug, Clone, Copy)]
pub struct Extent {
    /// What it does.
    pub op: Op,
    /// First sector, of 512 bytes.
    pub sector: u64,
    /// Length of the range in bytes.
    pub bytes: u64,
}

impl Extent {
    /// Bytes of guest memory that it reads or writes. A discard has a range and moves nothing.
    pub fn moved(&self) -> u64 {
        match self.op {
            Op::Read | Op::Write => self.bytes,
            Op::Discard | Op::WriteZeroes => 0,
        }
    }
}

impl fmt::Display for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let op = match self.op {
            Op::Read => "read",
            Op::Write => "write",
            Op::Discard => "discard",
            Op::WriteZeroes => "write-zeroes",
        };
        write!(f, "{op} of {} bytes from sector {}", self.bytes, self.sector)
    }
}
