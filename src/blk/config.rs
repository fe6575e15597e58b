//! What a disk offers to guests: features, limits, configuration space.

use std::time::Duration;

use vhost::vhost_user::message::VhostUserProtocolFeatures;
use virtio_bindings::bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC,
};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX,
    VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;

use crate::units::{BlockSize, SECTORS_PER_PAGE};
use crate::virtq::inflight::Limits;

/// VHOST_USER_F_PROTOCOL_FEATURES, the one feature bit that is vhost-user's own.
pub(crate) const F_PROTOCOL_FEATURES: u64 = 1 << 30;

/// Bytes of `struct virtio_blk_config` up to and including the write-zeroes fields (VIRTIO 1.2,
/// 5.2.4). Front ends may ask for more; the rest is zero.
const CONFIG_BYTES: usize = 60;
/// Offset of `writeback`, the only field that a driver may write.
const WRITEBACK: usize = 32;

/// Longest data segment that a driver may use, in bytes.
const SIZE_MAX: u32 = 1 << 20;
/// Most data segments of a request: a ring of 128 less header and status.
const SEG_MAX: u32 = 126;
/// Most sectors of a discard or write-zeroes request: 1 GiB, some milliseconds of work.
pub(crate) const MAX_FREE_SECTORS: u32 = 1 << 21;
/// Most segments of such a request. QEMU's own test of back ends requires that two are refused.
pub(crate) const MAX_FREE_SEGMENTS: usize = 1;

/// Checks in the time after which a request is reported.
const CHECKS: u32 = 4;

/// How long a request may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StallLimits {
    /// Time after which a request that has not ended is reported; zero is never.
    pub report: Duration,
    /// Time after which one that waits fails; longer than `report`, or zero, which is never.
    pub fail: Duration,
}

impl Default for StallLimits {
    fn default() -> Self {
        Self { report: Duration::from_secs(10), fail: Duration::ZERO }
    }
}

impl StallLimits {
    /// Time between two checks, if there are to be any.
    pub(crate) fn interval(&self) -> Option<Duration> {
        let interval = (self.report / CHECKS).max(Duration::from_millis(1));
        (!self.report.is_zero()).then_some(interval)
    }

    /// Whether a request of this age is to be reported.
    pub(crate) fn is_over(&self, age: Duration) -> bool {
        !self.report.is_zero() && age >= self.report
    }

    /// Whether a request of this age is abandoned.
    pub(crate) fn is_lost(&self, age: Duration) -> bool {
        !self.fail.is_zero() && age >= self.fail
    }
}

/// What a guest is offered; fixed for the life of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestOptions {
    /// Number of virtqueues, 1..=64.
    pub num_queues: u16,
    /// Largest virtqueue, a power of two, 2..=32768 descriptors.
    pub max_queue_size: u16,
    /// Threads that serve the virtqueues; at least 1, more than `num_queues` are not used.
    pub threads: u16,
    /// What a GET_ID request returns: at most 20 bytes count.
    pub serial: String,
    /// Refuse requests that would change the disk.
    pub read_only: bool,
    /// How long a request may take.
    pub stall_limits: StallLimits,
    /// Longest time for which a queue thread polls its empty rings before it sleeps; zero is never.
    pub poll: Duration,
    /// Count how long requests take, which costs two readings of the clock a batch.
    pub latency: bool,
}

impl GuestOptions {
    /// Most data segments of a request.
    fn seg_max(&self) -> u32 {
        SEG_MAX.min(u32::from(self.max_queue_size).saturating_sub(2)).max(1)
    }

    /// Most data bytes of a request.
    pub(crate) fn max_request_bytes(&self) -> u64 {
        u64::from(SEG_MAX) * u64::from(SIZE_MAX)
    }

    /// The rings that a region of requests in flight may be for.
    pub(crate) fn region_limits(&self) -> Limits {
        Limits { num_queues: self.num_queues, max_queue_size: self.max_queue_size }
    }

    /// Virtio features that are offered.
    pub(crate) fn features(&self) -> u64 {
        let bits = [
            VIRTIO_BLK_F_SIZE_MAX,
            VIRTIO_BLK_F_SEG_MAX,
            VIRTIO_BLK_F_BLK_SIZE,
            VIRTIO_BLK_F_FLUSH,
            VIRTIO_BLK_F_TOPOLOGY,
            VIRTIO_BLK_F_CONFIG_WCE,
            VIRTIO_BLK_F_MQ,
            VIRTIO_BLK_F_DISCARD,
            VIRTIO_BLK_F_WRITE_ZEROES,
            VIRTIO_RING_F_INDIRECT_DESC,
            VIRTIO_RING_F_EVENT_IDX,
            VIRTIO_F_VERSION_1,
        ];
        let read_only = u64::from(self.read_only) << VIRTIO_BLK_F_RO;
        bits.iter().fold(F_PROTOCOL_FEATURES | read_only, |all, bit| all | 1 << bit)
    }

    /// Protocol features that are offered; REPLY_ACK is added by the vhost crate.
    pub(crate) fn protocol_features() -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
            | VhostUserProtocolFeatures::INFLIGHT_SHMFD
            | VhostUserProtocolFeatures::BACKEND_REQ
    }

    /// The 20 bytes of a GET_ID reply: the serial, cut off or padded with NULs.
    pub(crate) fn id(&self) -> [u8; 20] {
        let mut id = [0; 20];
        let bytes = self.serial.as_bytes();
        let len = bytes.len().min(id.len());
        id[..len].copy_from_slice(&bytes[..len]);
        id
    }
}

/// The configuration space of one session.
#[derive(Debug)]
pub(crate) struct ConfigSpace {
    bytes: [u8; CONFIG_BYTES],
}

/// An access to configuration space that is not allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{bytes} bytes at offset {offset} of configuration space cannot be accessed like this")]
pub(crate) struct ConfigError {
    offset: u32,
    bytes: usize,
}

impl ConfigSpace {
    /// The configuration space of a disk of `sectors` sectors with logical blocks of `block_size`.
    pub(crate) fn new(options: &GuestOptions, sectors: u64, block_size: BlockSize) -> Self {
        let blocks = block_size.per_page();
        let mut bytes = [0; CONFIG_BYTES];
        let mut put = |offset: usize, value: &[u8]| {
            bytes[offset..offset + value.len()].copy_from_slice(value);
        };
        // 0..8: the capacity.
        put(8, &SIZE_MAX.to_le_bytes());
        put(12, &options.seg_max().to_le_bytes());
        // 16..20: geometry, not offered.
        put(20, &block_size.bytes().to_le_bytes());
        // Topology in logical blocks: a page is the physical block, the least I/O that does not have
        // to read before it writes, and the best one; there is no offset.
        put(24, &[blocks.ilog2() as u8, 0]);
        put(26, &(blocks as u16).to_le_bytes());
        put(28, &blocks.to_le_bytes());
        // Off, so that a guest sees a write-through disk.
        put(WRITEBACK, &[0]);
        put(34, &options.num_queues.to_le_bytes());
        put(36, &MAX_FREE_SECTORS.to_le_bytes());
        put(40, &(MAX_FREE_SEGMENTS as u32).to_le_bytes());
        // Smaller discards are done, but free no memory.
        put(44, &(SECTORS_PER_PAGE as u32).to_le_bytes());
        put(48, &MAX_FREE_SECTORS.to_le_bytes());
        put(52, &(MAX_FREE_SEGMENTS as u32).to_le_bytes());
        // write_zeroes_may_unmap
        put(56, &[1]);
        let mut this = Self { bytes };
        this.set_sectors(sectors);
        this
    }

    /// The disk has `sectors` sectors from now on.
    pub(crate) fn set_sectors(&mut self, sectors: u64) {
        self.bytes[..8].copy_from_slice(&sectors.to_le_bytes());
    }

    /// `size` bytes from `offset` on; zeroes past the end of what there is.
    pub(crate) fn read(&self, offset: u32, size: u32) -> Vec<u8> {
        let (offset, size) = (offset as usize, size as usize);
        let known = self.bytes.iter().copied().skip(offset).chain(std::iter::repeat(0));
        known.take(size).collect()
    }

    /// Writes to configuration space: of `writeback` alone, and of 0 or 1.
    pub(crate) fn write(&mut self, offset: u32, bytes: &[u8]) -> Result<(), ConfigError> {
        match (offset as usize, bytes) {
            (WRITEBACK, [value @ (0 | 1)]) => {
                self.bytes[WRITEBACK] = *value;
                Ok(())
            }
            _ => Err(ConfigError { offset, bytes: bytes.len() }),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// What a test's guest is offered, with one queue thread.
    pub(crate) fn options(num_queues: u16, max_queue_size: u16) -> GuestOptions {
        GuestOptions {
            num_queues,
            max_queue_size,
            threads: 1,
            serial: "a serial of more than twenty".into(),
            read_only: false,
            stall_limits: StallLimits::default(),
            poll: Duration::ZERO,
            latency: false,
        }
    }

    #[test]
    fn fields_are_where_the_specification_has_them() {
        let config = ConfigSpace::new(&options(2, 128), 0x1122_3344, BlockSize::Page);
        assert_eq!(config.read(0, 8), 0x1122_3344_u64.to_le_bytes());
        assert_eq!(config.read(12, 4), 126_u32.to_le_bytes());
        assert_eq!(config.read(20, 4), 4096_u32.to_le_bytes());
        assert_eq!(config.read(34, 2), 2_u16.to_le_bytes());
        assert_eq!(config.read(44, 4), 8_u32.to_le_bytes());
        assert_eq!(config.read(56, 1), [1]);
        assert_eq!(config.read(0, 60).len(), 60);
    }

    #[test]
    fn a_growth_changes_the_capacity_and_nothing_else() {
        let mut config = ConfigSpace::new(&options(2, 128), 8, BlockSize::Page);
        let before = config.read(0, 60);
        config.set_sectors(0x1122_3344_5566);
        assert_eq!(config.read(0, 8), 0x1122_3344_5566_u64.to_le_bytes());
        assert_eq!(config.read(8, 52), before[8..]);
    }

    #[test]
    fn a_page_is_the_physical_block_whatever_the_logical_one_is() {
        for (block_size, bytes, blocks) in [(BlockSize::Sector, 512, 8), (BlockSize::Page, 4096, 1)]
        {
            let config = ConfigSpace::new(&options(2, 128), 64, block_size);
            assert_eq!(config.read(0, 8), 64_u64.to_le_bytes(), "in sectors, always");
            assert_eq!(config.read(20, 4), u32::to_le_bytes(bytes));
            let exponent = config.read(24, 1)[0];
            assert_eq!(bytes << exponent, 4096, "physical block");
            assert_eq!(config.read(25, 1), [0], "alignment");
            assert_eq!(config.read(26, 2), u16::to_le_bytes(blocks), "least I/O");
            assert_eq!(config.read(28, 4), u32::from(blocks).to_le_bytes(), "best I/O");
            assert_eq!(config.read(44, 4), 8_u32.to_le_bytes(), "discards, in sectors");
        }
    }

    #[test]
    fn reads_past_the_end_are_zero_and_of_the_length_asked_for() {
        let config = ConfigSpace::new(&options(2, 128), 8, BlockSize::Page);
        assert_eq!(config.read(56, 8), [1, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(config.read(0x100, 4), [0; 4]);
        assert_eq!(config.read(u32::MAX, 4), [0; 4]);
    }

    #[test]
    fn only_writeback_can_be_written() {
        let mut config = ConfigSpace::new(&options(2, 128), 8, BlockSize::Page);
        let before = config.read(0, 60);
        for offset in (0..70).filter(|offset| *offset != 32) {
            config.write(offset, &[1]).unwrap_err();
        }
        config.write(32, &[2]).unwrap_err();
        config.write(32, &[1, 0]).unwrap_err();
        config.write(32, &[]).unwrap_err();
        assert_eq!(config.read(0, 60), before);
        config.write(32, &[1]).unwrap();
        assert_eq!(config.read(32, 1), [1]);
    }

    #[test]
    fn a_small_ring_offers_fewer_segments() {
        let small = GuestOptions { max_queue_size: 64, ..options(2, 128) };
        assert_eq!(ConfigSpace::new(&small, 8, BlockSize::Page).read(12, 4), 62_u32.to_le_bytes());
    }

    #[test]
    fn read_only_is_a_feature_and_in_order_never() {
        let writable = options(2, 128).features();
        let read_only = GuestOptions { read_only: true, ..options(2, 128) }.features();
        assert_eq!(writable ^ read_only, 1 << VIRTIO_BLK_F_RO);
        assert_eq!(writable >> 35 & 1, 0);
    }

    #[test]
    fn the_id_is_twenty_bytes() {
        assert_eq!(&options(2, 128).id(), b"a serial of more tha");
        let short = GuestOptions { serial: "x".into(), ..options(2, 128) };
        assert_eq!(short.id(), *b"x\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    }
}
