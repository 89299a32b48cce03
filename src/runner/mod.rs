//! Runs a model over a ragged batch. The seam between scheduling (integers) and tensors.

pub mod candle;
pub mod cpu;
pub mod cuda;
mod memory;

pub use memory::free_bytes;

use anyhow::{Context, ensure};

use crate::kernels::KvType;

/// One step's work for a [`Runner`]: several sequences, each with one or more consecutive tokens,
/// packed without padding. Sequence `i` owns the packed rows `q_start[i]..q_start[i + 1]`.
///
/// A slot is one token position in KV storage: `block_id * block_size + offset`.
#[derive(Clone, Debug, Default)]
pub struct RaggedBatch {
    /// Copies between KV blocks that happen before anything is written, in this order.
    pub copies: Vec<BlockCopy>,
    /// Token ids of all sequences, one after the other. (num_tokens)
    pub token_ids: Vec<u32>,
    /// Position of each token in its sequence. (num_tokens)
    pub positions: Vec<u32>,
    /// Where each token's K and V are written. (num_tokens)
    pub slots: Vec<u32>,
    /// First packed row of each sequence, then num_tokens. (num_sequences + 1)
    pub q_start: Vec<u32>,
    /// Tokens of each sequence in the KV cache after this step. (num_sequences)
    pub seq_lens: Vec<u32>,
    /// Block ids of all sequences, one table after the other.
    pub block_tables: Vec<u32>,
    /// First entry of each sequence in `block_tables`, then its length. (num_sequences + 1)
    pub block_table_start: Vec<u32>,
    /// Packed rows whose logits are wanted, ascending. Several of one sequence are allowed.
    pub logit_rows: Vec<u32>,
}

impl RaggedBatch {
    pub fn num_tokens(&self) -> usize {
        self.token_ids.len()
    }

    pub fn num_sequences(&self) -> usize {
        self.seq_lens.len()
    }

    /// Empties the batch and keeps its memory, so that a steady state allocates nothing.
    pub fn clear(&mut self) {
        self.copies.clear();
        self.token_ids.clear();
        self.positions.clear();
        self.slots.clear();
        self.q_start.clear();
        self.seq_lens.clear();
        self.block_tables.clear();
        self.block_table_start.clear();
        self.logit_rows.clear();
    }
}

/// Copies the K and V of the first `num_tokens` positions of one block to another, in every layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockCopy {
    pub from_block: u32,
    pub to_block: u32,
    pub num_tokens: u32,
}

/// What a runner keeps K and V in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvLayout {
    pub kv_type: KvType,
    pub num_blocks: usize,
    /// In tokens.
    pub block_size: usize,
}

impl KvLayout {
    /// Token positions that there is room for.
    ///
    /// # Errors
    /// There are none, or too many.
    fn num_slots(&self) -> anyhow::Result<usize> {
        let num_slots = self.num_blocks.checked_mul(self.block_size);
        let num_slots = num_slots.context("the KV cache is too large")?;
        ensure!(
            num_slots > 0 && u32::try_from(num_slots).is_ok(),
            "KV_CACHE_SIZE makes room for {num_slots} tokens, more than can be numbered; lower it"
        );
        Ok(num_slots)
    }
}

/// Logits in the order of `RaggedBatch::logit_rows`.
#[derive(Clone, Debug, Default)]
pub struct Logits {
    /// (logit_rows, vocab_size), row-major.
    pub values: Vec<f32>,
    pub vocab_size: usize,
}

impl Logits {
    /// The row of the `index`-th wanted token. (vocab_size)
    pub fn row(&self, index: usize) -> &[f32] {
        &self.values[index * self.vocab_size..][..self.vocab_size]
    }
}

/// Runs one model; owns its weights and its KV storage.
///
/// The caller guarantees that every slot and block id lies inside the storage, that a sequence's
/// table covers its `seq_lens`, and that no slot is written by two tokens of a step. The runner
/// guarantees that a row's logits do not depend on what else is in the batch, beyond rounding.
pub trait Runner: Send {
    /// Applies the copies, writes K and V of all tokens, and returns the wanted logits.
    fn forward(&mut self, batch: &RaggedBatch) -> anyhow::Result<&Logits>;

    /// Length of a row of logits.
    fn vocab_size(&self) -> usize;
}
