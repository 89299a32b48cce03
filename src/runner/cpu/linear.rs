//! From stored tensors to packed matrices, one tensor at a time.

use anyhow::{Result, ensure};
use candle_core::quantized::GgmlDType;

use crate::kernels::{Activations, Compute, Epilogue, Needs, PackedMatrix, PanelFormat};
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

impl Linear {
    /// Packs outputs `pieces[0]..`, `pieces[1]..` and so on as parts of their own.
    ///
    /// # Errors
    /// If a tensor cannot be read, or is of a kind that cannot be packed.
    pub fn load(compute: &Compute, linear: &LinearWeights, row: RowMap<'_>) -> Result<Self> {
        let mut first = 0;
        let mut parts = Vec::with_capacity(linear.weights.len());
        for tensor in &linear.weights {
            let outputs = tensor.num_elements() as usize / linear.in_features;
            let transposed = linear.is_in_by_out.then_some(outputs);
            let source = Source::read(tensor, linear.in_features, transposed)?;
            parts.push(source.pack(compute, outputs, |output| row(first + output) - first));
            first += outputs;
        }
        Ok(Self {
            parts,
            bias: read_bias(linear, row)?,
        })
    }

    /// The two halves of a layer as matrices of their own: gate and up.
    ///
    /// # Errors
    /// As [`Linear::load`].
    pub fn load_halves(compute: &Compute, linear: &LinearWeights) -> Result<Self> {
        let mut halves = Self::load(compute, linear, &|row| row)?;
        if let [both] = linear.weights.as_slice() {
            let outputs = linear.out_features / 2;
            let transposed = linear.is_in_by_out.then_some(linear.out_features);
            let source = Source::read(both, linear.in_features, transposed)?;
            halves.parts = [0, outputs]
                .map(|first| source.pack(compute, outputs, |output| first + output))
                .into();
        }
        Ok(halves)
    }

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

/// Packs a table (rows, in_features).
pub(super) fn pack_table(compute: &Compute, tensor: &StoredTensor) -> Result<PackedMatrix> {
    let source = Source::read(tensor, tensor.shape[1], None)?;
    Ok(source.pack(compute, tensor.shape[0], |row| row))
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

/// The bytes of a tensor, on their way from the file to panels.
struct Source {
    bytes: Vec<u8>,
    format: SourceFormat,
    panel_format: PanelFormat,
    inputs: usize,
    transposed_outputs: Option<usize>,
}

impl Source {
    fn read(tensor: &StoredTensor, inputs: usize, transposed: Option<usize>) -> Result<Self> {
        let source = match source_format(tensor.dtype) {
            Some(format) => Self {
                bytes: tensor.read_bytes()?,
                format,
                panel_format: PanelFormat::of(format),
                inputs,
                transposed_outputs: transposed,
            },
            // Formats without panels of their own become f16: exact enough, but not as small.
            None => Self {
                bytes: read_vector(tensor)?
                    .iter()
                    .flat_map(|value| value.to_le_bytes())
                    .collect(),
                format: SourceFormat::F32,
                panel_format: PanelFormat::F16,
                inputs,
                transposed_outputs: transposed,
            },
        };
        let is_dense = source.panel_format.is_dense();
        ensure!(
            is_dense || transposed.is_none(),
            "tensor {} is quantised along its outputs, which is not supported",
            tensor.name
        );
        Ok(source)
    }

    fn pack(
        &self,
        compute: &Compute,
        outputs: usize,
        source_row: impl Fn(usize) -> usize + Sync,
    ) -> PackedMatrix {
        let matrix = SourceMatrix {
            format: self.format,
            bytes: &self.bytes,
            inputs: self.inputs,
            transposed_outputs: self.transposed_outputs,
        };
        PackedMatrix::pack(compute, &matrix, self.panel_format, outputs, source_row)
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
