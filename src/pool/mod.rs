//! Variable-size objects in an arena: what zsmalloc is to the zram driver.
//!
//! Objects of similar length share a *size class*, a class carves its objects out of *spans* of
//! the arena, and a span's host pages are committed as its objects are first used and given back
//! when its last object is freed. An object never crosses a span, is contiguous, and is read in
//! place.
//!
//! The pool keeps no note of an object's length: whoever owns the object knows it, and says it
//! again when freeing. A class is therefore a function of the length alone.

mod class;
mod span;
#[cfg(test)]
mod tests;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use self::class::{CLASSES, Class, class_of};
use self::span::{SPAN_BYTES, SpanSource};
use crate::store::{Arena, Place, StoreError};
use crate::sync;
use crate::units::PAGE_SIZE;

/// Why an object could not be stored. The pool is unchanged.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// Committing more memory would exceed the limit.
    #[error("the memory limit of {limit} bytes is reached")]
    Limit {
        /// The limit, in bytes.
        limit: u64,
    },
    /// All address space of the arena is in use.
    #[error("the arena's address space of {bytes} bytes is used up")]
    AddressSpace {
        /// Its size.
        bytes: u64,
    },
    /// The host has no memory.
    #[error("the arena cannot grow")]
    Store(#[from] StoreError),
}

/// What the pool takes, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolUsage {
    /// Bytes of the arena that exist, by the file's allocated blocks (`mm_stat` mem_used_total).
    pub arena_bytes: u64,
    /// The most that was ever committed at once (`mm_stat` mem_used_max).
    pub arena_bytes_max: u64,
    /// The limit on committed bytes; 0 is none (`mm_stat` mem_limit).
    pub limit: u64,
    /// Bookkeeping on the heap.
    pub metadata_bytes: u64,
}

/// Committed bytes and their limit, shared by all classes.
#[derive(Debug)]
struct Budget {
    committed: AtomicU64,
    committed_max: AtomicU64,
    /// Bytes; `u64::MAX` is none.
    limit: u64,
}

impl Budget {
    /// Reserves bytes before they are committed, with one atomic add, so that any number of
    /// writers together cannot overshoot.
    fn reserve(&self, bytes: u64) -> Result<(), PoolError> {
        let now = self.committed.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if now > self.limit {
            self.release(bytes);
            return Err(PoolError::Limit { limit: self.limit });
        }
        self.committed_max.fetch_max(now, Ordering::Relaxed);
        Ok(())
    }

    fn release(&self, bytes: u64) {
        self.committed.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// A pool of objects of 1 to [`PAGE_SIZE`] bytes.
pub struct Pool {
    arena: Arena,
    budget: Budget,
    spans: SpanSource,
    classes: Box<[Mutex<Class>]>,
}

impl Pool {
    /// A pool in `arena`, which is empty. At most `limit` bytes are ever committed; 0 is no limit.
    pub fn new(arena: Arena, limit: u64) -> Self {
        let spans = SpanSource::new(arena.len() / SPAN_BYTES);
        let limit = if limit == 0 { u64::MAX } else { limit };
        let budget =
            Budget { committed: AtomicU64::new(0), committed_max: AtomicU64::new(0), limit };
        let classes = (0..CLASSES).map(|class| Mutex::new(Class::new(class))).collect();
        Self { arena, budget, spans, classes }
    }

    /// Address space that a pool needs so that `bytes` bytes of pages fit however they are
    /// distributed over classes: twice the bytes, and a span for each class.
    pub fn address_space_for(bytes: u64) -> u64 {
        bytes.saturating_mul(2).saturating_add(CLASSES as u64 * SPAN_BYTES)
    }

    /// Stores a new object of 1 to [`PAGE_SIZE`] bytes.
    ///
    /// # Errors
    /// The limit is reached, the address space used up, or the host out of memory. Nothing has
    /// changed then.
    pub fn store(&self, object: &[u8]) -> Result<Place, PoolError> {
        debug_assert!((1..=PAGE_SIZE).contains(&object.len()));
        let class = &self.classes[class_of(object.len())];
        let place = sync::lock(class).allocate(&self.arena, &self.budget, &self.spans)?;
        self.arena.write(place, object);
        Ok(place)
    }

    /// Frees an object that was stored here with this length and that nobody reads any more.
    pub fn free(&self, place: Place, length: usize) {
        debug_assert!((1..=PAGE_SIZE).contains(&length));
        let class = &self.classes[class_of(length)];
        sync::lock(class).free(place, &self.arena, &self.budget, &self.spans);
    }

    /// The bytes of a stored object. The caller owns it: it holds the lock of the slot that names
    /// it, so nobody frees it meanwhile.
    pub fn read(&self, place: Place, length: usize) -> &[u8] {
        self.arena.read(place, length)
    }

    /// What the pool takes now.
    pub fn usage(&self) -> PoolUsage {
        let heap: u64 = self.classes.iter().map(|class| sync::lock(class).heap_bytes()).sum();
        PoolUsage {
            arena_bytes: self.arena.allocated_bytes(),
            arena_bytes_max: self.budget.committed_max.load(Ordering::Relaxed),
            limit: if self.budget.limit == u64::MAX { 0 } else { self.budget.limit },
            metadata_bytes: heap + self.spans.heap_bytes(),
        }
    }

    /// Objects stored now, by walking all classes; for tests.
    #[cfg(test)]
    fn objects(&self) -> u64 {
        self.classes.iter().map(|class| sync::lock(class).objects()).sum()
    }
}
