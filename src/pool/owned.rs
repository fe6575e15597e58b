//! Objects as values: the only access to their bytes.
//!
//! An [`Owned`] is an object that no slot names: one that was just stored, or one whose slot has
//! another content since. It frees the object when it is dropped. A slot that is to name the object takes
//! its place out of the value ([`Owned::into_place`]), and is the owner from then on.
#![allow(unsafe_code)]

use std::sync::atomic::Ordering;

use super::PoolError;
use super::layout::TAG_BYTES;
use super::objects::Pool;
use crate::failpoint;
use crate::store::Place;

/// An object that no slot names. Dropping it frees it.
///
/// A program without `unsafe` cannot see the bytes of an object change:
///
/// ```
/// #![forbid(unsafe_code)]
/// use vhost_user_zram::internals::{Arena, MemoryKind, Pool};
/// let arena = Arena::new(1 << 30, &MemoryKind::default()).unwrap();
/// let pool = Pool::new(arena, 64, 0).unwrap();
/// let object = pool.store(b"first", 0).unwrap();
/// let bytes = object.bytes();
/// assert_eq!(bytes, b"first");
/// drop(object);
/// let other = pool.store(b"other", 0).unwrap();
/// ```
///
/// The same program does not compile if it uses `bytes` after the object, in place of which the other one lies:
///
/// ```compile_fail,E0505
/// #![forbid(unsafe_code)]
/// use vhost_user_zram::internals::{Arena, MemoryKind, Pool};
/// let arena = Arena::new(1 << 30, &MemoryKind::default()).unwrap();
/// let pool = Pool::new(arena, 64, 0).unwrap();
/// let object = pool.store(b"first", 0).unwrap();
/// let bytes = object.bytes();
/// assert_eq!(bytes, b"first");
/// drop(object);
/// let other = pool.store(b"other", 0).unwrap();
/// assert_eq!(bytes, b"first");
/// ```
#[must_use = "dropping the object frees it"]
pub struct Owned<'p> {
    pool: &'p Pool,
    place: Place,
    /// Bytes, 1 to 4096.
    length: usize,
}

impl Owned<'_> {
    /// Where the object lies.
    pub fn place(&self) -> Place {
        self.place
    }

    /// Whether the object lies in this pool.
    pub fn is_in(&self, pool: &Pool) -> bool {
        std::ptr::eq(self.pool, pool)
    }

    /// The object's bytes.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the object is this value's own, and it is freed when that is dropped.
        unsafe { self.pool.bytes(self.place, self.length) }
    }

    /// Gives the object to a slot, which names its place. It is freed by the caller that takes it
    /// out of the slot again ([`Pool::own`]); if no caller does, its memory is lost until the pool
    /// is rebuilt.
    pub fn into_place(self) -> Place {
        std::mem::ManuallyDrop::new(self).place
    }

    /// Frees the object past the threads' caches, so that its memory can be given back at once.
    pub fn free_at_once(self) {
        let this = std::mem::ManuallyDrop::new(self);
        this.pool.free_at_once(this.place, this.length);
    }
}

impl Drop for Owned<'_> {
    fn drop(&mut self) {
        self.pool.free(self.place, self.length);
    }
}

impl Pool {
    /// Stores a new object of 1 to 4096 bytes, and beside it the number of its owner: of the slot
    /// that will name it.
    ///
    /// # Errors
    /// A limit is reached, the address space used up, or the host out of memory. Nothing has
    /// changed then.
    pub fn store(&self, object: &[u8], owner: u32) -> Result<Owned<'_>, PoolError> {
        let place = self.allocate(object.len())?;
        failpoint::reach("store.allocated");
        let stored = self.fill(place, object, owner);
        failpoint::reach("store.tagged");
        Ok(stored)
    }

    /// Copies an object to a lower place than `from`, where it lies. `None` if there is no such place. The caller
    /// has the object's slot name the copy, and then frees the original by [`Owned::free_at_once`].
    pub fn copy_below(&self, from: Place, object: &[u8], owner: u32) -> Option<Owned<'_>> {
        let place = self.allocate_below(from, object.len())?;
        Some(self.fill(place, object, owner))
    }

    /// The object at `place`, of `length` bytes, as a value.
    ///
    /// # Safety
    /// The object was stored in this pool, its slot named it until now and does so no more, and the caller
    /// is the only one to call this after that. No slice of its bytes lives.
    pub unsafe fn own(&self, place: Place, length: usize) -> Owned<'_> {
        Owned { pool: self, place, length }
    }

    /// The bytes of the object at `place`, of `length` bytes.
    ///
    /// ```compile_fail,E0133
    /// #![forbid(unsafe_code)]
    /// use vhost_user_zram::internals::{Arena, MemoryKind, Pool};
    /// let pool = Pool::new(Arena::new(1 << 30, &MemoryKind::default()).unwrap(), 64, 0).unwrap();
    /// let place = pool.store(b"first", 0).unwrap().into_place();
    /// assert_eq!(pool.bytes(place, 5), b"first");
    /// ```
    ///
    /// The same with `unsafe` compiles:
    ///
    /// ```
    /// use vhost_user_zram::internals::{Arena, MemoryKind, Pool};
    /// let pool = Pool::new(Arena::new(1 << 30, &MemoryKind::default()).unwrap(), 64, 0).unwrap();
    /// let place = pool.store(b"first", 0).unwrap().into_place();
    /// // SAFETY: no thread frees the object.
    /// assert_eq!(unsafe { pool.bytes(place, 5) }, b"first");
    /// ```
    ///
    /// # Safety
    /// The object was stored in this pool, and no thread frees it while the slice lives: the caller
    /// holds the lock of the slot that names it, or an [`Owned`].
    pub unsafe fn bytes(&self, place: Place, length: usize) -> &[u8] {
        // SAFETY: only an owner frees or moves an object, and no thread does meanwhile. Its memory
        // is given back only after it was freed.
        unsafe { self.arena.read(place, TAG_BYTES, length) }
    }

    /// Has an object fetched that will be read soon. It may be gone by now.
    #[cfg(not(loom))]
    pub fn prefetch(&self, place: Place, length: usize) {
        self.arena.prefetch(place, TAG_BYTES + length);
    }

    /// Makes the object at a place that was just allocated for it.
    fn fill(&self, place: Place, object: &[u8], owner: u32) -> Owned<'_> {
        // SAFETY: the place was allocated for an object of this length, and no other thread has it.
        unsafe { self.arena.write(place, TAG_BYTES, object) };
        failpoint::reach("store.written");
        // Compaction may check it at any time, and then finds that the owner does not name it.
        // SAFETY: the place is allocated, and tags are accessed by this function and [`owner`](super::raw::owner) alone.
        unsafe { self.arena.tag(place) }.store(owner, Ordering::Relaxed);
        Owned { pool: self, place, length: object.len() }
    }
}

#[cfg(test)]
impl Pool {
    /// Stores an object as a slot's own, for tests that keep a table of their own.
    pub(crate) fn put(&self, object: &[u8], owner: u32) -> Result<Place, PoolError> {
        self.store(object, owner).map(Owned::into_place)
    }

    /// The bytes of an object that [`Pool::put`] stored.
    pub(crate) fn get(&self, place: Place, length: usize) -> Vec<u8> {
        // SAFETY: tests call this with objects of their table only, and free none meanwhile.
        unsafe { self.bytes(place, length) }.to_vec()
    }

    /// Takes an object that [`Pool::put`] stored out of the test's table.
    pub(crate) fn take(&self, place: Place, length: usize) -> Owned<'_> {
        // SAFETY: tests call this once for each object of their table.
        unsafe { self.own(place, length) }
    }

    /// What lies after an object on its last page.
    pub(crate) fn bytes_after(&self, place: Place, length: usize) -> Vec<u8> {
        let end = place.offset() + (TAG_BYTES + length) as u64;
        let rest = end.next_multiple_of(crate::store::HOST_PAGE) - end;
        // SAFETY: tests call this while no other thread uses the pool.
        unsafe { self.arena.read(place, TAG_BYTES + length, rest as usize) }.to_vec()
    }
}
