//! `QUANTIZE`: makes the matrices of a model smaller while they are read.
//!
//! What is quantised here has the same bits as in a GGUF file of that type: rows are cut into blocks
//! along the inputs. A table of positions is added to and not multiplied with, and stays as it is.

use std::fmt;
use std::str::FromStr;

use anyhow::{Result, ensure};
use candle_core::quantized::GgmlDType;

use super::weights::{StoredTensor, Weights};
use super::{LoadedModel, dtype_name, quantization};

/// A type to quantise to; those without panels of their own in the fast runner would save nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quantization(GgmlDType);

impl Quantization {
    pub const ALL: [Self; 8] = [
        Self(GgmlDType::Q8_0),
        Self(GgmlDType::Q6K),
        Self(GgmlDType::Q5K),
        Self(GgmlDType::Q5_1),
        Self(GgmlDType::Q5_0),
        Self(GgmlDType::Q4K),
        Self(GgmlDType::Q4_1),
        Self(GgmlDType::Q4_0),
    ];

    pub fn dtype(self) -> GgmlDType {
        self.0
    }
}

impl fmt::Display for Quantization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&dtype_name(self.0).to_lowercase())
    }
}

impl FromStr for Quantization {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_named = |kind: &Self| kind.to_string().eq_ignore_ascii_case(text);
        Self::ALL.into_iter().find(is_named).ok_or_else(|| {
            let names = Self::ALL.map(|kind| kind.to_string()).join(", ");
            format!("expected one of {names}")
        })
    }
}

impl LoadedModel {
    /// Has the matrices quantised when a runner reads them; the names of those that stay as they
    /// are, since their rows are not whole blocks.
    ///
    /// # Errors
    /// The model is quantised already, or no matrix can be.
    pub fn quantize(&mut self, kind: Quantization) -> Result<Vec<String>> {
        let is_dense = |tensor: &StoredTensor| tensor.dtype.block_size() == 1;
        ensure!(
            self.weights.tensors().all(is_dense),
            "QUANTIZE={kind}: the model is quantised already, {}; leave QUANTIZE out",
            self.facts.quantization
        );
        let kept = quantize(&mut self.weights, kind.dtype());
        self.facts.quantization = quantization(&self.weights);
        ensure!(
            !self.weights.tensors().all(is_dense),
            "QUANTIZE={kind}: no matrix of the model has rows of whole blocks of {} weights; \
             leave QUANTIZE out",
            kind.dtype().block_size()
        );
        Ok(kept)
    }
}

fn quantize(weights: &mut Weights, dtype: GgmlDType) -> Vec<String> {
    let mut kept = Vec::new();
    let mut convert = |tensor: &mut StoredTensor, is_transposed: bool, inputs: usize| {
        let is_possible = inputs.is_multiple_of(dtype.block_size());
        match is_possible {
            true => tensor.convert_to(dtype, is_transposed),
            false => kept.push(tensor.name.clone()),
        }
        is_possible
    };
    let tables = [Some(&mut weights.token_embedding), weights.head.as_mut()];
    for table in tables.into_iter().flatten() {
        let inputs = table.shape[1];
        convert(table, false, inputs);
    }
    for layer in &mut weights.layers {
        for linear in [
            &mut layer.qkv,
            &mut layer.output,
            &mut layer.up,
            &mut layer.down,
        ] {
            let mut is_converted = true;
            for tensor in &mut linear.weights {
                is_converted &= convert(tensor, linear.is_in_by_out, linear.in_features);
            }
            linear.is_in_by_out &= !is_converted;
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_named_as_in_gguf_files_in_small_letters() {
        let names = Quantization::ALL.map(|kind| kind.to_string());
        assert_eq!(
            names,
            [
                "q8_0", "q6_k", "q5_k", "q5_1", "q5_0", "q4_k", "q4_1", "q4_0"
            ]
        );
        for kind in Quantization::ALL {
            assert_eq!(kind.to_string().parse(), Ok(kind));
        }
        assert_eq!("Q8_0".parse(), Ok(Quantization(GgmlDType::Q8_0)));
        let error = "q2_k".parse::<Quantization>().expect_err("not offered");
        assert!(error.contains("q8_0, q6_k"), "{error}");
    }
}
