//! From the `--model` setting to files on this machine.
//!
//! In this order: a file, a folder, a catalogue name, a hub id. Only the last two may download.

use std::path::{Path, PathBuf};
use std::{fs, io};

use anyhow::{Context, anyhow, bail, ensure};

use super::catalogue::{Catalogue, CatalogueEntry};
use super::hub::{HubConfig, HubRepo, RemoteRepo};
use super::shards::{INDEX_FILE, SINGLE_FILE, weight_files, weight_names};

const NOTHING: &str = "neither a .gguf file nor config.json with model.safetensors or its shards";

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

/// Finds the files of a `--model` setting, and downloads them where they come from the hub.
///
/// # Errors
/// In one line what is wrong with the name, or which file is missing, and what to do.
pub fn resolve(model: &str) -> anyhow::Result<ResolvedModel> {
    ModelPlaces::from_env().resolve(model)
}

/// Where models are looked for.
#[derive(Clone)]
pub struct ModelPlaces {
    pub catalogue: Catalogue,
    /// Folders that may hold the catalogue's files.
    pub folders: Vec<PathBuf>,
    pub hub: HubConfig,
}

impl ModelPlaces {
    /// `models/` of the current directory and of the clone that this program was built from, and
    /// the hub's cache.
    pub fn from_env() -> Self {
        let current = std::env::current_dir().unwrap_or_default().join("models");
        let clone = Path::new(env!("CARGO_MANIFEST_DIR")).join("models");
        Self {
            catalogue: Catalogue::embedded(),
            folders: vec![current, clone],
            hub: HubConfig::from_env(),
        }
    }

    /// [`resolve`] for these places.
    ///
    /// # Errors
    /// As [`resolve`].
    pub fn resolve(&self, model: &str) -> anyhow::Result<ResolvedModel> {
        let path = Path::new(model);
        if path.is_file() {
            return from_file(path);
        }
        if path.is_dir() {
            return from_folder(path);
        }
        let (name, files) = if let Some(entry) = self.catalogue.find(model) {
            (
                entry.name.clone(),
                ModelFiles::Gguf(self.catalogue_file(entry)?),
            )
        } else if let Some((repo, file)) = parse_hub_model(model) {
            let files = match file {
                Some(file) => ModelFiles::Gguf(self.hub_file(&repo, file, None)?),
                None => self.hub_model(&repo)?,
            };
            (repo.id, files)
        } else {
            return Err(self.unknown(model));
        };
        Ok(ResolvedModel { name, files })
    }

    /// Where a catalogue model lies on this machine, if it does.
    ///
    /// # Errors
    /// Where a file of its name has the wrong size.
    pub fn find_present(&self, entry: &CatalogueEntry) -> anyhow::Result<Option<PathBuf>> {
        let in_folders = self.folders.iter().map(|folder| folder.join(&entry.file));
        let Some(path) = in_folders
            .into_iter()
            .find(|path| path.is_file())
            .or_else(|| self.hub.cached(&entry.repo(), &entry.file))
        else {
            return Ok(None);
        };
        let size_bytes = fs::metadata(&path).map_or(0, |metadata| metadata.len());
        ensure!(
            size_bytes == entry.size_bytes,
            "{} has {size_bytes} bytes, not {}: remove it and run scripts/fetch-model {}",
            path.display(),
            entry.size_bytes,
            entry.name
        );
        Ok(Some(path))
    }

    fn catalogue_file(&self, entry: &CatalogueEntry) -> anyhow::Result<PathBuf> {
        if let Some(path) = self.find_present(entry)? {
            return Ok(path);
        }
        let name = &entry.name;
        self.hub_file(&entry.repo(), &entry.file, Some(&entry.sha256))
            .map_err(|error| {
                anyhow!("{error:#}; run scripts/fetch-model {name}, it knows other sources too")
            })
    }

    /// One file, from the cache or else from the hub.
    fn hub_file(
        &self,
        repo: &HubRepo,
        file: &str,
        sha256: Option<&str>,
    ) -> anyhow::Result<PathBuf> {
        if let Some(path) = self.hub.cached(repo, file) {
            return Ok(path);
        }
        let remote = self.hub.open(repo)?;
        if !remote.files.iter().any(|listed| listed == file) {
            let others = gguf_names(&remote.files).join(", ");
            bail!("{} has no file {file}; its GGUF files: {others}", repo.id);
        }
        let path = remote.download(file, sha256)?;
        remote.remember()?;
        Ok(path)
    }

    /// A repository of which no file was named: its safetensors, or its only GGUF file.
    fn hub_model(&self, repo: &HubRepo) -> anyhow::Result<ModelFiles> {
        let snapshot = self.hub.snapshot(repo);
        if let Some(folder) = snapshot.as_ref().filter(|folder| is_complete(folder)) {
            return Ok(ModelFiles::Folder(folder.clone()));
        }
        if self.hub.offline
            && let Some(folder) = snapshot
            && let Contents::Gguf(files) = Contents::of(&names_in(&folder)?)
            && let [file] = files.as_slice()
        {
            return Ok(ModelFiles::Gguf(folder.join(file)));
        }
        let remote = self.hub.open(repo)?;
        let files = match Contents::of(&remote.files) {
            Contents::Safetensors => ModelFiles::Folder(download_folder(&remote)?),
            Contents::Gguf(files) => {
                let file = only_gguf(&files, |file| format!("--model {}:{file}", repo.id))?;
                ModelFiles::Gguf(remote.download(file, None)?)
            }
            Contents::Nothing => bail!("{} holds {NOTHING}", repo.id),
        };
        remote.remember()?;
        Ok(files)
    }

    fn unknown(&self, model: &str) -> anyhow::Error {
        if model.is_empty() {
            return anyhow!("the model's name is empty: see `candlepower models`");
        }
        if model.ends_with(".gguf") || model.contains(['/', '\\']) || model.starts_with('~') {
            return anyhow!("there is no file or folder {model}");
        }
        let guess = match self.catalogue.nearest(model) {
            Some(name) => format!("did you mean {name}? "),
            None => String::new(),
        };
        anyhow!(
            "unknown model {model}: {guess}`candlepower models` lists the names; a .gguf file, a \
             folder and a hub id (org/name) work too"
        )
    }
}

impl CatalogueEntry {
    fn repo(&self) -> HubRepo {
        HubRepo {
            id: self.hub_id.clone(),
            revision: self.revision.clone(),
        }
    }
}

fn from_file(path: &Path) -> anyhow::Result<ResolvedModel> {
    ensure!(
        is_gguf(&path.to_string_lossy()),
        "{} is not a .gguf file; for safetensors give the folder that holds config.json",
        path.display()
    );
    Ok(ResolvedModel {
        name: path
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned(),
        files: ModelFiles::Gguf(path.to_owned()),
    })
}

fn from_folder(folder: &Path) -> anyhow::Result<ResolvedModel> {
    let shown = folder.display();
    match Contents::of(&names_in(folder)?) {
        Contents::Safetensors => {}
        Contents::Gguf(files) => {
            let file = only_gguf(&files, |file| {
                format!("--model {}", folder.join(file).display())
            })?;
            return from_file(&folder.join(file));
        }
        Contents::Nothing => {
            bail!("{shown} holds {NOTHING}")
        }
    }
    weight_files(folder)?;
    ensure!(
        folder.join("tokenizer.json").is_file(),
        "{shown} has no tokenizer.json: fetch the whole model"
    );
    let absolute = fs::canonicalize(folder).with_context(|| format!("cannot open {shown}"))?;
    Ok(ResolvedModel {
        name: absolute
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned(),
        files: ModelFiles::Folder(folder.to_owned()),
    })
}

/// Downloads what a safetensors model consists of, the weights last, so that a folder with all its
/// weights is a whole one.
fn download_folder(remote: &RemoteRepo) -> anyhow::Result<PathBuf> {
    const OPTIONAL: [&str; 4] = [
        "generation_config.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        INDEX_FILE,
    ];
    let config = remote.download("config.json", None)?;
    remote.download("tokenizer.json", None)?;
    for file in OPTIONAL {
        if remote.files.iter().any(|listed| listed == file) {
            remote.download(file, None)?;
        }
    }
    let folder = config.parent().context("bug: a file without a folder")?;
    for file in weight_names(folder)? {
        remote.download(&file, None)?;
    }
    Ok(folder.to_owned())
}

/// Whether a folder holds a whole safetensors model.
fn is_complete(folder: &Path) -> bool {
    let is_there = |file: &str| folder.join(file).is_file();
    is_there("config.json") && is_there("tokenizer.json") && weight_files(folder).is_ok()
}

/// What kind of model a list of files makes.
enum Contents {
    Safetensors,
    Gguf(Vec<String>),
    Nothing,
}

impl Contents {
    fn of(names: &[String]) -> Self {
        let has = |file: &str| names.iter().any(|name| name == file);
        let is_folder = has("config.json") && (has(SINGLE_FILE) || has(INDEX_FILE));
        match gguf_names(names) {
            _ if is_folder => Self::Safetensors,
            files if files.is_empty() => Self::Nothing,
            files => Self::Gguf(files),
        }
    }
}

/// The one file of a list, or an error that says how to choose one of them.
fn only_gguf(files: &[String], choice: impl Fn(&str) -> String) -> anyhow::Result<&str> {
    match files {
        [only] => Ok(only),
        _ => {
            let choices: Vec<String> = files.iter().map(|file| choice(file)).collect();
            bail!(
                "there are several GGUF files, choose one: {}",
                choices.join(", ")
            )
        }
    }
}

fn gguf_names(names: &[String]) -> Vec<String> {
    let mut files: Vec<String> = names.iter().filter(|name| is_gguf(name)).cloned().collect();
    files.sort();
    files
}

fn is_gguf(name: &str) -> bool {
    name.to_ascii_lowercase().ends_with(".gguf")
}

fn names_in(folder: &Path) -> anyhow::Result<Vec<String>> {
    let names: io::Result<Vec<String>> = fs::read_dir(folder).and_then(|entries| {
        entries
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect()
    });
    names.with_context(|| format!("cannot read the folder {}", folder.display()))
}

/// Reads `org/name[@revision][:file.gguf]`; `None` where the text is not of that form.
fn parse_hub_model(model: &str) -> Option<(HubRepo, Option<&str>)> {
    let (repo, file) = match model.split_once(':') {
        Some((repo, file)) => (repo, Some(file)),
        None => (model, None),
    };
    let (id, revision) = repo.split_once('@').unwrap_or((repo, "main"));
    let (organisation, name) = id.split_once('/')?;
    let is_word = |text: &str| {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        text.starts_with(|c: char| c.is_ascii_alphanumeric()) && text.chars().all(allowed)
    };
    let is_hub_model = is_word(organisation)
        && is_word(name)
        && revision.split('/').all(is_word)
        && file.is_none_or(is_gguf)
        // A path to a file that is not there.
        && !(is_gguf(model) && file.is_none());
    is_hub_model.then(|| {
        let repo = HubRepo {
            id: id.to_owned(),
            revision: revision.to_owned(),
        };
        (repo, file)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hub_ids_may_name_a_revision_and_a_file() {
        for (text, id, revision, file) in [
            ("org/name", "org/name", "main", None),
            ("org/name@v1.0", "org/name", "v1.0", None),
            ("org/name@refs/pr/5", "org/name", "refs/pr/5", None),
            (
                "org/name:a.Q4_1.gguf",
                "org/name",
                "main",
                Some("a.Q4_1.gguf"),
            ),
            (
                "o-r_g/n.a.m-e@ab12:q4/a.GGUF",
                "o-r_g/n.a.m-e",
                "ab12",
                Some("q4/a.GGUF"),
            ),
        ] {
            let repo = HubRepo {
                id: id.to_owned(),
                revision: revision.to_owned(),
            };
            assert_eq!(parse_hub_model(text), Some((repo, file)), "{text}");
        }
    }

    #[test]
    fn other_texts_are_not_hub_ids() {
        for text in [
            "",
            "name",
            "/name",
            "org/",
            "./a/b",
            "a/b/c",
            "../name",
            "org/../x",
            "models/a.gguf",
            "org/name:a.bin",
            "org/name@",
            "org/name@../..",
            "org/na me",
            "https://hub/org/name",
        ] {
            assert_eq!(parse_hub_model(text), None, "{text}");
        }
    }
}
