//! A step of the fast runner allocates nothing once the largest batch has been seen.
//!
//! In a program of its own, whose allocator counts.

// The trait of allocators is unsafe; this one passes everything on.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use candlepower::kernels::{Isa, KvType};
use candlepower::model::{ModelFiles, load};
use candlepower::runner::cpu::CpuRunner;
use candlepower::runner::{KvLayout, RaggedBatch, Runner};

const BLOCK_SIZE: usize = 16;

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: the system's allocator keeps the contract.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
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
            let before = ALLOCATIONS.load(Ordering::Relaxed);
            runner.forward(&step).expect("a step");
            let allocations = ALLOCATIONS.load(Ordering::Relaxed) - before;
            assert_eq!(allocations, 0, "{name}, {} tokens", step.num_tokens());
        }
    }
}
