//! The file that holds the raw records of a run, and the log of its server beside it.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use jiff::Timestamp;

use super::machine::repository_root;
use super::raw_record::RawRecord;

/// A file to be written when the run has ended; its folder exists.
pub struct ResultFile {
    pub path: PathBuf,
    /// The path as BENCHMARKS.md names it: from the root of the repository, if it lies there.
    pub shown: String,
    /// Of the repository.
    pub root: PathBuf,
    /// Where the program was called.
    folder: PathBuf,
}

impl ResultFile {
    /// `output` if one is named, else a new file under benches/results/, named by the time and
    /// `suffix`. The log of an earlier run of the same name is removed.
    ///
    /// # Errors
    /// The folder cannot be created, or the log not removed.
    pub fn prepare(folder: &Path, output: Option<&Path>, suffix: &str) -> anyhow::Result<Self> {
        let root = repository_root(folder);
        let path = output.map_or_else(
            || {
                let time = Timestamp::now().strftime("%Y%m%dT%H%M%SZ");
                root.join("benches/results")
                    .join(format!("{time}{suffix}.json"))
            },
            |file| folder.join(file),
        );
        let parent = path.parent().unwrap_or(Path::new(""));
        fs::create_dir_all(parent)
            .with_context(|| format!("cannot create {}", parent.display()))?;
        let shown = path.strip_prefix(&root).unwrap_or(&path);
        let file = Self {
            shown: shown.display().to_string(),
            path,
            root,
            folder: folder.to_owned(),
        };
        match fs::remove_file(file.log()) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", file.log().display()))
            }
            _ => Ok(file),
        }
    }

    /// Where the server of the run writes its log; no name that one gives to what the run prints.
    pub fn log(&self) -> PathBuf {
        self.path.with_extension("server.log")
    }

    /// Where sections go.
    pub fn page(&self) -> PathBuf {
        self.root.join("BENCHMARKS.md")
    }

    /// The page as seen from where the program was called.
    pub fn shown_page(&self) -> String {
        let page = self.page();
        let shown = page.strip_prefix(&self.folder).unwrap_or(&page);
        shown.display().to_string()
    }

    /// Writes a record, and gives it back as the file has it: what is shown is what the file gives,
    /// to the last digit, because `verify` has nothing else. A full disk costs the file and not the
    /// result: then the record comes back as it was, beside the error.
    pub fn store<R: RawRecord>(&self, record: R, text: &str) -> (R, anyhow::Result<()>) {
        match self.write(text).and_then(|()| R::read(&self.path)) {
            Ok(stored) => (stored, Ok(())),
            Err(error) => (record, Err(error)),
        }
    }

    fn write(&self, text: &str) -> anyhow::Result<()> {
        fs::write(&self.path, text)
            .inspect_err(|_| self.remove_part())
            .with_context(|| format!("cannot write {}", self.path.display()))
    }

    /// Half a record is none. What is no plain file was not made here.
    fn remove_part(&self) {
        if self.path.is_file() {
            // The disk is in trouble already; the error of the write is the one to tell.
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_log_of_an_earlier_server_is_removed() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = |name| folder.path().join(name);
        for name in ["run.log", "run.server.log"] {
            fs::write(path(name), name).expect("a writable folder");
        }
        ResultFile::prepare(folder.path(), Some(Path::new("run.json")), "").expect("a place");
        assert!(path("run.log").exists());
        assert!(!path("run.server.log").exists());
    }
}
