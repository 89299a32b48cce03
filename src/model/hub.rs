//! Files from the Hugging Face hub, through its cache on this machine.
//!
//! Cache, token and endpoint follow the environment variables of Python's `huggingface_hub`, so
//! that both share one cache. What the cache holds is taken without asking the hub. A download is
//! pinned to the commit that the hub named first, and a file is checked against its SHA-256 where
//! the hub states one (it does for every large file).

use std::path::{Component, Path, PathBuf};
use std::time::Duration;
use std::{env, fs};

use anyhow::{Context, bail, ensure};
use hf_hub::api::RepoInfo;
use hf_hub::api::sync::{ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};

use super::checksum::sha256_of;

/// How long the hub may take to accept a connection, or to begin its answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where the hub and its cache are.
#[derive(Clone)]
pub struct HubConfig {
    /// HF_ENDPOINT, without a slash at its end.
    pub endpoint: String,
    /// HF_HUB_CACHE, or `hub` under HF_HOME.
    pub cache: PathBuf,
    /// HF_TOKEN, or what `hf auth login` stored.
    pub token: Option<String>,
    /// HF_HUB_OFFLINE: the cache only, no connection.
    pub offline: bool,
}

/// A model repository at a branch, tag or commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubRepo {
    /// `org/name`
    pub id: String,
    pub revision: String,
}

impl HubConfig {
    /// The settings in this process's environment.
    pub fn from_env() -> Self {
        Self::from_variables(|name| env::var(name).ok())
    }

    /// The settings in the variables that `variable` looks up; empty ones count as unset.
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Self {
        let variable = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
        let path = |name: &str| variable(name).map(PathBuf::from);
        let user_cache = || {
            path("XDG_CACHE_HOME")
                .unwrap_or_else(|| env::home_dir().unwrap_or_default().join(".cache"))
        };
        let home = path("HF_HOME").unwrap_or_else(|| user_cache().join("huggingface"));
        let stored_token = || {
            let file = path("HF_TOKEN_PATH").unwrap_or_else(|| home.join("token"));
            fs::read_to_string(file).ok()
        };
        let endpoint = variable("HF_ENDPOINT").unwrap_or("https://huggingface.co".to_owned());
        let offline = variable("HF_HUB_OFFLINE").unwrap_or_default();
        Self {
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            cache: path("HF_HUB_CACHE").unwrap_or_else(|| home.join("hub")),
            token: variable("HF_TOKEN")
                .or_else(stored_token)
                .map(|token| token.trim().to_owned())
                .filter(|token| !token.is_empty()),
            offline: ["1", "on", "yes", "true"].contains(&offline.to_lowercase().as_str()),
        }
    }

    /// The folder with what the cache holds of `repo`, if it holds any of it.
    pub(super) fn snapshot(&self, repo: &HubRepo) -> Option<PathBuf> {
        let root = self.cache.join(repo.at(&repo.revision).folder_name());
        let commit = fs::read_to_string(root.join("refs").join(&repo.revision));
        // A revision that is itself a commit needs no reference.
        let commit = commit.as_deref().map_or(repo.revision.as_str(), str::trim);
        Some(root.join("snapshots").join(commit)).filter(|folder| folder.is_dir())
    }

    /// One file, if the cache holds it.
    pub(super) fn cached(&self, repo: &HubRepo, file: &str) -> Option<PathBuf> {
        let path = self.snapshot(repo)?.join(file);
        path.is_file().then_some(path)
    }

    /// Asks the hub for the newest commit of `repo` and its list of files.
    ///
    /// # Errors
    /// Offline; no connection; no such repository; no permission to read it.
    pub(super) fn open(&self, repo: &HubRepo) -> anyhow::Result<RemoteRepo> {
        let id = &repo.id;
        ensure!(
            !self.offline,
            "HF_HUB_OFFLINE is set, and the cache {} does not hold what {id} needs",
            self.cache.display()
        );
        let api = ApiBuilder::from_cache(Cache::new(self.cache.clone()))
            .with_endpoint(self.endpoint.clone())
            .with_token(self.token.clone())
            .build()
            .context("cannot set up the connection to the hub")?;
        let mut answer = api
            .repo(repo.at(&repo.revision))
            .info_request()
            .config()
            .timeout_connect(Some(PATIENCE))
            .timeout_recv_response(Some(PATIENCE))
            .http_status_as_error(false)
            .build()
            .call()
            .with_context(|| format!("cannot reach the hub at {}", self.endpoint))?;
        match answer.status().as_u16() {
            200 => {}
            // The hub answers 401 for what does not exist too, so as not to tell.
            401 | 403 => bail!(
                "the hub does not give out {id}: check the name; if it is gated or private, accept \
                 its terms on its page and set HF_TOKEN"
            ),
            404 => bail!(
                "the hub has no {id} at revision {}: check the name",
                repo.revision
            ),
            status => bail!("the hub answered {status} for {id}: try again later"),
        }
        let info: RepoInfo = answer
            .body_mut()
            .read_json()
            .with_context(|| format!("{} does not answer like a hub", self.endpoint))?;
        Ok(RemoteRepo {
            api_repo: api.repo(repo.at(&info.sha)),
            api,
            files: info.siblings.into_iter().map(|s| s.rfilename).collect(),
            cache: Cache::new(self.cache.clone()),
            commit: info.sha,
            repo: repo.clone(),
        })
    }
}

impl HubRepo {
    fn at(&self, revision: &str) -> Repo {
        Repo::with_revision(self.id.clone(), RepoType::Model, revision.to_owned())
    }
}

/// A repository whose files are listed and can be downloaded, all at one commit.
pub(super) struct RemoteRepo {
    pub(super) files: Vec<String>,
    repo: HubRepo,
    commit: String,
    cache: Cache,
    api: hf_hub::api::sync::Api,
    api_repo: ApiRepo,
}

impl RemoteRepo {
    /// Downloads one file into the cache, with a progress bar, and returns where it lies there.
    /// An interrupted download goes on where it stopped; a file of this commit that is there
    /// stays.
    ///
    /// # Errors
    /// No such file; the connection or the disk fails; the content is not that of `sha256`, or
    /// else of the hash that the hub states. A file with wrong content is removed.
    pub(super) fn download(&self, file: &str, sha256: Option<&str>) -> anyhow::Result<PathBuf> {
        let id = &self.repo.id;
        ensure!(
            self.files.iter().any(|listed| listed == file) && stays_inside(file),
            "{id} has no file {file}"
        );
        let commit = self.cache.repo(self.repo.at(&self.commit));
        let pointer = commit.pointer_path(&self.commit).join(file);
        if pointer.is_file() {
            return Ok(pointer);
        }
        tracing::info!("downloading {id}:{file}");
        let pointer = self
            .api_repo
            .download(file)
            .or_else(|error| match self.discard_finished_part(file) {
                true => self.api_repo.download(file),
                false => Err(error),
            })
            .with_context(|| {
                format!("the download of {id}:{file} failed (a new start resumes it)")
            })?;
        // The cache names the content by the hub's etag; for large files that is their SHA-256.
        let content = fs::canonicalize(&pointer)
            .with_context(|| format!("cannot find {}", pointer.display()))?;
        let etag = content.file_name().unwrap_or_default().to_string_lossy();
        let is_sha256 = etag.len() == 64 && etag.bytes().all(|byte| byte.is_ascii_hexdigit());
        if let Some(expected) = sha256.or(is_sha256.then_some(&etag)) {
            let found = sha256_of(&content)?;
            if found != expected {
                remove(&pointer)?;
                remove(&content)?;
                bail!(
                    "{id}:{file} arrived with SHA-256 {found}, not {expected}; it was removed: try \
                     again, or check HF_ENDPOINT"
                );
            }
        }
        Ok(pointer)
    }

    /// Notes in the cache that the revision which was asked for is this commit.
    ///
    /// # Errors
    /// Where the cache cannot be written.
    pub(super) fn remember(&self) -> anyhow::Result<()> {
        self.cache
            .repo(self.repo.at(&self.repo.revision))
            .create_ref(&self.commit)
            .with_context(|| format!("cannot write to {}", self.cache.path().display()))
    }

    /// Removes a partial download that is as long as the whole file or longer, which hf-hub
    /// cannot resume: it asks for the bytes after the last one. Tells whether there was one.
    fn discard_finished_part(&self, file: &str) -> bool {
        let discard = || -> Result<bool, ApiError> {
            let metadata = self.api.metadata(&self.api_repo.url(file))?;
            let repo = self.cache.repo(self.repo.at(&self.commit));
            let part = repo.blob_path(metadata.etag()).with_extension("part");
            let is_finished = fs::metadata(&part)?.len() >= metadata.size() as u64;
            if is_finished {
                fs::remove_file(part)?;
            }
            Ok(is_finished)
        };
        discard().unwrap_or(false)
    }
}

/// Whether a name from the hub stays inside the folder that it is joined to.
fn stays_inside(file: &str) -> bool {
    Path::new(file)
        .components()
        .all(|part| matches!(part, Component::Normal(_)))
}

fn remove(path: &Path) -> anyhow::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(variables: &[(&str, &str)]) -> HubConfig {
        HubConfig::from_variables(|name| {
            let pair = variables.iter().find(|(key, _)| *key == name);
            pair.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn the_cache_is_where_the_python_client_has_it() {
        for (variables, cache) in [
            (&[("HF_HUB_CACHE", "/a"), ("HF_HOME", "/b")][..], "/a"),
            (&[("HF_HOME", "/b"), ("XDG_CACHE_HOME", "/c")], "/b/hub"),
            (&[("XDG_CACHE_HOME", "/c")], "/c/huggingface/hub"),
            (
                &[("HF_HOME", ""), ("XDG_CACHE_HOME", "/c")],
                "/c/huggingface/hub",
            ),
        ] {
            assert_eq!(config(variables).cache, Path::new(cache), "{variables:?}");
        }
    }

    #[test]
    fn the_token_is_the_variable_or_else_the_stored_one() {
        let home = tempfile::tempdir().expect("a folder");
        fs::write(home.path().join("token"), "stored\n").expect("a token file");
        let home = ("HF_HOME", home.path().to_str().expect("utf-8"));
        let token = |variables: &[(&str, &str)]| config(variables).token;
        assert_eq!(token(&[home]).as_deref(), Some("stored"));
        assert_eq!(
            token(&[home, ("HF_TOKEN", " set ")]).as_deref(),
            Some("set")
        );
        assert_eq!(token(&[("HF_HOME", "/nowhere")]), None);
    }

    #[test]
    fn offline_is_any_of_the_usual_words() {
        for (value, offline) in [
            ("1", true),
            ("TRUE", true),
            ("yes", true),
            ("0", false),
            ("", false),
        ] {
            assert_eq!(
                config(&[("HF_HUB_OFFLINE", value)]).offline,
                offline,
                "{value}"
            );
        }
    }

    #[test]
    fn the_endpoint_loses_its_last_slash() {
        assert_eq!(config(&[]).endpoint, "https://huggingface.co");
        assert_eq!(
            config(&[("HF_ENDPOINT", "http://mirror/")]).endpoint,
            "http://mirror"
        );
    }

    #[test]
    fn names_that_lead_out_of_the_folder_are_seen() {
        for (file, inside) in [
            ("a.gguf", true),
            ("q4/a.gguf", true),
            ("../a", false),
            ("/a", false),
        ] {
            assert_eq!(stays_inside(file), inside, "{file}");
        }
    }
}
