//! The most that a pool takes, which is when no page compresses.

use std::sync::Mutex;

use super::cache::Caches;
use super::class::{Class, most_ahead};
use super::layout::{Classes, SPAN_OBJECTS};
use super::objects::Pool;
use super::region::Regions;
use super::span::Span;
use crate::store::HOST_PAGE;
use crate::units::PAGE_SIZE;

/// Pages that a class may have at rest beyond what its objects fill: one that they fill in part, and the two
/// for which upkeep does not move objects (`compact.rs`).
const BEYOND: u64 = 3;

/// The most that a pool takes, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolWorst {
    /// Of the arena: every page is an object as large as there is, and each class has the pages beyond its
    /// objects that it may have at rest.
    pub arena_bytes: u64,
    /// Of the heap: spans, regions and caches.
    pub heap_bytes: u64,
}

impl Pool {
    /// The most that a new pool for a disk of `pages` pages takes at rest. What requests and upkeep are about
    /// to free, and have not yet, comes on top.
    pub fn worst_case_of(pages: u64) -> PoolWorst {
        worst_case(Classes::for_pages(pages), pages)
    }

    /// The same of this pool, for a disk of `pages` pages.
    pub fn worst_case(&self, pages: u64) -> PoolWorst {
        worst_case(self.kinds, pages)
    }
}

fn worst_case(kinds: Classes, pages: u64) -> PoolWorst {
    let classes = kinds.count() as u64;
    let object = kinds.shape(kinds.of(PAGE_SIZE)).object_bytes();
    // Places in caches are in use to their class, and no page's.
    let objects = pages + Caches::most_places(pages);
    let host_pages = (objects * object).div_ceil(HOST_PAGE);
    let beyond = most_ahead(host_pages) + classes * BEYOND;
    // A vector has room for up to twice its members.
    let spans = objects.div_ceil(u64::from(SPAN_OBJECTS)) + classes;
    let heap_bytes = 2 * spans * (size_of::<Span>() as u64 + 1)
        + classes * size_of::<Mutex<Class>>() as u64
        + Regions::most_heap(Pool::address_space_for(pages * PAGE_SIZE as u64))
        + Caches::most_heap(kinds.count());
    PoolWorst { arena_bytes: (host_pages + beyond) * HOST_PAGE, heap_bytes }
}
