//! The reference runner against transformers: models/tiny-*/golden.json, from scripts/make-fixtures.
//!
//! Numbers must agree within 1e-4, greedy tokens exactly; and a row's logits must have the same bits
//! whether its prompt runs at once, in chunks, in a batch with others or from copied blocks.

mod ragged;

use std::collections::HashMap;
use std::fs;

use candle_core::{DType, Device, Tensor, safetensors};
use candlepower::model::{ModelFiles, load};
use candlepower::runner::BlockCopy;
use ragged::{
    BLOCK_SIZE, Driver, MODELS, Sequence, argmax, cases, chunk_sizes, load_folder, relative_error,
};

const TOLERANCE: f32 = 1e-4;

#[test]
fn logits_and_greedy_tokens_are_those_of_transformers() {
    for model in MODELS {
        let mut driver = Driver::new(&load_folder(model));
        for case in cases(model) {
            let mut sequence = Sequence::default();
            let logits = driver.prefill(&mut sequence, &case.ids, usize::MAX);
            let last_rows = &logits[logits.len() - case.logits.len()..];
            for (row, reference) in last_rows.iter().zip(&case.logits) {
                let error = relative_error(row, reference);
                assert!(
                    error <= TOLERANCE,
                    "{model}, {} tokens: {error}",
                    case.ids.len()
                );
            }
            let last = logits.last().expect("not empty");
            let greedy = driver.greedy(&mut sequence, last, case.greedy.len());
            assert_eq!(greedy, case.greedy, "{model}, {} tokens", case.ids.len());
            driver.free(sequence);
        }
    }
}

#[test]
fn chunks_of_any_size_give_the_same_bits() {
    for model in MODELS {
        let mut driver = Driver::new(&load_folder(model));
        for case in cases(model) {
            let mut whole = Sequence::default();
            let reference = driver.prefill(&mut whole, &case.ids, usize::MAX);
            driver.free(whole);
            for chunk in chunk_sizes(case.ids.len()) {
                let mut sequence = Sequence::default();
                let logits = driver.prefill(&mut sequence, &case.ids, chunk);
                let differs = (0..logits.len()).find(|&row| logits[row] != reference[row]);
                assert_eq!(
                    differs,
                    None,
                    "{model}, {} tokens by {chunk}",
                    case.ids.len()
                );
                driver.free(sequence);
            }
        }
    }
}

#[test]
fn a_batch_with_others_gives_the_same_bits() {
    for model in MODELS {
        let mut driver = Driver::new(&load_folder(model));
        driver.mix(&cases(model), |logits, alone| {
            assert!(logits == alone, "{model}")
        });
    }
}

#[test]
fn copied_blocks_give_the_same_bits() {
    for model in MODELS {
        let mut driver = Driver::new(&load_folder(model));
        let case = &cases(model)[1];
        let mut first = Sequence::default();
        let reference = driver.prefill(&mut first, &case.ids, usize::MAX);
        // Shares the first two blocks and copies three tokens of the third.
        let shared = 2 * BLOCK_SIZE + 3;
        let to_block = driver.allocate();
        let copy = BlockCopy {
            from_block: first.table[2],
            to_block,
            num_tokens: 3,
        };
        let mut second = Sequence {
            table: vec![first.table[0], first.table[1], to_block],
            len: shared,
        };
        let logits = driver.step_after(
            vec![copy],
            &mut [(&mut second, &case.ids[shared..])],
            |_| true,
        );
        assert!(logits[0] == reference[shared..], "{model}");
        assert_eq!(
            argmax(logits[0].last().expect("a row")),
            case.greedy[0],
            "{model}"
        );
    }
}

#[test]
fn gpt2_is_read_under_its_old_names_too() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let source = format!("{}/models/tiny-gpt2", env!("CARGO_MANIFEST_DIR"));
    fs::copy(
        format!("{source}/config.json"),
        folder.path().join("config.json"),
    )?;
    let stored = safetensors::load(format!("{source}/model.safetensors"), &Device::Cpu)?;
    let mut tensors = HashMap::new();
    for (name, tensor) in stored {
        let name = name.strip_prefix("transformer.").expect("the new names");
        tensors.insert(name.to_owned(), tensor);
    }
    // The causal mask, which files of that time carry as a tensor.
    tensors.insert(
        "h.0.attn.bias".to_owned(),
        Tensor::ones((1, 1, 8, 8), DType::F32, &Device::Cpu)?,
    );
    safetensors::save(&tensors, folder.path().join("model.safetensors"))?;
    let old = load(&ModelFiles::Folder(folder.path().to_owned()))?;
    let ids = &cases("tiny-gpt2")[0].ids;
    let run = |model| Driver::new(model).prefill(&mut Sequence::default(), ids, usize::MAX);
    assert!(run(&old) == run(&load_folder("tiny-gpt2")));
    Ok(())
}
