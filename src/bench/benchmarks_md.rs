//! BENCHMARKS.md: a method section, three summary tables, a section for each run, optimization and
//! comparison with other servers.
//!
//! Records are only ever added. A summary grows before its end marker; a file without it (somebody's
//! own) gets its sections all the same. Each section ends with the row that names its raw records.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::Context as _;

/// How a new file begins, with its summary tables empty.
pub const HEADER: &str = include_str!("benchmarks_header.md");

const OPTIMIZATION: &str = "## Optimization ";

/// A summary table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    Runs,
    Optimizations,
    Peers,
}

impl Table {
    pub const ALL: [Self; 3] = [Self::Runs, Self::Optimizations, Self::Peers];

    /// The line after its last row.
    pub fn end(self) -> &'static str {
        match self {
            Self::Runs => "<!-- END: summary -->",
            Self::Optimizations => "<!-- END: optimizations -->",
            Self::Peers => "<!-- END: peers -->",
        }
    }
}

/// The line that ends a section.
pub fn raw_records_row(raw: &str) -> String {
    format!("| raw records | `{raw}` |")
}

/// The file that a section names as its raw records.
pub fn raw_records_of(section: &str) -> Option<&str> {
    let last = section.trim_end().lines().next_back()?;
    last.strip_prefix("| raw records | `")?.strip_suffix("` |")
}

/// Adds a record: its row, if it has one, to the summary table and `section` at the end. Creates the
/// file if needed.
///
/// # Errors
/// The file cannot be read or written; it is then left as it was.
pub fn append(path: &Path, row: Option<&(Table, String)>, section: &str) -> anyhow::Result<()> {
    let old = read(path)?.unwrap_or_else(|| HEADER.to_owned());
    write(path, &with_record(&old, row, section))
}

/// Writes the whole page.
///
/// # Errors
/// It cannot be written; it is then left as it was.
pub fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    let temporary = path.with_extension("md.tmp");
    fs::write(&temporary, text)
        .and_then(|()| fs::rename(&temporary, path))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// The number that the next optimization gets.
///
/// # Errors
/// The file cannot be read.
pub fn next_optimization(path: &Path) -> anyhow::Result<usize> {
    let text = read(path)?.unwrap_or_default();
    let numbers = text.lines().filter_map(|line| {
        let (number, _) = line.strip_prefix(OPTIMIZATION)?.split_once(':')?;
        number.parse::<usize>().ok()
    });
    Ok(numbers.max().unwrap_or(0) + 1)
}

/// `None` if there is no such file.
fn read(path: &Path) -> anyhow::Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// The page with a record more.
pub fn with_record(old: &str, row: Option<&(Table, String)>, section: &str) -> String {
    let parts = row.and_then(|(table, row)| Some((table, row, old.split_once(table.end())?)));
    let summed_up = match parts {
        Some((table, row, (before, after))) => format!("{before}{row}\n{}{after}", table.end()),
        None => old.to_owned(),
    };
    format!("{}\n\n{}\n", summed_up.trim_end(), section.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_added_in_order_and_nothing_is_lost() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("BENCHMARKS.md");
        for (table, row, section) in [
            (Some(Table::Runs), "| one |", "## One\n\nfirst"),
            (Some(Table::Optimizations), "| x |", "## Optimization 1: X"),
            (None, "", "## Drill"),
            (Some(Table::Runs), "| two |", "## Two\n\nsecond\n"),
            (Some(Table::Peers), "| y |\n| z |", "## Beside Y and Z"),
        ] {
            let row = table.map(|table| (table, row.to_owned()));
            append(&path, row.as_ref(), section).expect("a writable file");
        }
        let text = fs::read_to_string(&path).expect("the file");
        let (runs, rest) = text.split_once(Table::Runs.end()).expect("runs");
        assert!(runs.ends_with("|\n| one |\n| two |\n"), "{runs}");
        let (optimizations, rest) = rest
            .split_once(Table::Optimizations.end())
            .expect("optimizations");
        assert!(optimizations.ends_with("|\n| x |\n"), "{optimizations}");
        let (peers, sections) = rest.split_once(Table::Peers.end()).expect("peers");
        assert!(peers.ends_with("|\n| y |\n| z |\n"), "{peers}");
        let expected = "\n\n## One\n\nfirst\n\n## Optimization 1: X\n\n## Drill\n\n## Two\n\nsecond\n\n## Beside Y and Z\n";
        assert_eq!(sections, expected);
        let files = fs::read_dir(folder.path()).expect("the folder").count();
        assert_eq!(files, 1, "a temporary file stayed behind");
    }

    #[test]
    fn optimizations_are_numbered_on() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("BENCHMARKS.md");
        assert_eq!(next_optimization(&path).expect("no file"), 1);
        let text = "## Optimization 1: X\n## Optimization 7: Y\n### Optimization 9: no\n";
        fs::write(&path, text).expect("a writable folder");
        assert_eq!(next_optimization(&path).expect("a file"), 8);
    }

    #[test]
    fn the_method_of_this_repository_is_the_one_that_new_files_get() {
        let method = |text: &'static str| text.split_once("## Summary").expect("a summary").0;
        assert_eq!(method(include_str!("../../BENCHMARKS.md")), method(HEADER));
    }

    #[test]
    fn a_file_without_markers_keeps_its_text() {
        assert_eq!(
            with_record(
                "# Mine\n",
                Some(&(Table::Runs, "| row |".to_owned())),
                "## One"
            ),
            "# Mine\n\n## One\n"
        );
    }

    #[test]
    fn a_section_names_its_raw_records_in_its_last_line() {
        let section = format!("## One\n\n| a | b |\n{}\n\n", raw_records_row("x/y.json"));
        assert_eq!(raw_records_of(&section), Some("x/y.json"));
        assert_eq!(raw_records_of(&format!("{section}more")), None);
    }
}
