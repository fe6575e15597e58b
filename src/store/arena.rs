//! The mapping that objects live in.
#![allow(unsafe_code)]

use std::io;

use super::mapping::{Extent, Mapping};
use super::{HOST_PAGE, MemoryKind, Place, State, StoreError};
use crate::sync::{AtomicU32, AtomicU64, Ordering};

/// A sparse range of shared memory for objects.
///
/// It only moves bytes and pages. The layers above decide which thread owns which bytes, so all
/// access to bytes here is `unsafe`; `pool/owned.rs` has the safe way to them.
#[derive(Debug)]
pub struct Arena {
    mapping: Mapping,
    /// Bytes from the start that may be used.
    used: AtomicU64,
    /// Bytes of the file beside the arena.
    beside: u64,
}

impl Arena {
    /// An arena of `len` bytes of address space (at most [`Place::LIMIT_BYTES`]), all holes.
    ///
    /// # Errors
    /// The host refuses the mapping.
    pub fn new(len: u64, kind: &MemoryKind) -> Result<Self, StoreError> {
        Self::with_room(len, len, kind)
    }

    /// The same, with room for `room` bytes of address space. Only the first `len` are to be used before
    /// [`Self::prepare`].
    ///
    /// # Errors
    /// The host refuses the mapping.
    pub fn with_room(len: u64, room: u64, kind: &MemoryKind) -> Result<Self, StoreError> {
        let whole = |bytes: u64| bytes.clamp(1, Place::LIMIT_BYTES).next_multiple_of(HOST_PAGE);
        let extent = Extent { len: whole(len), room: whole(room.max(len)) };
        Ok(Self::over(Mapping::new("arena", extent, kind)?, extent, 0))
    }

    /// The arena of a state. Not public, since two arenas of one state would each give out the memory of
    /// the other's objects:
    ///
    /// ```compile_fail,E0624
    /// #![forbid(unsafe_code)]
    /// use vhost_user_zram::internals::{Arena, State};
    /// fn arenas(state: &State) -> [Arena; 2] {
    ///     [Arena::of(state, 4096).unwrap(), Arena::of(state, 4096).unwrap()]
    /// }
    /// ```
    ///
    /// Its first `len` bytes are used from the start.
    ///
    /// # Errors
    /// The host refuses the mapping.
    pub(crate) fn of(state: &State, len: u64) -> Result<Self, StoreError> {
        let (file, room) = (state.arena(), state.format().arena_bytes);
        let extent = Extent { len: len.min(room), room };
        let mapping = Mapping::over(file, "arena", 0, extent, state.is_locked())?;
        if state.is_new() {
            mapping.try_out()?;
        }
        Ok(Self::over(mapping, extent, HOST_PAGE))
    }

    fn over(mapping: Mapping, extent: Extent, beside: u64) -> Self {
        Self { mapping, used: AtomicU64::new(extent.len), beside }
    }

    /// Lets the first `len` bytes be used, which are mapped and not fewer than before.
    ///
    /// # Errors
    /// The host does not lock so much memory.
    pub fn prepare(&self, len: u64) -> Result<(), StoreError> {
        self.mapping.use_up_to(len)?;
        self.used.store(len, Ordering::Relaxed);
        Ok(())
    }

    /// Bytes from the start that may be used.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Whether all pages of a range exist, so that reading them allocates nothing.
    ///
    /// # Errors
    /// The file system does not tell.
    pub fn exists(&self, offset: u64, len: u64) -> io::Result<bool> {
        Ok(self.mapping.next_hole(offset)? >= offset + len)
    }

    /// Address space in bytes, with the room for more.
    pub fn len(&self) -> u64 {
        self.mapping.len()
    }

    /// Whether there is no address space at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes that exist, by the file's allocated blocks.
    pub fn allocated_bytes(&self) -> u64 {
        self.mapping.file_bytes().saturating_sub(self.beside)
    }

    /// Makes the host pages of a range exist, so that writing to it cannot fail.
    ///
    /// # Errors
    /// The host has no memory for it.
    pub fn commit(&self, offset: u64, len: u64) -> Result<(), StoreError> {
        debug_assert!(offset.is_multiple_of(HOST_PAGE) && len.is_multiple_of(HOST_PAGE));
        self.mapping.populate(offset, len)
    }

    /// Gives the host pages of a range back; what was in them is gone.
    ///
    /// # Errors
    /// The host refuses; the pages and their bytes are still there then.
    ///
    /// # Safety
    /// No object lies in the range, so no slice of it lives.
    pub unsafe fn decommit(&self, offset: u64, len: u64) -> io::Result<()> {
        debug_assert!(offset.is_multiple_of(HOST_PAGE) && len.is_multiple_of(HOST_PAGE));
        self.mapping.punch(offset, len)
    }

    /// The 32-bit word at the start of a place, in committed memory.
    ///
    /// # Safety
    /// The place was allocated, and objects are written behind the first 4 bytes of a place, so that
    /// these are accessed by this method alone. Several threads may do so.
    pub unsafe fn tag(&self, place: Place) -> &AtomicU32 {
        self.mapping.half_word(place.offset())
    }

    /// Writes a new object to committed memory, `skip` bytes after the start of its place.
    ///
    /// # Safety
    /// The place is the caller's alone, with as many bytes as that takes.
    pub unsafe fn write(&self, place: Place, skip: usize, bytes: &[u8]) {
        // SAFETY: the contract of this function is the same.
        unsafe { self.mapping.write(place.offset() + skip as u64, bytes) }
    }

    /// Has an object fetched that will be read soon, if there is one. The caller need not own it.
    #[cfg(not(loom))]
    pub fn prefetch(&self, place: Place, len: usize) {
        self.mapping.prefetch(place.offset(), len);
    }

    /// The bytes of an object, read in place.
    ///
    /// # Safety
    /// While the slice lives no thread writes the object, frees it, or gives its memory back.
    pub unsafe fn read(&self, place: Place, skip: usize, len: usize) -> &[u8] {
        // SAFETY: the contract of this function is the same.
        unsafe { self.mapping.bytes(place.offset() + skip as u64, len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn committed_pages_are_counted_and_given_back() {
        let arena = Arena::new(16 * MIB, &MemoryKind::default()).unwrap();
        // SAFETY: the arena is this test's alone, and no slice outlives its line.
        let read = |place| unsafe { arena.read(place, 4, 6) }.to_vec();
        assert_eq!(arena.allocated_bytes(), 0);
        arena.commit(MIB, 64 * 1024).unwrap();
        assert_eq!(arena.allocated_bytes(), 64 * 1024);
        let place = Place::from_offset(MIB + 16);
        // SAFETY: as above.
        unsafe { arena.write(place, 4, b"object") };
        assert_eq!(read(place), b"object");
        // SAFETY: as above.
        unsafe { arena.decommit(MIB, 64 * 1024) }.unwrap();
        assert_eq!(arena.allocated_bytes(), 0);
        // A committed page is zero: nothing of the old object shows.
        arena.commit(MIB, 4096).unwrap();
        assert_eq!(read(place), [0; 6]);
    }

    #[test]
    #[should_panic(expected = "outside of a mapping")]
    fn bounds_are_checked() {
        let arena = Arena::new(MIB, &MemoryKind::default()).unwrap();
        // SAFETY: the arena is this test's alone.
        let _ = unsafe { arena.read(Place::from_offset(MIB - 16), 4, 13) };
    }
}
