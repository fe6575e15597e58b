//! Where a ring that is started goes on, and whether this disk may serve it.

use std::sync::atomic::Ordering;

use virtio_queue::{Queue, QueueT};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend};

use crate::virtq::account::Account;
use crate::virtq::inflight::{Contents, Part, Parts};
use crate::virtq::memory::{Memory, Region};
use crate::virtq::order::Order;
use crate::virtq::recovery::{RecoveryError, Standing};
use crate::virtq::ring;

/// Why a ring is not served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PositionError {
    #[error("its rings lie outside of its memory")]
    Outside,
    #[error("its rings cannot be read")]
    Unreadable,
    #[error(
        "it is in use already (base {base}, used index {used}{}), and this disk never served a \
         guest: what the guest wrote is not here, so it is not served",
        .trace.map(Trace::text).unwrap_or_default()
    )]
    NeverServed { base: u16, used: u16, trace: Option<Trace> },
    #[error("its in-flight region cannot be of this ring: {0}")]
    Recovery(#[from] RecoveryError),
}

/// What a ring that was in use leaves, besides its indexes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trace {
    /// The in-flight region shows that requests were taken.
    Region,
    /// Each element of the used ring was written: both indexes were here before, a multiple of 65536
    /// requests ago.
    UsedRing,
}

impl Trace {
    fn text(self) -> &'static str {
        match self {
            Trace::Region => ", its in-flight region used",
            Trace::UsedRing => ", its used ring written all around",
        }
    }
}

/// What is known of a ring before it is looked at.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Known {
    /// The disk served a guest, or the ring was started in this session: it may be in use.
    pub(crate) may_be_used: bool,
    /// The region shows that another queue is in use, and none of it was used here.
    pub(crate) elsewhere: bool,
    /// What is on the disk outlives this process.
    pub(crate) outlives: bool,
}

/// Where a ring goes on.
#[derive(Debug)]
pub(crate) struct Position {
    pub(crate) next_avail: u16,
    pub(crate) next_used: u16,
    pub(crate) account: Account,
    /// Requests in flight that are taken up again.
    pub(crate) again: usize,
    /// Requests that had been completed before one of those.
    pub(crate) later: u64,
    /// Entries of the region, if they are too few for the ring, which goes on without it.
    pub(crate) too_small: Option<u16>,
}

/// Looks at a ring and at its parts of the in-flight region, and brings its own part up to date.
///
/// A ring starts at its used index, and not at the base that the front end names: everything taken
/// was published before a ring stopped, and the base may be older than that. If the process died
/// instead, those in flight come on top, which the region tells; without a region, nothing was
/// published before its turn, so all behind the used index is still to be done.
pub(crate) fn find(
    queue: &Queue,
    memory: &Memory,
    parts: Option<Parts>,
    known: Known,
) -> Result<Position, PositionError> {
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
    // A daemon that died may have published nothing of what it took.
    let tracked = known.elsewhere || contents.iter().chain(&others).any(Contents::shows_use);
    let trace = match tracked {
        _ if known.may_be_used => None,
        true => Some(Trace::Region),
        false => went_around(queue, memory).then_some(Trace::UsedRing),
    };
    if is_lost(queue, memory) {
        // What was read may be zeroes, and they must not go into the region.
        return Err(PositionError::Unreadable);
    }
    if !known.may_be_used && (base != 0 || used != 0 || trace.is_some()) {
        return Err(PositionError::NeverServed { base, used, trace });
    }
    if others.iter().any(Contents::is_marked) {
        return Err(RecoveryError::RingSize { ring: size }.into());
    }
    let standing = Standing { size, used, available };
    let (mut again, mut later) = (0, 0);
    let account = match part.zip(contents) {
        Some((part, contents)) => {
            let recovery = contents.recover(standing)?;
            (again, later) = (recovery.again.len(), recovery.later);
            Account::Tracked(recovery.carry_out(part, standing))
        }
        None if known.outlives => Account::Ordered(Order::new(size)),
        None => Account::None,
    };
    // Those that are taken again were taken already: the ring has them, at most its size.
    let next_avail = used.wrapping_add(again as u16);
    Ok(Position { next_avail, next_used: used, account, again, later, too_small })
}

/// Whether every element of the used ring was written. Only a device writes them, and a completed
/// request has a length of at least one byte. A driver that starts anew zeroes its ring (VIRTIO 1.2,
/// 4.1.5.1.3 and 4.2.3.2; Linux and OVMF do, and virtio-win when it shuts a queue down). In the ring of
/// one that does not, elements are left that were never written, unless the ring has gone around.
fn went_around(queue: &Queue, memory: &Memory) -> bool {
    let mut elements = (0..u64::from(queue.size())).map(|at| 4 + 8 * at);
    elements.all(|offset| {
        let element = GuestAddress(queue.used_ring()).checked_add(offset);
        let element = element.and_then(|addr| memory.read_obj::<u64>(addr).ok());
        element.is_some_and(|element| element != 0)
    })
}

/// Whether the memory is gone that a ring's indexes lie in. Asked after they were read.
fn is_lost(queue: &Queue, memory: &Memory) -> bool {
    let mut rings = [queue.used_ring(), queue.avail_ring()].into_iter().map(GuestAddress);
    rings.any(|ring| memory.find_region(ring).is_none_or(Region::is_lost))
}

/// Whether the guest has cleared a ring since it was started, and begins anew: a start may come while
/// the driver is about to zero what another one has left in the memory. Asked before the first head is
/// taken, when all indexes in the ring are the driver's.
pub(crate) fn was_cleared(queue: &Queue, memory: &Memory) -> bool {
    // The driver makes heads available after it has cleared the used index.
    queue.next_used() != 0
        && queue.avail_idx(memory, Ordering::Acquire).is_ok()
        && ring::used_index(queue, memory) == Some(0)
        // Lost memory reads as zeroes too.
        && !is_lost(queue, memory)
}
