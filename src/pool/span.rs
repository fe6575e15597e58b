//! Spans: the pieces of the arena that classes carve objects from.

use std::collections::BTreeSet;
use std::sync::Mutex;

use crate::store::{Arena, Place};
use crate::sync;

use super::{Budget, PoolError};

/// Bytes of a span.
pub(super) const SPAN_BYTES: u64 = 64 * 1024;

/// Bytes committed at a time: a batch of host pages costs a third a page of what single ones do.
const COMMIT_BYTES: u64 = 16 * 1024;

/// Number of a span in the arena.
pub(super) type SpanId = u32;

/// A span that belongs to a class.
#[derive(Debug)]
pub(super) struct Span {
    /// One bit for each object that is in use.
    used: Box<[u64]>,
    /// Objects in use.
    count: u32,
    /// Bytes committed, from the start; grows as higher objects are used for the first time.
    committed: u64,
}

impl Span {
    pub(super) fn new(capacity: u32) -> Self {
        let used = vec![0; capacity.div_ceil(64) as usize].into_boxed_slice();
        Self { used, count: 0, committed: 0 }
    }

    pub(super) fn count(&self) -> u32 {
        self.count
    }

    /// Takes the lowest free object of a span that is not full, committing its memory first.
    pub(super) fn take(
        &mut self,
        id: SpanId,
        object_bytes: u64,
        arena: &Arena,
        budget: &Budget,
    ) -> Result<Place, PoolError> {
        let group = self.used.iter().position(|bits| *bits != u64::MAX);
        let Some(group) = group else { unreachable!("span {id} is full") };
        let bit = self.used[group].trailing_ones();
        let index = group as u64 * 64 + u64::from(bit);
        let start = index * object_bytes;
        self.commit_up_to(start + object_bytes, id, arena, budget)?;
        self.used[group] |= 1 << bit;
        self.count += 1;
        Ok(Place::from_offset(u64::from(id) * SPAN_BYTES + start))
    }

    /// Marks an object as free.
    pub(super) fn give_back(&mut self, index: u64) {
        let (group, bit) = ((index / 64) as usize, index % 64);
        let was_used = self.used[group] >> bit & 1 == 1;
        assert!(was_used, "object {index} of a span was freed twice");
        self.used[group] &= !(1 << bit);
        self.count -= 1;
    }

    /// Gives all memory of a span without objects back to the host. True if the host took it; if
    /// not, the span has to stay where it is.
    pub(super) fn decommit(&mut self, id: SpanId, arena: &Arena, budget: &Budget) -> bool {
        debug_assert_eq!(self.count, 0);
        match arena.decommit(u64::from(id) * SPAN_BYTES, SPAN_BYTES) {
            Ok(()) => {
                budget.release(self.committed);
                self.committed = 0;
                true
            }
            Err(error) => {
                log::warn!("cannot give {SPAN_BYTES} bytes back to the host: {error}");
                false
            }
        }
    }

    pub(super) fn heap_bytes(&self) -> u64 {
        size_of_val(&*self.used) as u64
    }

    fn commit_up_to(
        &mut self,
        end: u64,
        id: SpanId,
        arena: &Arena,
        budget: &Budget,
    ) -> Result<(), PoolError> {
        if end <= self.committed {
            return Ok(());
        }
        let target = end.next_multiple_of(COMMIT_BYTES).min(SPAN_BYTES);
        let more = target - self.committed;
        budget.reserve(more)?;
        let offset = u64::from(id) * SPAN_BYTES + self.committed;
        if let Err(error) = arena.commit(offset, more) {
            budget.release(more);
            return Err(error.into());
        }
        self.committed = target;
        Ok(())
    }
}

/// Hands out spans that no class has, the lowest first, so that the arena stays dense.
pub(super) struct SpanSource {
    total: u64,
    state: Mutex<Free>,
}

#[derive(Default)]
struct Free {
    /// Spans given back, all below `next`.
    returned: BTreeSet<SpanId>,
    /// The first span that was never handed out.
    next: SpanId,
}

impl SpanSource {
    pub(super) fn new(total: u64) -> Self {
        Self { total, state: Mutex::default() }
    }

    pub(super) fn take(&self) -> Result<SpanId, PoolError> {
        let mut free = sync::lock(&self.state);
        if let Some(id) = free.returned.pop_first() {
            return Ok(id);
        }
        let id = free.next;
        if u64::from(id) >= self.total || id == SpanId::MAX {
            return Err(PoolError::AddressSpace { bytes: self.total * SPAN_BYTES });
        }
        free.next += 1;
        Ok(id)
    }

    pub(super) fn give_back(&self, id: SpanId) {
        sync::lock(&self.state).returned.insert(id);
    }

    pub(super) fn heap_bytes(&self) -> u64 {
        // A B-tree keeps its nodes between half full and full.
        let returned = sync::lock(&self.state).returned.len();
        (returned * size_of::<SpanId>() * 3 / 2) as u64
    }
}
