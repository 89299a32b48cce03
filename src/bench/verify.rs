//! `bench verify`: whether BENCHMARKS.md says what its raw records say, and nothing else.
//!
//! Each section names its raw records in its last line. From them the section and its row in the
//! summary are rendered again, and what stands in the file must be the same to the letter. What is
//! left, the method and the heads of the tables, must be what a new file begins with. So a number
//! that no record backs has no place in the file where it could stand.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context as _, bail};

use super::ab::record::AbRecord;
use super::benchmarks_md::{self, HEADER, Table, raw_records_of, with_record};
use super::chaos::record::ChaosRecord;
use super::peers::record::PeersRecord;
use super::raw_record::{Kind, RawRecord, Rendering};
use super::record::Record;
use super::rollback::record::RollbackRecord;

/// Checks BENCHMARKS.md in `root`; raw records are named from there. Returns what was found sound.
///
/// # Errors
/// The file cannot be read, or something in it does not follow: every such thing, one a line.
pub fn verify(root: &Path) -> anyhow::Result<String> {
    let path = root.join("BENCHMARKS.md");
    let page = std::fs::read_to_string(&path)
        .with_context(|| format!("cannot read {}", path.display()))?;
    let outcome = check(root, &page);
    if !outcome.faults.is_empty() {
        bail!(
            "BENCHMARKS.md does not follow from its raw records:\n{}",
            outcome.faults.join("\n")
        );
    }
    Ok(format!(
        "BENCHMARKS.md follows from its raw records (runs: {}, optimizations: {}, comparisons with \
         other servers: {}, drills: {})",
        outcome.num_runs, outcome.num_optimizations, outcome.num_peers, outcome.num_drills
    ))
}

/// Writes BENCHMARKS.md anew from the records that its sections name, in their order.
///
/// # Errors
/// A section names no records or they cannot be read; the file is then left as it was.
pub fn rewrite(root: &Path) -> anyhow::Result<()> {
    let path = root.join("BENCHMARKS.md");
    let page = std::fs::read_to_string(&path)
        .with_context(|| format!("cannot read {}", path.display()))?;
    let mut written = HEADER.to_owned();
    for section in split(&page).1 {
        let title = section.lines().next().unwrap_or_default();
        let raw = raw_records_of(section)
            .with_context(|| format!("{title}: names no raw records in its last line"))?;
        let Rendering { row, section, .. } = rendered(root, raw)?;
        written = with_record(&written, row.as_ref(), &section);
    }
    benchmarks_md::write(&path, &written)
}

#[derive(Default)]
struct Outcome {
    num_runs: usize,
    num_optimizations: usize,
    num_drills: usize,
    num_peers: usize,
    faults: Vec<String>,
}

fn check(root: &Path, page: &str) -> Outcome {
    let mut outcome = Outcome::default();
    let mut named = BTreeSet::new();
    let (head, sections) = split(page);
    let mut expected_head = HEADER.to_owned();
    for section in sections {
        let title = section.lines().next().unwrap_or_default();
        let Some(raw) = raw_records_of(section) else {
            outcome
                .faults
                .push(format!("{title}: names no raw records in its last line"));
            continue;
        };
        if !named.insert(raw) {
            outcome
                .faults
                .push(format!("{title}: {raw} has a section already"));
            continue;
        }
        match rendered(root, raw) {
            Err(error) => outcome.faults.push(format!("{title}: {error:#}")),
            Ok(Rendering {
                row,
                section: expected,
                ..
            }) => {
                match row {
                    Some((Table::Runs, _)) => outcome.num_runs += 1,
                    Some((Table::Optimizations, _)) => outcome.num_optimizations += 1,
                    Some((Table::Peers, _)) => outcome.num_peers += 1,
                    None => outcome.num_drills += 1,
                }
                outcome
                    .faults
                    .extend(differences(title, section, &expected));
                expected_head = with_record(&expected_head, row.as_ref(), "");
            }
        }
    }
    outcome
        .faults
        .extend(differences("method and summary", head, &expected_head));
    outcome
}

/// What stands before the first section, and the sections.
fn split(page: &str) -> (&str, Vec<&str>) {
    let end_of_head = Table::ALL
        .iter()
        .filter_map(|table| Some(page.find(table.end())? + table.end().len()))
        .max()
        .unwrap_or(0);
    let starts: Vec<usize> = page
        .match_indices("\n## ")
        .map(|(newline, _)| newline + 1)
        .filter(|start| *start >= end_of_head)
        .collect();
    let ends = starts.iter().skip(1).copied().chain([page.len()]);
    let sections = starts
        .iter()
        .zip(ends)
        .map(|(start, end)| &page[*start..end])
        .collect();
    (
        &page[..starts.first().copied().unwrap_or(page.len())],
        sections,
    )
}

/// A file of raw records as readers see it.
fn rendered(root: &Path, raw: &str) -> anyhow::Result<Rendering> {
    let path = root.join(raw);
    let render = match Kind::of_file(&path)? {
        Kind::Run => render::<Record>,
        Kind::Ab => render::<AbRecord>,
        Kind::Peers => render::<PeersRecord>,
        Kind::Chaos => render::<ChaosRecord>,
        Kind::Rollback => render::<RollbackRecord>,
    };
    render(&path, raw)
}

fn render<R: RawRecord>(path: &Path, raw: &str) -> anyhow::Result<Rendering> {
    Ok(R::read(path)?.render(raw))
}

/// Lines of one that the other does not have, in both directions; then whether their order differs.
fn differences(title: &str, found: &str, expected: &str) -> Vec<String> {
    let lines = |text: &'_ str| -> Vec<String> {
        text.trim()
            .lines()
            .map(|line| line.trim_end().to_owned())
            .collect()
    };
    let (found, expected) = (lines(found), lines(expected));
    if found == expected {
        return Vec::new();
    }
    let extra = found.iter().filter(|line| !expected.contains(line));
    let missing = expected.iter().filter(|line| !found.contains(line));
    let mut faults: Vec<String> = extra
        .map(|line| format!("{title}: the raw records do not give: {line}"))
        .chain(missing.map(|line| format!("{title}: the raw records give: {line}")))
        .collect();
    if faults.is_empty() {
        faults.push(format!(
            "{title}: lines are repeated, missing or in another order"
        ));
    }
    faults
}
