//! Reads the header of a GGUF file: metadata and where each tensor lies.
//!
//! The file is untrusted. Every length is compared with what is left of the file before anything is
//! allocated for it, nothing recurses, and offsets are checked, so that a truncated or hostile file
//! is an error and never a panic. Tensor data is not read here.
//!
//! Format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>

use std::cell::Cell;
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use candle_core::quantized::GgmlDType;

use super::collect::TensorIndex;
use super::weights::{OpenFile, StoredTensor};

/// Most bytes of metadata; real files have less than 16 MiB.
const MAX_HEADER_BYTES: u64 = 256 << 20;
const MAX_DIMENSIONS: u32 = 4;
const DEFAULT_ALIGNMENT: u64 = 32;

/// An open GGUF file whose header has been read.
#[derive(Debug)]
pub(super) struct GgufFile {
    pub metadata: Metadata,
    pub tensors: TensorIndex,
}

/// A metadata value; numbers are widened, arrays hold one kind.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    String(String),
    Strings(Vec<String>),
    Integers(Vec<i32>),
    Floats(Vec<f32>),
    Bools(Vec<bool>),
}

/// The key-value part of the header.
#[derive(Debug, Default)]
pub(super) struct Metadata(HashMap<String, Entry>);

#[derive(Debug)]
struct Entry {
    value: Value,
    is_read: Cell<bool>,
}

impl GgufFile {
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).context("cannot open it")?;
        let num_bytes = file.metadata().context("cannot read it")?.len();
        let mut header = Header {
            reader: BufReader::with_capacity(1 << 16, &file),
            position: 0,
            file_bytes: num_bytes,
        };
        let (metadata, infos) = header.read()?;
        let alignment = metadata.alignment()?;
        let data_start = header.position.next_multiple_of(alignment);
        let file = Arc::new(OpenFile {
            path: path.to_owned(),
            file,
        });
        let mut tensors = TensorIndex::default();
        for info in infos {
            tensors.insert(info.locate(&file, data_start, num_bytes)?)?;
        }
        Ok(Self { metadata, tensors })
    }
}

impl Metadata {
    pub fn get(&self, key: &str) -> Option<&Value> {
        let entry = self.0.get(key)?;
        entry.is_read.set(true);
        Some(&entry.value)
    }

    /// Refuses a key of `prefix` that nobody has read: what it asks for would be left undone.
    pub fn ensure_all_read(&self, prefix: &str, harmless: &[&str]) -> Result<()> {
        let is_known = |key: &str, entry: &Entry| match key.strip_prefix(prefix) {
            Some(name) => entry.is_read.get() || harmless.contains(&name),
            None => true,
        };
        let unknown = self.0.iter().filter(|(key, entry)| !is_known(key, entry));
        match unknown.map(|(key, _)| key).min() {
            None => Ok(()),
            Some(key) => bail!("its metadata key {key} is not supported"),
        }
    }

    /// Takes a value out, to move a large one without a copy.
    pub fn remove(&mut self, key: &str) -> Option<Value> {
        Some(self.0.remove(key)?.value)
    }

    pub fn string(&self, key: &str) -> Result<Option<&str>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => bail!("its metadata key {key} is not a string"),
        }
    }

    pub fn integer(&self, key: &str) -> Result<Option<usize>> {
        let value = match self.get(key) {
            None => return Ok(None),
            Some(Value::Unsigned(n)) => usize::try_from(*n).ok(),
            Some(Value::Signed(n)) => usize::try_from(*n).ok(),
            Some(_) => None,
        };
        value
            .map(Some)
            .with_context(|| format!("its metadata key {key} is not a whole number from 0"))
    }

    pub fn float(&self, key: &str) -> Result<Option<f64>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Float(x)) => Ok(Some(*x)),
            Some(_) => bail!("its metadata key {key} is not a floating-point number"),
        }
    }

    pub fn bool(&self, key: &str) -> Result<Option<bool>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(b)) => Ok(Some(*b)),
            Some(_) => bail!("its metadata key {key} is not true or false"),
        }
    }

    /// A whole number that must be there.
    pub fn required(&self, key: &str) -> Result<usize> {
        self.integer(key)?
            .with_context(|| format!("its metadata key {key} is missing"))
    }

    fn alignment(&self) -> Result<u64> {
        let alignment = self
            .integer("general.alignment")?
            .map_or(DEFAULT_ALIGNMENT, |n| n as u64);
        ensure!(
            alignment.is_power_of_two() && alignment <= 1 << 20,
            "its metadata key general.alignment is {alignment}"
        );
        Ok(alignment)
    }
}

/// A tensor as the header describes it; the offset counts from the start of the data.
struct TensorInfo {
    name: String,
    dtype: GgmlDType,
    shape: Vec<usize>,
    offset: u64,
}

impl TensorInfo {
    fn locate(
        self,
        file: &Arc<OpenFile>,
        data_start: u64,
        file_bytes: u64,
    ) -> Result<StoredTensor> {
        let Self {
            name,
            dtype,
            shape,
            offset,
        } = self;
        let num_bytes = num_bytes(dtype, &shape)
            .with_context(|| format!("its tensor {name} cannot have the shape {shape:?}"))?;
        let start = data_start.checked_add(offset);
        let end = start.and_then(|start| start.checked_add(num_bytes as u64));
        let (Some(start), Some(end)) = (start, end) else {
            bail!("its tensor {name} lies at the impossible offset {offset}; fetch it again");
        };
        ensure!(
            end <= file_bytes,
            "it is truncated: tensor {name} ends at byte {end}, the file has {file_bytes}; fetch it again"
        );
        Ok(StoredTensor {
            name,
            dtype,
            shape,
            file: Arc::clone(file),
            offset: start,
            num_bytes,
            original: None,
        })
    }
}

/// Size of a tensor, or why it has none: rows are whole quantisation blocks, nothing overflows.
fn num_bytes(dtype: GgmlDType, shape: &[usize]) -> Result<usize> {
    let block = dtype.block_size();
    let row = *shape.last().context("no dimensions")?;
    ensure!(
        row.is_multiple_of(block),
        "rows of {row} are not whole blocks of {block}"
    );
    shape
        .iter()
        .try_fold(1usize, |product, &dim| product.checked_mul(dim))
        .and_then(|elements| (elements / block).checked_mul(dtype.type_size()))
        .filter(|bytes| *bytes <= isize::MAX as usize)
        .context("too many elements")
}

/// Reads the header front to back and knows how much of the file is left.
struct Header<R> {
    reader: R,
    position: u64,
    file_bytes: u64,
}

impl<R: Read> Header<R> {
    fn read(&mut self) -> Result<(Metadata, Vec<TensorInfo>)> {
        ensure!(
            &self.bytes::<4>()? == b"GGUF",
            "it is not a GGUF file; fetch it again"
        );
        let version = self.u32()?;
        ensure!(
            matches!(version, 2 | 3),
            "it has GGUF version {version}; versions 2 and 3 are supported"
        );
        let num_tensors = self.u64()?;
        let num_values = self.u64()?;
        let mut metadata = HashMap::new();
        for _ in 0..num_values {
            let key = self.string()?;
            let kind = self.u32()?;
            let value = self
                .value(kind)
                .with_context(|| format!("in its metadata key {key}"))?;
            let is_read = Cell::new(false);
            let entry = Entry { value, is_read };
            ensure!(
                metadata.insert(key.clone(), entry).is_none(),
                "it has the metadata key {key} twice"
            );
        }
        let mut tensors = Vec::new();
        for _ in 0..num_tensors {
            tensors.push(self.tensor_info()?);
        }
        Ok((Metadata(metadata), tensors))
    }

    fn tensor_info(&mut self) -> Result<TensorInfo> {
        let name = self.string()?;
        let num_dimensions = self.u32()?;
        ensure!(
            (1..=MAX_DIMENSIONS).contains(&num_dimensions),
            "its tensor {name} has {num_dimensions} dimensions"
        );
        let mut shape = Vec::new();
        for _ in 0..num_dimensions {
            let dim = self.u64()?;
            shape.push(usize::try_from(dim).context("a dimension is too large")?);
        }
        // The file counts dimensions from the innermost.
        shape.reverse();
        let dtype = self.u32()?;
        Ok(TensorInfo {
            dtype: supported_dtype(dtype)
                .with_context(|| format!("its tensor {name} is stored as {}", dtype_name(dtype)))?,
            name,
            shape,
            offset: self.u64()?,
        })
    }

    fn value(&mut self, kind: u32) -> Result<Value> {
        Ok(match kind {
            0 => Value::Unsigned(self.bytes::<1>()?[0].into()),
            1 => Value::Signed(i8::from_le_bytes(self.bytes()?).into()),
            2 => Value::Unsigned(u16::from_le_bytes(self.bytes()?).into()),
            3 => Value::Signed(i16::from_le_bytes(self.bytes()?).into()),
            4 => Value::Unsigned(self.u32()?.into()),
            5 => Value::Signed(i32::from_le_bytes(self.bytes()?).into()),
            6 => Value::Float(f32::from_le_bytes(self.bytes()?).into()),
            7 => Value::Bool(self.bytes::<1>()?[0] != 0),
            8 => Value::String(self.string()?),
            9 => self.array()?,
            10 => Value::Unsigned(self.u64()?),
            11 => Value::Signed(i64::from_le_bytes(self.bytes()?)),
            12 => Value::Float(f64::from_le_bytes(self.bytes()?)),
            _ => bail!("unknown value type {kind}; the file is damaged, fetch it again"),
        })
    }

    fn array(&mut self) -> Result<Value> {
        let kind = self.u32()?;
        let count = self.u64()?;
        Ok(match kind {
            0 => Value::Integers(self.array_of(count, |[b]: [u8; 1]| b.into())?),
            1 => Value::Integers(self.array_of(count, |b| i8::from_le_bytes(b).into())?),
            2 => Value::Integers(self.array_of(count, |b| u16::from_le_bytes(b).into())?),
            3 => Value::Integers(self.array_of(count, |b| i16::from_le_bytes(b).into())?),
            // No known array of u32 holds numbers above i32::MAX.
            4 | 5 => Value::Integers(self.array_of(count, i32::from_le_bytes)?),
            6 => Value::Floats(self.array_of(count, f32::from_le_bytes)?),
            7 => Value::Bools(self.array_of(count, |[b]: [u8; 1]| b != 0)?),
            8 => {
                self.ensure_left(count, 8)?;
                let mut strings = Vec::new();
                for _ in 0..count {
                    strings.push(self.string()?);
                }
                Value::Strings(strings)
            }
            _ => bail!("arrays of value type {kind} are not supported"),
        })
    }

    fn array_of<T, const N: usize>(
        &mut self,
        count: u64,
        parse: impl Fn([u8; N]) -> T,
    ) -> Result<Vec<T>> {
        self.ensure_left(count, N as u64)?;
        let mut values = Vec::with_capacity(count as usize);
        for _ in 0..count {
            values.push(parse(self.bytes()?));
        }
        Ok(values)
    }

    fn string(&mut self) -> Result<String> {
        let length = self.u64()?;
        self.ensure_left(length, 1)?;
        let mut bytes = vec![0; length as usize];
        self.fill(&mut bytes)?;
        String::from_utf8(bytes).context("a string in its header is not UTF-8; fetch it again")
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.bytes()?))
    }

    fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.bytes()?))
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<()> {
        self.ensure_left(bytes.len() as u64, 1)?;
        self.reader
            .read_exact(bytes)
            .context("cannot read its header")?;
        self.position += bytes.len() as u64;
        Ok(())
    }

    /// Refuses `count` values of `size` bytes if the file or a sane header ends before them.
    fn ensure_left(&self, count: u64, size: u64) -> Result<()> {
        let end = count
            .checked_mul(size)
            .and_then(|bytes| bytes.checked_add(self.position));
        let limit = self.file_bytes.min(MAX_HEADER_BYTES);
        match end {
            Some(end) if end <= limit => Ok(()),
            _ => bail!(
                "it is truncated or damaged: its header goes on at byte {}, where the file of {} bytes cannot hold it; fetch it again",
                self.position,
                self.file_bytes
            ),
        }
    }
}

/// The tensor types that can be computed with.
fn supported_dtype(id: u32) -> Result<GgmlDType> {
    Ok(match id {
        0 => GgmlDType::F32,
        1 => GgmlDType::F16,
        2 => GgmlDType::Q4_0,
        3 => GgmlDType::Q4_1,
        6 => GgmlDType::Q5_0,
        7 => GgmlDType::Q5_1,
        8 => GgmlDType::Q8_0,
        10 => GgmlDType::Q2K,
        11 => GgmlDType::Q3K,
        12 => GgmlDType::Q4K,
        13 => GgmlDType::Q5K,
        14 => GgmlDType::Q6K,
        30 => GgmlDType::BF16,
        _ => bail!(
            "supported are F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K and Q6_K"
        ),
    })
}

/// What users call a tensor type that cannot be computed with.
fn dtype_name(id: u32) -> String {
    let name = match id {
        9 => "Q8_1",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24..=27 => "integers",
        28 => "F64",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        _ => return format!("the unknown type {id}"),
    };
    name.to_owned()
}
