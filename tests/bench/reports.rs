//! benches/reports.md sets what five reports say beside what was measured here: every number of the
//! columns that begin with "here" must be one of the records that its section names.

use std::fs;
use std::path::Path;

use candlepower::bench::metrics::Metrics;
use candlepower::bench::raw_record::RawRecord as _;
use candlepower::bench::record::Record;
use candlepower::bench::run_in;
use serde_json::{Value, json};

use super::args;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Milliseconds as seconds, shares as percent, bytes as MiB.
const UNITS: [f64; 4] = [1.0, 1e-3, 100.0, 1.0 / (1 << 20) as f64];

fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

fn cells(row: &str) -> Vec<&str> {
    let row = row.trim().trim_start_matches('|').trim_end_matches('|');
    row.split('|').map(str::trim).collect()
}

/// The numbers of a cell as they are printed.
fn numbers(cell: &str) -> impl Iterator<Item = &str> {
    let words = cell.split(|c: char| c.is_whitespace() || ",·→/()".contains(c));
    let words = words.map(|word| word.trim_end_matches(['%', '×', '.', ';']));
    words.filter(|word| word.parse::<f64>().is_ok())
}

/// A run's record, and that of each part of it.
fn documents(record: &Record) -> Vec<Value> {
    let mut parts = vec![record.clone()];
    for phase in 0..record.run.phases.len() {
        let phase = record.of_phase(phase);
        let of_classes = phase
            .classes()
            .into_iter()
            .map(|class| phase.of_class(class));
        parts.extend(of_classes);
        parts.push(phase);
    }
    let document = |part: &Record| json!({"run": part.run, "metrics": Metrics::of(part)});
    parts.iter().map(document).collect()
}

/// All numbers below a value, and the length of a list.
fn leaves(value: &Value, found: &mut Vec<f64>) {
    match value {
        Value::Number(number) => found.extend(number.as_f64()),
        Value::Array(values) => {
            found.push(values.len() as f64);
            values.iter().for_each(|value| leaves(value, found));
        }
        Value::Object(fields) => fields.values().for_each(|value| leaves(value, found)),
        _ => {}
    }
}

/// Whether `value`, in one of the units, is printed so.
fn is_printed_as(value: f64, printed: &str) -> bool {
    let decimals = printed
        .split_once('.')
        .map_or(0, |(_, decimals)| decimals.len());
    let rounded = |unit: &f64| format!("{:.decimals$}", value * unit);
    UNITS.iter().map(rounded).any(|rounded| rounded == printed)
}

struct Section<'a> {
    title: &'a str,
    text: &'a str,
    files: Vec<&'a str>,
}

impl Section<'_> {
    /// What is written of its records: their sections, and a report on all.
    fn written(&self) -> String {
        let mut all = String::new();
        let mut flags = vec!["report", "--output", "report"];
        let paths: Vec<String> = self
            .files
            .iter()
            .map(|file| format!("{ROOT}/{file}"))
            .collect();
        flags.extend(paths.iter().map(String::as_str));
        let folder = tempfile::tempdir().expect("a temporary folder");
        run_in(folder.path(), &args(&flags)).expect("a report");
        let report = folder.path().join("report/report.md");
        all += &fs::read_to_string(report).expect("a report");
        all += &fs::read_to_string(Path::new(ROOT).join("BENCHMARKS.md")).expect("the page");
        all
    }

    /// Checks its rows; returns how many numbers they have.
    fn check(&self) -> usize {
        let rows = self.text.lines().filter(|line| line.starts_with('|'));
        let mut rows = rows.map(cells);
        let head = rows.next().expect("a table");
        let path_column = head.iter().position(|name| *name == "path in the record");
        let here: Vec<usize> = (0..head.len())
            .filter(|column| head[*column].starts_with("here"))
            .collect();
        let documents: Vec<Value> = match path_column {
            Some(_) => self
                .files
                .iter()
                .flat_map(|file| {
                    let record = Record::read(&Path::new(ROOT).join(file)).expect("a record");
                    documents(&record)
                })
                .collect(),
            None => Vec::new(),
        };
        let written = match path_column {
            Some(_) => String::new(),
            None => self.written(),
        };
        let words: Vec<&str> = numbers(&written).collect();
        let mut count = 0;
        for row in rows.skip(1) {
            let mut values = Vec::new();
            for path in path_column
                .into_iter()
                .flat_map(|column| quoted(row[column]))
            {
                let pointer = format!("/{}", path.replace('.', "/"));
                let found = documents
                    .iter()
                    .filter_map(|document| document.pointer(&pointer));
                found.for_each(|value| leaves(value, &mut values));
            }
            for number in here.iter().flat_map(|column| numbers(row[*column])) {
                let is_there = match path_column {
                    Some(_) => values.iter().any(|value| is_printed_as(*value, number)),
                    None => words.contains(&number),
                };
                assert!(
                    is_there,
                    "{}: {}: {number} is in no record",
                    self.title, row[0]
                );
                count += 1;
            }
        }
        count
    }
}

#[test]
fn every_number_measured_here_is_one_of_the_records_that_its_section_names() {
    let page = fs::read_to_string(Path::new(ROOT).join("benches/reports.md")).expect("the page");
    let sections = page.split("\n## ").skip(1).map(|text| Section {
        title: text.lines().next().unwrap_or_default(),
        text,
        files: quoted(text)
            .filter(|name| name.starts_with("benches/results/"))
            .collect(),
    });
    let with_records: Vec<Section> = sections
        .filter(|section| !section.files.is_empty())
        .collect();
    assert_eq!(with_records.len(), 5, "five kinds of report");
    for section in with_records {
        let count = section.check();
        assert!(count >= 10, "{}: {count} numbers", section.title);
    }
}
