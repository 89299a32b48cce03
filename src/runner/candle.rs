//! The reference runner: a decoder written in candle's tensor operations, for any device.
//!
//! Written to be read beside a textbook: embed; in each layer normalise, attend, add, normalise,
//! MLP, add; normalise; project the wanted rows to the vocabulary. On the CPU all weights are dense
//! f32, and a row's logits have the same bits in every batch. On a GPU weights and KV are 16 bits
//! wide and only rounding may differ.

use anyhow::{Result, bail};
use candle_core::quantized::GgmlDType;
use candle_core::{DType, Device, Tensor};
use candle_nn::ops;

use super::embedding::Embedding;
use super::kv_pool::KvPool;
use super::linear::Linear;
use super::step::{CONTEXT_TILE, Dtypes, Group, MIN_QUERY_ROWS, Step};
use super::{KvLayout, Logits, RaggedBatch, Runner, memory};
use crate::kernels::KvType;
use crate::model::{
    Activation, LayerWeights, LinearWeights, Mlp, ModelSpec, NormWeights, Positions, Rope,
    RopePairing, StoredTensor, Weights,
};

/// A model, its KV storage and the logits of the last step.
#[derive(Debug)]
pub struct CandleRunner {
    spec: ModelSpec,
    device: Device,
    dtypes: Dtypes,
    token_embedding: Embedding,            // (vocab_size, hidden_size)
    position_embedding: Option<Embedding>, // (max_positions, hidden_size)
    layers: Vec<Layer>,
    final_norm: Norm,
    head: Linear,
    block_size: usize,
    weight_bytes: u64,
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

/// Bytes of K and V that one token takes in a pool of [`CandleRunner`].
///
/// # Errors
/// The pool cannot be of this type.
pub fn kv_bytes_per_token(spec: &ModelSpec, kv_type: KvType) -> Result<u64> {
    let bytes = kv_dtype(kv_type, DType::F16)?.size_in_bytes();
    Ok((spec.kv_elements_per_token() * bytes) as u64)
}

/// The pool's type; what has 16 bits is of the kind that the weights have.
fn kv_dtype(kv_type: KvType, dtype: DType) -> Result<DType> {
    match (kv_type, dtype) {
        (KvType::F32, _) => Ok(DType::F32),
        (KvType::F16, DType::BF16) => Ok(DType::BF16),
        (KvType::F16, _) => Ok(DType::F16),
        (KvType::Q8_0, _) => {
            bail!("KV_CACHE_TYPE={kv_type} is for CPUs; on a GPU set KV_CACHE_TYPE=f16 or f32")
        }
    }
}

impl CandleRunner {
    /// Reads the weights and sets up storage for K and V.
    ///
    /// Fails before it allocates if weights and storage cannot fit the free memory of a CPU.
    pub fn new(spec: &ModelSpec, weights: &Weights, device: &Device, kv: KvLayout) -> Result<Self> {
        let num_slots = kv.num_slots()?;
        let kv_bytes_per_token = kv_bytes_per_token(spec, kv.kv_type)?;
        if device.is_cpu() {
            let kv_bytes = kv_bytes_per_token.saturating_mul(num_slots as u64);
            memory::ensure_free(dense_bytes(spec, weights, DType::F32), kv_bytes)?;
        }
        let place = Placement {
            dtype: dtype(weights, device),
            device: device.clone(),
        };
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
        let dtypes = Dtypes {
            compute: place.dtype,
            kv: kv_dtype(kv.kv_type, place.dtype)?,
        };
        let pool = || {
            let shape = (spec.num_kv_heads, num_slots, spec.head_dim);
            KvPool::new(shape, dtypes.kv, device)
        };
        let layers = weights
            .layers
            .iter()
            .map(|layer| Layer::load(spec, layer, &place, pool()?))
            .collect::<Result<_>>()?;
        let position_embedding = weights.position_embedding.as_ref();
        Ok(Self {
            token_embedding: Embedding::load(&weights.token_embedding)?,
            position_embedding: position_embedding.map(Embedding::load).transpose()?,
            layers,
            final_norm: place.norm(spec, &weights.final_norm)?,
            head: place.linear(&head, |row| row)?,
            block_size: kv.block_size,
            weight_bytes: dense_bytes(spec, weights, place.dtype),
            logits: Logits {
                values: Vec::new(),
                vocab_size: spec.vocab_size,
            },
            dtypes,
            device: place.device,
            spec: spec.clone(),
        })
    }

    /// Bytes of the weights, filled-up panels left out.
    pub fn weight_bytes(&self) -> u64 {
        self.weight_bytes
    }

    /// Logits of the wanted rows. (logit_rows, vocab_size)
    fn run(&self, batch: &RaggedBatch) -> Result<Tensor> {
        for copy in &batch.copies {
            for layer in &self.layers {
                layer.kv.copy_block(copy, self.block_size)?;
            }
        }
        let step = Step::new(
            batch,
            &self.spec,
            self.block_size,
            self.dtypes,
            &self.device,
        )?;
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
        Ok(self.head.forward(&x)?.to_dtype(DType::F32)?)
    }

    fn embed(&self, step: &Step) -> Result<Tensor> {
        let lookup = |table: &Embedding, ids| table.lookup(ids, self.dtypes.compute, &self.device);
        let tokens = lookup(&self.token_embedding, &step.token_ids)?;
        Ok(match &self.position_embedding {
            None => tokens,
            Some(table) => (tokens + lookup(table, &step.positions)?)?,
        })
    }

    fn rotation(&self, positions: &[u32]) -> Result<Option<Rotation>> {
        match &self.spec.positions {
            Positions::Learned => Ok(None),
            Positions::Rope(rope) => {
                Rotation::new(rope, positions, self.dtypes.compute, &self.device).map(Some)
            }
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
    fn load(
        spec: &ModelSpec,
        weights: &LayerWeights,
        place: &Placement,
        kv: KvPool,
    ) -> Result<Self> {
        let head_norm = |weight: &Option<StoredTensor>| -> Result<Option<Norm>> {
            let norm = weight.as_ref().map(|weight| {
                let (weight, bias) = (weight.clone(), None);
                place.norm(spec, &NormWeights { weight, bias })
            });
            norm.transpose()
        };
        let in_order = |row| row;
        Ok(Self {
            attention_norm: place.norm(spec, &weights.attention_norm)?,
            qkv: place.linear(&weights.qkv, |row| half_split_feature(spec, row))?,
            qk_norm: head_norm(&weights.q_norm)?.zip(head_norm(&weights.k_norm)?),
            output: place.linear(&weights.output, in_order)?,
            mlp_norm: place.norm(spec, &weights.mlp_norm)?,
            up: place.linear(&weights.up, in_order)?,
            down: place.linear(&weights.down, in_order)?,
            kv,
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
        #[cfg(feature = "flash-attn")]
        if let Some(paged) = &step.paged {
            return Ok(self.output.forward(&paged.attend(spec, &self.kv, &q)?)?);
        }
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

        let (k, v) = self.kv.gather(&group.slots, q.dtype())?;
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
    fn new(rope: &Rope, positions: &[u32], dtype: DType, device: &Device) -> Result<Self> {
        let frequencies = &rope.inverse_frequencies;
        let angles = positions
            .iter()
            .flat_map(|&position| frequencies.iter().map(move |f| position as f32 * f));
        let (cos, sin): (Vec<_>, Vec<_>) = angles.map(|angle| (angle.cos(), angle.sin())).unzip();
        let shape = (positions.len(), frequencies.len());
        let place = |values| Tensor::from_vec(values, shape, device)?.to_dtype(dtype);
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

/// Where a stored row of Q, K and V belongs, for heads whose pairs are `i` and `i + head_dim / 2`.
fn half_split_feature(spec: &ModelSpec, row: usize) -> usize {
    let is_rotated = row < (spec.num_heads + spec.num_kv_heads) * spec.head_dim;
    match &spec.positions {
        Positions::Rope(rope) if rope.pairing == RopePairing::Interleaved && is_rotated => {
            let (head, element) = (row / spec.head_dim, row % spec.head_dim);
            head * spec.head_dim + element / 2 + element % 2 * (spec.head_dim / 2)
        }
        _ => row,
    }
}

/// What the weights take as `dtype`, with the token embedding once more as it is stored.
fn dense_bytes(spec: &ModelSpec, weights: &Weights, dtype: DType) -> u64 {
    let parameters: u64 = weights.tensors().map(StoredTensor::num_elements).sum();
    let table = &weights.token_embedding;
    let decoded_table = if spec.tied_head {
        0
    } else {
        table.num_elements()
    };
    dtype.size_in_bytes() as u64 * (parameters - decoded_table) + table.num_bytes as u64
}

/// f32 on a CPU; on a GPU 16 bits, of the kind that the file has.
fn dtype(weights: &Weights, device: &Device) -> DType {
    match (device.is_cpu(), weights.token_embedding.dtype) {
        (true, _) => DType::F32,
        (false, GgmlDType::BF16) => DType::BF16,
        (false, _) => DType::F16,
    }
}

/// How and where weights are kept.
struct Placement {
    dtype: DType,
    device: Device,
}

impl Placement {
    fn to(&self, tensor: Tensor) -> Result<Tensor> {
        Ok(tensor.to_dtype(self.dtype)?.to_device(&self.device)?)
    }

    fn tensor(&self, stored: &StoredTensor) -> Result<Tensor> {
        self.to(stored.read_f32()?)
    }

    fn linear(&self, linear: &LinearWeights, feature: impl Fn(usize) -> usize) -> Result<Linear> {
        Linear::load(linear, feature, self.dtype, &self.device)
    }

    fn norm(&self, spec: &ModelSpec, norm: &NormWeights) -> Result<Norm> {
        Ok(Norm {
            weight: self.tensor(&norm.weight)?,
            bias: norm
                .bias
                .as_ref()
                .map(|bias| self.tensor(bias))
                .transpose()?,
            eps: spec.norm.eps as f32,
        })
    }
}
