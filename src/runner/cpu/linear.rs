//! From stored tensors to packed matrices, one tensor at a time.

use anyhow::{Result, ensure};
use candle_core::quantized::GgmlDType;

use crate::kernels::{Activations, Compute, Epilogue, Isa, Needs, PackedMatrix, PanelFormat};
use crate::kernels::{SourceFormat, SourceMatrix, matmul, needs};
use crate::model::{LinearWeights, StoredTensor};

/// `x W^T + b`, in parts that follow one another along the output.
#[derive(Debug)]
pub(super) struct Linear {
    pub parts: Vec<PackedMatrix>,
    pub bias: Option<Vec<f32>>, // (outputs of all parts)
}

/// Which stored row an output of the layer comes from.
pub(super) type RowMap<'a> = &'a (dyn Fn(usize) -> usize + Sync);

/// Packs matrices, each of which it reads into the same memory.
pub(super) struct Packer<'a> {
    compute: &'a Compute,
    bytes: Vec<u8>,
}

impl<'a> Packer<'a> {
    pub fn new(compute: &'a Compute) -> Self {
        let bytes = Vec::new();
        Self { compute, bytes }
    }

    /// What the packed weights are for.
    pub fn isa(&self) -> Isa {
        self.compute.isa()
    }

    /// Packs each tensor of a layer as a part of its own.
    ///
    /// # Errors
    /// If a tensor cannot be read, or is of a kind that cannot be packed.
    pub fn linear(&mut self, linear: &LinearWeights, row: RowMap<'_>) -> Result<Linear> {
        let compute = self.compute;
        let mut first = 0;
        let mut parts = Vec::with_capacity(linear.weights.len());
        for tensor in &linear.weights {
            let outputs = tensor.num_elements() as usize / linear.in_features;
            let transposed = linear.is_in_by_out.then_some(outputs);
            let source = self.read(tensor, linear.in_features, transposed)?;
            let row = |output| row(first + output) - first;
            parts.push(source.pack(compute, outputs, row));
            first += outputs;
        }
        Ok(Linear {
            parts,
            bias: read_bias(linear, row)?,
        })
    }

    /// The two halves of a layer as matrices of their own: gate and up.
    ///
    /// # Errors
    /// As [`Packer::linear`].
    pub fn halves(&mut self, linear: &LinearWeights) -> Result<Linear> {
        let in_order: RowMap<'_> = &|row| row;
        let [both] = linear.weights.as_slice() else {
            return self.linear(linear, in_order);
        };
        let compute = self.compute;
        let outputs = linear.out_features / 2;
        let transposed = linear.is_in_by_out.then_some(linear.out_features);
        let source = self.read(both, linear.in_features, transposed)?;
        let halves = [0, outputs];
        let parts = halves.map(|first| source.pack(compute, outputs, |row| first + row));
        Ok(Linear {
            parts: parts.into(),
            bias: read_bias(linear, in_order)?,
        })
    }

    /// Packs a table (rows, in_features).
    ///
    /// # Errors
    /// As [`Packer::linear`].
    pub fn table(&mut self, tensor: &StoredTensor) -> Result<PackedMatrix> {
        let compute = self.compute;
        let source = self.read(tensor, tensor.shape[1], None)?;
        Ok(source.pack(compute, tensor.shape[0], |row| row))
    }

    /// Gives back the memory, which is as much as the largest matrix so far has.
    pub fn forget(&mut self) {
        self.bytes = Vec::new();
    }

    fn read(
        &mut self,
        tensor: &StoredTensor,
        inputs: usize,
        transposed_outputs: Option<usize>,
    ) -> Result<Source<'_>> {
        let (format, panel_format) = match source_format(tensor.dtype) {
            Some(format) => {
                tensor.read_bytes_to(&mut self.bytes)?;
                (format, PanelFormat::of(format))
            }
            // Formats without panels of their own become f16: exact enough, but not as small.
            None => {
                let values = read_vector(tensor)?;
                self.bytes.clear();
                self.bytes
                    .extend(values.iter().flat_map(|value| value.to_le_bytes()));
                (SourceFormat::F32, PanelFormat::F16)
            }
        };
        ensure!(
            panel_format.is_dense() || transposed_outputs.is_none(),
            "tensor {} is quantised along its outputs, which is not supported",
            tensor.name
        );
        let bytes = &self.bytes;
        let matrix = SourceMatrix {
            format,
            bytes,
            inputs,
            transposed_outputs,
        };
        Ok(Source {
            matrix,
            panel_format,
        })
    }
}

/// A tensor on its way from the file to panels.
struct Source<'a> {
    matrix: SourceMatrix<'a>,
    panel_format: PanelFormat,
}

impl Source<'_> {
    fn pack(
        &self,
        compute: &Compute,
        outputs: usize,
        source_row: impl Fn(usize) -> usize + Sync,
    ) -> PackedMatrix {
        PackedMatrix::pack(
            compute,
            &self.matrix,
            self.panel_format,
            outputs,
            source_row,
        )
    }
}

impl Linear {
    pub fn needs(&self) -> Needs {
        needs(&self.parts)
    }

    pub fn num_bytes(&self) -> usize {
        self.parts.iter().map(PackedMatrix::num_bytes).sum()
    }

    /// (rows, in_features) to (rows, out_features)
    pub fn forward(&self, compute: &Compute, x: &Activations, (how, y): (Epilogue, &mut [f32])) {
        matmul(compute, &self.parts, self.bias.as_deref(), x, (how, y));
    }
}

fn read_bias(linear: &LinearWeights, row: RowMap<'_>) -> Result<Option<Vec<f32>>> {
    if linear.biases.is_empty() {
        return Ok(None);
    }
    let mut stored = Vec::with_capacity(linear.out_features);
    for tensor in &linear.biases {
        stored.extend(read_vector(tensor)?);
    }
    Ok(Some(
        (0..stored.len())
            .map(|output| stored[row(output)])
            .collect(),
    ))
}

/// A tensor of one dimension.
pub(super) fn read_vector(tensor: &StoredTensor) -> Result<Vec<f32>> {
    Ok(tensor.read_f32()?.flatten_all()?.to_vec1()?)
}

/// Bytes that a tensor takes once packed, about: padding of odd sizes left out.
pub(super) fn packed_bytes(tensor: &StoredTensor) -> u64 {
    match source_format(tensor.dtype) {
        Some(SourceFormat::Q4K | SourceFormat::Q5K | SourceFormat::Q6K) => {
            tensor.num_bytes as u64 * 9 / 8
        }
        Some(_) => tensor.num_bytes as u64,
        None => tensor.num_elements() * size_of::<half::f16>() as u64,
    }
}

/// `None` for formats that have no panels.
fn source_format(dtype: GgmlDType) -> Option<SourceFormat> {
    Some(match dtype {
        GgmlDType::F32 => SourceFormat::F32,
        GgmlDType::F16 => SourceFormat::F16,
        GgmlDType::BF16 => SourceFormat::Bf16,
        GgmlDType::Q4_0 => SourceFormat::Q4_0,
        GgmlDType::Q4_1 => SourceFormat::Q4_1,
        GgmlDType::Q5_0 => SourceFormat::Q5_0,
        GgmlDType::Q5_1 => SourceFormat::Q5_1,
        GgmlDType::Q8_0 => SourceFormat::Q8_0,
        GgmlDType::Q4K => SourceFormat::Q4K,
        GgmlDType::Q5K => SourceFormat::Q5K,
        GgmlDType::Q6K => SourceFormat::Q6K,
        _ => return None,
    })
}
