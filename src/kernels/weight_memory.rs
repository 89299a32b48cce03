//! Memory for weights, in huge pages where the system grants them.
//!
//! A step reads every weight once, and most matrices are smaller than a huge page (2 MiB on x86-64):
//! so matrices lie one after another in large chunks of address space. What a chunk has left is never
//! touched and costs nothing.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use memmap2::{MmapMut, MmapRaw};

use super::packed::LANES;

const CHUNK_BYTES: usize = 64 << 20;

/// Gives out memory for weights.
#[derive(Debug, Default)]
pub(super) struct WeightMemory {
    chunk: RefCell<Option<Chunk>>,
}

#[derive(Debug)]
struct Chunk {
    map: Arc<MmapRaw>,
    given: usize,
}

/// Bytes of one matrix. Their chunk lives as long as any of its matrices.
#[derive(Debug)]
pub(super) struct WeightBytes {
    map: Arc<MmapRaw>,
    /// No other has bytes of the map between `start` and `start + len`.
    start: usize,
    len: usize,
}

impl WeightMemory {
    /// Zeros that start at a cache line.
    ///
    /// # Panics
    /// If the system has no memory left.
    pub fn zeros(&self, len: usize) -> WeightBytes {
        let mut current = self.chunk.borrow_mut();
        let chunk = match &mut *current {
            Some(chunk) if chunk.map.len() - chunk.given >= len => chunk,
            _ => current.insert(Chunk::new(len.max(CHUNK_BYTES))),
        };
        let start = chunk.given;
        chunk.given = (start + len).next_multiple_of(LANES).min(chunk.map.len());
        WeightBytes {
            map: Arc::clone(&chunk.map),
            start,
            len,
        }
    }
}

impl Chunk {
    fn new(len: usize) -> Self {
        let map = MmapMut::map_anon(len)
            .unwrap_or_else(|error| panic!("no memory for {len} bytes of weights: {error}"));
        // A system without huge pages refuses, and does as well without.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        Self {
            map: Arc::new(map.into()),
            given: 0,
        }
    }
}

impl Deref for WeightBytes {
    type Target = [u8];

    #[inline(always)]
    fn deref(&self) -> &[u8] {
        // SAFETY: the bytes lie in the map, which lives, and are nobody else's.
        unsafe { std::slice::from_raw_parts(self.map.as_ptr().add(self.start), self.len) }
    }
}

impl DerefMut for WeightBytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above; the map is writable.
        unsafe { std::slice::from_raw_parts_mut(self.map.as_mut_ptr().add(self.start), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matrices_of_a_chunk_are_aligned_disjoint_and_outlive_it() {
        let lens = [1, 64, 100, 0, CHUNK_BYTES - 384, 192, CHUNK_BYTES + 1, 5];
        let memory = WeightMemory::default();
        let mut all = Vec::new();
        for (i, len) in lens.into_iter().enumerate() {
            let mut bytes = memory.zeros(len);
            assert_eq!(bytes.len(), len);
            assert!(bytes.as_ptr().addr().is_multiple_of(LANES));
            assert!(bytes.iter().all(|byte| *byte == 0));
            bytes.fill(i as u8 + 1);
            all.push(bytes);
        }
        drop(memory);
        for (i, bytes) in all.iter().enumerate() {
            assert!(bytes.iter().all(|byte| *byte == i as u8 + 1), "matrix {i}");
        }
    }
}
