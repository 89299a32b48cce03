//! BENCHMARKS.md: a method section, a summary table with a row for each run, a section for each run.
//!
//! Runs are only ever added. The summary grows between two marker comments; a file without them
//! (somebody's own) gets its sections all the same.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::Context as _;

/// How a new file begins, up to the empty summary table.
const HEADER: &str = include_str!("benchmarks_header.md");

const SUMMARY_END: &str = "<!-- END: summary -->";

/// Adds a run: `row` to the summary table and `section` at the end. Creates the file if needed.
///
/// # Errors
/// The file cannot be read or written; it is then left as it was.
pub fn append(path: &Path, row: &str, section: &str) -> anyhow::Result<()> {
    let old = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => HEADER.to_owned(),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    let temporary = path.with_extension("md.tmp");
    fs::write(&temporary, with_run(&old, row, section))
        .and_then(|()| fs::rename(&temporary, path))
        .with_context(|| format!("cannot write {}", path.display()))
}

fn with_run(old: &str, row: &str, section: &str) -> String {
    let summed_up = match old.split_once(SUMMARY_END) {
        Some((before, after)) => format!("{before}{row}\n{SUMMARY_END}{after}"),
        None => old.to_owned(),
    };
    format!("{}\n\n{}\n", summed_up.trim_end(), section.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_added_in_order_and_nothing_is_lost() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("BENCHMARKS.md");
        append(&path, "| one |", "## One\n\nfirst").expect("a new file");
        append(&path, "| two |", "## Two\n\nsecond\n").expect("an old file");
        let text = fs::read_to_string(&path).expect("the file");

        let (head, rest) = text
            .split_once(SUMMARY_END)
            .expect("the end of the summary");
        assert!(head.ends_with("| one |\n| two |\n"), "{head}");
        assert_eq!(rest, "\n\n## One\n\nfirst\n\n## Two\n\nsecond\n");
        assert!(HEADER.contains("BEGIN: summary") && text.starts_with("# Benchmarks"));
        let files = fs::read_dir(folder.path()).expect("the folder").count();
        assert_eq!(files, 1, "a temporary file stayed behind");
    }

    #[test]
    fn the_method_of_this_repository_is_the_one_that_new_files_get() {
        let method = |text: &'static str| text.split_once("## Summary").expect("a summary").0;
        assert_eq!(method(include_str!("../../BENCHMARKS.md")), method(HEADER));
    }

    #[test]
    fn a_file_without_markers_keeps_its_text() {
        assert_eq!(
            with_run("# Mine\n", "| row |", "## One"),
            "# Mine\n\n## One\n"
        );
    }
}
