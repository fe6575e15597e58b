//! The part of an in-flight region for one queue: a header, and an entry for each descriptor.
//!
//! ```text
//! part of a queue: header of 16 bytes, then 16 bytes for each descriptor; a multiple of 64 bytes
//! header:  0 u64 features, 0 | 8 u16 version | 10 u16 entries | 12 u16 last batch head | 14 u16 used index
//! entry:   0 u8 in flight    | 6 u16 next    |  8 u64 counter
//! ```
//!
//! The next process sees all that a dead one has stored until it died, in the order of its instructions. So
//! all stores here are release stores: the compiler keeps their order. That order is the protocol.
//! `region_log` implements it, and `recovery` reads the result.

use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use vm_memory::{AtomicAccess, AtomicInteger, VolatileMemory};

use crate::failpoint;
use crate::virtq::handed::Mapped;

/// The layout that this code writes; 0 is a part that no ring was started with.
pub(crate) const VERSION: u16 = 1;

/// Bytes of a part's header.
pub(crate) const HEADER_BYTES: usize = 16;
/// Bytes of the entry of one descriptor.
pub(crate) const ENTRY_BYTES: usize = 16;

// Offsets in a header.
const FEATURES: usize = 0;
const VERSION_AT: usize = 8;
const ENTRIES: usize = 10;
const LAST_HEAD: usize = 12;
const USED_INDEX: usize = 14;
// Offsets in an entry.
const IN_FLIGHT: usize = 0;
const NEXT: usize = 6;
const COUNTER: usize = 8;

/// What a part records of one head.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) in_flight: u8,
    pub(crate) next: u16,
    pub(crate) counter: u64,
}

/// The contents of a part, read once and not trusted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Contents {
    pub(crate) features: u64,
    pub(crate) version: u16,
    /// Number of entries, as the header has it.
    pub(crate) size: u16,
    pub(crate) last_head: u16,
    pub(crate) used_index: u16,
    pub(crate) entries: Vec<Entry>,
}

/// Entries for one queue's descriptors.
#[derive(Debug)]
pub(crate) struct Part {
    mapped: Arc<Mapped>,
    /// Offset of the header.
    at: usize,
    /// Number of entries that there is room for.
    capacity: u16,
    is_large: bool,
}

impl Part {
    /// The part at `at` in a region, with room for `capacity` entries.
    pub(crate) fn new(mapped: Arc<Mapped>, at: usize, capacity: u16, is_large: bool) -> Self {
        Self { mapped, at, capacity, is_large }
    }

    pub(crate) fn capacity(&self) -> u16 {
        self.capacity
    }

    /// Whether a large part is as it was made: not a byte of its header was written. Reads the file, since
    /// a read through the mapping would allocate memory for each unused part.
    pub(crate) fn is_untouched(&self) -> bool {
        let Some(place) = self.mapped.mapping.file_offset().filter(|_| self.is_large) else {
            return false;
        };
        let mut header = [0; HEADER_BYTES];
        let read = place.file().read_exact_at(&mut header, place.start() + self.at as u64);
        read.is_ok() && header == [0; HEADER_BYTES]
    }

    /// Reads all of it, or nothing if a piece of the file was truncated. All of a large part is as many
    /// entries as its header names, and at least those of a ring of `size`.
    pub(crate) fn read(&self, size: u16) -> Option<Contents> {
        let entry = |head: u16| {
            let at = entry_at(head);
            Entry {
                in_flight: self.load(at + IN_FLIGHT),
                next: self.load(at + NEXT),
                counter: self.load(at + COUNTER),
            }
        };
        let said = self.load(ENTRIES);
        let count = if self.is_large { size.max(said).min(self.capacity) } else { self.capacity };
        let contents = Contents {
            features: self.load(FEATURES),
            version: self.load(VERSION_AT),
            size: said,
            last_head: self.load(LAST_HEAD),
            used_index: self.load(USED_INDEX),
            entries: (0..count).map(entry).collect(),
        };
        // What is lost reads as zeroes, which would look like a fresh part.
        (!self.mapped.watch.faulted()).then_some(contents)
    }

    /// Makes a fresh part one of a ring of `size` that stands at `used`.
    pub(crate) fn begin(&self, size: u16, used: u16) {
        // All of a part that was asked for, as daemons do that know of no others.
        self.store(ENTRIES, if self.is_large { size } else { self.capacity });
        // Left at 0 it would make the next start believe in a last batch of `used` entries.
        self.store(USED_INDEX, used);
        // Last, so that a part with a version is whole.
        self.store(VERSION_AT, VERSION);
    }

    /// Marks a head as taken, with its counter.
    pub(crate) fn mark(&self, head: u16, counter: u64) {
        let at = entry_at(head);
        self.store(at + COUNTER, counter);
        self.store(at + IN_FLIGHT, 1_u8);
    }

    /// Unmarks a head that was not done, so that it does not pass for one that was.
    pub(crate) fn unmark(&self, head: u16) {
        let at = entry_at(head);
        self.store(at + IN_FLIGHT, 0_u8);
        self.store(at + COUNTER, 0_u64);
    }

    /// Chains a head that is about to be put into the used ring to the one before it.
    pub(crate) fn chain(&self, head: u16, before: u16) {
        self.store(entry_at(head) + NEXT, before);
        self.store(LAST_HEAD, head);
    }

    /// Ends the giving back of a batch that is in the used ring, up to the index `used`.
    pub(crate) fn end_batch(&self, heads: impl IntoIterator<Item = u16>, used: u16) {
        let mut first = true;
        for head in heads {
            self.store(entry_at(head) + IN_FLIGHT, 0_u8);
            if std::mem::take(&mut first) {
                failpoint::reach("ring.cleared");
            }
        }
        self.store(USED_INDEX, used);
    }

    fn load<T: AtomicAccess + Default>(&self, offset: usize) -> T {
        let place = self.mapped.mapping.get_atomic_ref::<T::A>(self.at + offset);
        // All offsets lie in the mapping, and are aligned.
        place.map_or_else(|_| T::default(), |place| place.load(Ordering::Acquire).into())
    }

    #[inline]
    fn store<T: AtomicAccess>(&self, offset: usize, value: T) {
        #[cfg(test)]
        tests::before_store();
        let place = self.mapped.mapping.get_atomic_ref::<T::A>(self.at + offset);
        debug_assert!(place.is_ok(), "offset {offset} lies outside");
        if let Ok(place) = place {
            place.store(value.into(), Ordering::Release);
        }
    }
}

fn entry_at(head: u16) -> usize {
    HEADER_BYTES + ENTRY_BYTES * usize::from(head)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::cell::RefCell;

    use super::*;

    thread_local! {
        static BEFORE_STORE: RefCell<Option<Box<dyn FnMut()>>> = const { RefCell::new(None) };
    }

    /// Calls `hook` before each store of this thread to a region, until this is called with `None`.
    pub(crate) fn watch_stores(hook: Option<Box<dyn FnMut()>>) {
        BEFORE_STORE.set(hook);
    }

    pub(crate) fn before_store() {
        BEFORE_STORE.with_borrow_mut(|hook| {
            if let Some(hook) = hook {
                hook();
            }
        });
    }

    /// Changes the contents of a part to what another process would have left.
    pub(crate) fn overwrite(part: &Part, contents: &Contents) {
        assert_eq!(contents.entries.len(), usize::from(part.capacity));
        part.store(FEATURES, contents.features);
        part.store(VERSION_AT, contents.version);
        part.store(ENTRIES, contents.size);
        part.store(LAST_HEAD, contents.last_head);
        part.store(USED_INDEX, contents.used_index);
        for (head, entry) in (0..).zip(&contents.entries) {
            part.store(entry_at(head) + IN_FLIGHT, entry.in_flight);
            part.store(entry_at(head) + NEXT, entry.next);
            part.store(entry_at(head) + COUNTER, entry.counter);
        }
    }

    impl Part {
        /// Offset of the part in its region.
        pub(crate) fn offset(&self) -> usize {
            self.at
        }
    }
}
