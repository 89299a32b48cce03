//! A Hugging Face style folder: config.json, safetensors in one file or in shards, tokenizer.json.
//!
//! Headers and the shard index are untrusted: lengths are compared with the file before anything is
//! allocated, and shard names cannot leave the folder.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use candle_core::quantized::GgmlDType;
use safetensors::Dtype;
use safetensors::tensor::Metadata;
use serde_json::Value;

use super::collect::TensorIndex;
use super::shards::{INDEX_FILE, SINGLE_FILE, read_index, weight_names};
use super::weights::{OpenFile, StoredTensor};

/// The limit of the safetensors format.
const MAX_HEADER_BYTES: u64 = 100_000_000;
/// Longer than any index or config that a real model has.
const MAX_JSON_BYTES: u64 = 64 << 20;

/// Reads a JSON file of the folder; `None` if it is not there.
pub(super) fn read_json(folder: &Path, name: &str) -> Result<Option<Value>> {
    let path = folder.join(name);
    if !path.exists() {
        return Ok(None);
    }
    let num_bytes = fs::metadata(&path)
        .with_context(|| format!("cannot read {name}"))?
        .len();
    ensure!(
        num_bytes <= MAX_JSON_BYTES,
        "{name} has {num_bytes} bytes; that is no {name}"
    );
    let text = fs::read(&path).with_context(|| format!("cannot read {name}"))?;
    let value = serde_json::from_slice(&text)
        .with_context(|| format!("{name} is damaged, fetch it again"))?;
    Ok(Some(value))
}

/// Every tensor of the folder's safetensors.
pub(super) fn open_tensors(folder: &Path) -> Result<TensorIndex> {
    let mut tensors = TensorIndex::default();
    let index = read_index(folder)?;
    for name in weight_names(folder)? {
        ensure!(
            index.is_some() || folder.join(&name).exists(),
            "it has neither {SINGLE_FILE} nor {INDEX_FILE}"
        );
        open_shard(folder, &name, &mut tensors)?;
    }
    let promised = index.iter().flat_map(BTreeMap::keys);
    match promised.into_iter().find(|name| !tensors.contains(name)) {
        Some(name) => {
            bail!("{INDEX_FILE} promises tensor {name}, which no file has; fetch it again")
        }
        None => Ok(tensors),
    }
}

fn open_shard(folder: &Path, name: &str, tensors: &mut TensorIndex) -> Result<()> {
    let path = folder.join(name);
    let file = File::open(&path).with_context(|| format!("cannot open {name}"))?;
    let (metadata, data_start) =
        read_header(&file).with_context(|| format!("{name} is damaged, fetch it again"))?;
    let file_bytes = file
        .metadata()
        .with_context(|| format!("cannot read {name}"))?
        .len();
    let file = Arc::new(OpenFile { path, file });
    for (tensor, info) in metadata.tensors() {
        let (start, end) = info.data_offsets;
        let last = data_start.saturating_add(end as u64);
        ensure!(
            last <= file_bytes,
            "{name} is truncated: tensor {tensor} ends at byte {last}, the file has {file_bytes}; fetch it again"
        );
        tensors.insert(StoredTensor {
            dtype: dtype(info.dtype)
                .with_context(|| format!("tensor {tensor} is stored as {:?}", info.dtype))?,
            name: tensor,
            shape: info.shape.clone(),
            file: Arc::clone(&file),
            offset: data_start + start as u64,
            num_bytes: end - start,
            original: None,
        })?;
    }
    Ok(())
}

/// The header and where the data behind it starts.
fn read_header(file: &File) -> Result<(Metadata, u64)> {
    let mut length = [0; 8];
    file.read_exact_at(&mut length, 0)
        .context("it has no header")?;
    let length = u64::from_le_bytes(length);
    let file_bytes = file.metadata()?.len();
    ensure!(
        length <= MAX_HEADER_BYTES && length <= file_bytes.saturating_sub(8),
        "its header claims {length} bytes, the file has {file_bytes}"
    );
    let mut header = vec![0; length as usize];
    file.read_exact_at(&mut header, 8)
        .context("its header cannot be read")?;
    // Checks that each tensor's bytes fit its shape and type, and that they follow one another.
    let metadata = serde_json::from_slice(&header).context("its header is not valid")?;
    Ok((metadata, 8 + length))
}

fn dtype(dtype: Dtype) -> Result<GgmlDType> {
    match dtype {
        Dtype::F32 => Ok(GgmlDType::F32),
        Dtype::F16 => Ok(GgmlDType::F16),
        Dtype::BF16 => Ok(GgmlDType::BF16),
        _ => bail!("supported are F32, F16 and BF16"),
    }
}
