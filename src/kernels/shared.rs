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

    pub fn len(&self) -> usize {
        self.len
    }

    /// Asks for element `at`, which is written soon.
    #[inline(always)]
    pub fn prefetch(&self, at: usize) {
        prefetch_for_write(self.start.wrapping_add(at));
    }

    /// Where element `at` lies, to be asked for ahead.
    #[inline(always)]
    pub fn address(&self, at: usize) -> *const u8 {
        self.start.wrapping_add(at).cast()
    }

    /// # Safety
    /// While the result lives, no other part that overlaps `range` may be in use.
    ///
    /// # Panics
    /// If the range is not inside the slice.
    #[allow(clippy::mut_from_ref)] // The point of this type; see its contract.
    pub unsafe fn part(&self, range: Range<usize>) -> &mut [T] {
        self.check(&range);
        // SAFETY: inside the slice, as checked, and not aliased, as the caller promises.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }

    /// A part that several may read.
    ///
    /// # Safety
    /// While the result lives, no part to be written that overlaps `range` may be in use.
    ///
    /// # Panics
    /// As [`SharedMut::part`].
    #[inline(always)]
    pub unsafe fn read(&self, range: Range<usize>) -> &'a [T] {
        self.check(&range);
        // SAFETY: inside the slice, as checked, and written by nobody, as the caller promises.
        unsafe { std::slice::from_raw_parts(self.start.add(range.start), range.len()) }
    }

    #[inline(always)]
    fn check(&self, range: &Range<usize>) {
        assert!(
            range.start <= range.end && range.end <= self.len,
            "bug: {range:?} of {}",
            self.len
        );
    }
}
