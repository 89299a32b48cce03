//! GPT-2: learned positions, LayerNorm, biases everywhere, a plain tanh-GELU MLP, Q, K and V fused.
//! Hugging Face files store its matrices (in, out), GGUF files (out, in).

use anyhow::{Result, bail, ensure};
use serde::Deserialize;
use serde_json::Value;

use super::collect::{self, TensorIndex, TensorNames};
use super::gguf::GgufFile;
use super::hf_config;
use super::spec::{Activation, Biases, Mlp, ModelSpec, Norm, NormKind, Positions};

const NAMES: TensorNames = TensorNames {
    token_embedding: "wte",
    position_embedding: "wpe",
    attention_norm: "h.{}.ln_1",
    qkv: &["h.{}.attn.c_attn"],
    q_norm: "",
    k_norm: "",
    output: "h.{}.attn.c_proj",
    mlp_norm: "h.{}.ln_2",
    up: &["h.{}.mlp.c_fc"],
    down: "h.{}.mlp.c_proj",
    final_norm: "ln_f",
    head: "lm_head",
    is_in_by_out: true,
};

const GGUF_NAMES: TensorNames = TensorNames {
    qkv: &["blk.{}.attn_qkv"],
    up: &["blk.{}.ffn_up"],
    ..collect::GGUF_NAMES
};

const ALL_BIASES: Biases = Biases {
    qkv: true,
    output: true,
    mlp: true,
};

#[derive(Deserialize)]
struct Gpt2Config {
    vocab_size: usize,
    n_positions: usize,
    n_embd: usize,
    n_layer: usize,
    n_head: usize,
    n_inner: Option<usize>,
    #[serde(default = "default_activation")]
    activation_function: String,
    #[serde(default = "default_eps")]
    layer_norm_epsilon: f64,
    #[serde(default = "yes")]
    tie_word_embeddings: bool,
    #[serde(default = "yes")]
    scale_attn_weights: bool,
    #[serde(default)]
    scale_attn_by_inverse_layer_idx: bool,
    #[serde(default)]
    add_cross_attention: bool,
}

fn default_activation() -> String {
    "gelu_new".to_owned()
}

fn default_eps() -> f64 {
    1e-5
}

fn yes() -> bool {
    true
}

pub(super) fn from_config(config: &Value) -> Result<(ModelSpec, TensorNames)> {
    let config = Gpt2Config::deserialize(config)?;
    ensure!(config.n_head > 0, "n_head is 0");
    ensure!(
        config.n_embd.is_multiple_of(config.n_head),
        "n_embd {} is not a multiple of n_head {}",
        config.n_embd,
        config.n_head
    );
    if !config.scale_attn_weights || config.scale_attn_by_inverse_layer_idx {
        bail!("scale_attn_weights = false and scale_attn_by_inverse_layer_idx are not supported");
    }
    ensure!(
        !config.add_cross_attention,
        "add_cross_attention is not supported"
    );
    let spec = ModelSpec {
        vocab_size: config.vocab_size,
        hidden_size: config.n_embd,
        num_layers: config.n_layer,
        num_heads: config.n_head,
        num_kv_heads: config.n_head,
        head_dim: config.n_embd / config.n_head,
        intermediate_size: config.n_inner.unwrap_or(config.n_embd.saturating_mul(4)),
        norm: Norm {
            kind: NormKind::Layer,
            eps: config.layer_norm_epsilon,
        },
        positions: Positions::Learned,
        mlp: Mlp::Plain(hf_config::activation(&config.activation_function)?),
        biases: ALL_BIASES,
        qk_norm: false,
        sliding_window: None,
        tied_head: config.tie_word_embeddings,
        max_positions: config.n_positions,
    };
    Ok((spec, NAMES))
}

pub(super) fn from_gguf(file: &mut GgufFile) -> Result<(ModelSpec, TensorNames)> {
    let metadata = &file.metadata;
    let key = |name: &str| format!("gpt2.{name}");
    let required = |name: &str| metadata.required(&key(name));
    let hidden_size = required("embedding_length")?;
    let num_heads = required("attention.head_count")?;
    ensure!(
        num_heads > 0 && hidden_size.is_multiple_of(num_heads),
        "its gpt2.embedding_length {hidden_size} is not a multiple of its gpt2.attention.head_count {num_heads}"
    );
    let spec = ModelSpec {
        vocab_size: file.tensors.rows("token_embd.weight")?,
        hidden_size,
        num_layers: required("block_count")?,
        num_heads,
        num_kv_heads: num_heads,
        head_dim: hidden_size / num_heads,
        intermediate_size: required("feed_forward_length")?,
        norm: Norm {
            kind: NormKind::Layer,
            eps: metadata
                .float(&key("attention.layer_norm_epsilon"))?
                .unwrap_or_else(default_eps),
        },
        positions: Positions::Learned,
        mlp: Mlp::Plain(Activation::GeluTanh),
        biases: ALL_BIASES,
        qk_norm: false,
        sliding_window: None,
        // Older converters store the head once more, often in a type of its own.
        tied_head: !file.tensors.contains("output.weight"),
        max_positions: required("context_length")?,
    };
    Ok((spec, GGUF_NAMES))
}

/// Strips the optional `transformer.` and drops the causal masks that old files carry.
pub(super) fn plain_names(tensors: TensorIndex) -> Result<TensorIndex> {
    let mut tensors = tensors.without_prefix("transformer.")?;
    tensors.drop_where(|name| name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias"));
    Ok(tensors)
}
