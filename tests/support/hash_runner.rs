//! A runner without a model: its "KV storage" holds token ids, and its logits are a hash of the
//! whole prefix that it finds there. A wrong block, slot, copy or position changes every token
//! after it, so equal output means that the paging is right.

use std::sync::mpsc;

use candlepower::runner::{Logits, RaggedBatch, Runner};

pub const VOCAB_SIZE: usize = 50;
const PERIOD: usize = 7;
/// Logits lie between 0 and 8: this much wins three times out of four.
const REPETITION_BONUS: f32 = 6.0;

pub struct HashRunner {
    block_size: usize,
    /// The (position, token) that each slot holds.
    slots: Vec<Option<(u32, u32)>>,
    logits: Logits,
    /// Whether a text tends to go on as it did a period before.
    repetitive: bool,
    /// With a gate, each step waits for one message; a closed gate is open.
    gate: Option<mpsc::Receiver<()>>,
}

impl HashRunner {
    pub fn new(num_blocks: usize, block_size: usize) -> Self {
        Self {
            block_size,
            slots: vec![None; num_blocks * block_size],
            logits: Logits {
                values: Vec::new(),
                vocab_size: VOCAB_SIZE,
            },
            repetitive: false,
            gate: None,
        }
    }

    pub fn repetitive(mut self) -> Self {
        self.repetitive = true;
        self
    }

    pub fn gated(mut self) -> (Self, mpsc::Sender<()>) {
        let (open, gate) = mpsc::channel();
        self.gate = Some(gate);
        (self, open)
    }

    fn prefix(&self, batch: &RaggedBatch, sequence: usize, len: usize) -> Vec<u32> {
        let table = &batch.block_tables[batch.block_table_start[sequence] as usize..];
        (0..len)
            .map(|position| {
                let block = table[position / self.block_size] as usize;
                let held = self.slots[block * self.block_size + position % self.block_size];
                let (at, token) = held.expect("a slot is read before it is written");
                assert_eq!(at as usize, position, "a slot holds another position");
                token
            })
            .collect()
    }
}

impl Runner for HashRunner {
    fn forward(&mut self, batch: &RaggedBatch) -> anyhow::Result<&Logits> {
        if let Some(gate) = &self.gate {
            let _ = gate.recv();
        }
        for copy in &batch.copies {
            for offset in 0..copy.num_tokens as usize {
                let slot = |block: u32| block as usize * self.block_size + offset;
                self.slots[slot(copy.to_block)] = self.slots[slot(copy.from_block)];
            }
        }
        for row in 0..batch.num_tokens() {
            let held = (batch.positions[row], batch.token_ids[row]);
            self.slots[batch.slots[row] as usize] = Some(held);
        }
        let mut values = Vec::new();
        for &row in &batch.logit_rows {
            let sequence = batch.q_start.partition_point(|&start| start <= row) - 1;
            let len = batch.positions[row as usize] as usize + 1;
            let prefix = self.prefix(batch, sequence, len);
            let first = values.len();
            values.extend(logits_of(&prefix));
            if self.repetitive && len >= PERIOD {
                values[first + prefix[len - PERIOD] as usize] += REPETITION_BONUS;
            }
        }
        self.logits.values = values;
        Ok(&self.logits)
    }

    fn vocab_size(&self) -> usize {
        VOCAB_SIZE
    }
}

/// The logits behind a prefix: between 0 and 8, from a hash of prefix and token.
pub fn logits_of(prefix: &[u32]) -> impl Iterator<Item = f32> {
    let mix = |hash: u64, value: u64| {
        let hash = (hash ^ value).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        hash ^ (hash >> 29)
    };
    let hash = prefix
        .iter()
        .fold(1, |hash, &token| mix(hash, u64::from(token) + 1));
    (0..VOCAB_SIZE as u64)
        .map(move |token| (mix(mix(hash, token), 7) >> 40) as f32 / (1 << 21) as f32)
}

/// What greedy decoding gives, without engine and cache.
pub fn greedy(prompt: &[u32], max_tokens: usize) -> Vec<u32> {
    let mut tokens = prompt.to_vec();
    for _ in 0..max_tokens {
        let best = (0u32..)
            .zip(logits_of(&tokens))
            .fold((0, f32::MIN), |best, (id, logit)| {
                if logit > best.1 { (id, logit) } else { best }
            });
        tokens.push(best.0);
    }
    tokens.split_off(prompt.len())
}
