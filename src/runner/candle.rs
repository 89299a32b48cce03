//! The reference runner: a decoder written in candle's tensor operations, that the fast runners are
//! tested against.
//!
//! Written to be read beside a textbook: embed; in each layer normalise, attend, add, normalise,
//! MLP, add; normalise; project the wanted rows to the vocabulary. All weights are dense f32, and a
//! row's logits have the same bits in every batch.

mod embedding;
mod kv_pool;
mod linear;
mod step;

use anyhow::{Result, ensure};
use candle_core::{Device, Tensor};
use candle_nn::ops;

use self::embedding::Embedding;
use self::kv_pool::KvPool;
use self::linear::Linear;
use self::step::{CONTEXT_TILE, Group, MIN_QUERY_ROWS, Step};
use super::{KvLayout, Logits, RaggedBatch, Runner};
use crate::kernels::KvType;
use crate::model::{
    Activation, LayerWeights, LinearWeights, Mlp, ModelSpec, NormWeights, Positions, Rope,
    StoredTensor, Weights,
};

/// A model, its KV storage and the logits of the last step.
#[derive(Debug)]
pub struct CandleRunner {
    spec: ModelSpec,
    token_embedding: Embedding,            // (vocab_size, hidden_size)
    position_embedding: Option<Embedding>, // (max_positions, hidden_size)
    layers: Vec<Layer>,
    final_norm: Norm,
    head: Linear,
    block_size: usize,
    logits: Logits,
}

#[derive(Debug)]
struct Layer {
    attention_norm: Norm,
    qkv: Linear,
    qk_norm: Option<(Norm, Norm)>,
    output: Linear,
    mlp_norm: Norm,
    up: Linear,
    down: Linear,
    kv: KvPool,
}

#[derive(Debug)]
struct Norm {
    weight: Tensor,
    bias: Option<Tensor>,
    eps: f32,
}

impl CandleRunner {
    /// Reads the weights and sets up storage for K and V.
    ///
    /// # Errors
    /// A file cannot be read, or K and V are to be anything but f32.
    pub fn new(spec: &ModelSpec, weights: &Weights, kv: KvLayout) -> Result<Self> {
        ensure!(
            kv.kv_type == KvType::F32,
            "the reference runner keeps K and V in f32, not in {}",
            kv.kv_type
        );
        let num_slots = kv.num_slots()?;
        let head = LinearWeights {
            in_features: spec.hidden_size,
            out_features: spec.vocab_size,
            weights: vec![
                weights
                    .head
                    .as_ref()
                    .unwrap_or(&weights.token_embedding)
                    .clone(),
            ],
            biases: Vec::new(),
            is_in_by_out: false,
        };
        let layers = weights
            .layers
            .iter()
            .map(|layer| Layer::load(spec, layer, num_slots))
            .collect::<Result<_>>()?;
        let position_embedding = weights.position_embedding.as_ref();
        Ok(Self {
            token_embedding: Embedding::load(&weights.token_embedding)?,
            position_embedding: position_embedding.map(Embedding::load).transpose()?,
            layers,
            final_norm: norm(spec, &weights.final_norm)?,
            head: linear(&head)?,
            block_size: kv.block_size,
            logits: Logits {
                values: Vec::new(),
                vocab_size: spec.vocab_size,
            },
            spec: spec.clone(),
        })
    }

    /// Logits of the wanted rows. (logit_rows, vocab_size)
    fn run(&self, batch: &RaggedBatch) -> Result<Tensor> {
        for copy in &batch.copies {
            for layer in &self.layers {
                layer.kv.copy_block(copy, self.block_size)?;
            }
        }
        let step = Step::new(batch, &self.spec, self.block_size)?;
        let rotation = self.rotation(&step.positions)?;
        let mut x = self.embed(&step)?; // (tokens, hidden_size)
        for layer in &self.layers {
            let attended = layer.attend(&self.spec, &step, rotation.as_ref(), &x)?;
            x = (x + attended)?;
            x = (&x + layer.mlp(self.spec.mlp, &x)?)?;
        }
        let x = self
            .final_norm
            .forward(&x.index_select(&step.logit_rows, 0)?)?;
        Ok(self.head.forward(&x)?)
    }

    fn embed(&self, step: &Step) -> Result<Tensor> {
        let tokens = self.token_embedding.lookup(&step.token_ids)?;
        Ok(match &self.position_embedding {
            None => tokens,
            Some(table) => (tokens + table.lookup(&step.positions)?)?,
        })
    }

    fn rotation(&self, positions: &[u32]) -> Result<Option<Rotation>> {
        match &self.spec.positions {
            Positions::Learned => Ok(None),
            Positions::Rope(rope) => Rotation::new(rope, positions).map(Some),
        }
    }
}

impl Runner for CandleRunner {
    fn forward(&mut self, batch: &RaggedBatch) -> Result<&Logits> {
        self.logits.values = match batch.logit_rows.is_empty() && batch.token_ids.is_empty() {
            true => Vec::new(),
            false => self.run(batch)?.flatten_all()?.to_vec1()?,
        };
        Ok(&self.logits)
    }

    fn vocab_size(&self) -> usize {
        self.spec.vocab_size
    }
}

impl Layer {
    fn load(spec: &ModelSpec, weights: &LayerWeights, num_slots: usize) -> Result<Self> {
        let head_norm = |weight: &Option<StoredTensor>| -> Result<Option<Norm>> {
            let norm = weight.as_ref().map(|weight| {
                let (weight, bias) = (weight.clone(), None);
                self::norm(spec, &NormWeights { weight, bias })
            });
            norm.transpose()
        };
        let kv = (spec.num_kv_heads, num_slots, spec.head_dim);
        Ok(Self {
            attention_norm: norm(spec, &weights.attention_norm)?,
            qkv: Linear::load(&weights.qkv, |row| spec.half_split_feature(row))?,
            qk_norm: head_norm(&weights.q_norm)?.zip(head_norm(&weights.k_norm)?),
            output: linear(&weights.output)?,
            mlp_norm: norm(spec, &weights.mlp_norm)?,
            up: linear(&weights.up)?,
            down: linear(&weights.down)?,
            kv: KvPool::new(kv)?,
        })
    }

    /// What attention adds to the rows of `x`. (tokens, hidden_size)
    fn attend(
        &self,
        spec: &ModelSpec,
        step: &Step,
        rotation: Option<&Rotation>,
        x: &Tensor,
    ) -> Result<Tensor> {
        let num_tokens = x.dim(0)?;
        let qkv = self.qkv.forward(&self.attention_norm.forward(x)?)?;
        let (heads, kv_heads) = (spec.num_heads, spec.num_kv_heads);
        let part = |first_head: usize, heads: usize| -> Result<Tensor> {
            let part = qkv.narrow(1, first_head * spec.head_dim, heads * spec.head_dim)?;
            Ok(part
                .contiguous()?
                .reshape((num_tokens, heads, spec.head_dim))?)
        };
        let mut q = part(0, heads)?;
        let mut k = part(heads, kv_heads)?;
        let v = part(heads + kv_heads, kv_heads)?;
        if let Some((q_norm, k_norm)) = &self.qk_norm {
            q = q_norm.forward(&q)?;
            k = k_norm.forward(&k)?;
        }
        if let Some(rotation) = rotation {
            q = rotation.apply(&q)?;
            k = rotation.apply(&k)?;
        }
        self.kv.write(&step.runs, &k, &v)?;
        let q = (q * (spec.head_dim as f64).powf(-0.5))?;
        let attended = step
            .groups
            .iter()
            .map(|group| self.attend_group(spec, group, &q))
            .collect::<candle_core::Result<Vec<_>>>()?;
        let attended = match attended.len() {
            1 => attended[0].clone(),
            _ => Tensor::cat(&attended, 0)?,
        };
        Ok(self.output.forward(&attended)?)
    }

    /// Attention of the sequences of one group. (rows of the group, num_heads * head_dim)
    fn attend_group(
        &self,
        spec: &ModelSpec,
        group: &Group,
        q: &Tensor, // (tokens, num_heads, head_dim)
    ) -> candle_core::Result<Tensor> {
        let (kv_heads, head_dim) = (spec.num_kv_heads, spec.head_dim);
        let heads_per_kv_head = spec.num_heads / kv_heads;
        let (sequences, queries) = (group.num_sequences, group.num_queries);
        let (_, query_rows, context) = group.mask.dims3()?;
        let padding = MIN_QUERY_ROWS.saturating_sub(query_rows);

        let (k, v) = self.kv.gather(&group.slots)?;
        let k = k.reshape((kv_heads, sequences, context, head_dim))?;
        let v = v.reshape((kv_heads, sequences, context, head_dim))?;
        let q = q
            .narrow(0, group.first_row, sequences * queries)?
            .reshape((sequences, queries, kv_heads, heads_per_kv_head, head_dim))?
            .permute((2, 0, 3, 1, 4))?
            .contiguous()?
            .reshape((kv_heads, sequences, query_rows, head_dim))?
            .pad_with_zeros(2, 0, padding)?;
        let scores = q.matmul(&k.t()?)?.narrow(2, 0, query_rows)?;
        let scores = scores.broadcast_add(&group.mask)?; // (kv_heads, sequences, query_rows, context)
        let probabilities = ops::softmax_last_dim(&scores)?;
        weighted_sum(&probabilities, &v)?
            .reshape((kv_heads, sequences, heads_per_kv_head, queries, head_dim))?
            .permute((1, 3, 0, 2, 4))?
            .contiguous()?
            .reshape((sequences * queries, spec.num_heads * head_dim))
    }

    /// What the MLP adds to the rows of `x`. (tokens, hidden_size)
    fn mlp(&self, mlp: Mlp, x: &Tensor) -> Result<Tensor> {
        let up = self.up.forward(&self.mlp_norm.forward(x)?)?;
        let inner = match mlp {
            Mlp::Plain(activation) => activate(activation, &up)?,
            Mlp::Gated(activation) => {
                let width = up.dim(1)? / 2;
                let gate = activate(activation, &up.narrow(1, 0, width)?)?;
                (gate * up.narrow(1, width, width)?)?
            }
        };
        Ok(self.down.forward(&inner)?)
    }
}

/// Sums V, weighted, over the context: tile by tile, so that portions do not depend on its length.
fn weighted_sum(probabilities: &Tensor, v: &Tensor) -> candle_core::Result<Tensor> {
    let context = v.dim(2)?;
    let tile = |start: usize| {
        let len = CONTEXT_TILE.min(context - start);
        let weights = probabilities.narrow(3, start, len)?;
        weights.matmul(&v.narrow(2, start, len)?)
    };
    let mut sum = tile(0)?;
    for start in (CONTEXT_TILE..context).step_by(CONTEXT_TILE) {
        sum = (sum + tile(start)?)?;
    }
    Ok(sum)
}

fn activate(activation: Activation, x: &Tensor) -> candle_core::Result<Tensor> {
    match activation {
        Activation::Silu => x.silu(),
        Activation::Gelu => x.gelu_erf(),
        Activation::GeluTanh => x.gelu(),
    }
}

impl Norm {
    /// Normalises the last dimension.
    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        match &self.bias {
            None => ops::rms_norm(x, &self.weight, self.eps),
            Some(bias) => ops::layer_norm(x, &self.weight, bias, self.eps),
        }
    }
}

/// The rotation of each token of a step.
struct Rotation {
    cos: Tensor, // (tokens, head_dim / 2)
    sin: Tensor, // (tokens, head_dim / 2)
}

impl Rotation {
    fn new(rope: &Rope, positions: &[u32]) -> Result<Self> {
        let frequencies = &rope.inverse_frequencies;
        let angles = positions
            .iter()
            .flat_map(|&position| frequencies.iter().map(move |f| position as f32 * f));
        let (cos, sin): (Vec<_>, Vec<_>) = angles.map(|angle| (angle.cos(), angle.sin())).unzip();
        let shape = (positions.len(), frequencies.len());
        let place = |values| Tensor::from_vec(values, shape, &Device::Cpu);
        Ok(Self {
            cos: place(cos)?,
            sin: place(sin)?,
        })
    }

    /// Rotates all heads. (tokens, heads, head_dim)
    fn apply(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        candle_nn::rotary_emb::rope_thd(&x.unsqueeze(0)?, &self.cos, &self.sin)?.squeeze(0)
    }
}

fn linear(linear: &LinearWeights) -> Result<Linear> {
    Linear::load(linear, |row| row)
}

fn norm(spec: &ModelSpec, norm: &NormWeights) -> Result<Norm> {
    let bias = norm.bias.as_ref().map(StoredTensor::read_f32);
    Ok(Norm {
        weight: norm.weight.read_f32()?,
        bias: bias.transpose()?,
        eps: spec.norm.eps as f32,
    })
}
