//! Memory in huge pages where the system grants them.
//!
//! A step reads tens of megabytes, a piece here and a piece there. In pages of 4 KiB the places of the pages
//! themselves no longer fit the processor's tables, and nearly every piece waits for one to be looked up.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use memmap2::MmapMut;

use super::aligned::Number;

/// Zeros, which cost no memory until they are written: then a huge page at a time.
///
/// # Panics
/// If the system has no memory left.
pub(super) fn map(len: usize) -> MmapMut {
    let map = MmapMut::map_anon(len.max(1))
        .unwrap_or_else(|error| panic!("no memory for {len} bytes: {error}"));
    // A system without huge pages refuses, and does as well without.
    #[cfg(target_os = "linux")]
    let _ = map.advise(memmap2::Advice::HugePage);
    map
}

/// Numbers in memory of [`map`].
#[derive(Debug)]
pub(super) struct HugeZeros<T> {
    map: MmapMut,
    len: usize,
    numbers: PhantomData<T>,
}

impl<T: Number> HugeZeros<T> {
    pub fn new(len: usize) -> Self {
        let map = map(len * size_of::<T>());
        Self {
            map,
            len,
            numbers: PhantomData,
        }
    }
}

impl<T: Number> Deref for HugeZeros<T> {
    type Target = [T];

    #[inline(always)]
    fn deref(&self) -> &[T] {
        // SAFETY: the map has as many bytes, and begins with a page; any bits that were not written are
        // zeros, which are numbers.
        unsafe { std::slice::from_raw_parts(self.map.as_ptr().cast(), self.len) }
    }
}

impl<T: Number> DerefMut for HugeZeros<T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above; the map is writable, and this is the one reference to it.
        unsafe { std::slice::from_raw_parts_mut(self.map.as_mut_ptr().cast(), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_zeros_and_keep_what_is_written() {
        for len in [0, 1, 5000] {
            let mut numbers = HugeZeros::<f32>::new(len);
            assert_eq!(*numbers, *vec![0.0; len]);
            for (i, number) in numbers.iter_mut().enumerate() {
                *number = i as f32;
            }
            assert!(
                numbers
                    .iter()
                    .enumerate()
                    .all(|(i, number)| *number == i as f32)
            );
        }
    }
}
