//! One decoder layer: norm, attention, residual, norm, MLP, residual.

use anyhow::Result;

use super::Scratch;
use super::linear::{Linear, Packer, read_vector};
use crate::kernels::{
    self, Activations, AttentionShape, Compute, Epilogue, HeadTransform, KvShape, KvStorage, Needs,
    Rotation, attend, matmul_activated, normalize,
};
use crate::model::{Activation, LayerWeights, Mlp, ModelSpec, NormWeights, Positions, RopePairing};
use crate::runner::{BlockCopy, RaggedBatch};

/// Norms of a query and a key head.
type HeadNorms = Option<(Vec<f32>, Vec<f32>)>; // (head_dim)

/// The weights of a layer and its K and V.
#[derive(Debug)]
pub(super) struct Layer {
    attention_norm: Norm,
    qkv: Linear,
    head_norms: HeadNorms,
    output: Linear,
    mlp_norm: Norm,
    /// Gate and up, where the MLP is gated.
    up: Linear,
    down: Linear,
    kv: KvStorage,
}

#[derive(Debug)]
pub(super) struct Norm {
    weight: Vec<f32>,       // (hidden_size)
    bias: Option<Vec<f32>>, // (hidden_size)
    eps: f32,
}

impl Norm {
    pub fn load(spec: &ModelSpec, norm: &NormWeights) -> Result<Self> {
        Ok(Self {
            weight: read_vector(&norm.weight)?,
            bias: norm.bias.as_ref().map(read_vector).transpose()?,
            eps: spec.norm.eps as f32,
        })
    }

    pub fn apply(&self, compute: &Compute, x: &[f32], out: (&mut Activations, Needs)) {
        let weight = &self.weight;
        let kind = match &self.bias {
            None => kernels::NormKind::Rms { weight },
            Some(bias) => kernels::NormKind::Layer { weight, bias },
        };
        normalize(compute, kind, self.eps, x, out);
    }
}

impl Layer {
    pub fn load(
        packer: &mut Packer<'_>,
        spec: &ModelSpec,
        weights: &LayerWeights,
        kv: KvShape,
    ) -> Result<Self> {
        let in_order = &|row| row;
        let head_norm = |weight: &Option<_>| weight.as_ref().map(read_vector).transpose();
        let up = match spec.mlp {
            Mlp::Gated(_) => packer.halves(&weights.up)?,
            Mlp::Plain(_) => packer.linear(&weights.up, in_order)?,
        };
        Ok(Self {
            attention_norm: Norm::load(spec, &weights.attention_norm)?,
            qkv: packer.linear(&weights.qkv, &|row| stored_row(spec, row))?,
            head_norms: head_norm(&weights.q_norm)?.zip(head_norm(&weights.k_norm)?),
            output: packer.linear(&weights.output, in_order)?,
            mlp_norm: Norm::load(spec, &weights.mlp_norm)?,
            up,
            down: packer.linear(&weights.down, in_order)?,
            kv: KvStorage::new(packer.isa(), kv),
        })
    }

    /// Bytes of the packed matrices.
    pub fn weight_bytes(&self) -> usize {
        let linears = [&self.qkv, &self.output, &self.up, &self.down];
        linears.into_iter().map(Linear::num_bytes).sum()
    }

    pub fn copy_block(&mut self, copy: &BlockCopy, block_size: usize) {
        let first_slot = |block: u32| block as usize * block_size;
        let (from, to) = (first_slot(copy.from_block), first_slot(copy.to_block));
        self.kv.copy(from, to, copy.num_tokens as usize);
    }

    /// Computes Q, K and V of all tokens, and writes K and V to their slots where attention does not.
    pub fn project(&mut self, compute: &Compute, spec: &ModelSpec, scratch: &mut Scratch) {
        let Scratch {
            x,
            normed,
            qkv,
            rotation,
            rows,
            writes,
            plan,
            ..
        } = scratch;
        normed.resize(rows.len(), spec.hidden_size);
        self.attention_norm
            .apply(compute, x, (normed, self.qkv.needs()));
        qkv.resize(rows.len() * spec.qkv_features());
        self.qkv.forward(compute, normed, (Epilogue::Store, qkv));
        if !plan.writes() {
            let transform = transform(spec, &self.head_norms, rotation.as_ref());
            self.kv.write(compute, writes, &transform, qkv);
        }
    }

    /// Adds to the residual stream of the rows at hand what the layer makes of them.
    pub fn forward(
        &mut self,
        compute: &Compute,
        spec: &ModelSpec,
        attention: &AttentionShape,
        batch: &RaggedBatch,
        scratch: &mut Scratch,
    ) {
        let Scratch {
            x,
            qkv,
            rotation,
            attended,
            rows,
            plan,
            ..
        } = scratch;
        attended.resize(rows.len(), spec.num_heads * spec.head_dim);
        let transform = transform(spec, &self.head_norms, rotation.as_ref());
        attend(
            compute,
            attention,
            (plan, &rows.attention_batch(batch)),
            (&mut self.kv, &transform),
            qkv,
            (attended, self.output.needs()),
        );
        self.output.forward(compute, attended, (Epilogue::Add, x));
        self.mlp(compute, spec, scratch);
    }

    fn mlp(&self, compute: &Compute, spec: &ModelSpec, scratch: &mut Scratch) {
        let Scratch {
            x,
            normed,
            inner,
            rows,
            ..
        } = scratch;
        normed.resize(rows.len(), spec.hidden_size);
        self.mlp_norm.apply(compute, x, (normed, self.up.needs()));
        inner.resize(rows.len(), spec.intermediate_size);
        let (activation, matrices) = match (spec.mlp, self.up.parts.as_slice()) {
            (Mlp::Gated(activation), [gate, up]) => (activation, (gate, Some(up))),
            (Mlp::Plain(activation), [up]) => (activation, (up, None)),
            (_, parts) => panic!("bug: an MLP of {} matrices before the last", parts.len()),
        };
        let (activation, biases) = (kernel_of(activation), self.up.bias.as_deref());
        let results = (&mut *inner, self.down.needs());
        matmul_activated(compute, matrices, biases, activation, normed, results);
        self.down.forward(compute, inner, (Epilogue::Add, x));
    }
}

fn transform<'a>(
    spec: &ModelSpec,
    norms: &'a HeadNorms,
    rotation: Option<&'a Rotation>,
) -> HeadTransform<'a> {
    HeadTransform {
        num_heads: spec.num_heads,
        num_kv_heads: spec.num_kv_heads,
        head_dim: spec.head_dim,
        norms: norms
            .as_ref()
            .map(|(q, k)| (&**q, &**k, spec.norm.eps as f32)),
        rotation,
    }
}

fn kernel_of(activation: Activation) -> kernels::Activation {
    match activation {
        Activation::Silu => kernels::Activation::Silu,
        Activation::Gelu => kernels::Activation::Gelu,
        Activation::GeluTanh => kernels::Activation::GeluTanh,
    }
}

/// Where a file has the row that becomes row `row` of Q, K and V, for heads whose pairs are `i` and
/// `i + head_dim / 2`: files for interleaved rotation have pairs side by side.
fn stored_row(spec: &ModelSpec, row: usize) -> usize {
    let is_rotated = row < (spec.num_heads + spec.num_kv_heads) * spec.head_dim;
    match &spec.positions {
        Positions::Rope(rope) if rope.pairing == RopePairing::Interleaved && is_rotated => {
            let (head, element) = (row / spec.head_dim, row % spec.head_dim);
            let half = spec.head_dim / 2;
            head * spec.head_dim + element % half * 2 + element / half
        }
        _ => row,
    }
}
