//! Variable-size objects in an arena: what zsmalloc is to the zram driver.
//!
//! Objects of similar length share a *size class*, a class carves its objects out of *spans* of
//! the arena, and a span's host pages are committed one by one as its objects are used. An object
//! never crosses a span, is contiguous, and is read in place. `docs/memory.md` has the layout in
//! bytes, and why it is this one.
//!
//! The pool keeps no note of an object's length: the owner of the object knows it, and says it
//! again when freeing. A class is therefore a function of the length alone, and all that the pool
//! knows can be rebuilt from a list of places and lengths.
//!
//! # Locks
//! A shard of caches, then a class, then the free list of regions.

// Under loom only what is shared without a mutex is built.
#[cfg(not(loom))]
mod bits;
// Its model needs but a part of it.
#[cfg_attr(loom, allow(dead_code))]
mod budget;
#[cfg(not(loom))]
mod cache;
#[cfg(not(loom))]
mod class;
#[cfg(not(loom))]
mod compact;
mod error;
#[cfg(not(loom))]
mod layout;
#[cfg(all(test, loom))]
mod loom_tests;
#[cfg(not(loom))]
mod objects;
#[cfg(not(loom))]
mod owned;
#[cfg(not(loom))]
mod raw;
#[cfg(not(loom))]
mod rebuild;
#[cfg(not(loom))]
mod region;
#[cfg(not(loom))]
mod span;
#[cfg(all(test, not(loom)))]
mod tests;
#[cfg(not(loom))]
mod worst;

#[cfg(not(loom))]
pub use self::compact::{Compaction, Effort, LastRound, Move};
pub use self::error::{PoolError, RebuildError};
#[cfg(not(loom))]
pub use self::objects::{Pool, PoolUsage};
#[cfg(not(loom))]
pub use self::owned::Owned;
#[cfg(not(loom))]
pub use self::rebuild::Named;
#[cfg(not(loom))]
pub use self::worst::PoolWorst;
