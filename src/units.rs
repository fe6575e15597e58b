//! The units that every room counts in.

/// Bytes of a page: what one slot describes, and the logical block of the disk.
pub const PAGE_SIZE: usize = 4096;

/// Bytes of a sector, the unit of virtio-blk's addresses and lengths (VIRTIO 1.2, 5.2.6).
pub const SECTOR_SIZE: u64 = 512;

/// Sectors of a page.
pub const SECTORS_PER_PAGE: u64 = PAGE_SIZE as u64 / SECTOR_SIZE;

/// One page of the disk, uncompressed.
pub type Page = [u8; PAGE_SIZE];
