//! Asks for memory that is read or written soon, where the hardware does not foresee it.

pub(super) const CACHE_LINE: usize = 64;

/// Asks for the cache line at an address, which need not be valid: a prefetch has no other effect
/// than on speed. It comes into the second cache: what is asked for early enough would drive what is
/// in use out of the first.
#[inline(always)]
pub(super) fn prefetch<T>(address: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SSE, which the instruction belongs to, is part of x86-64; it reads and writes nothing.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// The same for memory that is written: it comes to this core alone.
#[inline(always)]
pub(super) fn prefetch_for_write<T>(address: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: x86-64 takes the instruction for none where it is not known; it reads and writes
    // nothing.
    unsafe {
        std::arch::asm!("prefetchw [{}]", in(reg) address, options(nostack, preserves_flags, readonly));
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}
