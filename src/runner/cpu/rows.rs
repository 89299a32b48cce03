//! Which rows of a batch a step still computes.

use crate::kernels::AttentionBatch;
use crate::runner::RaggedBatch;

/// The rows at hand, sequence by sequence: all tokens, then those whose logits are wanted.
#[derive(Debug, Default)]
pub(super) struct Rows {
    positions: Vec<u32>, // (rows)
    /// First row of each sequence, then their number.
    start: Vec<u32>, // (num_sequences + 1)
}

impl Rows {
    /// All tokens of a batch.
    pub fn set(&mut self, batch: &RaggedBatch) {
        self.positions.clone_from(&batch.positions);
        self.start.clone_from(&batch.q_start);
    }

    /// Leaves these rows, which are ascending.
    pub fn keep(&mut self, kept: &[u32]) {
        compact(kept, 1, &mut self.positions);
        self.positions.truncate(kept.len());
        for start in &mut self.start {
            *start = kept.partition_point(|row| row < start) as u32;
        }
    }

    pub fn len(&self) -> usize {
        self.positions.len()
    }

    pub fn attention_batch<'a>(&'a self, batch: &'a RaggedBatch) -> AttentionBatch<'a> {
        AttentionBatch {
            positions: &self.positions,
            q_start: &self.start,
            block_tables: &batch.block_tables,
            block_table_start: &batch.block_table_start,
        }
    }
}

/// Moves some rows of a matrix, ascending, to its start.
pub(super) fn compact<T: Copy>(kept: &[u32], width: usize, matrix: &mut [T]) {
    for (to, &from) in kept.iter().enumerate() {
        let from = from as usize * width;
        matrix.copy_within(from..from + width, to * width);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kept_rows_stay_with_their_sequences() {
        let mut rows = Rows {
            positions: vec![7, 8, 9, 30, 0, 1, 2, 3],
            start: vec![0, 3, 4, 8],
        };
        rows.keep(&[0, 2, 6, 7]);
        assert_eq!(rows.positions, [7, 9, 2, 3]);
        assert_eq!(rows.start, [0, 2, 2, 4]);
        rows.keep(&[]);
        assert_eq!((rows.len(), rows.start), (0, vec![0; 4]));
    }
}
