//! The reference runner against a second, independent implementation: candle-transformers' own
//! models, one sequence at a time, on the tiny models that they support.

mod ragged;

use std::fs;
use std::path::PathBuf;

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::{mistral, qwen2};
use ragged::{Driver, Sequence, load_folder, relative_error};
use serde_json::Value;

const PROMPT: [u32; 19] = [
    9, 204, 31, 77, 5, 118, 300, 42, 42, 6, 250, 133, 17, 88, 291, 3, 64, 160, 222,
];
const TOLERANCE: f32 = 1e-4;

fn folder(model: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/models")).join(model)
}

/// config.json with `rope_theta` where older readers look for it.
fn config(model: &str) -> Result<Value> {
    let text = fs::read_to_string(folder(model).join("config.json"))?;
    let mut config: Value = serde_json::from_str(&text)?;
    config["rope_theta"] = config["rope_parameters"]["rope_theta"].clone();
    Ok(config)
}

fn weights(model: &str) -> Result<VarBuilder<'static>> {
    let mut tensors = std::collections::HashMap::new();
    for file in fs::read_dir(folder(model))? {
        let path = file?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "safetensors")
        {
            tensors.extend(candle_core::safetensors::load(path, &Device::Cpu)?);
        }
    }
    Ok(VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu))
}

/// Compares the last token's logits with ours.
fn assert_agrees(model: &str, theirs: Tensor) -> Result<()> {
    let mut driver = Driver::new(&load_folder(model));
    let ours = driver.prefill(&mut Sequence::default(), &PROMPT, PROMPT.len());
    let theirs = theirs.flatten_all()?.to_vec1::<f32>()?;
    let error = relative_error(&ours[PROMPT.len() - 1], &theirs);
    assert!(error <= TOLERANCE, "{model}: {error}");
    Ok(())
}

fn prompt() -> Result<Tensor> {
    Ok(Tensor::new(PROMPT.as_slice(), &Device::Cpu)?.unsqueeze(0)?)
}

#[test]
fn qwen2_agrees_with_candle_transformers() -> Result<()> {
    let mut config = config("tiny-qwen2")?;
    // Unused without a window, but not optional there.
    config["sliding_window"] = 1024.into();
    let config: qwen2::Config = serde_json::from_value(config)?;
    let mut model = qwen2::ModelForCausalLM::new(&config, weights("tiny-qwen2")?)?;
    assert_agrees("tiny-qwen2", model.forward(&prompt()?, 0)?)
}

#[test]
fn mistral_agrees_with_candle_transformers() -> Result<()> {
    let mut config: mistral::Config = serde_json::from_value(config("tiny-mistral")?)?;
    // There a window of n lets a token see n before it; here, as in transformers, n with itself.
    config.sliding_window = config.sliding_window.map(|window| window - 1);
    let mut model = mistral::Model::new(&config, weights("tiny-mistral")?)?;
    assert_agrees("tiny-mistral", model.forward(&prompt()?, 0)?)
}
