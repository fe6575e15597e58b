//! The split virtqueue as the device sees it: heads out of the available ring, batches into the
//! used ring, notifications both ways (VIRTIO 1.2, 2.7).
//!
//! Addresses, sizes and indexes are kept by the virtio-queue crate's `Queue`. The crate publishes
//! each used element by itself and does not know of `NO_INTERRUPT`; a batch with one interrupt
//! needs both done here.

use std::collections::VecDeque;
use std::sync::atomic::{Ordering, fence};

use virtio_bindings::bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend};

use crate::failpoint;
use crate::virtq::access;
use crate::virtq::chain::DescriptorTable;
use crate::virtq::elem::{Head, Unanswerable, UsedElem};
use crate::virtq::memory::{self, Memory, Region};
use crate::virtq::region_log::RegionLog;

/// Heads that one batch takes at most.
pub(crate) const BATCH: usize = 32;

/// Why a ring cannot continue. It is stopped until the front end starts it anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RingError {
    #[error("the available index is more than the ring's size ahead")]
    AvailableIndex,
    #[error("head {0} is out of range")]
    HeadOutOfRange(u16),
    #[error("head {0} is made available while it is in flight")]
    HeadInFlight(u16),
    #[error("the ring lies outside of guest memory")]
    Unreachable,
    #[error("the front end truncated guest memory")]
    Lost,
    #[error("request {head} cannot be answered: {why}")]
    Unanswerable { head: u16, why: Unanswerable },
}

/// Heads that are taken and not yet given back: one bit each.
#[derive(Debug, Default)]
pub(crate) struct Heads {
    bits: Vec<u64>,
}

impl Heads {
    pub(crate) fn new(size: u16) -> Self {
        Self { bits: vec![0; usize::from(size).div_ceil(64)] }
    }

    /// Marks a head as taken; false if it already was.
    pub(crate) fn take(&mut self, head: u16) -> bool {
        let (group, bit) = (usize::from(head / 64), 1 << (head % 64));
        let free = self.bits[group] & bit == 0;
        self.bits[group] |= bit;
        free
    }

    pub(crate) fn give_back(&mut self, head: u16) {
        self.bits[usize::from(head / 64)] &= !(1 << (head % 64));
    }
}

/// Where the ring's descriptors lie.
pub(crate) fn descriptors(queue: &Queue) -> DescriptorTable {
    DescriptorTable { addr: GuestAddress(queue.desc_table()), size: queue.size() }
}

/// Takes up to `limit` heads. An error ends the ring; what was taken before it is in `batch`.
pub(crate) fn take_batch(
    queue: &mut Queue,
    memory: &Memory,
    heads: &mut Heads,
    limit: usize,
    batch: &mut VecDeque<Head>,
) -> Result<(), RingError> {
    let size = queue.size();
    let available = queue.iter(memory).map_err(|error| match error {
        virtio_queue::Error::InvalidAvailRingIndex => RingError::AvailableIndex,
        _ => RingError::Unreachable,
    })?;
    let mut outcome = Ok(());
    for chain in available.take(limit) {
        let head = chain.head_index();
        if head >= size {
            outcome = Err(RingError::HeadOutOfRange(head));
        } else if !heads.take(head) {
            outcome = Err(RingError::HeadInFlight(head));
        }
        if outcome.is_err() {
            break;
        }
        batch.push_back(Head::new(head));
    }
    if outcome.is_err() {
        // The invalid head was not taken.
        queue.set_next_avail(queue.next_avail().wrapping_sub(1));
    }
    if memory::is_lost(memory) {
        // Heads that were read from lost memory are zeroes, and name requests that were not made.
        put_back(queue, heads, batch);
        return Err(RingError::Lost);
    }
    outcome
}

/// The head at `index` of the available ring, or `None` if it cannot be reached.
pub(crate) fn available(queue: &Queue, memory: &Memory, index: u16) -> Option<u16> {
    let slot = u64::from(index % queue.size());
    load(memory, address(queue.avail_ring(), 4 + 2 * slot).ok()?).ok()
}

/// Puts the rest of what was taken last back into the available ring, as if it had not been taken.
pub(crate) fn put_back(queue: &mut Queue, heads: &mut Heads, rest: &mut VecDeque<Head>) {
    // A ring has at most 32768 entries.
    let count = rest.len() as u16;
    queue.set_next_avail(queue.next_avail().wrapping_sub(count));
    for taken in rest.drain(..) {
        heads.give_back(taken.put_back());
    }
}

/// Puts finished requests into the used ring and publishes them with one store of the index. The
/// log in the region, if there is one, is written before and after it, so at each store it shows which of
/// them are published.
pub(crate) fn put_batch(
    queue: &mut Queue,
    memory: &Memory,
    heads: &mut Heads,
    mut region_log: Option<&mut RegionLog>,
    batch: &mut Vec<UsedElem>,
) -> Result<(), RingError> {
    if batch.is_empty() {
        return Ok(());
    }
    if let Some(region_log) = &mut region_log {
        region_log.chain(batch);
    }
    let published = publish(queue, memory, heads, batch);
    if let (Ok(used), Some(region_log)) = (&published, region_log) {
        region_log.end_batch(batch, *used);
    }
    batch.clear();
    published.map(|_| ())
}

/// Writes used elements, and the index behind them, which it returns.
fn publish(
    queue: &mut Queue,
    memory: &Memory,
    heads: &mut Heads,
    batch: &[UsedElem],
) -> Result<u16, RingError> {
    let mut next = queue.next_used();
    let mut reached = Ok(());
    for finished in batch {
        debug_assert!(finished.written > 0, "request {} has no status", finished.head);
        let slot = u64::from(next % queue.size());
        // le16 flags, le16 index, then elements of le32 head and le32 length.
        let element = u64::from(finished.head) | u64::from(finished.written) << 32;
        reached = reached.and(write(memory, queue.used_ring(), 4 + slot * 8, element));
        next = next.wrapping_add(1);
        heads.give_back(finished.head);
    }
    reached?;
    failpoint::reach("ring.elements");
    let index = address(queue.used_ring(), 2)?;
    let stored = memory.store(next.to_le(), index, Ordering::Release);
    stored.map_err(|_| RingError::Unreachable)?;
    if memory.find_region(index).is_none_or(Region::is_lost) {
        // The guest cannot see it, so nothing of the batch is completed.
        return Err(RingError::Lost);
    }
    queue.set_next_used(next);
    failpoint::reach("ring.index");
    Ok(next)
}

/// Whether the driver wants an interrupt for what was published since `signalled`, the used index
/// at the last time it was asked.
pub(crate) fn wants_interrupt(
    queue: &Queue,
    memory: &Memory,
    signalled: &mut u16,
) -> Result<bool, RingError> {
    let new = queue.next_used();
    let old = std::mem::replace(signalled, new);
    if new == old {
        return Ok(false);
    }
    // The used index has to be visible before the driver's flag is read (2.7.7.1, 2.7.8.1).
    fence(Ordering::SeqCst);
    if queue.event_idx_enabled() {
        let used_event = address(queue.avail_ring(), 4 + 2 * u64::from(queue.size()))?;
        let event: u16 = load(memory, used_event)?;
        // vring_need_event: has the index passed the event since the last check?
        return Ok(new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old));
    }
    let flags: u16 = load(memory, address(queue.avail_ring(), 0)?)?;
    Ok(u32::from(flags) & VRING_AVAIL_F_NO_INTERRUPT == 0)
}

/// Asks for the kick of head 0 of a ring that is being cleared, after its driver was asked for that of the next head
/// by the index that it had before: with an event index that would suppress the first kick, if
/// the driver has cleared the used ring already. To be called before the first head is taken, when nothing
/// but a clearing makes the used index 0.
pub(crate) fn ask_for_first_kick(queue: &Queue, memory: &Memory) -> Result<(), RingError> {
    if queue.event_idx_enabled() && queue.next_used() != 0 && used_index(queue, memory) == Some(0) {
        let avail_event = address(queue.used_ring(), 4 + 8 * u64::from(queue.size()))?;
        access::write(memory, avail_event, 0_u16).ok_or(RingError::Unreachable)?;
    }
    Ok(())
}

/// The used index as it stands in guest memory, or `None` if it cannot be reached.
pub(crate) fn used_index(queue: &Queue, memory: &Memory) -> Option<u16> {
    queue.used_idx(memory, Ordering::Acquire).ok().map(|index| index.0)
}

fn address(base: u64, offset: u64) -> Result<GuestAddress, RingError> {
    GuestAddress(base).checked_add(offset).ok_or(RingError::Unreachable)
}

fn load(memory: &Memory, addr: GuestAddress) -> Result<u16, RingError> {
    let value = memory.load(addr, Ordering::Relaxed).map_err(|_| RingError::Unreachable)?;
    Ok(u16::from_le(value))
}

fn write(memory: &Memory, base: u64, offset: u64, element: u64) -> Result<(), RingError> {
    let addr = address(base, offset)?;
    access::write(memory, addr, element.to_le()).ok_or(RingError::Unreachable)
}
