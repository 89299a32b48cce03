//! Weights on a GPU: read, converted to 16 bits and sent, tensor by tensor.

use std::thread;

use anyhow::Result;
use candle_core::quantized::GgmlDType;
use half::{bf16, f16};

use super::gpu::{Address, Buffer, Gpu};
use super::product::{Element, Matrix};
use crate::model::{LayerWeights, LinearWeights, ModelSpec, NormKind, NormWeights, StoredTensor};

/// Each has a tensor in memory.
const MAX_THREADS: usize = 8;

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
    /// All layers, several at a time: reading and converting takes longer than sending.
    pub fn layers(&self, weights: &[LayerWeights]) -> Result<Vec<Layer>> {
        let num_threads = thread::available_parallelism().map_or(1, |n| n.get().min(MAX_THREADS));
        let share = weights.len().div_ceil(num_threads).max(1);
        thread::scope(|scope| {
            let load = |weights: &[LayerWeights]| weights.iter().map(|it| self.layer(it)).collect();
            let threads: Vec<_> = weights
                .chunks(share)
                .map(|weights| scope.spawn(move || load(weights)))
                .collect();
            let mut layers = Vec::with_capacity(weights.len());
            for thread in threads {
                let loaded: Result<Vec<Layer>> = match thread.join() {
                    Ok(loaded) => loaded,
                    Err(panic) => std::panic::resume_unwind(panic),
                };
                layers.extend(loaded?);
            }
            Ok(layers)
        })
    }

    fn layer(&self, weights: &LayerWeights) -> Result<Layer> {
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
        let mut values = self.gpu.zeros(stored.shape[0] * stored.shape[1])?;
        let bytes = self.elements(stored, false)?;
        self.gpu.write_bytes(&bytes, &mut values, 0)?;
        Ok(Matrix {
            values,
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
        let row_bytes = ins * size_of::<u16>();
        let mut values = self.gpu.zeros(ins * outs)?;
        let mut bias = vec![0f32; outs];
        let mut first_row = 0;
        for (piece, stored) in linear.weights.iter().enumerate() {
            let mut bytes = self.elements(stored, linear.is_in_by_out)?;
            let num_rows = bytes.len() / row_bytes;
            let feature = |row: usize| feature_of_row(first_row + row);
            if (0..num_rows).any(|row| feature(row) != first_row + row) {
                // Features of a piece stay in its rows: a head's elements change places.
                let mut ordered = vec![0; bytes.len()];
                for (row, bytes) in bytes.chunks_exact(row_bytes).enumerate() {
                    let place = (feature(row) - first_row) * row_bytes;
                    ordered[place..][..row_bytes].copy_from_slice(bytes);
                }
                bytes = ordered;
            }
            self.gpu
                .write_bytes(&bytes, &mut values, first_row * row_bytes)?;
            if let Some(stored) = linear.biases.get(piece) {
                for (row, value) in read_floats(stored)?.into_iter().enumerate() {
                    bias[feature(row)] = value;
                }
            }
            first_row += num_rows;
        }
        let bias = (!linear.biases.is_empty()).then(|| self.gpu.upload(&bias));
        Ok(Linear {
            matrix: Matrix {
                values,
                in_features: ins,
                out_features: outs,
            },
            bias: bias.transpose()?,
        })
    }

    fn floats(&self, stored: &StoredTensor) -> Result<Buffer<f32>> {
        self.gpu.upload(&read_floats(stored)?)
    }

    /// A tensor's elements, its two dimensions swapped if it `is_transposed`, as a GPU has them: the low
    /// byte first.
    fn elements(&self, stored: &StoredTensor, is_transposed: bool) -> Result<Vec<u8>> {
        let is_ready = match self.element {
            Element::F16 => stored.dtype == GgmlDType::F16,
            Element::Bf16 => stored.dtype == GgmlDType::BF16,
        };
        if is_ready && !is_transposed {
            return stored.read_bytes();
        }
        let mut values = stored.read_f32()?;
        if is_transposed {
            values = values.t()?.contiguous()?;
        }
        let values: Vec<f32> = values.flatten_all()?.to_vec1()?;
        let mut bytes = vec![0; values.len() * size_of::<u16>()];
        let pairs = bytes.chunks_exact_mut(size_of::<u16>()).zip(values);
        match self.element {
            Element::F16 => {
                pairs.for_each(|(pair, x)| pair.copy_from_slice(&f16::from_f32(x).to_le_bytes()));
            }
            Element::Bf16 => {
                pairs.for_each(|(pair, x)| pair.copy_from_slice(&bf16::from_f32(x).to_le_bytes()));
            }
        }
        Ok(bytes)
    }
}

fn read_floats(stored: &StoredTensor) -> Result<Vec<f32>> {
    Ok(stored.read_f32()?.flatten_all()?.to_vec1()?)
}
