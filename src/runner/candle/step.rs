//! One step's batch, arranged for tensor operations.
//!
//! Sequences with equally many queries and similarly long contexts form a group, which attention
//! computes at once, contexts padded to one length. The padding never changes a result, not even its
//! last bit: padded scores are minus infinity and add exact zeros, and every sum runs over positions
//! in the same order and in the same portions whatever the group.

use candle_core::{Device, Result, Tensor};

use super::kv_pool::SlotRun;
use crate::model::ModelSpec;
use crate::runner::RaggedBatch;

/// Contexts are padded to multiples of this, so that a vectorised sum sees whole vectors.
const CONTEXT_STEP: usize = 32;
/// Positions that one product of probabilities and V sums over; longer contexts take several. gemm
/// never splits a sum this short, so its portions do not depend on the context's length.
pub(super) const CONTEXT_TILE: usize = 512;
/// Fewest query rows of a product with K: with `CONTEXT_STEP` it keeps gemm off its paths for tiny
/// matrices, which sum in another order.
pub(super) const MIN_QUERY_ROWS: usize = 9;

/// A batch with its rows in the order of the groups.
pub(super) struct Step {
    pub token_ids: Vec<u32>,
    pub positions: Vec<u32>,
    pub runs: Vec<SlotRun>,
    pub groups: Vec<Group>,
    /// Rows whose logits are wanted, in the caller's order.
    pub logit_rows: Tensor,
}

/// Sequences whose attention is computed together; their rows follow one another.
pub(super) struct Group {
    pub first_row: usize,
    pub num_sequences: usize,
    /// Of each sequence.
    pub num_queries: usize,
    /// Where K and V of the contexts lie. (num_sequences * context_len)
    pub slots: Tensor,
    /// 0 where a query sees a position of its sequence's padded context, else minus infinity; the
    /// queries are repeated for each query head of a kv head.
    /// (num_sequences, query_rows, context_len)
    pub mask: Tensor,
}

/// One sequence of a batch.
struct Sequence {
    index: usize,
    num_queries: usize,
    /// The first position that a query may see, rounded down to a whole tile.
    context_start: usize,
    context_len: usize,
}

impl Step {
    pub fn new(batch: &RaggedBatch, spec: &ModelSpec, block_size: usize) -> Result<Self> {
        let mut sequences: Vec<Sequence> = (0..batch.num_sequences())
            .map(|index| Sequence::new(batch, index, spec.sliding_window))
            .collect();
        sequences.sort_by_key(Sequence::group_key);
        let order: Vec<usize> = sequences
            .iter()
            .flat_map(|sequence| rows(batch, sequence.index))
            .collect();
        let mut groups = Vec::new();
        let mut first_row = 0;
        for members in sequences.chunk_by(|a, b| a.group_key() == b.group_key()) {
            let group = Group::new(members, first_row, batch, spec, block_size)?;
            first_row += group.num_sequences * group.num_queries;
            groups.push(group);
        }
        let reordered = |values: &[u32]| order.iter().map(|&row| values[row]).collect::<Vec<_>>();
        let mut new_row = vec![0; order.len()];
        for (new, &old) in order.iter().enumerate() {
            new_row[old] = new as u32;
        }
        let logit_rows = batch.logit_rows.iter().map(|&row| new_row[row as usize]);
        Ok(Self {
            token_ids: reordered(&batch.token_ids),
            positions: reordered(&batch.positions),
            runs: SlotRun::split(&reordered(&batch.slots)),
            groups,
            logit_rows: Tensor::from_iter(logit_rows, &Device::Cpu)?,
        })
    }
}

impl Sequence {
    fn new(batch: &RaggedBatch, index: usize, sliding_window: Option<usize>) -> Self {
        let rows = rows(batch, index);
        let first_position = batch.positions[rows.start] as usize;
        let first_seen = match sliding_window {
            None => 0,
            Some(window) => (first_position + 1).saturating_sub(window),
        };
        let context_start = first_seen / CONTEXT_TILE * CONTEXT_TILE;
        Self {
            index,
            num_queries: rows.len(),
            context_start,
            context_len: padded(batch.seq_lens[index] as usize - context_start),
        }
    }

    fn group_key(&self) -> (usize, usize) {
        (self.num_queries, self.context_len)
    }
}

/// Rounds up by at most an eighth beyond `CONTEXT_STEP`, so that similar lengths meet in a group.
fn padded(len: usize) -> usize {
    len.next_multiple_of((len.next_power_of_two() / 8).max(CONTEXT_STEP))
}

fn rows(batch: &RaggedBatch, index: usize) -> std::ops::Range<usize> {
    batch.q_start[index] as usize..batch.q_start[index + 1] as usize
}

impl Group {
    fn new(
        members: &[Sequence],
        first_row: usize,
        batch: &RaggedBatch,
        spec: &ModelSpec,
        block_size: usize,
    ) -> Result<Self> {
        let (num_queries, context_len) = members[0].group_key();
        let query_rows = spec.num_heads / spec.num_kv_heads * num_queries;
        let mut slots = Vec::with_capacity(members.len() * context_len);
        let mut mask = Vec::with_capacity(members.len() * query_rows * context_len);
        for sequence in members {
            sequence.push_slots(batch, block_size, &mut slots);
            let positions = &batch.positions[rows(batch, sequence.index)];
            for row in 0..query_rows {
                let query = positions[row % num_queries] as usize;
                sequence.push_mask_row(query, spec.sliding_window, &mut mask);
            }
        }
        let mask_shape = (members.len(), query_rows, context_len);
        Ok(Self {
            first_row,
            num_sequences: members.len(),
            num_queries,
            slots: Tensor::new(slots, &Device::Cpu)?,
            mask: Tensor::from_vec(mask, mask_shape, &Device::Cpu)?,
        })
    }
}

impl Sequence {
    /// Slots of the context; padding repeats the first, whose content is finite and masked.
    fn push_slots(&self, batch: &RaggedBatch, block_size: usize, slots: &mut Vec<u32>) {
        let start = batch.block_table_start[self.index] as usize;
        let table = &batch.block_tables[start..];
        let slot = |position: usize| {
            table[position / block_size] * block_size as u32 + (position % block_size) as u32
        };
        let end = batch.seq_lens[self.index] as usize;
        let first = slot(self.context_start);
        slots.extend((self.context_start..end).map(slot));
        let padding = self.context_start + self.context_len - end;
        slots.extend(std::iter::repeat_n(first, padding));
    }

    fn push_mask_row(&self, query: usize, sliding_window: Option<usize>, mask: &mut Vec<f32>) {
        let window = sliding_window.unwrap_or(usize::MAX);
        let context = self.context_start..self.context_start + self.context_len;
        mask.extend(context.map(
            |position| match position <= query && query - position < window {
                true => 0.0,
                false => f32::NEG_INFINITY,
            },
        ));
    }
}
