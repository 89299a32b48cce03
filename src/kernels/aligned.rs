//! Memory that starts at a cache line and costs nothing until it is written.

use std::ops::{Deref, DerefMut};

const ALIGNMENT: usize = 64;

/// Zeros at first.
///
/// An aligned allocation would be written with zeros at once; this one comes as untouched pages
/// from the system, and skips what lies before the first boundary.
#[derive(Debug)]
pub struct Aligned<T> {
    buffer: Box<[T]>,
    start: usize,
    len: usize,
}

/// A number that is 0 where all of its bits are.
///
/// # Safety
/// It is one.
pub unsafe trait Number {}
// SAFETY: they are.
unsafe impl Number for f32 {}
// SAFETY: as above.
unsafe impl Number for u32 {}
// SAFETY: as above.
unsafe impl Number for u16 {}
// SAFETY: as above.
unsafe impl Number for i8 {}

impl<T: Number> Aligned<T> {
    pub fn zeros(len: usize) -> Self {
        let buffer = Box::new_zeroed_slice(len + ALIGNMENT / size_of::<T>());
        // SAFETY: zeros are numbers.
        let buffer: Box<[T]> = unsafe { buffer.assume_init() };
        let start = buffer.as_ptr().align_offset(ALIGNMENT);
        Self { buffer, start, len }
    }

    /// Makes the length `len`. In new memory, taken where the old was too short, all are zeros; else
    /// each element is what its place held last. What grows step by step takes new memory seldom: twice
    /// the old at least, which costs nothing until it is written.
    pub fn resize(&mut self, len: usize) {
        let room = self.buffer.len() - self.start;
        if room < len {
            *self = Self::zeros(len.max(2 * room));
        }
        self.len = len;
    }
}

impl<T: Number> Default for Aligned<T> {
    fn default() -> Self {
        Self::zeros(0)
    }
}

impl<T> Deref for Aligned<T> {
    type Target = [T];

    #[inline(always)]
    fn deref(&self) -> &[T] {
        &self.buffer[self.start..self.start + self.len]
    }
}

impl<T> DerefMut for Aligned<T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.buffer[self.start..self.start + self.len]
    }
}
