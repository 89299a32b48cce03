//! config.json of Llama-like Hugging Face models: one set of keys, families add what is theirs.

use anyhow::{Context, Result, bail, ensure};
use candle_transformers::models::llama::{Llama3RopeConfig, LlamaEosToks};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::rope;
use super::spec::{
    Activation, Biases, Mlp, ModelSpec, Norm, NormKind, Positions, Rope, RopePairing,
};

/// What transformers takes where config.json does not have the key.
const DEFAULT_SLIDING_WINDOW: usize = 4096;

/// The keys of config.json that change what is computed.
#[derive(Debug, Deserialize)]
pub(super) struct HfConfig {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub num_key_value_heads: Option<usize>,
    pub head_dim: Option<usize>,
    pub max_position_embeddings: usize,
    #[serde(default = "default_hidden_act")]
    pub hidden_act: String,
    #[serde(default = "default_rms_norm_eps")]
    pub rms_norm_eps: f64,
    #[serde(default)]
    pub tie_word_embeddings: bool,
    #[serde(default)]
    pub attention_bias: bool,
    #[serde(default)]
    pub mlp_bias: bool,
    /// `Some(None)` asks for no window; absent, for the usual one.
    #[serde(default, deserialize_with = "present")]
    sliding_window: Option<Option<usize>>,
    #[serde(default)]
    pub use_sliding_window: bool,
    pub max_window_layers: Option<usize>,
    /// Newer files name the attention of each layer.
    pub layer_types: Option<Vec<String>>,
    rope_theta: Option<f64>,
    rope_scaling: Option<Value>,
    /// Newer files put `rope_theta` and the scaling in here.
    rope_parameters: Option<Value>,
    partial_rotary_factor: Option<f64>,
}

fn default_hidden_act() -> String {
    "silu".to_owned()
}

fn default_rms_norm_eps() -> f64 {
    1e-6
}

/// Tells a key that is null from one that is absent.
fn present<'de, D: Deserializer<'de>>(value: D) -> Result<Option<Option<usize>>, D::Error> {
    Option::deserialize(value).map(Some)
}

impl HfConfig {
    pub fn parse(config: &Value) -> Result<Self> {
        Ok(Self::deserialize(config)?)
    }

    /// A decoder with RMS norms, rope and a gated MLP; attention without bias and window.
    pub fn decoder(&self) -> Result<ModelSpec> {
        ensure!(self.num_attention_heads > 0, "num_attention_heads is 0");
        let head_dim = self.head_dim;
        let head_dim = head_dim.unwrap_or(self.hidden_size / self.num_attention_heads);
        Ok(ModelSpec {
            vocab_size: self.vocab_size,
            hidden_size: self.hidden_size,
            num_layers: self.num_hidden_layers,
            num_heads: self.num_attention_heads,
            num_kv_heads: self.num_key_value_heads.unwrap_or(self.num_attention_heads),
            head_dim,
            intermediate_size: self.intermediate_size,
            norm: Norm {
                kind: NormKind::Rms,
                eps: self.rms_norm_eps,
            },
            positions: Positions::Rope(Rope {
                pairing: RopePairing::HalfSplit,
                inverse_frequencies: self.frequencies(head_dim)?,
            }),
            mlp: Mlp::Gated(activation(&self.hidden_act)?),
            biases: Biases::default(),
            qk_norm: false,
            sliding_window: None,
            tied_head: self.tie_word_embeddings,
            max_positions: self.max_position_embeddings,
        })
    }

    /// The window of families in which every layer has one, unless it is null.
    pub fn window(&self) -> Option<usize> {
        self.sliding_window.unwrap_or(Some(DEFAULT_SLIDING_WINDOW))
    }

    /// The window of families in which each layer may have one or not.
    pub fn window_of_all_layers(&self) -> Result<Option<usize>> {
        let first = match self.use_sliding_window {
            true => self.max_window_layers.unwrap_or(0),
            false => self.num_hidden_layers,
        };
        let is_sliding: Vec<bool> = match &self.layer_types {
            Some(types) => types
                .iter()
                .map(|kind| match kind.as_str() {
                    "full_attention" => Ok(false),
                    "sliding_attention" => Ok(true),
                    other => bail!("layer_types has {other:?}, which is not supported"),
                })
                .collect::<Result<_>>()?,
            None => (0..self.num_hidden_layers)
                .map(|layer| layer >= first)
                .collect(),
        };
        match is_sliding.iter().filter(|&&sliding| sliding).count() {
            0 => Ok(None),
            n if n == is_sliding.len() => Ok(self.window()),
            _ => bail!("layers with and without a sliding window in one model are not supported"),
        }
    }

    fn frequencies(&self, head_dim: usize) -> Result<Vec<f32>> {
        let scaling = self.rope_parameters.as_ref().or(self.rope_scaling.as_ref());
        let from_scaling = |key: &str| scaling.and_then(|scaling| scaling.get(key));
        let rotary_factor = from_scaling("partial_rotary_factor").and_then(Value::as_f64);
        ensure!(
            self.partial_rotary_factor
                .or(rotary_factor)
                .is_none_or(|factor| factor == 1.0),
            "partial_rotary_factor other than 1 is not supported"
        );
        let theta = from_scaling("rope_theta").and_then(Value::as_f64);
        let theta = theta.or(self.rope_theta).unwrap_or(10_000.0);
        let mut frequencies = rope::inverse_frequencies(theta, head_dim)?;
        let kind = from_scaling("rope_type").or(from_scaling("type"));
        match kind.map(Value::as_str) {
            None if scaling.is_none_or(|s| s.get("factor").is_none()) => {}
            Some(Some("default")) => {}
            Some(Some("linear")) => {
                let factor = from_scaling("factor").and_then(Value::as_f64);
                let factor = factor.context("linear rope scaling has no factor")?;
                rope::scale_linear(&mut frequencies, factor as f32)?;
            }
            Some(Some("llama3")) => {
                let scaling = scaling.context("bug: a rope type without rope settings")?;
                let llama3 = Llama3RopeConfig::deserialize(scaling)
                    .context("its llama3 rope scaling is incomplete")?;
                rope::scale_llama3(&mut frequencies, &llama3)?;
            }
            Some(Some(other)) => bail!("rope scaling {other:?} is not supported"),
            _ => bail!("rope scaling without a rope_type is not supported"),
        }
        Ok(frequencies)
    }
}

/// An activation by its name in transformers.
pub(super) fn activation(name: &str) -> Result<Activation> {
    match name {
        "silu" | "swish" => Ok(Activation::Silu),
        "gelu" => Ok(Activation::Gelu),
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Ok(Activation::GeluTanh),
        other => bail!("the activation {other:?} is not supported"),
    }
}

/// `eos_token_id` of config.json or generation_config.json: absent, a number or a list.
pub(super) fn eos_token_ids(config: &Value, vocab_size: usize) -> Result<Vec<u32>> {
    let ids = match config.get("eos_token_id") {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(ids) => {
            LlamaEosToks::deserialize(ids).context("eos_token_id is not an id or a list")?
        }
    };
    let ids = match ids {
        LlamaEosToks::Single(id) => vec![id],
        LlamaEosToks::Multiple(ids) => ids,
    };
    match ids.iter().find(|&&id| id as usize >= vocab_size) {
        Some(id) => bail!("eos_token_id {id} lies outside the vocabulary of {vocab_size} tokens"),
        None => Ok(ids),
    }
}
