//! From the `--model` setting to files on this machine.

use std::path::PathBuf;

/// Where a model's weights lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelFiles {
    /// One GGUF file: weights, tokenizer and chat template.
    Gguf(PathBuf),
    /// A folder with config.json, *.safetensors and tokenizer.json.
    Folder(PathBuf),
}

/// What `--model` stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedModel {
    /// The name that clients see: the catalogue name, the hub id, or the file's or folder's name.
    pub name: String,
    pub files: ModelFiles,
}
