//! Dense layers of the candle runner, laid out so that candle's product is fast and exact.
//!
//! gemm sums each result strictly in order, but in portions whose length it chooses by the shapes,
//! and one row takes another path than several. Summing at most `MAX_SUM` products at a time takes
//! that choice away: a row's result then has the same bits in every batch.

use anyhow::Result;
use candle_core::{Device, Tensor};

use crate::model::{LinearWeights, StoredTensor};

/// Most products summed by one call of gemm; it never splits so short a sum.
const MAX_SUM: usize = 512;
/// Most columns of a panel. Wider rows lie so far apart that reading down a column
/// misses the caches: panels double the speed of a wide layer at a few rows.
const MAX_PANEL: usize = 512;
/// Panels are whole vectors wide.
const PANEL_STEP: usize = 16;

/// `x W^T + b`.
#[derive(Debug)]
pub(super) struct Linear {
    /// Output features in panels, the last filled up with zeros: gemm reads this order without
    /// repacking it. (panels, in_features, panel_width)
    weight: Tensor,
    bias: Option<Tensor>, // (out_features)
    out_features: usize,
}

impl Linear {
    /// Reads a layer; row `r` of the stored output features becomes feature `feature_of_row(r)`.
    pub fn load(linear: &LinearWeights, feature_of_row: impl Fn(usize) -> usize) -> Result<Self> {
        let (ins, outs) = (linear.in_features, linear.out_features);
        let mut panels = Panels::new(ins, outs);
        let mut bias = vec![0f32; outs];
        let mut first_row = 0;
        for (piece, stored) in linear.weights.iter().enumerate() {
            let values = read_values(stored)?;
            let rows = values.len() / ins;
            let features: Vec<usize> = (first_row..first_row + rows).map(&feature_of_row).collect();
            match linear.is_in_by_out {
                true => panels.fill_columns(&values, &features),
                false => panels.fill_rows(&values, &features),
            }
            if let Some(stored) = linear.biases.get(piece) {
                for (value, &feature) in read_values(stored)?.iter().zip(&features) {
                    bias[feature] = *value;
                }
            }
            first_row += rows;
        }
        let bias = match linear.biases.is_empty() {
            true => None,
            false => Some(Tensor::new(bias, &Device::Cpu)?),
        };
        Ok(Self {
            weight: panels.into_tensor()?,
            bias,
            out_features: outs,
        })
    }

    /// (rows, in_features) to (rows, out_features)
    pub fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let (rows, ins) = x.dims2()?;
        let (num_panels, _, width) = self.weight.dims3()?;
        let mut y: Option<Tensor> = None; // (panels, rows, panel_width)
        for start in (0..ins).step_by(MAX_SUM) {
            let len = MAX_SUM.min(ins - start);
            let part = x.narrow(1, start, len)?.expand((num_panels, rows, len))?;
            let product = part.matmul(&self.weight.narrow(1, start, len)?)?;
            y = Some(match y {
                None => product,
                Some(sum) => (sum + product)?,
            });
        }
        let y = y.expect("bug: a layer without inputs");
        let y = y
            .transpose(0, 1)?
            .contiguous()?
            .reshape((rows, num_panels * width))?;
        let y = y.narrow(1, 0, self.out_features)?;
        match &self.bias {
            None => Ok(y),
            Some(bias) => y.broadcast_add(bias),
        }
    }
}

/// A matrix being put together, panel by panel. (panels, in_features, width)
struct Panels {
    values: Vec<f32>,
    num_panels: usize,
    in_features: usize,
    width: usize,
}

impl Panels {
    fn new(in_features: usize, out_features: usize) -> Self {
        let width = out_features
            .div_ceil(out_features.div_ceil(MAX_PANEL))
            .next_multiple_of(PANEL_STEP);
        let num_panels = out_features.div_ceil(width);
        Self {
            values: vec![0.0; num_panels * in_features * width],
            num_panels,
            in_features,
            width,
        }
    }

    fn index(&self, input: usize, feature: usize) -> usize {
        (feature / self.width * self.in_features + input) * self.width + feature % self.width
    }

    /// Row `r` of `source` (features, in_features) becomes feature `features[r]`.
    fn fill_rows(&mut self, source: &[f32], features: &[usize]) {
        let (ins, width) = (self.in_features, self.width);
        let firsts: Vec<usize> = features.iter().map(|&f| self.index(0, f)).collect();
        // Some rows at a time, so that a cache line of the panel is filled while it is at hand.
        for (firsts, rows) in firsts.chunks(32).zip(source.chunks(32 * ins)) {
            for input in 0..ins {
                for (row, first) in firsts.iter().enumerate() {
                    self.values[first + input * width] = rows[row * ins + input];
                }
            }
        }
    }

    /// Column `c` of `source` (in_features, features) becomes feature `features[c]`.
    fn fill_columns(&mut self, source: &[f32], features: &[usize]) {
        for (input, row) in source.chunks_exact(features.len()).enumerate() {
            for (value, &feature) in row.iter().zip(features) {
                let index = self.index(input, feature);
                self.values[index] = *value;
            }
        }
    }

    fn into_tensor(self) -> candle_core::Result<Tensor> {
        let shape = (self.num_panels, self.in_features, self.width);
        Tensor::from_vec(self.values, shape, &Device::Cpu)
    }
}

fn read_values(stored: &StoredTensor) -> Result<Vec<f32>> {
    Ok(stored.read_f32()?.flatten_all()?.to_vec1()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random_layer(ins: usize, outs: usize) -> Result<(Linear, Tensor)> {
        let device = Device::Cpu;
        let matrix = Tensor::randn(0f32, 1.0, (outs, ins), &device)?;
        let mut panels = Panels::new(ins, outs);
        let features: Vec<usize> = (0..outs).collect();
        panels.fill_rows(&matrix.flatten_all()?.to_vec1()?, &features);
        let weight = panels.into_tensor()?;
        let linear = Linear {
            weight,
            bias: None,
            out_features: outs,
        };
        Ok((linear, matrix))
    }

    #[test]
    fn rows_have_the_same_bits_in_any_batch_and_the_values_of_a_plain_product() -> Result<()> {
        for (ins, outs) in [(576, 960), (1536, 576), (2100, 24), (30, 1100), (513, 64)] {
            let (linear, matrix) = random_layer(ins, outs)?;
            let x = Tensor::randn(0f32, 1.0, (300, ins), &Device::Cpu)?;
            let whole = linear.forward(&x)?;
            let plain = x.matmul(&matrix.t()?)?;
            let error = (&whole - plain)?.abs()?.max_all()?.to_scalar::<f32>()?;
            assert!(error < 1e-2, "{ins} to {outs}: {error}");
            let whole = whole.to_vec2::<f32>()?;
            for rows in [1, 2, 3, 5, 16, 17, 64, 65, 256] {
                let part = linear.forward(&x.narrow(0, 7, rows)?)?.to_vec2::<f32>()?;
                assert!(part == whole[7..7 + rows], "{ins} to {outs}, {rows} rows");
            }
        }
        Ok(())
    }
}
