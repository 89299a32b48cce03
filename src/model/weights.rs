//! Tensors on disk, found and checked but not yet read: a runner reads them one by one, in the form
//! it wants, so that a model is never in memory twice.
//!
//! They are read with plain reads, not mapped: a file that shrinks meanwhile is an error, not a fault.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use candle_core::quantized::{GgmlDType, QTensor, ggml_file};
use candle_core::{DType, Device, Tensor};

/// Weights that are quantised at a time: what they take as f32 is small beside any model.
const QUANTIZED_AT_ONCE: usize = 1 << 20;

/// One tensor in a file, described as it is read.
#[derive(Clone, Debug)]
pub struct StoredTensor {
    pub name: String,
    pub dtype: GgmlDType,
    /// Outermost dimension first: (out_features, in_features) for most matrices.
    pub shape: Vec<usize>,
    pub(super) file: Arc<OpenFile>,
    /// From the start of the file, in bytes.
    pub(super) offset: u64,
    pub num_bytes: usize,
    /// What the file has, where that is converted on reading.
    pub(super) original: Option<Original>,
}

#[derive(Clone, Debug)]
pub(super) struct Original {
    dtype: GgmlDType,
    num_bytes: usize,
    is_transposed: bool,
}

#[derive(Debug)]
pub(super) struct OpenFile {
    pub path: PathBuf,
    pub file: File,
}

impl StoredTensor {
    /// Its bytes, of its type.
    pub fn read_bytes(&self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.read_bytes_to(&mut bytes)?;
        Ok(bytes)
    }

    /// The same in place of what `bytes` holds: memory that was used before is quicker to fill.
    pub fn read_bytes_to(&self, bytes: &mut Vec<u8>) -> Result<()> {
        match &self.original {
            None => self.read_stored(self.num_bytes, bytes),
            Some(original) => {
                *bytes = self
                    .read_converted(original)
                    .with_context(|| format!("cannot quantise tensor {}", self.name))?;
                Ok(())
            }
        }
    }

    /// Its values as f32 on the CPU. (shape)
    pub fn read_f32(&self) -> Result<Tensor> {
        decode_f32(self.dtype, &self.read_bytes()?, &self.shape)
            .with_context(|| format!("cannot decode tensor {}", self.name))
    }

    pub fn num_elements(&self) -> u64 {
        self.shape.iter().map(|&dim| dim as u64).product()
    }

    /// Has a dense matrix, stored (in, out) if `is_transposed`, quantised as (out, in) on reading.
    pub(super) fn convert_to(&mut self, dtype: GgmlDType, is_transposed: bool) {
        self.original = Some(Original {
            dtype: self.dtype,
            num_bytes: self.num_bytes,
            is_transposed,
        });
        if is_transposed {
            self.shape.reverse();
        }
        self.dtype = dtype;
        self.num_bytes = self.num_elements() as usize / dtype.block_size() * dtype.type_size();
    }

    fn read_converted(&self, original: &Original) -> Result<Vec<u8>> {
        let mut stored = Vec::new();
        self.read_stored(original.num_bytes, &mut stored)?;
        let mut bytes = Vec::with_capacity(self.num_bytes);
        let mut quantize = |values: &Tensor| -> Result<()> {
            bytes.extend_from_slice(&QTensor::quantize(values, self.dtype)?.data()?);
            Ok(())
        };
        let (rows, inputs) = (self.shape[0], self.shape[1]);
        if original.is_transposed {
            let values = decode_f32(original.dtype, &stored, &[inputs, rows])?;
            quantize(&values.t()?.contiguous()?)?;
            return Ok(bytes);
        }
        let row_bytes = original.num_bytes / rows;
        let rows_at_once = QUANTIZED_AT_ONCE.div_ceil(inputs);
        for stored in stored.chunks(rows_at_once * row_bytes) {
            let shape = [stored.len() / row_bytes, inputs];
            quantize(&decode_f32(original.dtype, stored, &shape)?)?;
        }
        Ok(bytes)
    }

    fn read_stored(&self, num_bytes: usize, bytes: &mut Vec<u8>) -> Result<()> {
        if bytes.capacity() < num_bytes {
            // Zeros of the system's, which need not be written.
            *bytes = vec![0; num_bytes];
        }
        bytes.resize(num_bytes, 0);
        self.file
            .file
            .read_exact_at(bytes, self.offset)
            .with_context(|| {
                let path = self.file.path.display();
                format!("cannot read tensor {} of {path}; fetch it again", self.name)
            })
    }
}

/// The f32 values that stored bytes stand for, on the CPU. (shape)
pub fn decode_f32(dtype: GgmlDType, bytes: &[u8], shape: &[usize]) -> Result<Tensor> {
    let dense = |dtype| Tensor::from_raw_buffer(bytes, dtype, shape, &Device::Cpu);
    let tensor = match dtype {
        GgmlDType::F32 => dense(DType::F32)?,
        GgmlDType::F16 => dense(DType::F16)?,
        GgmlDType::BF16 => dense(DType::BF16)?,
        quantized => ggml_file::qtensor_from_ggml(quantized, bytes, shape.to_vec(), &Device::Cpu)?
            .dequantize(&Device::Cpu)?,
    };
    Ok(tensor.to_dtype(DType::F32)?)
}

/// All tensors of a decoder, by the part they play.
#[derive(Clone, Debug)]
pub struct Weights {
    pub token_embedding: StoredTensor, // (vocab_size, hidden_size)
    pub position_embedding: Option<StoredTensor>, // (max_positions, hidden_size)
    pub layers: Vec<LayerWeights>,
    pub final_norm: NormWeights,
    /// `None`: the head is `token_embedding`.
    pub head: Option<StoredTensor>, // (vocab_size, hidden_size)
}

#[derive(Clone, Debug)]
pub struct LayerWeights {
    pub attention_norm: NormWeights,
    /// Q, K and V rows one after the other.
    pub qkv: LinearWeights,
    pub q_norm: Option<StoredTensor>, // (head_dim)
    pub k_norm: Option<StoredTensor>, // (head_dim)
    pub output: LinearWeights,
    pub mlp_norm: NormWeights,
    /// Gate rows, then up rows, where the MLP is gated.
    pub up: LinearWeights,
    pub down: LinearWeights,
}

#[derive(Clone, Debug)]
pub struct NormWeights {
    pub weight: StoredTensor,       // (hidden_size)
    pub bias: Option<StoredTensor>, // (hidden_size)
}

/// One linear layer, stored in one or more pieces that follow one another along the output.
#[derive(Clone, Debug)]
pub struct LinearWeights {
    pub in_features: usize,
    pub out_features: usize,
    /// Each (out, in), or (in, out) where `is_in_by_out`.
    pub weights: Vec<StoredTensor>,
    /// None, or as many as `weights`, each (out).
    pub biases: Vec<StoredTensor>,
    /// GPT-2's Conv1D stores matrices transposed.
    pub is_in_by_out: bool,
}

impl Weights {
    /// Every tensor once.
    pub fn tensors(&self) -> impl Iterator<Item = &StoredTensor> {
        let ends = [&self.token_embedding, &self.final_norm.weight].into_iter();
        let options = [&self.position_embedding, &self.final_norm.bias, &self.head];
        ends.chain(options.into_iter().flatten())
            .chain(self.layers.iter().flat_map(LayerWeights::tensors))
    }
}

impl LayerWeights {
    fn tensors(&self) -> impl Iterator<Item = &StoredTensor> {
        let linears = [&self.qkv, &self.output, &self.up, &self.down].into_iter();
        let norms = [&self.attention_norm, &self.mlp_norm].into_iter();
        linears
            .flat_map(|linear| linear.weights.iter().chain(&linear.biases))
            .chain(norms.flat_map(|norm| std::iter::once(&norm.weight).chain(&norm.bias)))
            .chain([&self.q_norm, &self.k_norm].into_iter().flatten())
    }
}
