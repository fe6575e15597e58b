//! Accesses to guest memory, short ones mostly.
//!
//! The accesses of the vm-memory crate take any number of regions one after another. Nearly all of those here
//! lie in one region: they cost one lookup, one check of the bounds and the bytes. The others are
//! left to the crate.
//!
//! The guest may write its memory at any time. So nothing here makes a reference to it, each byte is read once,
//! and what was read is a copy.

use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryBackend, VolatileMemory};

use crate::prefetch;
use crate::virtq::memory::Memory;

/// Reads a value; `None` if it lies outside of guest memory.
#[inline]
pub(crate) fn read<T: ByteValued>(memory: &Memory, addr: GuestAddress) -> Option<T> {
    match memory.get_slice(addr, size_of::<T>()) {
        Ok(place) => place.get_ref(0).ok().map(|place| place.load()),
        Err(_) => memory.read_obj(addr).ok(),
    }
}

/// Writes a value; `None` if it lies outside of guest memory.
#[inline]
pub(crate) fn write<T: ByteValued>(memory: &Memory, addr: GuestAddress, value: T) -> Option<()> {
    match memory.get_slice(addr, size_of::<T>()) {
        Ok(place) => place.get_ref(0).ok().map(|place| place.store(value)),
        Err(_) => memory.write_obj(value, addr).ok(),
    }
}

/// Copies bytes of the guest; `None` if some lie outside of guest memory.
#[inline]
pub(crate) fn copy_from(memory: &Memory, addr: GuestAddress, into: &mut [u8]) -> Option<()> {
    match memory.get_slice(addr, into.len()) {
        Ok(place) => {
            place.copy_to(into);
            Some(())
        }
        Err(_) => memory.read_slice(into, addr).ok(),
    }
}

/// Copies bytes to the guest; `None` if some lie outside of guest memory.
#[inline]
pub(crate) fn copy_to(memory: &Memory, addr: GuestAddress, from: &[u8]) -> Option<()> {
    match memory.get_slice(addr, from.len()) {
        Ok(place) => {
            place.copy_from(from);
            Some(())
        }
        Err(_) => memory.write_slice(from, addr).ok(),
    }
}

/// Whether `len` bytes from `addr` on are guest memory.
#[inline]
pub(crate) fn is_in_reach(memory: &Memory, addr: GuestAddress, len: usize) -> bool {
    memory.get_slice(addr, len).is_ok() || memory.check_range(addr, len)
}

/// Has bytes fetched that will be accessed soon, if they lie in one region.
#[inline]
pub(crate) fn prefetch(memory: &Memory, addr: GuestAddress, len: usize) {
    if let Ok(place) = memory.get_slice(addr, len) {
        prefetch::fetch(place.ptr_guard().as_ptr(), len);
    }
}
