//! What the records of all kinds of run have in common: a file, a form for readers, a verdict on
//! whether they count; and how every run ends.

use std::path::Path;

use anyhow::Context as _;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::benchmarks_md::{self, Table};
use super::result_file::ResultFile;
use super::terminal::show;

/// What a run has observed. All that is shown of it follows from its file.
pub trait RawRecord: DeserializeOwned {
    /// The command that writes such records.
    const COMMAND: &'static str;

    /// The file's text.
    ///
    /// # Errors
    /// A value that JSON cannot hold.
    fn to_json(&self) -> anyhow::Result<String>;

    /// Whether a file has all that the format asks for.
    ///
    /// # Errors
    /// It does not; says what it lacks.
    fn ensure_whole(&self) -> anyhow::Result<()> {
        Ok(())
    }

    /// Reads what [`Self::to_json`] has written.
    ///
    /// # Errors
    /// The file cannot be read, is something else, or is not whole.
    fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        let record: Self = serde_json::from_str(&text)
            .with_context(|| format!("{} is not a record of {}", path.display(), Self::COMMAND))?;
        record
            .ensure_whole()
            .with_context(|| path.display().to_string())?;
        Ok(record)
    }

    /// As readers see it; `raw` is the file's name.
    fn render(&self, raw: &str) -> Rendering;

    /// Whether it counts.
    ///
    /// # Errors
    /// It does not; says why.
    fn judge(&self, raw: &str) -> anyhow::Result<()>;
}

/// The kinds of record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Run,
    Ab,
    Peers,
    Chaos,
    Rollback,
}

impl Kind {
    /// Of the record in a file, by the name under which it says what was asked for.
    ///
    /// # Errors
    /// The file cannot be read, or is not JSON.
    pub fn of_file(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        let json: Value = serde_json::from_str(&text)
            .with_context(|| format!("{} is not JSON", path.display()))?;
        let kinds = [
            ("ab", Self::Ab),
            ("peers", Self::Peers),
            ("chaos", Self::Chaos),
            ("rollback", Self::Rollback),
        ];
        let named = kinds.iter().find(|(name, _)| json.get(name).is_some());
        Ok(named.map_or(Self::Run, |(_, kind)| *kind))
    }
}

/// A record as readers see it.
pub struct Rendering {
    /// For the terminal.
    pub text: String,
    /// What BENCHMARKS.md sums up, for the kinds that it has a table of.
    pub row: Option<(Table, String)>,
    /// The section of BENCHMARKS.md.
    pub section: String,
}

/// The end of every run: saves the record, shows it, and adds it to BENCHMARKS.md if it counts and
/// `append` is set.
///
/// # Errors
/// A file cannot be written, or the record does not count.
pub fn conclude(record: impl RawRecord, file: &ResultFile, append: bool) -> anyhow::Result<()> {
    let json = record.to_json()?;
    let (record, stored) = file.store(record, &json);
    let rendering = record.render(&file.shown);
    show(&rendering.text);
    stored?;
    record.judge(&file.shown)?;
    if append {
        benchmarks_md::append(&file.page(), rendering.row.as_ref(), &rendering.section)?;
        show(&format!("added to {}\n", file.shown_page()));
    }
    Ok(())
}
