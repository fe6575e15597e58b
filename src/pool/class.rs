//! A size class: objects of one length range, in spans of its own.

use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasherDefault, Hasher};

use super::span::{SPAN_BYTES, Span, SpanId, SpanSource};
use super::{Budget, PoolError};
use crate::store::{Arena, Place};
use crate::units::PAGE_SIZE;

/// Bytes between the object sizes of neighbouring classes.
const CLASS_STEP: usize = 32;

/// Number of classes: objects of 32, 64, ... 4096 bytes.
pub(super) const CLASSES: usize = PAGE_SIZE / CLASS_STEP;

/// The class of objects of this length, 1..=4096 bytes.
pub(super) fn class_of(length: usize) -> usize {
    length.div_ceil(CLASS_STEP) - 1
}

/// Span numbers are dense small integers: multiplying spreads them, and there is nobody to attack
/// the table with chosen keys.
#[derive(Default)]
struct SpanHasher(u64);

impl Hasher for SpanHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u32(u32::from(*byte));
        }
    }

    fn write_u32(&mut self, n: u32) {
        self.0 = (self.0 ^ u64::from(n)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(26);
    }
}

/// All spans of one class. A class is used under its mutex.
pub(super) struct Class {
    object_bytes: u64,
    /// Objects in a span.
    capacity: u32,
    spans: HashMap<SpanId, Span, BuildHasherDefault<SpanHasher>>,
    /// Spans with a free object; the lowest is used first, so high ones run empty.
    partial: BTreeSet<SpanId>,
}

impl Class {
    pub(super) fn new(class: usize) -> Self {
        let object_bytes = ((class + 1) * CLASS_STEP) as u64;
        let capacity = (SPAN_BYTES / object_bytes) as u32;
        Self { object_bytes, capacity, spans: HashMap::default(), partial: BTreeSet::new() }
    }

    /// Takes an object's place; its memory is committed.
    pub(super) fn allocate(
        &mut self,
        arena: &Arena,
        budget: &Budget,
        source: &SpanSource,
    ) -> Result<Place, PoolError> {
        let id = match self.partial.first() {
            Some(id) => *id,
            None => {
                let id = source.take()?;
                self.spans.insert(id, Span::new(self.capacity));
                self.partial.insert(id);
                id
            }
        };
        let span = self.spans.get_mut(&id).expect("a partial span is one of the class");
        let taken = span.take(id, self.object_bytes, arena, budget);
        if span.count() == self.capacity {
            self.partial.remove(&id);
        } else if span.count() == 0 {
            // A fresh span that could not be committed.
            self.retire(id, arena, budget, source);
        }
        taken
    }

    /// Frees the object at `place`; an emptied span goes back to the host.
    pub(super) fn free(
        &mut self,
        place: Place,
        arena: &Arena,
        budget: &Budget,
        source: &SpanSource,
    ) {
        let id = (place.offset() / SPAN_BYTES) as SpanId;
        let within = place.offset() % SPAN_BYTES;
        assert_eq!(within % self.object_bytes, 0, "{place:?} is no object of this class");
        let span = self.spans.get_mut(&id);
        let span = span.expect("a freed object lies in a span of its class");
        let was_full = span.count() == self.capacity;
        span.give_back(within / self.object_bytes);
        if span.count() == 0 {
            self.retire(id, arena, budget, source);
        } else if was_full {
            self.partial.insert(id);
        }
    }

    fn retire(&mut self, id: SpanId, arena: &Arena, budget: &Budget, source: &SpanSource) {
        let Some(span) = self.spans.get_mut(&id) else { return };
        if span.decommit(id, arena, budget) {
            self.spans.remove(&id);
            self.partial.remove(&id);
            source.give_back(id);
        } else {
            self.partial.insert(id);
        }
    }

    pub(super) fn heap_bytes(&self) -> u64 {
        let entry = size_of::<(SpanId, Span)>() + 1;
        let spans: u64 = self.spans.values().map(Span::heap_bytes).sum();
        let partial = self.partial.len() * size_of::<SpanId>() * 3 / 2;
        spans + (self.spans.capacity() * entry + partial) as u64
    }

    #[cfg(test)]
    pub(super) fn objects(&self) -> u64 {
        self.spans.values().map(|span| u64::from(span.count())).sum()
    }
}
