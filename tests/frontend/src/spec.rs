//! Numbers of the virtio and vhost-user specifications that this crate and its users speak of.

/// Descriptor flag: `next` names another descriptor of the chain.
pub const DESC_NEXT: u16 = 1;
/// Descriptor flag: the device writes this buffer.
pub const DESC_WRITE: u16 = 2;
/// Descriptor flag: the buffer is a table of descriptors.
pub const DESC_INDIRECT: u16 = 4;
/// Avail-ring flag: the driver wants no interrupt (without EVENT_IDX).
pub const AVAIL_NO_INTERRUPT: u16 = 1;
/// Used-ring flag: the device wants no kick (without EVENT_IDX).
pub const USED_NO_NOTIFY: u16 = 1;

/// Bytes of one descriptor.
pub const DESC_LEN: u64 = 16;
/// Bytes of a virtio-blk request header: type, reserved, sector.
pub const HEADER_LEN: u32 = 16;
/// Bytes of a disk sector, the unit of every sector number.
pub const SECTOR: u64 = 512;
/// Bytes of the virtio-blk configuration space up to and with the write-zeroes fields.
pub const CONFIG_LEN: u32 = 60;
/// Offset of the `writeback` byte in the configuration space.
pub const CONFIG_WRITEBACK: u32 = 32;

/// Request type: read.
pub const T_IN: u32 = 0;
/// Request type: write.
pub const T_OUT: u32 = 1;
/// Request type: flush.
pub const T_FLUSH: u32 = 4;
/// Request type: read the serial.
pub const T_GET_ID: u32 = 8;
/// Request type: discard.
pub const T_DISCARD: u32 = 11;
/// Request type: write zeroes.
pub const T_WRITE_ZEROES: u32 = 13;
/// Bytes of a serial.
pub const ID_LEN: usize = 20;

/// Feature bits by their number in the specification.
pub mod feature {
    /// Largest size of one segment is given.
    pub const SIZE_MAX: u64 = 1 << 1;
    /// Largest number of segments of a request is given.
    pub const SEG_MAX: u64 = 1 << 2;
    /// The disk is read-only.
    pub const RO: u64 = 1 << 5;
    /// The block size is given.
    pub const BLK_SIZE: u64 = 1 << 6;
    /// The flush request is served.
    pub const FLUSH: u64 = 1 << 9;
    /// Topology hints are given.
    pub const TOPOLOGY: u64 = 1 << 10;
    /// The cache mode can be changed through the configuration space.
    pub const CONFIG_WCE: u64 = 1 << 11;
    /// Several queues.
    pub const MQ: u64 = 1 << 12;
    /// The discard request is served.
    pub const DISCARD: u64 = 1 << 13;
    /// The write-zeroes request is served.
    pub const WRITE_ZEROES: u64 = 1 << 14;
    /// Descriptors may be in indirect tables.
    pub const INDIRECT: u64 = 1 << 28;
    /// Notifications are asked for by index.
    pub const EVENT_IDX: u64 = 1 << 29;
    /// vhost-user: protocol features are negotiated.
    pub const PROTOCOL_FEATURES: u64 = 1 << 30;
    /// The device follows virtio 1.0 or later.
    pub const VERSION_1: u64 = 1 << 32;
    /// Packed rings.
    pub const RING_PACKED: u64 = 1 << 34;
    /// Buffers are used in the order they were made available.
    pub const IN_ORDER: u64 = 1 << 35;

    /// All that this front end can play the driver of.
    pub const ALL: u64 = SIZE_MAX
        | SEG_MAX
        | RO
        | BLK_SIZE
        | FLUSH
        | TOPOLOGY
        | CONFIG_WCE
        | MQ
        | DISCARD
        | WRITE_ZEROES
        | INDIRECT
        | EVENT_IDX
        | PROTOCOL_FEATURES
        | VERSION_1;
}

/// The virtio-blk configuration space, decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlkConfig {
    /// Size of the disk in sectors of 512 bytes.
    pub capacity: u64,
    /// Largest segment in bytes.
    pub size_max: u32,
    /// Most segments of one request.
    pub seg_max: u32,
    /// Block size in bytes.
    pub blk_size: u32,
    /// Binary logarithm of logical blocks per physical block.
    pub physical_block_exp: u8,
    /// Alignment offset in logical blocks.
    pub alignment_offset: u8,
    /// Suggested smallest request in logical blocks.
    pub min_io_size: u16,
    /// Suggested largest request in logical blocks.
    pub opt_io_size: u32,
    /// 1 when the cache is write-back, 0 when write-through.
    pub writeback: u8,
    /// Number of queues.
    pub num_queues: u16,
    /// Most sectors of one discard.
    pub max_discard_sectors: u32,
    /// Most segments of one discard.
    pub max_discard_seg: u32,
    /// Alignment of discards in sectors of 512 bytes.
    pub discard_sector_alignment: u32,
    /// Most sectors of one write-zeroes.
    pub max_write_zeroes_sectors: u32,
    /// Most segments of one write-zeroes.
    pub max_write_zeroes_seg: u32,
    /// 1 when write-zeroes may free what it zeroes.
    pub write_zeroes_may_unmap: u8,
}

impl BlkConfig {
    /// Decodes the first [`CONFIG_LEN`] bytes of a configuration space.
    pub fn parse(bytes: &[u8; CONFIG_LEN as usize]) -> Self {
        let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let u32_at = |at: usize| u32::from(u16_at(at)) | u32::from(u16_at(at + 2)) << u16::BITS;
        Self {
            capacity: u64::from(u32_at(0)) | u64::from(u32_at(4)) << u32::BITS,
            size_max: u32_at(8),
            seg_max: u32_at(12),
            blk_size: u32_at(20),
            physical_block_exp: bytes[24],
            alignment_offset: bytes[25],
            min_io_size: u16_at(26),
            opt_io_size: u32_at(28),
            writeback: bytes[32],
            num_queues: u16_at(34),
            max_discard_sectors: u32_at(36),
            max_discard_seg: u32_at(40),
            discard_sector_alignment: u32_at(44),
            max_write_zeroes_sectors: u32_at(48),
            max_write_zeroes_seg: u32_at(52),
            write_zeroes_may_unmap: bytes[56],
        }
    }
}
