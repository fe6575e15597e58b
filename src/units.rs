//! The units that every room counts in.

use std::fmt;
use std::str::FromStr;

/// Bytes of a page: what one slot describes, and the physical block of the disk.
pub const PAGE_SIZE: usize = 4096;

/// Bytes of a sector, the unit of virtio-blk's addresses and lengths (VIRTIO 1.2, 5.2.6).
pub const SECTOR_SIZE: u64 = 512;

/// Sectors of a page.
pub const SECTORS_PER_PAGE: u64 = PAGE_SIZE as u64 / SECTOR_SIZE;

/// One page of the disk, uncompressed.
pub type Page = [u8; PAGE_SIZE];

/// The logical block of a disk: the smallest unit in which a guest is told to address it.
///
/// Requests of any number of sectors are served whatever it is. A guest's partition tables and file
/// systems are made for one of the two, and mean nothing on the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockSize {
    /// 512 bytes: what disk images are made for, and all that a BIOS can boot from.
    Sector,
    /// 4096 bytes, a page: no write of a guest is less than what is compressed.
    Page,
}

/// A number of bytes that cannot be the logical block of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a logical block has 512 or 4096 bytes")]
pub struct NoBlockSize;

impl BlockSize {
    /// Its bytes.
    pub const fn bytes(self) -> u32 {
        match self {
            Self::Sector => SECTOR_SIZE as u32,
            Self::Page => PAGE_SIZE as u32,
        }
    }

    /// Logical blocks of a page.
    pub const fn per_page(self) -> u32 {
        PAGE_SIZE as u32 / self.bytes()
    }
}

impl FromStr for BlockSize {
    type Err = NoBlockSize;

    fn from_str(text: &str) -> Result<Self, NoBlockSize> {
        match text {
            "512" => Ok(Self::Sector),
            "4096" => Ok(Self::Page),
            _ => Err(NoBlockSize),
        }
    }
}

impl fmt::Display for BlockSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.bytes())
    }
}
