//! LZ4 by the reference C library.
//!
//! `lz4-sys` builds and links the library but declares no function that takes a caller's state,
//! so those used here are declared here. The other files call C by safe wrappers only.
#![allow(unsafe_code)]

use std::{
    ffi::{c_char, c_int, c_void},
    fmt,
};

// Named for its link to the static library alone.
use lz4_sys as _;
use vm_memory::VolatileSlice;

use super::{CodecError, PAGE_SIZE, Page, spec::LZ4};

/// `LZ4_compressBound(4096)`: room for any page. More is of no use to the library.
const BOUND: usize = PAGE_SIZE + PAGE_SIZE / 255 + 16;

// SAFETY: as in lz4.h and lz4hc.h of the 1.10.0 that `lz4-sys` bundles.
unsafe extern "C" {
    safe fn LZ4_sizeofState() -> c_int;
    fn LZ4_compress_fast_extState(
        state: *mut c_void,
        src: *const c_char,
        dst: *mut c_char,
        src_size: c_int,
        dst_capacity: c_int,
        acceleration: c_int,
    ) -> c_int;
    safe fn LZ4_sizeofStateHC() -> c_int;
    fn LZ4_compress_HC_extStateHC(
        state: *mut c_void,
        src: *const c_char,
        dst: *mut c_char,
        src_size: c_int,
        dst_capacity: c_int,
        level: c_int,
    ) -> c_int;
    fn LZ4_decompress_safe(
        src: *const c_char,
        dst: *mut c_char,
        compressed_size: c_int,
        dst_capacity: c_int,
    ) -> c_int;
}

/// The compressor's hash table and the parameter; decompression needs neither.
///
/// The library clears the table for each page, which its `fastReset` variant does as well from
/// inputs of 4 KiB on.
pub(super) struct Lz4 {
    /// At least `LZ4_sizeofState()` bytes, aligned as the library's own state (by u64).
    state: Box<[u64]>,
    acceleration: c_int,
}

impl Lz4 {
    pub(super) fn new(acceleration: i32) -> Self {
        let bytes = LZ4_sizeofState() as usize;
        Self { state: vec![0; bytes.div_ceil(size_of::<u64>())].into(), acceleration }
    }

    pub(super) fn compress(&mut self, page: &Page, out: &mut [u8]) -> Option<usize> {
        // SAFETY: state is as large and aligned as the library wants it and is initialised by the
        // call; page is PAGE_SIZE readable bytes; no more than `capacity` bytes of out, which has
        // as many, are written; the borrows keep the three apart.
        let written = unsafe {
            LZ4_compress_fast_extState(
                self.state.as_mut_ptr().cast(),
                page.as_ptr().cast(),
                out.as_mut_ptr().cast(),
                PAGE_SIZE as c_int,
                out.len().min(BOUND) as c_int,
                self.acceleration,
            )
        };
        // 0 is the library's word for "does not fit"; it knows no other failure of this call.
        usize::try_from(written).ok().filter(|&len| len > 0)
    }
}

/// The compressor that searches more, whose objects are read in the same way: its tables and the
/// parameter. The library clears the tables, 256 KiB, for each page.
pub(super) struct Lz4Hc {
    /// At least `LZ4_sizeofStateHC()` bytes, aligned as the library's own state (by u64).
    state: Box<[u64]>,
    level: c_int,
}

impl Lz4Hc {
    pub(super) fn new(level: i32) -> Self {
        let bytes = LZ4_sizeofStateHC() as usize;
        Self { state: vec![0; bytes.div_ceil(size_of::<u64>())].into(), level }
    }

    pub(super) fn compress(&mut self, page: &Page, out: &mut [u8]) -> Option<usize> {
        // SAFETY: as for the fast compressor.
        let written = unsafe {
            LZ4_compress_HC_extStateHC(
                self.state.as_mut_ptr().cast(),
                page.as_ptr().cast(),
                out.as_mut_ptr().cast(),
                PAGE_SIZE as c_int,
                out.len().min(BOUND) as c_int,
                self.level,
            )
        };
        usize::try_from(written).ok().filter(|&len| len > 0)
    }
}

pub(super) fn decompress(object: &[u8], page: &mut Page) -> Result<(), CodecError> {
    // SAFETY: page is PAGE_SIZE writable bytes, and the borrows keep it and the object apart.
    unsafe { decompress_raw(object, page.as_mut_ptr()) }
}

/// Decompresses into memory that another process may read and write at the same time.
///
/// # Errors
/// As for a page. A `place` that is not as long as one is taken for an object that does not fit.
pub(super) fn decompress_shared(
    object: &[u8],
    place: &VolatileSlice<'_>,
) -> Result<(), CodecError> {
    if place.len() != PAGE_SIZE {
        return Err(CodecError::NotAPage { algorithm: LZ4, decoded: place.len() });
    }
    // SAFETY: place is PAGE_SIZE writable bytes while it is borrowed. They are guest memory, and object
    // is not. What another process writes there meanwhile changes what the page holds and nothing else:
    // the library copies earlier output as matches, but takes each length and offset from the object.
    unsafe { decompress_raw(object, place.ptr_guard_mut().as_ptr()) }
}

/// # Safety
/// `page` is `PAGE_SIZE` writable bytes that do not overlap with `object`.
unsafe fn decompress_raw(object: &[u8], page: *mut u8) -> Result<(), CodecError> {
    let corrupt = |reason| CodecError::Corrupt { algorithm: LZ4, len: object.len(), reason };
    // Nothing valid is longer, and so the length fits a C int.
    if object.len() > BOUND {
        return Err(corrupt("it is too long"));
    }
    // SAFETY: object is as many readable bytes as is said, page PAGE_SIZE writable ones, and they do not
    // overlap. Whatever the object holds, the library stays in both.
    let decoded = unsafe {
        LZ4_decompress_safe(
            object.as_ptr().cast(),
            page.cast(),
            object.len() as c_int,
            PAGE_SIZE as c_int,
        )
    };
    match usize::try_from(decoded) {
        Ok(PAGE_SIZE) => Ok(()),
        Ok(decoded) => Err(CodecError::NotAPage { algorithm: LZ4, decoded }),
        Err(_) => Err(corrupt("it is damaged")),
    }
}

impl fmt::Debug for Lz4 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lz4").field("acceleration", &self.acceleration).finish_non_exhaustive()
    }
}

impl fmt::Debug for Lz4Hc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lz4Hc").field("level", &self.level).finish_non_exhaustive()
    }
}
