//! The runner for NVIDIA GPUs: against transformers and the reference runner, and against itself in
//! other batches; where there is a GPU.

mod ragged;

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use candlepower::kernels::KvType;
use candlepower::model::{LoadedModel, ModelFiles, TokenizerFiles, load};
use candlepower::runner::BlockCopy;
use candlepower::runner::candle::CandleRunner;
use candlepower::runner::cuda::{CudaRunner, Gpu};
use candlepower::text::Tokenizer;
use ragged::{Driver, MODELS, Sequence, argmax, cases, layout, load_folder, relative_error};

/// That of the server.
const BLOCK_SIZE: usize = candlepower::kernels::TILE_TOKENS;
/// Of logits, relative to the largest: weights, activations, K and V are 16 bits wide.
const TOLERANCE: f32 = 2e-2;

/// The only test that uses the GPU now: cuBLAS fails now and then where steps are recorded while another thread
/// has work for the GPU, as no server has. `None`: this machine has no driver, and nothing is tested.
fn turn() -> Option<MutexGuard<'static, ()>> {
    static TURN: Mutex<()> = Mutex::new(());
    Gpu::has_driver().then(|| TURN.lock().unwrap_or_else(PoisonError::into_inner))
}

fn on_gpu(model: &LoadedModel) -> Driver {
    let (gpu, layout) = (
        Gpu::open(0).expect("a GPU"),
        layout(KvType::F16, BLOCK_SIZE),
    );
    let runner = CudaRunner::new(&model.spec, &model.weights, gpu, layout);
    Driver::drive(Box::new(runner.expect("a runner")), BLOCK_SIZE)
}

/// Asserts that rows are the reference's but for rounding.
fn assert_close(rows: &[Vec<f32>], reference: &[Vec<f32>], what: &str) {
    assert_eq!(rows.len(), reference.len(), "{what}");
    for (row, (logits, reference)) in rows.iter().zip(reference).enumerate() {
        let error = relative_error(logits, reference);
        assert!(error <= TOLERANCE, "{what}, row {row}: {error}");
    }
}

#[test]
fn logits_are_those_of_transformers() {
    let Some(_turn) = turn() else {
        return;
    };
    for model in MODELS {
        let files = load_folder(model);
        let mut driver = on_gpu(&files);
        for case in cases(model) {
            let mut sequence = Sequence::default();
            let logits = driver.prefill(&mut sequence, &case.ids, usize::MAX);
            let what = format!("{model}, {} tokens", case.ids.len());
            assert_close(
                &logits[logits.len() - case.logits.len()..],
                &case.logits,
                &what,
            );
            driver.free(sequence);
        }
    }
}

#[test]
fn chunks_and_batches_change_nothing_but_rounding() {
    let Some(_turn) = turn() else {
        return;
    };
    for model in MODELS {
        let mut driver = on_gpu(&load_folder(model));
        driver.mix(&cases(model), |logits, alone| {
            assert_close(logits, alone, model)
        });
    }
}

#[test]
fn decode_steps_that_are_queued_again_change_nothing_but_rounding() {
    let Some(_turn) = turn() else {
        return;
    };
    for model in MODELS {
        let mut driver = on_gpu(&load_folder(model));
        let cases = cases(model);
        let longest = cases.iter().map(|case| case.ids.len()).max();
        let mut sequences = vec![Sequence::default(); cases.len()];
        let mut rows = vec![Vec::new(); cases.len()];
        // Batches become smaller as sequences end, and each size is met several times.
        for at in 0..longest.expect("a case") {
            let running: Vec<_> = (0..cases.len())
                .filter(|&case| at < cases[case].ids.len())
                .collect();
            let mut step: Vec<_> = sequences
                .iter_mut()
                .zip(&cases)
                .filter(|(_, case)| at < case.ids.len())
                .map(|(sequence, case)| (sequence, &case.ids[at..=at]))
                .collect();
            for (case, logits) in running.into_iter().zip(driver.step(&mut step)) {
                rows[case].extend(logits);
            }
        }
        for (rows, case) in rows.iter().zip(&cases) {
            let reference = driver.prefill(&mut Sequence::default(), &case.ids, usize::MAX);
            assert_close(rows, &reference, model);
        }
    }
}

#[test]
fn copied_blocks_and_rows_without_logits_change_nothing_but_rounding() {
    let Some(_turn) = turn() else {
        return;
    };
    for model in MODELS {
        let mut driver = on_gpu(&load_folder(model));
        let longest = cases(model).into_iter().max_by_key(|case| case.ids.len());
        let ids = longest.expect("a case").ids;
        let mut first = Sequence::default();
        let reference = driver.prefill(&mut first, &ids, usize::MAX);
        // Shares the first block and copies five tokens of the second.
        let to_block = driver.allocate();
        let copy = BlockCopy {
            from_block: first.table[1],
            to_block,
            num_tokens: 5,
        };
        let shared = BLOCK_SIZE + 5;
        let mut second = Sequence {
            table: vec![first.table[0], to_block],
            len: shared,
        };
        let mut step = [(&mut second, &ids[shared..])];
        let logits = driver.step_after(vec![copy], &mut step, |at| at % 3 == 0);
        let wanted = (shared..ids.len()).filter(|at| at % 3 == 0);
        let wanted: Vec<_> = wanted.map(|at| reference[at].clone()).collect();
        assert_close(&logits[0], &wanted, model);
    }
}

/// A real model that scripts/fetch-model has put here; the test is of it where it is.
#[test]
fn a_real_model_agrees_with_the_cpu() {
    let Some(_turn) = turn() else {
        return;
    };
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/models/SmolLM2-135M-Instruct.Q4_1.gguf"
    );
    if !Path::new(path).exists() {
        return;
    }
    let model = load(&ModelFiles::Gguf(path.into())).expect("a fetched model");
    let TokenizerFiles::Gguf(vocab) = model.tokenizer.clone() else {
        panic!("a GGUF file has its tokenizer");
    };
    let tokenizer = Tokenizer::from_gguf(vocab).expect("a tokenizer");
    let text = include_str!("../README.md");
    let mut ids = tokenizer.encode_text(text).expect("tokens");
    ids.truncate(640);
    let cache = layout(KvType::F32, BLOCK_SIZE);
    let cpu = CandleRunner::new(&model.spec, &model.weights, cache);
    let mut cpu = Driver::drive(Box::new(cpu.expect("a runner")), BLOCK_SIZE);
    let expected = cpu.prefill(&mut Sequence::default(), &ids, usize::MAX);
    // A prompt, then decode steps over a context that attention cuts into parts.
    let mut driver = on_gpu(&model);
    let mut sequence = Sequence::default();
    let (prompt, decoded) = ids.split_at(560);
    let mut logits = driver.prefill(&mut sequence, prompt, 256);
    logits.extend(driver.prefill(&mut sequence, decoded, 1));
    assert_close(&logits, &expected, "SmolLM2");
    let rows = logits.iter().zip(&expected);
    let same = rows.filter(|(a, b)| argmax(a) == argmax(b)).count();
    assert!(same * 100 >= ids.len() * 98, "{same} of {}", ids.len());
}
