//! From the tensors a file has to the parts a spec asks for.
//!
//! What is missing, misshapen or left over is an error that names the tensor: no part of a model is
//! silently ignored.

use std::collections::BTreeMap;

use anyhow::{Result, bail, ensure};

use super::spec::{Mlp, ModelSpec, NormKind, Positions};
use super::weights::{LayerWeights, LinearWeights, NormWeights, StoredTensor, Weights};

/// What a family calls its tensors, without `.weight` and `.bias`; `{}` is the layer.
///
/// A list of several names is one linear layer stored in pieces.
#[derive(Clone, Copy, Debug)]
pub(super) struct TensorNames {
    pub token_embedding: &'static str,
    pub position_embedding: &'static str,
    pub attention_norm: &'static str,
    pub qkv: &'static [&'static str],
    pub q_norm: &'static str,
    pub k_norm: &'static str,
    pub output: &'static str,
    pub mlp_norm: &'static str,
    /// Gate and up where the MLP is gated, else up alone.
    pub up: &'static [&'static str],
    pub down: &'static str,
    pub final_norm: &'static str,
    pub head: &'static str,
    /// Matrices of linear layers are stored (in, out).
    pub is_in_by_out: bool,
}

/// The names in Hugging Face files of Llama and all that took after it.
pub(super) const HUGGING_FACE_NAMES: TensorNames = TensorNames {
    token_embedding: "model.embed_tokens",
    position_embedding: "",
    attention_norm: "model.layers.{}.input_layernorm",
    qkv: &[
        "model.layers.{}.self_attn.q_proj",
        "model.layers.{}.self_attn.k_proj",
        "model.layers.{}.self_attn.v_proj",
    ],
    q_norm: "model.layers.{}.self_attn.q_norm",
    k_norm: "model.layers.{}.self_attn.k_norm",
    output: "model.layers.{}.self_attn.o_proj",
    mlp_norm: "model.layers.{}.post_attention_layernorm",
    up: &[
        "model.layers.{}.mlp.gate_proj",
        "model.layers.{}.mlp.up_proj",
    ],
    down: "model.layers.{}.mlp.down_proj",
    final_norm: "model.norm",
    head: "lm_head",
    is_in_by_out: false,
};

/// The names in GGUF files, the same in every architecture with these parts.
pub(super) const GGUF_NAMES: TensorNames = TensorNames {
    token_embedding: "token_embd",
    position_embedding: "position_embd",
    attention_norm: "blk.{}.attn_norm",
    qkv: &["blk.{}.attn_q", "blk.{}.attn_k", "blk.{}.attn_v"],
    q_norm: "blk.{}.attn_q_norm",
    k_norm: "blk.{}.attn_k_norm",
    output: "blk.{}.attn_output",
    mlp_norm: "blk.{}.ffn_norm",
    up: &["blk.{}.ffn_gate", "blk.{}.ffn_up"],
    down: "blk.{}.ffn_down",
    final_norm: "output_norm",
    head: "output",
    is_in_by_out: false,
};

/// The tensors of a model's files that no part has claimed yet.
#[derive(Debug, Default)]
pub(super) struct TensorIndex {
    by_name: BTreeMap<String, StoredTensor>,
}

impl TensorIndex {
    /// Adds a tensor; two of one name are an error.
    pub fn insert(&mut self, tensor: StoredTensor) -> Result<()> {
        let name = tensor.name.clone();
        ensure!(
            self.by_name.insert(name.clone(), tensor).is_none(),
            "it has two tensors named {name}"
        );
        Ok(())
    }

    pub fn contains(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    /// First dimension of a tensor: the number of its rows.
    pub fn rows(&self, name: &str) -> Result<usize> {
        match self.by_name.get(name) {
            Some(tensor) => Ok(tensor.shape.first().copied().unwrap_or(0)),
            None => bail!("its tensor {name} is missing"),
        }
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.by_name.keys().map(String::as_str)
    }

    /// Takes out a tensor that may be absent.
    pub fn take_any(&mut self, name: &str) -> Option<StoredTensor> {
        self.by_name.remove(name)
    }

    /// Drops tensors that carry nothing a decoder computes with.
    pub fn drop_where(&mut self, is_unused: impl Fn(&str) -> bool) {
        self.by_name.retain(|name, _| !is_unused(name));
    }

    /// The same tensors, the names without `prefix` where they have it.
    pub fn without_prefix(self, prefix: &str) -> Result<Self> {
        let mut index = Self::default();
        for (name, mut tensor) in self.by_name {
            tensor.name = name.strip_prefix(prefix).unwrap_or(&name).to_owned();
            index.insert(tensor)?;
        }
        Ok(index)
    }

    /// Claims every tensor of the spec; anything left over is an error.
    pub fn into_weights(mut self, spec: &ModelSpec, names: &TensorNames) -> Result<Weights> {
        let table = [spec.vocab_size, spec.hidden_size];
        let token_embedding = self.take(&format!("{}.weight", names.token_embedding), &table)?;
        let position_embedding = match spec.positions {
            Positions::Rope(_) => None,
            Positions::Learned => Some(self.take(
                &format!("{}.weight", names.position_embedding),
                &[spec.max_positions, spec.hidden_size],
            )?),
        };
        let layers = (0..spec.num_layers)
            .map(|layer| self.take_layer(spec, names, layer))
            .collect::<Result<_>>()?;
        let final_norm = self.take_norm(spec, names.final_norm)?;
        let head_name = format!("{}.weight", names.head);
        let head = if spec.tied_head {
            self.drop_copy(&head_name, &token_embedding)?;
            None
        } else {
            Some(self.take(&head_name, &table)?)
        };
        self.ensure_empty()?;
        Ok(Weights {
            token_embedding,
            position_embedding,
            layers,
            final_norm,
            head,
        })
    }

    fn take(&mut self, name: &str, shape: &[usize]) -> Result<StoredTensor> {
        let Some(tensor) = self.by_name.remove(name) else {
            bail!("its tensor {name} {shape:?} is missing");
        };
        ensure!(
            tensor.shape == shape,
            "its tensor {name} has the shape {:?}; the model's settings ask for {shape:?}",
            tensor.shape
        );
        Ok(tensor)
    }

    fn take_layer(
        &mut self,
        spec: &ModelSpec,
        names: &TensorNames,
        layer: usize,
    ) -> Result<LayerWeights> {
        let named = |pattern: &str| pattern.replace("{}", &layer.to_string());
        let all = |patterns: &[&str]| patterns.iter().map(|p| named(p)).collect::<Vec<_>>();
        let (heads, kv) = (
            spec.num_heads * spec.head_dim,
            spec.num_kv_heads * spec.head_dim,
        );
        let (hidden, inner) = (spec.hidden_size, spec.intermediate_size);
        let mut linear = |names_of: Vec<String>, in_features, outs: Vec<usize>, has_bias| {
            let is_in_by_out = names.is_in_by_out;
            self.take_linear(&names_of, in_features, &outs, is_in_by_out, has_bias)
        };
        let qkv_outs = match names.qkv.len() {
            1 => vec![heads + 2 * kv],
            _ => vec![heads, kv, kv],
        };
        let up_outs = match spec.mlp {
            Mlp::Gated(_) if names.up.len() == 1 => vec![2 * inner],
            Mlp::Gated(_) => vec![inner, inner],
            Mlp::Plain(_) => vec![inner],
        };
        let qkv = linear(all(names.qkv), hidden, qkv_outs, spec.biases.qkv)?;
        let output = linear(
            all(&[names.output]),
            heads,
            vec![hidden],
            spec.biases.output,
        )?;
        let up = linear(all(names.up), hidden, up_outs, spec.biases.mlp)?;
        let down = linear(all(&[names.down]), inner, vec![hidden], spec.biases.mlp)?;
        let mut head_norm = |pattern: &str| {
            let name = format!("{}.weight", named(pattern));
            let taken = spec.qk_norm.then(|| self.take(&name, &[spec.head_dim]));
            taken.transpose()
        };
        Ok(LayerWeights {
            q_norm: head_norm(names.q_norm)?,
            k_norm: head_norm(names.k_norm)?,
            attention_norm: self.take_norm(spec, &named(names.attention_norm))?,
            qkv,
            output,
            mlp_norm: self.take_norm(spec, &named(names.mlp_norm))?,
            up,
            down,
        })
    }

    fn take_linear(
        &mut self,
        names: &[String],
        in_features: usize,
        outs: &[usize],
        is_in_by_out: bool,
        has_bias: bool,
    ) -> Result<LinearWeights> {
        let mut linear = LinearWeights {
            in_features,
            out_features: outs.iter().sum(),
            weights: Vec::new(),
            biases: Vec::new(),
            is_in_by_out,
        };
        assert_eq!(names.len(), outs.len(), "bug: a size for each of {names:?}");
        for (name, &out) in names.iter().zip(outs) {
            let shape = match is_in_by_out {
                true => [in_features, out],
                false => [out, in_features],
            };
            linear
                .weights
                .push(self.take(&format!("{name}.weight"), &shape)?);
            if has_bias {
                linear
                    .biases
                    .push(self.take(&format!("{name}.bias"), &[out])?);
            }
        }
        Ok(linear)
    }

    fn take_norm(&mut self, spec: &ModelSpec, name: &str) -> Result<NormWeights> {
        let shape = [spec.hidden_size];
        let bias = match spec.norm.kind {
            NormKind::Rms => None,
            NormKind::Layer => Some(self.take(&format!("{name}.bias"), &shape)?),
        };
        Ok(NormWeights {
            weight: self.take(&format!("{name}.weight"), &shape)?,
            bias,
        })
    }

    /// A tied head may be stored as well, if it is the embedding byte for byte.
    fn drop_copy(&mut self, name: &str, original: &StoredTensor) -> Result<()> {
        let Some(copy) = self.by_name.remove(name) else {
            return Ok(());
        };
        ensure!(
            copy.dtype == original.dtype && copy.read_bytes()? == original.read_bytes()?,
            "its settings tie the head to the token embedding, but its tensor {name} differs from {}",
            original.name
        );
        Ok(())
    }

    fn ensure_empty(&self) -> Result<()> {
        let names: Vec<_> = self.names().take(4).collect();
        ensure!(
            names.is_empty(),
            "it has {} tensors that a model of this kind does not use: {}{}",
            self.by_name.len(),
            names.join(", "),
            if self.by_name.len() > names.len() {
                ", …"
            } else {
                ""
            }
        );
        Ok(())
    }
}
