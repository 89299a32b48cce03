//! Lets several threads write disjoint parts of one slice.

use std::marker::PhantomData;
use std::ops::Range;

use super::prefetch::prefetch_for_write;

/// A mutable slice that threads take parts of.
pub(super) struct SharedMut<'a, T> {
    start: *mut T,
    len: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: it only gives out parts that its users promise to be disjoint, which is as if the slice
// had been split and its parts sent to the threads.
unsafe impl<T: Send> Sync for SharedMut<'_, T> {}

impl<'a, T> SharedMut<'a, T> {
    pub fn new(slice: &'a mut [T]) -> Self {
        Self {
            start: slice.as_mut_ptr(),
            len: slice.len(),
            slice: PhantomData,
        }
    }

    /// Asks for element `at`, which is written soon.
    #[inline(always)]
    pub fn prefetch(&self, at: usize) {
        prefetch_for_write(self.start.wrapping_add(at));
    }

    /// # Safety
    /// While the result lives, no other part that overlaps `range` may be in use.
    ///
    /// # Panics
    /// If the range is not inside the slice.
    #[allow(clippy::mut_from_ref)] // The point of this type; see its contract.
    pub unsafe fn part(&self, range: Range<usize>) -> &mut [T] {
        assert!(
            range.start <= range.end && range.end <= self.len,
            "bug: {range:?} of {}",
            self.len
        );
        // SAFETY: inside the slice, as checked, and not aliased, as the caller promises.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
}
