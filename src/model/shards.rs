//! Which files of a Hugging Face style folder hold its weights.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use super::folder::read_json;

pub(super) const SINGLE_FILE: &str = "model.safetensors";
/// Names the shards of a folder whose weights are more than one file.
pub(super) const INDEX_FILE: &str = "model.safetensors.index.json";

/// The file of each tensor, as the index promises; `None` where one file holds all.
///
/// # Errors
/// The index is damaged, or names a file outside the folder.
pub(super) fn read_index(folder: &Path) -> Result<Option<BTreeMap<String, String>>> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let Some(index) = read_json(folder, INDEX_FILE)? else {
        return Ok(None);
    };
    let index = Index::deserialize(&index).with_context(|| format!("{INDEX_FILE} is damaged"))?;
    for name in index.weight_map.values() {
        let mut parts = Path::new(name).components();
        ensure!(
            matches!(
                (parts.next(), parts.next()),
                (Some(Component::Normal(_)), None)
            ),
            "{INDEX_FILE} names {name:?}, which is not a file of the folder"
        );
    }
    ensure!(!index.weight_map.is_empty(), "{INDEX_FILE} names no file");
    Ok(Some(index.weight_map))
}

/// The names of the weight files that belong in a folder, sorted.
///
/// # Errors
/// As [`read_index`].
pub(super) fn weight_names(folder: &Path) -> Result<BTreeSet<String>> {
    Ok(match read_index(folder)? {
        Some(file_of_tensor) => file_of_tensor.into_values().collect(),
        None => BTreeSet::from([SINGLE_FILE.to_owned()]),
    })
}

/// The weight files of a folder, sorted by name.
///
/// # Errors
/// The index cannot be read, or a file is missing.
pub fn weight_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let files: Vec<PathBuf> = weight_names(folder)?
        .iter()
        .map(|name| folder.join(name))
        .collect();
    if let Some(missing) = files.iter().find(|file| !file.is_file()) {
        bail!("{} is missing: fetch the whole model", missing.display());
    }
    Ok(files)
}
