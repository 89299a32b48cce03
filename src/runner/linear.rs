//! Dense layers of the candle runner: a matrix in the order that candle multiplies fastest.

use anyhow::Result;
use candle_core::{DType, Device, Tensor};

use crate::model::{LinearWeights, StoredTensor};

/// Fewest rows of a product on the CPU.
///
/// One row alone takes gemm's vector path, which sums in another order than its matrix path; with a
/// second row every result has the same bits in any batch.
const MIN_ROWS: usize = 2;

/// `x W^T + b`.
#[derive(Debug)]
pub(super) struct Linear {
    /// (in_features, out_features), contiguous: gemm reads this order without repacking it.
    weight: Tensor,
    bias: Option<Tensor>, // (out_features)
}

impl Linear {
    /// Reads a layer; row `r` of the stored output features becomes feature `feature_of_row(r)`.
    pub fn load(
        linear: &LinearWeights,
        feature_of_row: impl Fn(usize) -> usize,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let (ins, outs) = (linear.in_features, linear.out_features);
        let features: Vec<usize> = (0..outs).map(feature_of_row).collect();
        let mut weight = vec![0f32; ins * outs];
        let mut first_row = 0;
        for stored in &linear.weights {
            let values = read_values(stored)?;
            let rows = values.len() / ins;
            let features = &features[first_row..first_row + rows];
            if linear.is_in_by_out {
                copy_columns(&values, features, &mut weight, outs);
            } else {
                copy_transposed(&values, features, &mut weight, outs);
            }
            first_row += rows;
        }
        let weight = Tensor::from_vec(weight, (ins, outs), &Device::Cpu)?;
        let mut bias = vec![0f32; outs];
        let mut stored_features = features.iter();
        for stored in &linear.biases {
            for (value, &feature) in read_values(stored)?.iter().zip(&mut stored_features) {
                bias[feature] = *value;
            }
        }
        let bias = match linear.biases.is_empty() {
            true => None,
            false => Some(Tensor::from_vec(bias, outs, &Device::Cpu)?),
        };
        let place = |tensor: Tensor| tensor.to_dtype(dtype)?.to_device(device);
        Ok(Self {
            weight: place(weight)?,
            bias: bias.map(place).transpose()?,
        })
    }

    /// A layer without bias whose matrix is (in, out) already.
    pub fn from_matrix(weight: Tensor) -> Self {
        Self { weight, bias: None }
    }

    /// (in_features, out_features)
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// (rows, in_features) to (rows, out_features)
    pub fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let (rows, _) = x.dims2()?;
        let y = if rows < MIN_ROWS && x.device().is_cpu() {
            let padded = x.pad_with_zeros(0, 0, MIN_ROWS - rows)?;
            padded.matmul(&self.weight)?.narrow(0, 0, rows)?
        } else {
            x.matmul(&self.weight)?
        };
        match &self.bias {
            None => Ok(y),
            Some(bias) => y.broadcast_add(bias),
        }
    }
}

/// A (rows, columns) matrix as (columns, rows) on the CPU.
pub(super) fn read_transposed(stored: &StoredTensor) -> Result<Tensor> {
    let (rows, columns) = (stored.shape[0], stored.shape[1]);
    let mut transposed = vec![0f32; rows * columns];
    let features: Vec<usize> = (0..rows).collect();
    copy_transposed(&read_values(stored)?, &features, &mut transposed, rows);
    Ok(Tensor::from_vec(transposed, (columns, rows), &Device::Cpu)?)
}

fn read_values(stored: &StoredTensor) -> Result<Vec<f32>> {
    Ok(stored.read_f32()?.flatten_all()?.to_vec1()?)
}

/// Row `r` of `source` (features, ins) becomes column `features[r]` of `target` (ins, width).
fn copy_transposed(source: &[f32], features: &[usize], target: &mut [f32], width: usize) {
    let ins = source.len() / features.len();
    // Some rows at a time, so that a cache line of the target is filled while it is at hand.
    for (features, rows) in features.chunks(32).zip(source.chunks(32 * ins)) {
        for input in 0..ins {
            for (row, &feature) in features.iter().enumerate() {
                target[input * width + feature] = rows[row * ins + input];
            }
        }
    }
}

/// Column `c` of `source` (ins, features) becomes column `features[c]` of `target` (ins, width).
fn copy_columns(source: &[f32], features: &[usize], target: &mut [f32], width: usize) {
    let rows = source.chunks_exact(features.len());
    for (source, target) in rows.zip(target.chunks_exact_mut(width)) {
        for (value, &feature) in source.iter().zip(features) {
            target[feature] = *value;
        }
    }
}
