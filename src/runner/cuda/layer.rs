//! Weights on a GPU: read, converted to 16 bits and sent, one after the other.

use anyhow::Result;
use candle_core::quantized::GgmlDType;
use half::{bf16, f16};

use super::gpu::{Address, Buffer, Element, Gpu, Matrix};
use crate::model::{LayerWeights, LinearWeights, ModelSpec, NormKind, NormWeights, StoredTensor};

#[derive(Debug)]
pub(super) struct Layer {
    pub attention_norm: Norm,
    pub qkv: Linear,
    pub q_norm: Option<Buffer<f32>>, // (head_dim)
    pub k_norm: Option<Buffer<f32>>, // (head_dim)
    pub output: Linear,
    pub mlp_norm: Norm,
    pub up: Linear,
    pub down: Linear,
}

#[derive(Debug)]
pub(super) struct Linear {
    pub matrix: Matrix,
    pub bias: Option<Buffer<f32>>, // (out_features)
}

#[derive(Debug)]
pub(super) struct Norm {
    pub weight: Buffer<f32>,       // (hidden_size)
    pub bias: Option<Buffer<f32>>, // (hidden_size)
    pub eps: f32,
    pub is_layer_norm: bool,
}

/// Where something optional lies; kernels take 0 for nothing.
pub(super) fn address(buffer: &Option<Buffer<f32>>) -> Address {
    buffer.as_ref().map_or(0, Buffer::address)
}

/// Puts weights on a GPU.
pub(super) struct Loader<'a> {
    pub gpu: &'a Gpu,
    pub element: Element,
    pub spec: &'a ModelSpec,
}

impl Loader<'_> {
    pub fn layer(&self, weights: &LayerWeights) -> Result<Layer> {
        let head_norm = |weight: &Option<StoredTensor>| {
            let values = weight.as_ref().map(|weight| self.floats(weight));
            values.transpose()
        };
        Ok(Layer {
            attention_norm: self.norm(&weights.attention_norm)?,
            qkv: self.linear(&weights.qkv, |row| self.spec.half_split_feature(row))?,
            q_norm: head_norm(&weights.q_norm)?,
            k_norm: head_norm(&weights.k_norm)?,
            output: self.linear(&weights.output, |row| row)?,
            mlp_norm: self.norm(&weights.mlp_norm)?,
            up: self.linear(&weights.up, |row| row)?,
            down: self.linear(&weights.down, |row| row)?,
        })
    }

    pub fn norm(&self, weights: &NormWeights) -> Result<Norm> {
        let bias = weights.bias.as_ref().map(|bias| self.floats(bias));
        Ok(Norm {
            weight: self.floats(&weights.weight)?,
            bias: bias.transpose()?,
            eps: self.spec.norm.eps as f32,
            is_layer_norm: self.spec.norm.kind == NormKind::Layer,
        })
    }

    /// A stored table or head. (rows, columns)
    pub fn matrix(&self, stored: &StoredTensor) -> Result<Matrix> {
        Ok(Matrix {
            values: self.gpu.upload(&self.elements(stored, false)?)?,
            in_features: stored.shape[1],
            out_features: stored.shape[0],
        })
    }

    /// Row `r` of the stored output features becomes feature `feature_of_row(r)`.
    fn linear(
        &self,
        linear: &LinearWeights,
        feature_of_row: impl Fn(usize) -> usize,
    ) -> Result<Linear> {
        let (ins, outs) = (linear.in_features, linear.out_features);
        let mut values = vec![0u16; ins * outs];
        let mut bias = vec![0f32; outs];
        let mut first_row = 0;
        for (piece, stored) in linear.weights.iter().enumerate() {
            let elements = self.elements(stored, linear.is_in_by_out)?;
            let num_rows = elements.len() / ins;
            for (row, elements) in elements.chunks_exact(ins).enumerate() {
                let feature = feature_of_row(first_row + row);
                values[feature * ins..][..ins].copy_from_slice(elements);
            }
            if let Some(stored) = linear.biases.get(piece) {
                for (row, value) in read_floats(stored)?.into_iter().enumerate() {
                    bias[feature_of_row(first_row + row)] = value;
                }
            }
            first_row += num_rows;
        }
        let bias = (!linear.biases.is_empty()).then(|| self.gpu.upload(&bias));
        Ok(Linear {
            matrix: Matrix {
                values: self.gpu.upload(&values)?,
                in_features: ins,
                out_features: outs,
            },
            bias: bias.transpose()?,
        })
    }

    fn floats(&self, stored: &StoredTensor) -> Result<Buffer<f32>> {
        self.gpu.upload(&read_floats(stored)?)
    }

    /// The bits of a tensor's elements, its two dimensions swapped if it `is_transposed`.
    fn elements(&self, stored: &StoredTensor, is_transposed: bool) -> Result<Vec<u16>> {
        let is_ready = match self.element {
            Element::F16 => stored.dtype == GgmlDType::F16,
            Element::Bf16 => stored.dtype == GgmlDType::BF16,
        };
        if is_ready && !is_transposed {
            let bytes = stored.read_bytes()?;
            let pairs = bytes.chunks_exact(2);
            return Ok(pairs
                .map(|pair| u16::from_le_bytes([pair[0], pair[1]]))
                .collect());
        }
        let mut values = stored.read_f32()?;
        if is_transposed {
            values = values.t()?.contiguous()?;
        }
        let values: Vec<f32> = values.flatten_all()?.to_vec1()?;
        Ok(match self.element {
            Element::F16 => values.iter().map(|&x| f16::from_f32(x).to_bits()).collect(),
            Element::Bf16 => values
                .iter()
                .map(|&x| bf16::from_f32(x).to_bits())
                .collect(),
        })
    }
}

fn read_floats(stored: &StoredTensor) -> Result<Vec<f32>> {
    Ok(stored.read_f32()?.flatten_all()?.to_vec1()?)
}
