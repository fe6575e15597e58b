//! Has the processor fetch memory that will be used soon, while other work goes on.
//!
//! A prefetch is a hint: it changes nothing, and an address without memory behind it is ignored. So any
//! address may be given, and the functions are safe.
#![allow(unsafe_code)]

/// Bytes of a cache line.
const LINE: usize = 64;

/// Fetches the lines of the `bytes` bytes from `start` on.
#[inline]
pub fn fetch(start: *const u8, bytes: usize) {
    for at in (0..bytes).step_by(LINE) {
        fetch_line(start.wrapping_add(at));
    }
}

#[inline(always)]
fn fetch_line(address: *const u8) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: a prefetch reads and writes nothing as far as the program can see, and does not fault.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch(address.cast(), _MM_HINT_T0);
    }
    #[cfg(all(target_arch = "aarch64", not(miri)))]
    // SAFETY: as above.
    unsafe {
        std::arch::asm!("prfm pldl1keep, [{0}]", in(reg) address, options(nostack, readonly, preserves_flags));
    }
    #[cfg(any(miri, not(any(target_arch = "x86_64", target_arch = "aarch64"))))]
    let _ = address;
}
