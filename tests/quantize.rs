//! QUANTIZE: the matrices of a folder, made smaller while they are loaded.

mod ragged;
mod synthetic;

use std::path::Path;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use candlepower::kernels::{Isa, KvType};
use candlepower::model::{LoadedModel, ModelFiles, Quantization, StoredTensor, load};
use candlepower::runner::cpu::CpuRunner;
use ragged::{Driver, Sequence, layout, relative_error};
use synthetic::{Architecture, Synthetic};

const PROMPT: [u32; 9] = [3, 90, 14, 15, 92, 65, 35, 89, 79];
/// Of the fast runner, relative to the largest logit; tests/gguf.rs has the bound of each type.
const TOLERANCE: f32 = 4e-2;

fn quantization(name: &str) -> Quantization {
    name.parse().expect("a type")
}

fn folder_of(model: &Synthetic) -> (tempfile::TempDir, LoadedModel) {
    let folder = tempfile::tempdir().expect("a folder");
    model.write_folder(folder.path());
    let loaded = load(&ModelFiles::Folder(folder.path().to_owned())).expect("a model");
    (folder, loaded)
}

fn gguf_of(model: &Synthetic, folder: &Path) -> LoadedModel {
    let path = folder.join("model.gguf");
    std::fs::write(&path, model.gguf()).expect("written");
    load(&ModelFiles::Gguf(path)).expect("a model")
}

/// Values as f32, stored (in, out) if `is_transposed`, after a quantisation of (out, in).
fn quantised(values: Tensor, dtype: GgmlDType, is_transposed: bool) -> candle_core::Result<Tensor> {
    let values = if is_transposed { values.t()? } else { values };
    QTensor::quantize(&values.contiguous()?, dtype)?.dequantize(&Device::Cpu)
}

/// Each matrix of a model that is multiplied with, and whether it is stored (in, out).
fn matrices(model: &LoadedModel) -> Vec<(&StoredTensor, bool)> {
    let weights = &model.weights;
    let layers = weights.layers.iter();
    let linears = layers.flat_map(|layer| [&layer.qkv, &layer.output, &layer.up, &layer.down]);
    let of_layers = linears.flat_map(|linear| {
        let tensors = linear.weights.iter();
        tensors.map(|tensor| (tensor, linear.is_in_by_out))
    });
    let tables = std::iter::once(&weights.token_embedding).chain(&weights.head);
    tables
        .map(|table| (table, false))
        .chain(of_layers)
        .collect()
}

#[test]
fn matrices_are_those_of_a_quantised_file_and_both_runners_run_them() -> anyhow::Result<()> {
    for architecture in Architecture::ALL {
        let (folder, dense) = folder_of(&Synthetic::new(architecture, &[GgmlDType::F32]));
        for kind in Quantization::ALL {
            let mut small = load(&ModelFiles::Folder(folder.path().to_owned()))?;
            assert_eq!(small.quantize(kind)?, Vec::<String>::new());
            let expected_name = kind.to_string().to_uppercase();
            assert!(small.facts.quantization.starts_with(&expected_name));
            for ((original, is_transposed), (tensor, _)) in
                matrices(&dense).into_iter().zip(matrices(&small))
            {
                let expected = quantised(original.read_f32()?, kind.dtype(), is_transposed)?;
                let values = tensor.read_f32()?;
                assert_eq!(
                    values.to_vec2::<f32>()?,
                    expected.to_vec2::<f32>()?,
                    "{kind}"
                );
            }
            let run = |mut driver: Driver| {
                driver.prefill(&mut Sequence::default(), &PROMPT, PROMPT.len())
            };
            let reference = run(Driver::new(&small));
            let fast = run(Driver::fast(&small, (Isa::detect(), 2), KvType::F16));
            for (row, reference) in fast.iter().zip(&reference) {
                let error = relative_error(row, reference);
                println!("{} {kind}: {error}", architecture.name());
                assert!(
                    error <= TOLERANCE,
                    "{} {kind}: {error}",
                    architecture.name()
                );
            }
        }
    }
    Ok(())
}

#[test]
fn the_fast_runner_holds_what_the_type_takes() -> anyhow::Result<()> {
    let bytes = |model: &LoadedModel| -> anyhow::Result<f64> {
        let how = (Isa::detect(), 1);
        let layout = layout(KvType::F16, 32);
        let runner = CpuRunner::new(&model.spec, &model.weights, how, layout)?;
        Ok(runner.weight_bytes() as f64)
    };
    let (folder, dense) = folder_of(&Synthetic::new(Architecture::Qwen2, &[GgmlDType::BF16]));
    let dense_bytes = bytes(&dense)?;
    // Bits a weight; K formats have a scale of 16 bits for each group.
    for (name, bits) in [("q8_0", 8.5), ("q6_k", 7.0), ("q5_k", 6.0), ("q4_0", 4.5)] {
        let mut small = load(&ModelFiles::Folder(folder.path().to_owned()))?;
        small.quantize(quantization(name))?;
        // The folder is f32.
        let ratio = bytes(&small)? / dense_bytes;
        assert!((ratio - bits / 32.0).abs() < 0.005, "{name}: {ratio}");
    }
    Ok(())
}

#[test]
fn what_has_no_whole_blocks_stays_as_it_is_and_is_named() -> anyhow::Result<()> {
    let (_folder, mut model) = folder_of(&Synthetic::with_inner(
        Architecture::Llama,
        &[GgmlDType::F32],
        96,
    ));
    let kept = model.quantize(quantization("q4_k"))?;
    let down = |layer| format!("model.layers.{layer}.mlp.down_proj.weight");
    assert_eq!(kept, [down(0), down(1)]);
    assert_eq!(model.facts.quantization, "Q4_K+F32");
    let run = |mut driver: Driver| driver.prefill(&mut Sequence::default(), &PROMPT, 4);
    let reference = run(Driver::new(&model));
    let fast = run(Driver::fast(&model, (Isa::detect(), 1), KvType::F16));
    for (row, reference) in fast.iter().zip(&reference) {
        assert!(relative_error(row, reference) <= TOLERANCE);
    }
    Ok(())
}

#[test]
fn a_model_that_cannot_be_quantised_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = Synthetic::new(Architecture::Qwen2, &[GgmlDType::Q4_1, GgmlDType::F32]);
    let error = gguf_of(&model, folder.path()).quantize(quantization("q8_0"));
    let error = error.expect_err("quantised already").to_string();
    assert!(
        error.contains("QUANTIZE=q8_0") && error.contains("already, F32+Q4_1"),
        "{error}"
    );
    // A GGUF file that is not quantised is as good as a folder.
    let model = Synthetic::new(Architecture::Qwen2, &[GgmlDType::F16]);
    let mut loaded = gguf_of(&model, folder.path());
    loaded.quantize(quantization("q8_0")).expect("dense");
    // No row of the tiny model is a whole block.
    let mut tiny = ragged::load_folder("tiny-llama");
    let error = tiny.quantize(quantization("q8_0"));
    let error = error.expect_err("odd sizes").to_string();
    assert!(
        error.contains("QUANTIZE=q8_0") && error.contains("whole blocks of 32"),
        "{error}"
    );
}
