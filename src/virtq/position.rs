//! What a ring that is started shows of its past, and where it continues. This module does not decide
//! whether it may.

use std::sync::atomic::Ordering;

use virtio_queue::{Queue, QueueT};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend};

use crate::virtq::inflight::Parts;
use crate::virtq::inflight_log::{InflightLog, Record};
use crate::virtq::memory::{Memory, Region};
use crate::virtq::order::Order;
use crate::virtq::part::{Contents, Part};
use crate::virtq::recovery::{RecoveryError, Standing};
use crate::virtq::ring;

/// Why a ring cannot be started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PositionError {
    #[error("its ring lies outside of its memory")]
    Outside,
    #[error("its ring cannot be read")]
    Unreadable,
    #[error("its in-flight region does not match the ring: {0}")]
    Recovery(#[from] RecoveryError),
}

/// What a ring and its parts of the in-flight region show when it is started.
#[derive(Debug)]
pub(crate) struct Shown {
    /// The index that the front end names (SET_VRING_BASE).
    pub(crate) base: u16,
    pub(crate) used: u16,
    available: u16,
    pub(crate) size: u16,
    /// Each element of the used ring was written.
    pub(crate) wrapped: bool,
    /// The part of the region for a ring of this size.
    part: Option<(Part, Contents)>,
    /// What the other part of the queue has, if it was used.
    others: Vec<Contents>,
    /// Entries of the region, if they are too few for the ring.
    pub(crate) too_small: Option<u16>,
}

/// Where a ring continues.
#[derive(Debug)]
pub(crate) struct Position {
    pub(crate) next_avail: u16,
    pub(crate) next_used: u16,
    pub(crate) inflight_log: InflightLog,
    /// Requests in flight that are resubmitted.
    pub(crate) resubmit: usize,
    /// Requests that had been completed before one of those.
    pub(crate) later: u64,
}

/// Reads a ring that is about to be started, and its parts of the in-flight region.
pub(crate) fn read(
    queue: &Queue,
    memory: &Memory,
    parts: Option<Parts>,
) -> Result<Shown, PositionError> {
    if !queue.is_valid(memory) {
        return Err(PositionError::Outside);
    }
    let used = ring::used_index(queue, memory).ok_or(PositionError::Unreadable)?;
    let available = queue.avail_idx(memory, Ordering::Acquire);
    let available = available.map_err(|_| PositionError::Unreadable)?.0;
    let size = queue.size();
    let (part, others) = parts.map(|parts| parts.choose(size)).unwrap_or_default();
    let too_small = others.last().filter(|_| part.is_none()).map(Part::capacity);
    let read = |part: &Part| part.read(size).ok_or(RecoveryError::Lost);
    let contents = part.as_ref().map(read).transpose()?;
    let others = others.iter().filter(|part| !part.is_untouched()).map(read);
    let others = others.collect::<Result<Vec<_>, _>>()?;
    let base = queue.next_avail();
    // Only indexes of 0 are ambiguous.
    let wrapped = (base, used) == (0, 0) && has_wrapped(queue, memory);
    if is_lost(queue, memory) {
        // The bytes that were read may be zeroes, which must not be written to the region.
        return Err(PositionError::Unreadable);
    }
    let part = part.zip(contents);
    Ok(Shown { base, used, available, size, wrapped, part, others, too_small })
}

impl Shown {
    /// Whether the region shows that a request was taken. A process that died may have published nothing
    /// of what it took.
    pub(crate) fn region_shows_use(&self) -> bool {
        let own = self.part.iter().map(|(_, contents)| contents);
        own.chain(&self.others).any(Contents::shows_use)
    }

    /// Whether the region has a part for a ring of this size.
    pub(crate) fn has_part(&self) -> bool {
        self.part.is_some()
    }

    /// Whether something is in flight in a part for rings of another size.
    pub(crate) fn is_marked_elsewhere(&self) -> bool {
        self.others.iter().any(Contents::is_marked)
    }

    /// Decides where the ring continues, and brings its part of the region up to date.
    ///
    /// A ring starts at its used index, and not at the base that the front end names: everything taken
    /// was published before a ring stopped, and the base may be older than that. If the process died
    /// instead, the requests in flight are added, which the region names. Without a region, no request was
    /// published out of order, so all that follow the used index are still to be done.
    ///
    /// # Errors
    /// The part contradicts the ring, or `record` requires a part and there is none.
    pub(crate) fn begin(self, record: Record) -> Result<Position, RecoveryError> {
        let Self { used, available, size, part, .. } = self;
        let standing = Standing { size, used, available };
        let (mut resubmit, mut later) = (0, 0);
        let inflight_log = match record {
            Record::Region => {
                let (part, contents) = part.ok_or(RecoveryError::RingSize { ring: size })?;
                let recovery = contents.recover(standing)?;
                (resubmit, later) = (recovery.resubmit.len(), recovery.later);
                InflightLog::Region(recovery.carry_out(part, standing))
            }
            Record::Order => InflightLog::Order(Order::new(size)),
            Record::None => InflightLog::None,
        };
        // Those that are resubmitted were taken already: the ring has them, at most its size.
        let next_avail = used.wrapping_add(resubmit as u16);
        Ok(Position { next_avail, next_used: used, inflight_log, resubmit, later })
    }
}

/// Whether every element of the used ring was written. Only a device writes them, and a completed
/// request has a length of at least one byte. A driver that starts anew zeroes its ring (VIRTIO 1.2,
/// 4.1.5.1.3 and 4.2.3.2; Linux and OVMF do, and virtio-win when it shuts a queue down). If a driver does
/// not, its ring has elements that were never written, unless the indexes have wrapped around.
fn has_wrapped(queue: &Queue, memory: &Memory) -> bool {
    let mut elements = (0..u64::from(queue.size())).map(|at| 4 + 8 * at);
    elements.all(|offset| {
        let element = GuestAddress(queue.used_ring()).checked_add(offset);
        let element = element.and_then(|addr| memory.read_obj::<u64>(addr).ok());
        element.is_some_and(|element| element != 0)
    })
}

/// Whether the memory of a ring's indexes was lost. To be called after they were read.
fn is_lost(queue: &Queue, memory: &Memory) -> bool {
    let mut rings = [queue.used_ring(), queue.avail_ring()].into_iter().map(GuestAddress);
    rings.any(|ring| memory.find_region(ring).is_none_or(Region::is_lost))
}

/// Whether the guest has cleared a ring since it was started, and begins anew: the ring may be started
/// before the driver has zeroed what another driver left in the memory. To be called before the first head
/// is taken, when all indexes in the ring are the driver's.
pub(crate) fn was_cleared(queue: &Queue, memory: &Memory) -> bool {
    // The driver makes heads available after it has cleared the used index.
    queue.next_used() != 0
        // More than that is left from before, and is cleared next.
        && queue.avail_idx(memory, Ordering::Acquire).is_ok_and(|index| index.0 <= queue.size())
        && ring::used_index(queue, memory) == Some(0)
        // Lost memory reads as zeroes too.
        && !is_lost(queue, memory)
}
