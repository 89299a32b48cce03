//! What the engine does between the kernels: plan a step and tell its tokens, sample, find prefixes.
//!
//! `cargo bench --bench engine [-- FILTER]`. The engine runs here as in the server, on a thread of its
//! own, over a runner that computes nothing; one request or batch of requests of `STEPS` tokens is one
//! iteration, so that a step is a hundredth of the times shown.

use std::time::Duration;

use candlepower::config::{EngineConfig, KvType, MemorySize, SpeculationConfig};
use candlepower::engine::{EngineHandle, Event, KvCapacity, Request, SamplingParams, start};
use candlepower::kv_cache::{BLOCK_SIZE, BlockTable, KvCache};
use candlepower::runner::{Logits, RaggedBatch, Runner};
use divan::Bencher;
use divan::counter::ItemsCount;
use tokio::sync::mpsc::UnboundedReceiver;

const STEPS: usize = 100;
const PROMPT_TOKENS: usize = 100;
/// Of Qwen2.5.
const LARGE_VOCAB: usize = 151_936;

fn main() {
    divan::main();
}

/// Gives each wanted row the same logits again, at once.
struct IdleRunner {
    logits: Logits,
}

impl IdleRunner {
    fn new(vocab_size: usize, max_rows: usize) -> Self {
        Self {
            logits: Logits {
                values: logits(vocab_size).repeat(max_rows),
                vocab_size,
            },
        }
    }
}

impl Runner for IdleRunner {
    fn forward(&mut self, _: &RaggedBatch) -> anyhow::Result<&Logits> {
        Ok(&self.logits)
    }

    fn vocab_size(&self) -> usize {
        self.logits.vocab_size
    }
}

/// As likely as words are by their rank, in no order.
fn logits(len: usize) -> Vec<f32> {
    const EXPONENT: f32 = -1.4;
    let rank = |i: usize| (i * 7919 % len + 1) as f32;
    (0..len).map(|i| EXPONENT * rank(i).ln()).collect()
}

fn engine(vocab_size: usize, sequences: usize) -> EngineHandle {
    let num_blocks = 2 * sequences * (PROMPT_TOKENS + STEPS).div_ceil(BLOCK_SIZE);
    let config = EngineConfig {
        enable_batching: true,
        enable_prefix_caching: true,
        max_batch_size: sequences,
        max_batch_tokens: sequences * PROMPT_TOKENS,
        // The batch is whole from the first step on.
        max_wait_time: Duration::from_secs(60),
        queue_max_size: sequences,
        request_timeout: Duration::from_secs(600),
        stall_timeout: Duration::from_secs(600),
        max_model_len: None,
        kv_cache_size: MemorySize::Bytes(1),
        kv_cache_type: KvType::F16,
        speculation: SpeculationConfig::OFF,
    };
    let kv = KvCapacity {
        num_blocks,
        bytes_per_token: 1,
    };
    let runner = Box::new(IdleRunner::new(vocab_size, sequences));
    start(runner, kv, PROMPT_TOKENS + STEPS, &config).expect("the settings fit")
}

fn submit(engine: &EngineHandle, sampling: &SamplingParams) -> UnboundedReceiver<Event> {
    let request = Request {
        sampling: sampling.clone(),
        ..Request::new((0..PROMPT_TOKENS as u32).collect(), STEPS)
    };
    engine.submit(request).expect("it fits")
}

fn run(engine: &EngineHandle, sequences: usize, sampling: &SamplingParams) {
    let events: Vec<_> = (0..sequences).map(|_| submit(engine, sampling)).collect();
    for mut events in events {
        while events.blocking_recv().is_some() {}
    }
}

/// Schedule, fill the batch, sample from few tokens, tell them, publish the figures.
#[divan::bench(args = [1, 16, 64])]
fn step_without_kernels(bencher: Bencher, sequences: usize) {
    let engine = engine(64, sequences);
    bencher
        .counter(ItemsCount::new(STEPS))
        .bench(|| run(&engine, sequences, &SamplingParams::default()));
}

const SAMPLINGS: [&str; 6] = [
    "greedy",
    "temperature",
    "top_k 40",
    "top_p 0.9",
    "min_p 0.05",
    "penalty",
];

/// The same for one sequence with the vocabulary of Qwen2.5.
#[divan::bench(args = SAMPLINGS)]
fn sample_of_152k(bencher: Bencher, sampling: &str) {
    let default = SamplingParams {
        temperature: 0.8,
        seed: Some(7),
        ..SamplingParams::default()
    };
    let params = match sampling {
        "greedy" => SamplingParams::default(),
        "top_k 40" => SamplingParams {
            top_k: 40,
            ..default
        },
        "top_p 0.9" => SamplingParams {
            top_p: 0.9,
            ..default
        },
        "min_p 0.05" => SamplingParams {
            min_p: 0.05,
            ..default
        },
        "penalty" => SamplingParams {
            repetition_penalty: 1.1,
            ..SamplingParams::default()
        },
        _ => default,
    };
    let engine = engine(LARGE_VOCAB, 1);
    bencher
        .counter(ItemsCount::new(STEPS))
        .bench(|| run(&engine, 1, &params));
}

const TREE_BLOCKS: usize = 16_384;

/// A cache without a free block: prompts of 16 blocks, all different, from token `first` on.
fn full_cache(first: impl Fn(u32) -> u32) -> (KvCache, Vec<Vec<u32>>) {
    const PROMPT_BLOCKS: usize = 16;
    let mut cache = KvCache::new(TREE_BLOCKS);
    let prompts = (0..(TREE_BLOCKS / PROMPT_BLOCKS) as u32).map(|prompt| {
        let rest = (1..(PROMPT_BLOCKS * BLOCK_SIZE) as u32).map(|i| prompt * 7919 + i);
        std::iter::once(first(prompt)).chain(rest).collect()
    });
    let prompts: Vec<Vec<u32>> = prompts.collect();
    for prompt in &prompts {
        let mut table = cache.admit(prompt, 0, 0).expect("there is room").table;
        cache.commit(&mut table, prompt);
        cache.release(&mut table);
    }
    (cache, prompts)
}

fn admit_and_release(cache: &mut KvCache, prompt: &[u32]) {
    let admission = cache.admit(prompt, prompt.len() - 1, 0);
    let mut table: BlockTable = admission.expect("there is room").table;
    cache.release(&mut table);
}

/// Prompts of 512 tokens, each found whole in a full tree; all begin with one token, or none do.
#[divan::bench(args = ["first tokens differ", "one first token"])]
fn prefix_hit(bencher: Bencher, prompts: &str) {
    let shares_first = prompts == "one first token";
    let (mut cache, prompts) = full_cache(|prompt| if shares_first { 1 } else { prompt });
    let mut next = (0..prompts.len()).map(|i| i * 383 % prompts.len()).cycle();
    bencher.bench_local(|| admit_and_release(&mut cache, &prompts[next.next().expect("endless")]));
}

/// Prompts of 512 tokens of which a full tree knows nothing, or the first token alone.
#[divan::bench(args = ["first tokens differ", "one first token"])]
fn prefix_miss(bencher: Bencher, prompts: &str) {
    let shares_first = prompts == "one first token";
    let (mut cache, _) = full_cache(|prompt| if shares_first { 1 } else { prompt });
    let prompt: Vec<u32> = std::iter::once(1).chain(900_000_000..900_000_511).collect();
    bencher.bench_local(|| admit_and_release(&mut cache, &prompt));
}
