//! What a decoder is made of: everything a runner must know beside the weights.
//!
//! A family (one file each) maps a model file's own words to this one vocabulary; the runners never
//! ask which family a model came from.

use anyhow::{Result, ensure};

/// Far above any model's; settings are untrusted, and tables of this length are made from them.
pub(super) const MAX_HEAD_DIM: usize = 1 << 12;

/// A decoder-only transformer: embedding, `num_layers` times (attention, MLP), norm, head.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelSpec {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub num_layers: usize,
    pub num_heads: usize,
    /// Heads of K and V; each serves `num_heads / num_kv_heads` query heads.
    pub num_kv_heads: usize,
    pub head_dim: usize,
    /// Width between the two projections of the MLP.
    pub intermediate_size: usize,
    pub norm: Norm,
    pub positions: Positions,
    pub mlp: Mlp,
    pub biases: Biases,
    /// RMS norm over each head of Q and K, before the rotation.
    pub qk_norm: bool,
    /// A token sees itself and the `sliding_window - 1` tokens before it; `None` sees all.
    pub sliding_window: Option<usize>,
    /// The head is the token embedding.
    pub tied_head: bool,
    /// Longest sequence, in tokens, that the model was made for.
    pub max_positions: usize,
}

/// The normalisation before attention, before the MLP and before the head.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Norm {
    pub kind: NormKind,
    pub eps: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// Scale by the root mean square; a weight, no bias.
    Rms,
    /// Subtract the mean, divide by the standard deviation; a weight and a bias.
    Layer,
}

/// How a token's position reaches the model.
#[derive(Clone, Debug, PartialEq)]
pub enum Positions {
    /// Q and K are rotated.
    Rope(Rope),
    /// A learned vector for each position is added to the token's embedding.
    Learned,
}

/// Rotary position embedding over all of `head_dim`.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// The order in which the file stores the rows of Q and K.
    pub pairing: RopePairing,
    /// Radians per position of each pair, scaling applied. (head_dim / 2)
    pub inverse_frequencies: Vec<f32>,
}

/// Which two elements of a head rotate together, as pair `i` of `head_dim / 2`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopePairing {
    /// `2 i` and `2 i + 1`: GGUF files of architecture llama.
    Interleaved,
    /// `i` and `i + head_dim / 2`: GPT-NeoX, and all Hugging Face files.
    HalfSplit,
}

/// The feed-forward part of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mlp {
    /// `down(activation(gate(x)) * up(x))`
    Gated(Activation),
    /// `down(activation(up(x)))`
    Plain(Activation),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    Silu,
    /// GELU with the error function.
    Gelu,
    /// GELU in its tanh approximation.
    GeluTanh,
}

/// Which linear layers add a bias.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Biases {
    pub qkv: bool,
    /// The projection after attention.
    pub output: bool,
    pub mlp: bool,
}

impl ModelSpec {
    /// Output features of the joined Q, K and V projection.
    pub fn qkv_features(&self) -> usize {
        (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
    }

    /// Where a stored row of Q, K and V belongs, for heads whose pairs are `i` and `i + head_dim / 2`.
    pub fn half_split_feature(&self, row: usize) -> usize {
        let is_rotated = row < (self.num_heads + self.num_kv_heads) * self.head_dim;
        match &self.positions {
            Positions::Rope(rope) if rope.pairing == RopePairing::Interleaved && is_rotated => {
                let (head, element) = (row / self.head_dim, row % self.head_dim);
                head * self.head_dim + element / 2 + element % 2 * (self.head_dim / 2)
            }
            _ => row,
        }
    }

    /// Elements of K and V together that one token leaves in the cache, in all layers.
    pub fn kv_elements_per_token(&self) -> usize {
        2 * self.num_layers * self.num_kv_heads * self.head_dim
    }

    /// Refuses sizes that no model has, so that later arithmetic cannot overflow or divide by 0.
    pub(super) fn check(&self) -> Result<()> {
        for (what, value, max) in [
            ("vocabulary size", self.vocab_size, 1 << 24),
            ("hidden size", self.hidden_size, 1 << 17),
            ("number of layers", self.num_layers, 1 << 10),
            ("number of heads", self.num_heads, 1 << 12),
            ("number of KV heads", self.num_kv_heads, 1 << 12),
            ("head dimension", self.head_dim, MAX_HEAD_DIM),
            ("MLP width", self.intermediate_size, 1 << 20),
            ("number of positions", self.max_positions, 1 << 30),
            ("sliding window", self.sliding_window.unwrap_or(1), 1 << 30),
        ] {
            ensure!(
                (1..=max).contains(&value),
                "its {what} is {value}, which is outside 1..={max}"
            );
        }
        ensure!(
            self.num_heads.is_multiple_of(self.num_kv_heads),
            "{} heads cannot be shared out to {} KV heads",
            self.num_heads,
            self.num_kv_heads
        );
        if let Positions::Rope(rope) = &self.positions {
            ensure!(
                self.head_dim == 2 * rope.inverse_frequencies.len(),
                "rope turns {} dimensions of a head of {}; only all of them are supported",
                2 * rope.inverse_frequencies.len(),
                self.head_dim
            );
            ensure!(
                rope.inverse_frequencies.iter().all(|f| f.is_finite()),
                "its rope frequencies are not finite numbers"
            );
        }
        ensure!(
            self.norm.eps >= 0.0 && self.norm.eps < 1.0,
            "its norm epsilon is {}",
            self.norm.eps
        );
        Ok(())
    }
}
