//! GGUF files of every architecture and tensor type against a folder that holds the same values as
//! f32.
//!
//! Both go through the reference runner in the same order, so that logits must be equal to the bit;
//! the fast runner stays within a bound of them. tests/golden.rs ties the reference runner itself to
//! transformers.

mod ragged;
mod synthetic;

use std::fs;
use std::path::Path;

use candle_core::quantized::gguf_file::Value;
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use candlepower::kernels::{Isa, KvType};
use candlepower::model::{LoadedModel, ModelFiles, TokenizerFiles, load};
use ragged::{Driver, Sequence, relative_error};
use serde_json::json;
use synthetic::{Architecture, Synthetic};

const TYPES: [GgmlDType; 13] = [
    GgmlDType::F32,
    GgmlDType::F16,
    GgmlDType::BF16,
    GgmlDType::Q4_0,
    GgmlDType::Q4_1,
    GgmlDType::Q5_0,
    GgmlDType::Q5_1,
    GgmlDType::Q8_0,
    GgmlDType::Q2K,
    GgmlDType::Q3K,
    GgmlDType::Q4K,
    GgmlDType::Q5K,
    GgmlDType::Q6K,
];
/// In one file, as the mixtures of llama.cpp have them.
const MIXED: [GgmlDType; 6] = [
    GgmlDType::Q4K,
    GgmlDType::Q6K,
    GgmlDType::Q5_0,
    GgmlDType::Q8_0,
    GgmlDType::F16,
    GgmlDType::Q4_1,
];

const PROMPT: [u32; 11] = [3, 90, 14, 15, 92, 65, 35, 89, 79, 32, 38];

fn load_gguf(model: &Synthetic, folder: &Path) -> anyhow::Result<LoadedModel> {
    let path = folder.join("model.gguf");
    fs::write(&path, model.gguf())?;
    load(&ModelFiles::Gguf(path))
}

fn load_folder(model: &Synthetic, folder: &Path) -> anyhow::Result<LoadedModel> {
    model.write_folder(folder);
    load(&ModelFiles::Folder(folder.to_owned()))
}

fn logits(model: &LoadedModel) -> Vec<Vec<f32>> {
    Driver::new(model).prefill(&mut Sequence::default(), &PROMPT, PROMPT.len())
}

/// What the fast runner may be off by, relative to the largest logit: it rounds the weights of the
/// smallest two K formats to f16, and activations to 8 bits and a step of 14 where it multiplies codes, or
/// to bf16 where it multiplies that.
fn bound(types: &[GgmlDType], isa: Isa) -> f32 {
    use GgmlDType::*;
    match types {
        [BF16] if isa == Isa::Avx512Bf16 => 2e-2,
        [F32 | F16 | BF16] => 2e-3,
        [Q2K | Q3K] => 5e-3,
        _ => 4e-2,
    }
}

#[test]
fn every_tensor_type_gives_the_logits_of_its_own_f32_values() -> anyhow::Result<()> {
    for architecture in Architecture::ALL {
        let singles = TYPES.iter().map(std::slice::from_ref);
        for types in singles.chain([MIXED.as_slice()]) {
            let model = Synthetic::new(architecture, types);
            let folder = tempfile::tempdir()?;
            let from_gguf = load_gguf(&model, folder.path())?;
            let reference = logits(&load_folder(&model, folder.path())?);
            let name = architecture.name();
            assert!(logits(&from_gguf) == reference, "{name} {types:?}");
            for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
                let mut driver = Driver::fast(&from_gguf, (isa, 2), KvType::F32);
                let fast = driver.prefill(&mut Sequence::default(), &PROMPT, PROMPT.len());
                let errors = fast
                    .iter()
                    .zip(&reference)
                    .map(|(a, b)| relative_error(a, b));
                let worst = errors.fold(0f32, f32::max);
                println!("{name} {types:?} {isa}: {worst}");
                assert!(
                    worst <= bound(types, isa),
                    "{name} {types:?}, {isa}: {worst}"
                );
            }
        }
    }
    Ok(())
}

#[test]
fn facts_tokenizer_and_end_tokens_are_read() -> anyhow::Result<()> {
    let types = [GgmlDType::Q4_1, GgmlDType::Q4_1, GgmlDType::Q8_0];
    let mut model = Synthetic::new(Architecture::Qwen2, &types);
    let template = (
        "tokenizer.chat_template".to_owned(),
        Value::String("{{ x }}".to_owned()),
    );
    model.metadata.push(template);
    let folder = tempfile::tempdir()?;
    let loaded = load_gguf(&model, folder.path())?;
    assert_eq!(loaded.facts.architecture, "qwen2");
    assert_eq!(loaded.facts.quantization, "Q4_1+Q8_0");
    assert_eq!(loaded.chat_template.as_deref(), Some("{{ x }}"));
    // The one that is named, and a control token known to end a chat turn.
    assert_eq!(loaded.eos_token_ids, [1, 2]);
    let TokenizerFiles::Gguf(vocab) = &loaded.tokenizer else {
        panic!("a GGUF file brings its tokenizer");
    };
    assert_eq!(vocab.tokens.len(), synthetic::VOCAB);
    let from_folder = load_folder(&model, folder.path())?;
    assert_eq!(from_folder.eos_token_ids, [2, 5]);
    assert_eq!(from_folder.facts.quantization, "F32");
    assert_eq!(
        from_folder.facts.num_parameters,
        loaded.facts.num_parameters
    );
    Ok(())
}

#[test]
fn rope_factors_of_gguf_are_llama3_scaling() -> anyhow::Result<()> {
    let mut model = Synthetic::new(Architecture::Llama, &[GgmlDType::F32]);
    let folder = tempfile::tempdir()?;
    let plain = logits(&load_folder(&model, folder.path())?);
    model.config["rope_scaling"] = json!({
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    });
    let scaled = logits(&load_folder(&model, folder.path())?);
    // What the converter of llama.cpp writes for these settings.
    let factors: Vec<f32> = (0..32)
        .map(|pair| {
            let wavelength = 2.0 * std::f32::consts::PI * 10_000f32.powf(pair as f32 / 32.0);
            if wavelength < 64.0 / 4.0 {
                return 1.0;
            } else if wavelength > 64.0 {
                return 8.0;
            }
            let smooth = (64.0 / wavelength - 1.0) / 3.0;
            1.0 / ((1.0 - smooth) / 8.0 + smooth)
        })
        .collect();
    let factors = QTensor::quantize(&Tensor::new(factors, &Device::Cpu)?, GgmlDType::F32)?;
    model
        .extra_tensors
        .push(("rope_freqs.weight".to_owned(), factors));
    let from_gguf = logits(&load_gguf(&model, folder.path())?);
    for ((row, reference), plain) in from_gguf.iter().zip(&scaled).zip(&plain).skip(1) {
        assert!(relative_error(row, reference) < 1e-5);
        assert!(relative_error(row, plain) > 1e-3, "the scaling must matter");
    }
    Ok(())
}

#[test]
fn windows_and_linear_scaling_mean_the_same_in_both_kinds_of_file() -> anyhow::Result<()> {
    type Setting = (&'static str, Value);
    let window: Vec<Setting> = vec![("llama.attention.sliding_window", Value::U32(4))];
    let scaling: Vec<Setting> = vec![
        (
            "llama.rope.scaling.type",
            Value::String("linear".to_owned()),
        ),
        ("llama.rope.scaling.factor", Value::F32(4.0)),
    ];
    let linear = json!({"rope_type": "linear", "factor": 4.0});
    for (settings, config) in [
        (
            window,
            json!({"model_type": "mistral", "sliding_window": 4}),
        ),
        (scaling, json!({"rope_scaling": linear})),
    ] {
        let mut model = Synthetic::new(Architecture::Llama, &[GgmlDType::F16]);
        let folder = tempfile::tempdir()?;
        let plain = logits(&load_gguf(&model, folder.path())?);
        let settings = settings.into_iter();
        model
            .metadata
            .extend(settings.map(|(key, value)| (key.to_owned(), value)));
        for (key, value) in config.as_object().expect("an object") {
            model.config[key] = value.clone();
        }
        let from_gguf = logits(&load_gguf(&model, folder.path())?);
        assert!(
            from_gguf == logits(&load_folder(&model, folder.path())?),
            "{config}"
        );
        let last = PROMPT.len() - 1;
        let effect = relative_error(&from_gguf[last], &plain[last]);
        assert!(effect > 1e-3, "{config} must matter");
    }
    Ok(())
}

#[test]
fn what_is_unsupported_is_refused_by_name() -> anyhow::Result<()> {
    let set = |key: &'static str, value: Value| {
        move |model: &mut Synthetic| {
            model.metadata.retain(|(name, _)| name != key);
            model.metadata.push((key.to_owned(), value.clone()));
        }
    };
    let extra = |model: &mut Synthetic| {
        let tensor = Tensor::zeros(32, candle_core::DType::F32, &Device::Cpu);
        let tensor = QTensor::quantize(&tensor.expect("zeros"), GgmlDType::F32);
        model
            .extra_tensors
            .push(("blk.0.surprise.weight".to_owned(), tensor.expect("plain")));
    };
    type Change = Box<dyn Fn(&mut Synthetic)>;
    let cases: Vec<(Change, &str)> = vec![
        (
            Box::new(set(
                "general.architecture",
                Value::String("mamba".to_owned()),
            )),
            "architecture \"mamba\" is not supported",
        ),
        (
            Box::new(set("llama.rope.dimension_count", Value::U32(32))),
            "rope turns 32 dimensions of a head of 64",
        ),
        (
            Box::new(set("llama.attention.value_length", Value::U32(32))),
            "64 dimensions of K and 32 of V",
        ),
        (
            Box::new(set("llama.attn_logit_softcapping", Value::F32(50.0))),
            "metadata key llama.attn_logit_softcapping is not supported",
        ),
        (
            Box::new(set("llama.rope.scaling.attn_factor", Value::F32(1.2))),
            "metadata key llama.rope.scaling.attn_factor is not supported",
        ),
        (
            Box::new(set(
                "llama.rope.scaling.type",
                Value::String("yarn".to_owned()),
            )),
            "rope scaling \"yarn\"",
        ),
        (
            Box::new(set("llama.expert_count", Value::U32(8))),
            "mixture of experts",
        ),
        (Box::new(set("llama.block_count", Value::U32(1))), "blk.1."),
        (
            Box::new(set("llama.block_count", Value::U32(3))),
            "blk.2.attn_q.weight [512, 256] is missing",
        ),
        (
            Box::new(set("llama.feed_forward_length", Value::U32(500))),
            "blk.0.ffn_gate.weight has the shape [512, 256]; the model's settings ask for [500, 256]",
        ),
        (
            Box::new(set("llama.attention.head_count", Value::U32(0))),
            "head_count is 0",
        ),
        (
            Box::new(set("llama.attention.head_count_kv", Value::U32(3))),
            "8 heads cannot be shared out to 3 KV heads",
        ),
        (
            Box::new(set("general.alignment", Value::U32(0))),
            "general.alignment is 0",
        ),
        (Box::new(extra), "does not use: blk.0.surprise.weight"),
    ];
    for (change, expected) in cases {
        let mut model = Synthetic::new(Architecture::Llama, &[GgmlDType::F32]);
        change(&mut model);
        let folder = tempfile::tempdir()?;
        let error = load_gguf(&model, folder.path()).expect_err(expected);
        let message = format!("{error:#}");
        assert!(message.contains(expected), "{message}");
        assert!(
            message.contains("model.gguf") && !message.contains('\n'),
            "{message}"
        );
    }
    Ok(())
}

#[test]
fn unsupported_settings_of_a_folder_are_refused_by_name() -> anyhow::Result<()> {
    for (key, value, expected) in [
        (
            "model_type",
            json!("bert"),
            "model_type \"bert\" is not supported",
        ),
        ("hidden_act", json!("relu"), "activation \"relu\""),
        (
            "rope_scaling",
            json!({"type": "dynamic", "factor": 2.0}),
            "rope scaling \"dynamic\"",
        ),
        (
            "rope_scaling",
            json!({"factor": 2.0}),
            "rope scaling without a rope_type",
        ),
        (
            "quantization_config",
            json!({"quant_method": "gptq"}),
            "quantization_config",
        ),
        ("partial_rotary_factor", json!(0.5), "partial_rotary_factor"),
        (
            "attention_bias",
            json!(true),
            "self_attn.q_proj.bias [512] is missing",
        ),
        ("tie_word_embeddings", json!(true), "lm_head.weight differs"),
        ("eos_token_id", json!(1000), "outside the vocabulary of 323"),
        ("vocab_size", json!("many"), "config.json"),
        (
            "rope_parameters",
            json!({"rope_type": "yarn", "factor": 4.0}),
            "rope scaling \"yarn\" is not supported",
        ),
        (
            "intermediate_size",
            json!(500),
            "mlp.gate_proj.weight has the shape [512, 256]; the model's settings ask for [500, 256]",
        ),
        (
            "num_hidden_layers",
            json!(3),
            "model.layers.2.self_attn.q_proj.weight [512, 256] is missing",
        ),
        (
            "num_hidden_layers",
            json!(1),
            "9 tensors that a model of this kind does not use: model.layers.1.",
        ),
        (
            "mlp_bias",
            json!(true),
            "mlp.gate_proj.bias [512] is missing",
        ),
        ("head_dim", json!(63), "even head dimension"),
        (
            "num_key_value_heads",
            json!(3),
            "8 heads cannot be shared out to 3 KV heads",
        ),
    ] {
        let mut model = Synthetic::new(Architecture::Llama, &[GgmlDType::F32]);
        model.config[key] = value;
        let folder = tempfile::tempdir()?;
        let error = load_folder(&model, folder.path()).expect_err(expected);
        let message = format!("{error:#}");
        assert!(message.contains(expected), "{message}");
        assert!(!message.contains('\n'), "{message}");
    }
    Ok(())
}

#[test]
fn unsupported_settings_of_other_families_are_refused_by_name() -> anyhow::Result<()> {
    use Architecture::*;
    for (architecture, key, value, expected) in [
        (
            Gpt2,
            "activation_function",
            json!("relu"),
            "activation \"relu\"",
        ),
        (
            Gpt2,
            "scale_attn_by_inverse_layer_idx",
            json!(true),
            "scale_attn_by_inverse_layer_idx",
        ),
        (
            Gpt2,
            "add_cross_attention",
            json!(true),
            "add_cross_attention",
        ),
        (
            Gpt2,
            "n_head",
            json!(7),
            "n_embd 256 is not a multiple of n_head 7",
        ),
        (
            Gpt2,
            "n_positions",
            json!(300),
            "wpe.weight has the shape [256, 256]; the model's settings ask for [300, 256]",
        ),
        (
            Qwen2,
            "layer_types",
            json!(["full_attention", "sliding_attention"]),
            "with and without a sliding window",
        ),
        (
            Qwen2,
            "layer_types",
            json!(["full_attention", "linear_attention"]),
            "layer_types has \"linear_attention\"",
        ),
        (
            Qwen3,
            "attention_bias",
            json!(true),
            "self_attn.q_proj.bias [512] is missing",
        ),
    ] {
        let mut model = Synthetic::new(architecture, &[GgmlDType::F32]);
        model.config[key] = value;
        let folder = tempfile::tempdir()?;
        let error = load_folder(&model, folder.path()).expect_err(expected);
        let message = format!("{error:#}");
        assert!(message.contains(expected), "{message}");
    }
    Ok(())
}

#[test]
fn a_sliding_window_is_what_transformers_takes_for_the_same_settings() -> anyhow::Result<()> {
    for (settings, expected) in [
        (json!({"model_type": "mistral"}), Some(4096)),
        (
            json!({"model_type": "mistral", "sliding_window": null}),
            None,
        ),
        (
            json!({"model_type": "mistral", "sliding_window": 7}),
            Some(7),
        ),
        (json!({"model_type": "llama", "sliding_window": 7}), None),
        (json!({"sliding_window": 7}), None),
        (
            json!({"sliding_window": 7, "use_sliding_window": true, "max_window_layers": 0}),
            Some(7),
        ),
        (
            json!({"sliding_window": 7, "use_sliding_window": true, "max_window_layers": 2}),
            None,
        ),
    ] {
        let architecture = match settings.get("model_type") {
            Some(_) => Architecture::Llama,
            None => Architecture::Qwen3,
        };
        let mut model = Synthetic::new(architecture, &[GgmlDType::F32]);
        for (key, value) in settings.as_object().expect("an object") {
            model.config[key] = value.clone();
        }
        let folder = tempfile::tempdir()?;
        let window = load_folder(&model, folder.path())?.spec.sliding_window;
        assert_eq!(window, expected, "{settings}");
    }
    Ok(())
}
