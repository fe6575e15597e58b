//! The mapping that objects live in.

use std::io;

use super::mapping::Mapping;
use super::{HOST_PAGE, Place, StoreError};

/// A sparse range of shared memory for objects.
///
/// It only moves bytes and pages. Who owns which bytes is decided above: an object belongs to the
/// slot that names it, and is read and freed under that slot's lock.
#[derive(Debug)]
pub struct Arena {
    mapping: Mapping,
}

impl Arena {
    /// An arena of `len` bytes of address space (at most [`Place::LIMIT_BYTES`]), all holes.
    ///
    /// # Errors
    /// The host refuses the mapping.
    pub fn new(len: u64) -> Result<Self, StoreError> {
        Ok(Self { mapping: Mapping::new("arena", len.min(Place::LIMIT_BYTES))? })
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
        self.mapping.allocated_bytes()
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

    /// Writes a new object, whose bytes no slot names yet, to committed memory.
    pub fn write(&self, place: Place, bytes: &[u8]) {
        self.mapping.write(place.offset(), bytes);
    }

    /// The bytes of an object, read in place. The caller holds the lock of the slot that names it,
    /// or has just written it.
    pub fn read(&self, place: Place, len: usize) -> &[u8] {
        self.mapping.bytes(place.offset(), len)
    }
}
