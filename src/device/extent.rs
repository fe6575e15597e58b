//! The range of a request, for figures, warnings and bounds.

use std::fmt;

use super::io::Op;

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
