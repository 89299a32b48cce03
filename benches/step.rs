//! Speed of whole steps of a model, and with `--compare` beside the reference runner, interleaved.
//!
//! `cargo bench --bench step -- models/NAME.gguf [--compare] [--served]`, or a folder's name; threads from
//! `NUM_THREADS`, instruction set from `CPU_ISA`, type of K and V from `KV_CACHE_TYPE`, some of the steps
//! alone by `ONLY=prefill`; on a GPU with `DEVICE=cuda`. Times are medians of the repeats, with the best in brackets; a ratio is that of the
//! medians.
//!
//! With `--served` it is the program that runs, and streams to clients over HTTP; printed is what share
//! of a step is not the runner's.

#[path = "step/served.rs"]
mod served;
#[path = "../tests/program/server.rs"]
#[allow(dead_code, reason = "shared with tests, which use more of it")]
mod server;

use std::ops::Range;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use candlepower::kernels::{Isa, KvType};
use candlepower::model::{LoadedModel, ModelFiles, load};
use candlepower::runner::candle::CandleRunner;
use candlepower::runner::cpu::CpuRunner;
use candlepower::runner::cuda::{CudaRunner, Gpu};
use candlepower::runner::{KvLayout, RaggedBatch, Runner};

const BLOCK_SIZE: usize = 32;
const BLOCKS_OF_SEQUENCE: usize = 40;
const MAX_SEQUENCES: usize = 64;
const NUM_BLOCKS: usize = BLOCKS_OF_SEQUENCE * MAX_SEQUENCES;
const FILLED_AT_ONCE: usize = 256;
const REPEATS: usize = 7;

fn main() -> anyhow::Result<()> {
    let compares = std::env::args().any(|arg| arg == "--compare");
    let mut paths = std::env::args()
        .skip(1)
        .filter(|arg| !arg.starts_with('-'))
        .peekable();
    if paths.peek().is_none() {
        println!("usage: cargo bench --bench step -- [--compare] [--served] models/NAME.gguf...");
    }
    for path in paths {
        if std::env::args().any(|arg| arg == "--served") {
            served::measure(path.as_ref());
            continue;
        }
        let path = PathBuf::from(path);
        let files = match path.is_dir() {
            true => ModelFiles::Folder(path),
            false => ModelFiles::Gguf(path),
        };
        measure(&load(&files)?, compares)?;
    }
    Ok(())
}

fn measure(model: &LoadedModel, compares: bool) -> anyhow::Result<()> {
    let setting = |name| std::env::var(name).ok();
    let isa = setting("CPU_ISA")
        .and_then(|name| Isa::ALL.into_iter().find(|isa| isa.to_string() == name));
    let isa = isa.unwrap_or_else(Isa::detect);
    let threads = setting("NUM_THREADS").and_then(|n| n.parse().ok());
    let threads = threads
        .or(std::thread::available_parallelism().ok().map(usize::from))
        .unwrap_or(1);
    let kv_type = setting("KV_CACHE_TYPE").and_then(|name| name.parse().ok());
    let kv_type = kv_type.unwrap_or_default();
    let start = Instant::now();
    let (spec, weights) = (&model.spec, &model.weights);
    let (device, weight_bytes, mut runner): (_, _, Box<dyn Runner>) = match setting("DEVICE") {
        Some(device) if device == "cuda" => {
            let cuda = CudaRunner::new(spec, weights, Gpu::open(0)?, layout(kv_type))?;
            (device, cuda.weight_bytes(), Box::new(cuda))
        }
        _ => {
            let cpu = CpuRunner::new(spec, weights, (isa, threads), layout(kv_type))?;
            let device = format!("{isa}, {threads} threads");
            (device, cpu.weight_bytes() as u64, Box::new(cpu))
        }
    };
    println!(
        "\n{} {}, {device}, {kv_type} KV: loaded in {:.2} s, {:.0} MB for {:.0} MB in the file",
        model.facts.architecture,
        model.facts.quantization,
        start.elapsed().as_secs_f64(),
        weight_bytes as f64 / 1e6,
        model.facts.weight_bytes as f64 / 1e6,
    );
    let candle = compares.then(|| CandleRunner::new(spec, weights, layout(KvType::F32)));
    let mut candle = candle.transpose()?;
    for (what, sequences, tokens, context) in [
        ("decode", 1, 1, 128),
        ("decode", 4, 1, 128),
        ("decode", 16, 1, 128),
        ("decode", 64, 1, 128),
        ("decode", 1, 1, 1024),
        ("prefill", 1, 256, 0),
        ("prefill", 1, 256, 768),
    ] {
        let name = format!("{what} {sequences:2} x {tokens:3} at {context:4}");
        let fits = context + tokens <= spec.max_positions;
        if !fits || !setting("ONLY").is_none_or(|only| name.contains(&only)) {
            continue;
        }
        // What was never written is the system's one page of zeros, quicker to read than a cache.
        for start in (0..context).step_by(FILLED_AT_ONCE) {
            let tokens = FILLED_AT_ONCE.min(context - start);
            for sequence in 0..sequences {
                let filling = batch(model, sequence..sequence + 1, tokens, start);
                runner.forward(&filling)?;
                if let Some(candle) = &mut candle {
                    candle.forward(&filling)?;
                }
            }
        }
        let batch = batch(model, 0..sequences, tokens, context);
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..REPEATS {
            ours.push(time(runner.as_mut(), &batch));
            theirs.extend(candle.as_mut().map(|candle| time(candle, &batch)));
        }
        let (best, median) = best_and_median(&mut ours);
        let per_second = (sequences * tokens) as f64 / median;
        print!("{name}");
        print!(
            "\t{:8.2} ms ({:8.2})\t{per_second:8.1} tokens/s",
            median * 1e3,
            best * 1e3
        );
        if !theirs.is_empty() {
            let (_, theirs) = best_and_median(&mut theirs);
            print!(
                "\tcandle {:8.2} ms\t{:5.1} x",
                theirs * 1e3,
                theirs / median
            );
        }
        println!();
    }
    Ok(())
}

fn layout(kv_type: KvType) -> KvLayout {
    KvLayout {
        kv_type,
        num_blocks: NUM_BLOCKS,
        block_size: BLOCK_SIZE,
    }
}

/// In seconds.
fn best_and_median(times: &mut [Duration]) -> (f64, f64) {
    times.sort();
    (times[0].as_secs_f64(), times[times.len() / 2].as_secs_f64())
}

/// Runs a step until it has taken long enough to be measured; the time of one.
fn time(runner: &mut dyn Runner, batch: &RaggedBatch) -> Duration {
    let start = Instant::now();
    let mut steps = 0;
    while steps == 0 || start.elapsed() < Duration::from_millis(200) {
        runner.forward(batch).expect("a step");
        steps += 1;
    }
    start.elapsed() / steps
}

/// `tokens` of each of some sequences that hold `context` tokens already.
fn batch(
    model: &LoadedModel,
    sequences: Range<usize>,
    tokens: usize,
    context: usize,
) -> RaggedBatch {
    let mut batch = RaggedBatch {
        q_start: vec![0],
        block_table_start: vec![0],
        ..RaggedBatch::default()
    };
    for sequence in sequences {
        let first_block = (sequence * BLOCKS_OF_SEQUENCE) as u32;
        for position in context..context + tokens {
            let token = (position * 7919 + sequence * 31) % model.spec.vocab_size;
            batch.token_ids.push(token as u32);
            batch.positions.push(position as u32);
            batch
                .slots
                .push(first_block * BLOCK_SIZE as u32 + position as u32);
        }
        let num_blocks = (context + tokens).div_ceil(BLOCK_SIZE) as u32;
        batch
            .block_tables
            .extend(first_block..first_block + num_blocks);
        batch
            .block_table_start
            .push(batch.block_tables.len() as u32);
        batch.q_start.push(batch.token_ids.len() as u32);
        batch.seq_lens.push((context + tokens) as u32);
        batch.logit_rows.push(batch.token_ids.len() as u32 - 1);
    }
    batch
}
