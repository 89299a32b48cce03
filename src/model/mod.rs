//! Model files and what they describe: from the name a user gives to a spec and its weights.
//!
//! A family (llama.rs, qwen.rs, gpt2.rs) maps a file's settings and tensor names to a
//! [`ModelSpec`]; formats (gguf.rs, folder.rs) only find things in files. Files are untrusted: what
//! is unsupported, missing, left over or damaged is an error of one line, never a model that runs
//! wrongly.

mod catalogue;
mod checksum;
mod collect;
mod folder;
mod gguf;
mod gguf_config;
mod gguf_vocab;
mod gpt2;
mod hf_config;
mod hub;
mod llama;
mod quantize;
mod qwen;
mod rope;
mod shards;
mod source;
mod spec;
mod weights;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use candle_core::quantized::GgmlDType;

pub use catalogue::{Catalogue, CatalogueEntry, list, write_table};
pub use checksum::sha256_of;
use collect::{TensorIndex, TensorNames};
use gguf::GgufFile;
use hf_config::HfConfig;
pub use hub::HubConfig;
pub use quantize::Quantization;
pub use shards::weight_files;
pub use source::{ModelFiles, ModelPlaces, ResolvedModel, resolve};
pub use spec::{Activation, Biases, Mlp, ModelSpec, Norm, NormKind, Positions, Rope, RopePairing};
pub use weights::{LayerWeights, LinearWeights, NormWeights, StoredTensor, Weights, decode_f32};

use crate::text::GgufVocab;

/// A model whose files were found whole and supported; its tensors are still on disk.
#[derive(Debug)]
pub struct LoadedModel {
    pub spec: ModelSpec,
    pub weights: Weights,
    pub tokenizer: TokenizerFiles,
    /// The Jinja template that a GGUF file carries; a folder has its own files for it.
    pub chat_template: Option<String>,
    /// Tokens that end a generation, ascending.
    pub eos_token_ids: Vec<u32>,
    pub facts: ModelFacts,
}

/// Where the tokenizer comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum TokenizerFiles {
    /// A tokenizer.json.
    Json(PathBuf),
    /// Built from GGUF metadata.
    Gguf(GgufVocab),
}

/// What to tell people about a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelFacts {
    /// As its files say: llama, qwen2, gpt2, …
    pub architecture: String,
    /// The types of its matrices, most bytes first: "Q4_1+Q8_0", "BF16".
    pub quantization: String,
    pub num_parameters: u64,
    /// Bytes of its tensors on disk.
    pub weight_bytes: u64,
    /// The GGUF file or the folder.
    pub path: PathBuf,
}

/// Opens a model's files and checks that they hold all of a supported model and nothing else.
///
/// Errors name the file, what is wrong and what to do.
pub fn load(files: &ModelFiles) -> Result<LoadedModel> {
    let (path, loaded) = match files {
        ModelFiles::Gguf(path) => (path, load_gguf(path)),
        ModelFiles::Folder(path) => (path, load_folder(path)),
    };
    loaded.with_context(|| format!("cannot load the model {}", path.display()))
}

fn load_gguf(path: &Path) -> Result<LoadedModel> {
    let mut file = GgufFile::open(path)?;
    let architecture = file.metadata.string("general.architecture")?;
    let architecture = architecture
        .context("its metadata key general.architecture is missing")?
        .to_owned();
    let (spec, names) = match architecture.as_str() {
        "llama" => llama::from_gguf(&mut file)?,
        "qwen2" => qwen::qwen2_from_gguf(&mut file)?,
        "qwen3" => qwen::qwen3_from_gguf(&mut file)?,
        "gpt2" => gpt2::from_gguf(&mut file)?,
        other => {
            bail!("its architecture {other:?} is not supported; llama, qwen2, qwen3 and gpt2 are")
        }
    };
    let GgufFile { metadata, tensors } = file;
    gguf_config::ensure_all_read(&metadata, &architecture)?;
    let (weights, facts) = collect(path, architecture, &spec, tensors, &names)?;
    Ok(LoadedModel {
        eos_token_ids: gguf_config::eos_token_ids(&metadata, spec.vocab_size)?,
        chat_template: metadata
            .string("tokenizer.chat_template")?
            .map(str::to_owned),
        tokenizer: TokenizerFiles::Gguf(gguf_vocab::read(metadata)?),
        spec,
        weights,
        facts,
    })
}

fn load_folder(path: &Path) -> Result<LoadedModel> {
    let json = |name: &str| folder::read_json(path, name);
    let config = json("config.json")?.context("it has no config.json")?;
    ensure!(
        config
            .get("quantization_config")
            .is_none_or(|quantized| quantized.is_null()),
        "config.json has a quantization_config, which is not supported; use a GGUF file"
    );
    let architecture = config.get("model_type").and_then(|kind| kind.as_str());
    let architecture = architecture
        .context("config.json has no model_type")?
        .to_owned();
    let spec_and_names = match architecture.as_str() {
        "llama" => HfConfig::parse(&config).and_then(|c| llama::llama_from_config(&c)),
        "mistral" => HfConfig::parse(&config).and_then(|c| llama::mistral_from_config(&c)),
        "qwen2" => HfConfig::parse(&config).and_then(|c| qwen::qwen2_from_config(&c)),
        "qwen3" => HfConfig::parse(&config).and_then(|c| qwen::qwen3_from_config(&c)),
        "gpt2" => gpt2::from_config(&config),
        other => bail!(
            "its model_type {other:?} is not supported; llama, mistral, qwen2, qwen3 and gpt2 are"
        ),
    };
    let (spec, names) = spec_and_names.context("its config.json")?;
    let mut tensors = folder::open_tensors(path)?;
    if architecture == "gpt2" {
        tensors = gpt2::plain_names(tensors)?;
    }
    // Buffers of old files, computed anew from the settings.
    tensors.drop_where(|name| name.ends_with(".rotary_emb.inv_freq"));
    let mut eos_token_ids = hf_config::eos_token_ids(&config, spec.vocab_size)?;
    if let Some(generation) = json("generation_config.json")? {
        eos_token_ids.extend(hf_config::eos_token_ids(&generation, spec.vocab_size)?);
    }
    eos_token_ids.sort_unstable();
    eos_token_ids.dedup();
    let (weights, facts) = collect(path, architecture, &spec, tensors, &names)?;
    Ok(LoadedModel {
        eos_token_ids,
        chat_template: None,
        tokenizer: TokenizerFiles::Json(path.join("tokenizer.json")),
        spec,
        weights,
        facts,
    })
}

fn collect(
    path: &Path,
    architecture: String,
    spec: &ModelSpec,
    tensors: TensorIndex,
    names: &TensorNames,
) -> Result<(Weights, ModelFacts)> {
    spec.check()?;
    let weights = tensors.into_weights(spec, names)?;
    let facts = ModelFacts {
        architecture,
        quantization: quantization(&weights),
        num_parameters: weights.tensors().map(StoredTensor::num_elements).sum(),
        weight_bytes: weights
            .tensors()
            .map(|tensor| tensor.num_bytes as u64)
            .sum(),
        path: path.to_owned(),
    };
    Ok((weights, facts))
}

/// The types of the matrices, most bytes first, joined by `+`.
fn quantization(weights: &Weights) -> String {
    let mut bytes_of = BTreeMap::<String, usize>::new();
    for matrix in weights.tensors().filter(|tensor| tensor.shape.len() > 1) {
        *bytes_of.entry(dtype_name(matrix.dtype)).or_default() += matrix.num_bytes;
    }
    let mut names: Vec<_> = bytes_of.into_iter().collect();
    names.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
    let names: Vec<_> = names.into_iter().map(|(name, _)| name).collect();
    names.join("+")
}

/// As GGUF users write it: Q4_K, not Q4K.
fn dtype_name(dtype: GgmlDType) -> String {
    let name = format!("{dtype:?}");
    match name.strip_suffix('K') {
        Some(bits) => format!("{bits}_K"),
        None => name,
    }
}
