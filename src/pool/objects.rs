//! The pool as a whole: places that are allocated and freed, limits, and what all that takes.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Waker;

use super::PoolError;
use super::budget::Budget;
use super::cache::Caches;
use super::class::{CLASS, Class, Common, Load};
use super::layout::{Classes, REGION_BYTES};
use super::region::Regions;
use crate::notifier::Notifier;
use crate::store::{Arena, Place, StoreError};
use crate::sync;
use crate::units::PAGE_SIZE;

/// What the pool takes, in bytes unless it says otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolUsage {
    /// Bytes of the arena that exist, by the file's allocated blocks (`mm_stat` mem_used_total).
    pub arena_bytes: u64,
    /// The most of the arena that was ever committed at once (`mm_stat` mem_used_max).
    pub arena_bytes_max: u64,
    /// The limit on committed bytes of arena and table; 0 means no limit (`mm_stat` mem_limit).
    pub limit: u64,
    /// Host pages that objects were moved away from since the start, given back (`mm_stat`
    /// pages_compacted). Pages that were bare without that are not counted, as in the kernel.
    pub pages_compacted: u64,
    /// Heap of spans and regions.
    pub span_bytes: u64,
    /// Heap of the threads' caches of places.
    pub cache_bytes: u64,
}

/// A pool of objects of 1 to [`PAGE_SIZE`] bytes.
pub struct Pool {
    pub(super) arena: Arena,
    pub(super) budget: Budget,
    pub(super) regions: Regions,
    pub(super) kinds: Classes,
    pub(super) classes: Box<[Mutex<Class>]>,
    caches: Caches,
    notifier: Notifier,
    pub(super) pages_compacted: AtomicU64,
}

impl Pool {
    /// A pool in `arena`, which is empty, for a disk of `pages` pages. At most `limit` bytes are
    /// ever committed, those of the disk's table counted; 0 means no limit.
    ///
    /// # Errors
    /// The host refuses a mapping for what is noted of the arena.
    pub fn new(arena: Arena, pages: u64, limit: u64) -> Result<Self, StoreError> {
        let kinds = Classes::for_pages(pages);
        let classes =
            (0..kinds.count()).map(|class| Mutex::new(Class::new(class, kinds.shape(class))));
        Ok(Self {
            budget: Budget::new(limit),
            regions: Regions::new(arena.used(), arena.len())?,
            kinds,
            classes: classes.collect(),
            caches: Caches::new(kinds.count()),
            notifier: Notifier::new(),
            pages_compacted: AtomicU64::new(0),
            arena,
        })
    }

    /// Has what is needed for `bytes` bytes of address space in place, not less than before and not more than
    /// there is room for.
    ///
    /// # Errors
    /// The host does not lock so much memory.
    pub fn prepare(&self, bytes: u64) -> Result<(), StoreError> {
        self.arena.prepare(bytes)
    }

    /// Uses all the address space from now on that it was prepared for.
    pub fn grow(&self) {
        self.regions.grow(self.arena.used());
    }

    /// Address space that there is room for, in bytes.
    pub fn room(&self) -> u64 {
        self.arena.len()
    }

    /// Address space for a pool of `bytes` bytes of pages, however they are distributed over classes:
    /// twice the bytes, and two regions for each class. A class gives a region back when nothing
    /// lies in it or above it, so this is a wide margin and no proof.
    pub fn address_space_for(bytes: u64) -> u64 {
        let classes = Classes::for_pages(bytes / PAGE_SIZE as u64).count() as u64;
        bytes.saturating_mul(2).saturating_add(2 * classes * REGION_BYTES)
    }

    /// Frees an object that was stored here with this length and that no thread reads any more.
    pub(super) fn free(&self, place: Place, length: usize) {
        debug_assert!((1..=PAGE_SIZE).contains(&length));
        let number = self.kinds.of(length);
        self.caches.with(number, |magazine| {
            if magazine.push(place) {
                return;
            }
            let mut class = sync::lock_as(&CLASS, &self.classes[number]);
            class.free(place, &self.regions);
            // Half of them with it: the class is not asked again for as many as these.
            for _ in 0..magazine.resize(class.load().objects) {
                let Some(place) = magazine.pop() else { break };
                class.free(place, &self.regions);
            }
        });
        self.notifier.notify();
    }

    /// A place for an object of this length, out of the calling thread's cache if it has one.
    pub(super) fn allocate(&self, length: usize) -> Result<Place, PoolError> {
        debug_assert!((1..=PAGE_SIZE).contains(&length));
        let number = self.kinds.of(length);
        let place = self.caches.with(number, |magazine| {
            if let Some(place) = magazine.pop() {
                return Ok(place);
            }
            let mut class = sync::lock_as(&CLASS, &self.classes[number]);
            let place = class.allocate(self.common())?;
            for _ in 0..magazine.resize(class.load().objects) {
                // Only what costs no memory; nor is more of a hole filled than is needed.
                let Some(place) = class.allocate_committed() else { break };
                if !magazine.push(place) {
                    class.free(place, &self.regions);
                    break;
                }
            }
            Ok(place)
        });
        self.notifier.notify();
        place
    }

    /// A place for an object of this length that is lower than the one at `from`, in the same class.
    pub(super) fn allocate_below(&self, from: Place, length: usize) -> Option<Place> {
        let mut class = sync::lock_as(&CLASS, &self.classes[self.kinds.of(length)]);
        // No memory for a hole in a low page is not an error here.
        class.allocate_below(from, self.common()).ok().flatten()
    }

    /// Frees an object past the caches.
    pub(super) fn free_at_once(&self, place: Place, length: usize) {
        sync::lock_as(&CLASS, &self.classes[self.kinds.of(length)]).free(place, &self.regions);
    }

    /// Bytes that an object of length `to` takes less than one of length `from`, by their classes.
    pub fn saves(&self, from: usize, to: usize) -> u64 {
        let bytes = |length| self.kinds.shape(self.kinds.of(length)).object_bytes();
        bytes(from).saturating_sub(bytes(to))
    }

    /// Returns what all threads keep at hand to the classes.
    pub fn drain_caches(&self) {
        self.caches.drain(|class, place| {
            sync::lock_as(&CLASS, &self.classes[class]).free(place, &self.regions);
        });
    }

    /// What each class has.
    pub(super) fn loads(&self) -> impl Iterator<Item = Load> {
        self.classes.iter().map(|class| sync::lock_as(&CLASS, class).load())
    }

    pub(super) fn common(&self) -> Common<'_> {
        Common { arena: &self.arena, budget: &self.budget, regions: &self.regions }
    }

    /// Sets what is woken when there may be something to give back: once, until
    /// [`Pool::answer`] is called.
    pub fn set_waker(&self, waker: Waker) {
        self.notifier.set_waker(waker);
    }

    /// There may be something to give back beside the arena.
    pub fn notify(&self) {
        self.notifier.notify();
    }

    /// Whether anything was allocated or freed since the last call.
    pub fn answer(&self) -> bool {
        self.notifier.answer()
    }

    /// Bytes of arena and table that are committed, or reserved to be.
    pub fn committed(&self) -> u64 {
        self.budget.total()
    }

    /// The host could spare `spare` bytes when `before` were committed. Until it is asked again the
    /// pool takes a share of that, and refuses what needs more. False if it will not take anything.
    pub fn share(&self, before: u64, spare: u64) -> bool {
        self.budget.share(before, spare)
    }

    /// Nothing is stored at present: what was seen of the host will be old when something is.
    pub fn rest(&self) {
        self.budget.rest();
    }

    /// The most of the arena that was ever committed is from now on what is committed now.
    pub fn forget_max(&self) {
        self.budget.restart_arena_max();
    }

    /// `bytes` more than are committed now may be taken.
    #[cfg(test)]
    pub(crate) fn allow_more(&self, bytes: u64) {
        self.budget.allow_more(bytes);
    }

    /// Most bytes of arena and table; 0 means no limit.
    pub fn limit(&self) -> u64 {
        self.budget.limit()
    }

    /// Changes that limit. What is committed stays, also if that is more; no more is committed then.
    pub fn set_limit(&self, limit: u64) {
        self.budget.set_limit(limit);
        self.notifier.notify();
    }

    /// Counts anew from here: the most that the arena had, and pages that were compacted.
    pub fn restart_figures(&self) {
        self.budget.restart_arena_max();
        self.pages_compacted.store(0, Ordering::Relaxed);
    }

    /// Reserves bytes for the slot table: limits are about arena and table together.
    ///
    /// # Errors
    /// A limit is reached. Nothing is reserved then.
    pub fn reserve_table(&self, bytes: u64) -> Result<(), PoolError> {
        self.budget.reserve_table(bytes)
    }

    /// Counts bytes of the table that an earlier process left, whatever the limits are.
    pub fn adopt_table(&self, bytes: u64) {
        self.budget.adopt_table(bytes);
    }

    /// Bytes of the table do not exist any more, or could not be made to.
    pub fn release_table(&self, bytes: u64) {
        self.budget.release_table(bytes);
    }

    /// What the pool takes now.
    pub fn usage(&self) -> PoolUsage {
        let classes: u64 =
            self.classes.iter().map(|class| sync::lock_as(&CLASS, class).heap_bytes()).sum();
        PoolUsage {
            arena_bytes: self.arena.allocated_bytes(),
            arena_bytes_max: self.budget.arena_max(),
            limit: self.budget.limit(),
            pages_compacted: self.pages_compacted.load(Ordering::Relaxed),
            span_bytes: classes + size_of_val(&*self.classes) as u64 + self.regions.heap_bytes(),
            cache_bytes: self.caches.heap_bytes(),
        }
    }
}

#[cfg(test)]
impl Pool {
    /// Bytes that count as the table's.
    pub(crate) fn table_bytes(&self) -> u64 {
        self.budget.total() - self.budget.arena()
    }

    /// Checks every class, and that the arena has as many pages as the classes say; no thread may be
    /// using the pool. The first contradiction is the error.
    pub(crate) fn check(&self) -> Result<(), String> {
        for class in &self.classes {
            sync::lock_as(&CLASS, class).check(&self.regions)?;
        }
        let pages: u64 = self.loads().map(|load| load.pages).sum();
        let (file, budget) = (self.arena.allocated_bytes(), self.budget.arena());
        let bytes = pages * crate::store::HOST_PAGE;
        if bytes != file || bytes != budget {
            return Err(format!("{bytes} bytes in classes, {file} in the file, {budget} reserved"));
        }
        Ok(())
    }

    /// The arena, without what is known of it.
    pub(crate) fn into_arena(self) -> Arena {
        self.arena
    }

    /// Objects in use, those in caches not counted.
    pub(crate) fn objects(&self) -> u64 {
        self.loads().map(|load| load.objects).sum::<u64>() - self.caches.len()
    }
}
