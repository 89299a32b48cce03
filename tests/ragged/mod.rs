//! Drives a runner as the engine does: sequences with block tables, several in a step. And what
//! transformers says of the tiny models: models/tiny-*/golden.json, from scripts/make-fixtures.

#![allow(dead_code, reason = "each test file uses its part")]

use candlepower::kernels::{Isa, KvType, TILE_TOKENS};
use candlepower::model::{LoadedModel, ModelFiles, load};
use candlepower::runner::candle::CandleRunner;
use candlepower::runner::cpu::CpuRunner;
use candlepower::runner::{BlockCopy, KvLayout, RaggedBatch, Runner};
use serde::Deserialize;

/// Small, so that every prompt spans several blocks.
pub const BLOCK_SIZE: usize = 4;
pub const NUM_BLOCKS: usize = 512;

pub const MODELS: [&str; 5] = [
    "tiny-gpt2",
    "tiny-llama",
    "tiny-mistral",
    "tiny-qwen2",
    "tiny-qwen3",
];

#[derive(Deserialize)]
struct Golden {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
pub struct Case {
    pub ids: Vec<u32>,
    /// Of all positions, or of the last alone.
    pub logits: Vec<Vec<f32>>,
    pub greedy: Vec<u32>,
}

pub fn cases(model: &str) -> Vec<Case> {
    let path = format!("{}/models/{model}/golden.json", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(path).expect("a committed file");
    serde_json::from_str::<Golden>(&text)
        .expect("golden.json")
        .cases
}

/// Every way to cut a short prompt into chunks of one size, and some ways for a long one.
pub fn chunk_sizes(num_tokens: usize) -> Vec<usize> {
    match num_tokens {
        0..=40 => (1..=num_tokens).collect(),
        _ => vec![1, 3, 16, 33, 100],
    }
}

/// A runner and the blocks that no sequence has.
pub struct Driver {
    runner: Box<dyn Runner>,
    block_size: usize,
    free_blocks: Vec<u32>,
}

/// A sequence whose K and V lie in scattered blocks.
#[derive(Clone, Default)]
pub struct Sequence {
    pub table: Vec<u32>,
    pub len: usize,
}

pub fn load_folder(name: &str) -> LoadedModel {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/models");
    load(&ModelFiles::Folder(format!("{root}/{name}").into())).expect("a committed model")
}

/// Storage of `NUM_BLOCKS` blocks.
pub fn layout(kv_type: KvType, block_size: usize) -> KvLayout {
    KvLayout {
        kv_type,
        num_blocks: NUM_BLOCKS,
        block_size,
    }
}

impl Driver {
    /// Drives the reference runner.
    pub fn new(model: &LoadedModel) -> Self {
        let (spec, weights) = (&model.spec, &model.weights);
        let layout = layout(KvType::F32, BLOCK_SIZE);
        let runner = CandleRunner::new(spec, weights, layout);
        Self::drive(Box::new(runner.expect("a runner")), BLOCK_SIZE)
    }

    /// Drives the fast runner.
    pub fn fast(model: &LoadedModel, isa_and_threads: (Isa, usize), kv_type: KvType) -> Self {
        let (spec, weights) = (&model.spec, &model.weights);
        let layout = layout(kv_type, TILE_TOKENS);
        let runner = CpuRunner::new(spec, weights, isa_and_threads, layout);
        Self::drive(Box::new(runner.expect("a runner")), TILE_TOKENS)
    }

    /// Drives a runner of `NUM_BLOCKS` blocks.
    pub fn drive(runner: Box<dyn Runner>, block_size: usize) -> Self {
        // An order without neighbours: 5 and 512 have no common factor.
        let order = (0..NUM_BLOCKS).map(|i| (i * 5 + 3) % NUM_BLOCKS);
        Self {
            runner,
            block_size,
            free_blocks: order.map(|block| block as u32).collect(),
        }
    }

    /// Appends tokens to several sequences in one step; logits of every token, by sequence.
    pub fn step(&mut self, work: &mut [(&mut Sequence, &[u32])]) -> Vec<Vec<Vec<f32>>> {
        self.step_after(Vec::new(), work, |_| true)
    }

    /// The same, after copies between blocks, and of the wanted positions.
    pub fn step_after(
        &mut self,
        copies: Vec<BlockCopy>,
        work: &mut [(&mut Sequence, &[u32])],
        is_wanted: impl Fn(usize) -> bool,
    ) -> Vec<Vec<Vec<f32>>> {
        let mut batch = RaggedBatch {
            copies,
            q_start: vec![0],
            block_table_start: vec![0],
            ..RaggedBatch::default()
        };
        for (sequence, tokens) in work.iter_mut() {
            for &token in *tokens {
                if sequence.len.is_multiple_of(self.block_size) {
                    sequence.table.push(self.allocate());
                }
                let block = sequence.table[sequence.len / self.block_size] as usize;
                if is_wanted(sequence.len) {
                    batch.logit_rows.push(batch.token_ids.len() as u32);
                }
                batch.token_ids.push(token);
                batch.positions.push(sequence.len as u32);
                batch
                    .slots
                    .push((block * self.block_size + sequence.len % self.block_size) as u32);
                sequence.len += 1;
            }
            batch.q_start.push(batch.token_ids.len() as u32);
            batch.seq_lens.push(sequence.len as u32);
            batch.block_tables.extend(&sequence.table);
            batch
                .block_table_start
                .push(batch.block_tables.len() as u32);
        }
        let logits = self.runner.forward(&batch).expect("a step");
        let first = |start: &u32| batch.logit_rows.partition_point(|row| row < start);
        let rows = batch
            .q_start
            .windows(2)
            .map(|bounds| first(&bounds[0])..first(&bounds[1]));
        rows.map(|rows| rows.map(|row| logits.row(row).to_vec()).collect())
            .collect()
    }

    /// Runs a prompt alone, `chunk` tokens a step; logits of every token.
    pub fn prefill(&mut self, sequence: &mut Sequence, ids: &[u32], chunk: usize) -> Vec<Vec<f32>> {
        ids.chunks(chunk)
            .flat_map(|tokens| self.step(&mut [(&mut *sequence, tokens)]).remove(0))
            .collect()
    }

    /// Greedy continuation of a sequence whose last token gave `logits`.
    pub fn greedy(&mut self, sequence: &mut Sequence, logits: &[f32], count: usize) -> Vec<u32> {
        let mut tokens = vec![argmax(logits)];
        while tokens.len() < count {
            let last = *tokens.last().expect("not empty");
            let logits = self
                .step(&mut [(&mut *sequence, &[last])])
                .remove(0)
                .remove(0);
            tokens.push(argmax(&logits));
        }
        tokens
    }

    /// Runs all prompts at once, each in chunks of its own size, so that every step mixes long and short
    /// prefills with decodes; twice over, so that there are sequences alike. `check` gets some rows of
    /// logits, and what they are where a prompt runs alone.
    pub fn mix(&mut self, cases: &[Case], check: impl Fn(&[Vec<f32>], &[Vec<f32>])) {
        let mut alone = Vec::new();
        for case in cases {
            let mut sequence = Sequence::default();
            alone.push(self.prefill(&mut sequence, &case.ids, usize::MAX));
            self.free(sequence);
        }
        let work: Vec<_> = cases.iter().zip(&alone).zip([1, 5, 2, 31]).collect();
        let work: Vec<_> = work.iter().chain(&work).collect();
        let mut sequences = vec![Sequence::default(); work.len()];
        loop {
            let mut step = Vec::new();
            let mut expected = Vec::new();
            for (sequence, ((case, alone), chunk)) in sequences.iter_mut().zip(&work) {
                let rows = sequence.len..case.ids.len().min(sequence.len + chunk);
                if !rows.is_empty() {
                    expected.push(&alone[rows.clone()]);
                    step.push((sequence, &case.ids[rows]));
                }
            }
            if step.is_empty() {
                break;
            }
            for (logits, expected) in self.step(&mut step).iter().zip(expected) {
                check(logits, expected);
            }
        }
    }

    pub fn allocate(&mut self) -> u32 {
        self.free_blocks.pop().expect("enough blocks for a test")
    }

    pub fn free(&mut self, sequence: Sequence) {
        self.free_blocks.extend(sequence.table);
    }
}

pub fn argmax(logits: &[f32]) -> u32 {
    let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]));
    best.expect("a vocabulary") as u32
}

/// Largest difference, relative to the largest reference value.
pub fn relative_error(logits: &[f32], reference: &[f32]) -> f32 {
    assert_eq!(logits.len(), reference.len());
    let scale = reference.iter().fold(0f32, |max, x| max.max(x.abs()));
    let pairs = logits.iter().zip(reference);
    pairs.fold(0f32, |max, (a, b)| match (a - b).abs() / scale {
        error if error.is_finite() => max.max(error),
        _ => f32::INFINITY,
    })
}
