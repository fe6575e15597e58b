//! Access to the arena beside the objects: tags, and memory that goes back to the host.
//!
//! These functions are safe within the pool only: its spans say which bytes belong to an object, and an
//! object's bytes belong to its owner.
#![allow(unsafe_code)]

use std::io;
use std::sync::atomic::Ordering;

use crate::store::{Arena, Place};

/// The owner that the tag of an object in use names. The object may be new or freed since: then the tag
/// names any slot. Called with the mutex of its class, so the memory exists.
pub(super) fn owner(arena: &Arena, place: Place) -> u32 {
    // SAFETY: the place is allocated, and a tag is accessed by this function and by `fill` of `owned` alone.
    unsafe { arena.tag(place) }.load(Ordering::Relaxed)
}

/// Gives memory of the arena back to the host on which no object lies.
pub(super) fn decommit(arena: &Arena, offset: u64, len: u64) -> io::Result<()> {
    // SAFETY: no object lies there, says the bookkeeping of the pool, which is behind a mutex.
    unsafe { arena.decommit(offset, len) }
}
