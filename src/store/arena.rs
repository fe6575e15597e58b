//! The mapping that objects live in.

use std::io;

use super::mapping::Mapping;
use super::{HOST_PAGE, MemoryKind, Place, State, StoreError};
use crate::sync::{AtomicU32, Ordering};

/// A sparse range of shared memory for objects.
///
/// It only moves bytes and pages. Who owns which bytes is decided above: an object belongs to the
/// slot that names it, and is read and freed under that slot's lock.
#[derive(Debug)]
pub struct Arena {
    mapping: Mapping,
    /// Bytes of the file beside the arena.
    beside: u64,
}

impl Arena {
    /// An arena of `len` bytes of address space (at most [`Place::LIMIT_BYTES`]), all holes.
    ///
    /// # Errors
    /// The host refuses the mapping.
    pub fn new(len: u64, kind: &MemoryKind) -> Result<Self, StoreError> {
        let mapping = Mapping::new("arena", len.min(Place::LIMIT_BYTES), kind)?;
        Ok(Self { mapping, beside: 0 })
    }

    /// The arena of a state.
    ///
    /// # Errors
    /// The host refuses the mapping.
    pub fn of(state: &State) -> Result<Self, StoreError> {
        let (file, len) = (state.arena(), state.format().arena_bytes);
        let mapping = Mapping::over(file, "arena", 0, len, state.is_locked())?;
        if state.is_new() {
            mapping.try_out()?;
        }
        Ok(Self { mapping, beside: HOST_PAGE })
    }

    /// Whether all pages of a range exist, so that looking at them allocates nothing.
    ///
    /// # Errors
    /// The file system does not tell.
    pub fn exists(&self, offset: u64, len: u64) -> io::Result<bool> {
        Ok(self.mapping.next_hole(offset)? >= offset + len)
    }

    /// Address space in bytes.
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
    pub fn decommit(&self, offset: u64, len: u64) -> io::Result<()> {
        debug_assert!(offset.is_multiple_of(HOST_PAGE) && len.is_multiple_of(HOST_PAGE));
        self.mapping.punch(offset, len)
    }

    /// The 32-bit word at the start of a place, in committed memory. It may be read at any time,
    /// whoever owns the place.
    pub fn tag(&self, place: Place) -> &AtomicU32 {
        self.mapping.half_word(place.offset())
    }

    /// Writes a new object, whose bytes no slot names yet, to committed memory, `skip` bytes after
    /// the start of its place.
    pub fn write(&self, place: Place, skip: usize, bytes: &[u8]) {
        self.mapping.write(place.offset() + skip as u64, bytes);
    }

    /// The bytes of an object, read in place. The caller holds the lock of the slot that names it,
    /// or has just written it.
    pub fn read(&self, place: Place, skip: usize, len: usize) -> &[u8] {
        self.mapping.bytes(place.offset() + skip as u64, len)
    }

    /// Copies a tag and the object after it to another place, whose bytes no slot names yet. The
    /// caller holds the lock of the slot that names the first.
    pub fn copy(&self, from: Place, to: Place, skip: usize, len: usize) {
        let tag = self.tag(from).load(Ordering::Relaxed);
        self.tag(to).store(tag, Ordering::Relaxed);
        self.write(to, skip, self.read(from, skip, len));
    }
}
