//! Qwen2 (also Qwen2.5): Llama with biases on Q, K and V. Qwen3: RMS norms on the heads of Q and K
//! instead, and a head dimension of its own.

use anyhow::Result;

use super::collect::{GGUF_NAMES, HUGGING_FACE_NAMES, TensorNames};
use super::gguf::GgufFile;
use super::gguf_config;
use super::hf_config::HfConfig;
use super::spec::{Biases, ModelSpec, RopePairing};

const QKV_ONLY: Biases = Biases {
    qkv: true,
    output: false,
    mlp: false,
};

pub(super) fn qwen2_from_gguf(file: &mut GgufFile) -> Result<(ModelSpec, TensorNames)> {
    let mut spec = gguf_config::rms_decoder(file, "qwen2", RopePairing::HalfSplit)?;
    spec.biases = QKV_ONLY;
    Ok((spec, GGUF_NAMES))
}

pub(super) fn qwen3_from_gguf(file: &mut GgufFile) -> Result<(ModelSpec, TensorNames)> {
    let mut spec = gguf_config::rms_decoder(file, "qwen3", RopePairing::HalfSplit)?;
    spec.qk_norm = true;
    Ok((spec, GGUF_NAMES))
}

pub(super) fn qwen2_from_config(config: &HfConfig) -> Result<(ModelSpec, TensorNames)> {
    let mut spec = config.decoder()?;
    spec.biases = QKV_ONLY;
    spec.sliding_window = config.window_of_all_layers()?;
    Ok((spec, HUGGING_FACE_NAMES))
}

pub(super) fn qwen3_from_config(config: &HfConfig) -> Result<(ModelSpec, TensorNames)> {
    let mut spec = config.decoder()?;
    spec.biases = Biases {
        qkv: config.attention_bias,
        output: config.attention_bias,
        mlp: false,
    };
    spec.qk_norm = true;
    spec.sliding_window = config.window_of_all_layers()?;
    Ok((spec, HUGGING_FACE_NAMES))
}
