//! A step of the fast runner allocates nothing once the largest batch has been seen, and nearly none
//! of the engine's does.
//!
//! In a program of its own, whose allocator counts what each thread does.

// The trait of allocators is unsafe; this one passes everything on.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use candlepower::config::{EngineConfig, MemorySize, SpeculationConfig};
use candlepower::engine::{EngineHandle, Event, KvCapacity, Request, SamplingParams, start};
use candlepower::kernels::{Isa, KvType};
use candlepower::model::{ModelFiles, load};
use candlepower::runner::cpu::CpuRunner;
use candlepower::runner::{KvLayout, Logits, RaggedBatch, Runner};

const BLOCK_SIZE: usize = 16;

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

/// Of this thread so far.
fn allocations() -> usize {
    ALLOCATIONS.get()
}

// SAFETY: the system's allocator keeps the contract.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Each sequence has a position to start from and a number of tokens.
fn batch(sequences: &[(usize, usize)]) -> RaggedBatch {
    let mut batch = RaggedBatch {
        q_start: vec![0],
        block_table_start: vec![0],
        ..RaggedBatch::default()
    };
    for (sequence, &(start, tokens)) in sequences.iter().enumerate() {
        let first_block = (sequence * 4) as u32;
        for position in start..start + tokens {
            batch.token_ids.push(position as u32);
            batch.positions.push(position as u32);
            batch
                .slots
                .push(first_block * BLOCK_SIZE as u32 + position as u32);
        }
        batch.q_start.push(batch.token_ids.len() as u32);
        batch.seq_lens.push((start + tokens) as u32);
        batch.block_tables.extend(first_block..first_block + 4);
        batch
            .block_table_start
            .push(batch.block_tables.len() as u32);
        batch.logit_rows.push(batch.token_ids.len() as u32 - 1);
    }
    batch
}

#[test]
fn a_step_no_larger_than_those_before_allocates_nothing() {
    for name in ["tiny-gpt2", "tiny-llama", "tiny-qwen3"] {
        let folder = format!("{}/models/{name}", env!("CARGO_MANIFEST_DIR"));
        let model = load(&ModelFiles::Folder(folder.into())).expect("a committed model");
        // One thread: which of several takes a part first, and grows its buffers, is chance.
        let isa_and_threads = (Isa::detect(), 1);
        let layout = KvLayout {
            kv_type: KvType::F16,
            num_blocks: 16,
            block_size: BLOCK_SIZE,
        };
        let runner = CpuRunner::new(&model.spec, &model.weights, isa_and_threads, layout);
        let mut runner = runner.expect("a runner");
        let largest = batch(&[(0, 40), (0, 20), (20, 1), (30, 10)]);
        runner.forward(&largest).expect("a step");
        for step in [
            batch(&[(40, 1), (20, 1), (21, 1), (39, 1)]),
            batch(&[(0, 33)]),
            largest,
        ] {
            let before = allocations();
            runner.forward(&step).expect("a step");
            let allocations = allocations() - before;
            assert_eq!(allocations, 0, "{name}, {} tokens", step.num_tokens());
        }
    }
}

/// Gives a few logits at once, and notes what the engine's thread allocated since the last time.
struct Watch {
    logits: Logits,
    before: usize,
    allocations_of_steps: Arc<Mutex<Vec<usize>>>,
}

impl Runner for Watch {
    fn forward(&mut self, _: &RaggedBatch) -> anyhow::Result<&Logits> {
        let since = allocations() - self.before;
        let steps = &mut self.allocations_of_steps;
        steps.lock().expect("no panic").push(since);
        self.before = allocations();
        Ok(&self.logits)
    }

    fn vocab_size(&self) -> usize {
        self.logits.vocab_size
    }
}

fn engine_of(runner: Watch, max_model_len: usize) -> EngineHandle {
    let config = EngineConfig {
        enable_batching: true,
        enable_prefix_caching: true,
        max_batch_size: 4,
        max_batch_tokens: 512,
        // The batch is whole from the first step on.
        max_wait_time: Duration::from_secs(60),
        queue_max_size: 4,
        request_timeout: Duration::from_secs(600),
        stall_timeout: Duration::from_secs(600),
        max_model_len: None,
        kv_cache_size: MemorySize::Bytes(1),
        kv_cache_type: KvType::F16,
        speculation: SpeculationConfig::OFF,
    };
    let kv = KvCapacity {
        num_blocks: 64,
        bytes_per_token: 1,
    };
    start(Box::new(runner), kv, max_model_len, &config).expect("the settings fit")
}

#[test]
fn most_steps_of_the_engine_allocate_nothing() {
    const SEQUENCES: usize = 4;
    const STEPS: usize = 200;
    const VOCAB: usize = 64;
    let allocations_of_steps = Arc::new(Mutex::new(Vec::with_capacity(2 * STEPS)));
    let logits = (0..SEQUENCES * VOCAB).map(|i| (i * 37 % 101) as f32);
    let runner = Watch {
        logits: Logits {
            values: logits.collect(),
            vocab_size: VOCAB,
        },
        before: 0,
        allocations_of_steps: Arc::clone(&allocations_of_steps),
    };
    let engine = engine_of(runner, 10 + STEPS);
    let submit = |sequence: usize| {
        let request = Request {
            sampling: SamplingParams {
                temperature: [0.0, 0.8][sequence % 2],
                ..SamplingParams::default()
            },
            ..Request::new(vec![sequence as u32; 10], STEPS)
        };
        engine.submit(request).expect("it fits")
    };
    let events: Vec<_> = (0..SEQUENCES).map(submit).collect();
    for mut events in events {
        let is_token = |event: &Event| matches!(event, Event::Token { .. });
        let all = std::iter::from_fn(|| events.blocking_recv());
        assert_eq!(all.filter(is_token).count(), STEPS);
    }
    let steps = allocations_of_steps.lock().expect("no panic");
    assert_eq!(steps.len(), STEPS);
    // Every 32 tokens a sequence takes a block and its events a page, and buffers that double grow.
    let decode = &steps[2..];
    let silent = decode
        .iter()
        .filter(|allocations| **allocations == 0)
        .count();
    assert!(silent * 10 >= decode.len() * 8, "{decode:?}");
}
