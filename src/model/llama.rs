//! Llama and Mistral: RMS norm, rope, grouped-query attention, gated SiLU MLP.
//!
//! Mistral adds a sliding window; its GGUF files say architecture llama. The GGUF converter reorders
//! the rows of Q and K of this architecture for interleaved rope.

use anyhow::Result;

use super::collect::{GGUF_NAMES, HUGGING_FACE_NAMES, TensorNames};
use super::gguf::GgufFile;
use super::gguf_config;
use super::hf_config::HfConfig;
use super::spec::{Biases, ModelSpec, RopePairing};

pub(super) fn from_gguf(file: &mut GgufFile) -> Result<(ModelSpec, TensorNames)> {
    let mut spec = gguf_config::rms_decoder(file, "llama", RopePairing::Interleaved)?;
    spec.biases = Biases {
        qkv: file.tensors.contains("blk.0.attn_q.bias"),
        output: file.tensors.contains("blk.0.attn_output.bias"),
        mlp: file.tensors.contains("blk.0.ffn_down.bias"),
    };
    Ok((spec, GGUF_NAMES))
}

pub(super) fn llama_from_config(config: &HfConfig) -> Result<(ModelSpec, TensorNames)> {
    let mut spec = config.decoder()?;
    spec.biases = Biases {
        qkv: config.attention_bias,
        output: config.attention_bias,
        mlp: config.mlp_bias,
    };
    Ok((spec, HUGGING_FACE_NAMES))
}

pub(super) fn mistral_from_config(config: &HfConfig) -> Result<(ModelSpec, TensorNames)> {
    let mut spec = config.decoder()?;
    spec.sliding_window = config.window();
    Ok((spec, HUGGING_FACE_NAMES))
}
