//! `candlepower bench ab` and `bench verify` as a user runs them, with a tiny model.

use std::fs;
use std::path::Path;
use std::process::Output;

use candlepower::bench::ab::record::{AbRecord, Side};
use candlepower::bench::metrics::Metrics;
use candlepower::bench::raw_record::RawRecord as _;

use super::own_server::bench;

pub const SMALL: [&str; 10] = [
    "--requests",
    "4",
    "--concurrency",
    "4",
    "--max-tokens",
    "4",
    "--prompt-words",
    "4-8",
    "--blocks",
    "4",
];

const A: &str = "ENABLE_BATCHING=false";
const B: &str = "ENABLE_BATCHING=true,MAX_BATCH_SIZE=16";

fn ab(folder: &Path, a: &str, b: &str, flags: &[&str]) -> Output {
    let sides = ["ab", "--name", "Request batching", "--a", a, "--b", b];
    bench(folder, &[], &[&sides[..], &SMALL, flags].concat())
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn page(folder: &Path) -> String {
    fs::read_to_string(folder.join("BENCHMARKS.md")).expect("a page")
}

pub fn verify(folder: &Path) -> Result<String, String> {
    let run = bench(folder, &[], &["verify"]);
    match run.status.success() {
        true => Ok(text(&run.stdout)),
        false => Err(text(&run.stderr)),
    }
}

#[test]
fn two_settings_are_measured_in_turn_and_recorded_as_an_optimization() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let flags = [
        "--output",
        "raw.json",
        "--changes",
        "- One step for all.",
        "--target",
        "error_rate<0.05",
        "--target",
        "throughput>1000000000",
    ];
    let run = ab(folder.path(), A, B, &flags);
    assert!(run.status.success(), "{}", text(&run.stderr));

    let record = AbRecord::read(&folder.path().join("raw.json")).expect("a record");
    let sides: Vec<Side> = record.blocks.iter().map(|block| block.side).collect();
    let [a, b] = [Side::A, Side::B];
    assert_eq!(sides, [a, b, b, a, a, b, b, a]);
    assert_blocks_are_as_declared(&record);

    let page = page(folder.path());
    for part in [
        "## Optimization 1: Request batching - ",
        "in the order A B B A A B B A",
        "\n- One step for all.\n",
        "| enable_batching | false | true |",
        "1. Set `ENABLE_BATCHING=false`.\n2. Unset `MAX_BATCH_SIZE`.\n3. Restart the server",
        "| successful requests | 16 of 16 | 16 of 16 |",
        "| error_rate<0.05 | 0.0 % | 4 of 4 | met |",
        "| 0 of 4 | NOT MET |",
        "| raw records | `raw.json` |",
    ] {
        assert!(page.contains(part), "{part:?} is not in {page}");
    }
    for absent in ["Next steps", "One step for all.'"] {
        assert!(!page.contains(absent), "{absent:?} is in {page}");
    }
    let row = |line: &&str| line.contains("| 1: Request batching (`ENABLE_BATCHING=false` → ");
    assert_eq!(page.lines().filter(row).count(), 1, "{page}");

    let again = ab(folder.path(), "", "", &[]);
    assert!(again.status.success(), "{}", text(&again.stderr));
    assert!(self::page(folder.path()).contains("## Optimization 2: "));
    let sound = verify(folder.path()).expect("both follow from their records");
    assert!(sound.contains("runs: 0, optimizations: 2"), "{sound}");
}

fn assert_blocks_are_as_declared(record: &AbRecord) {
    let prompts = |side| {
        let records = record.records(side).into_iter();
        records
            .map(|record| record.run.client.prompts_sha256.clone())
            .collect::<Vec<_>>()
    };
    let (a, b) = (prompts(Side::A), prompts(Side::B));
    assert_eq!(a, b, "a pair sends the same prompts");
    assert!(
        a.windows(2).all(|pair| pair[0] != pair[1]),
        "the next pair sends others"
    );
    for block in &record.blocks {
        let run = &block.record.run;
        let batching = &run.server.stats_before["settings"]["enable_batching"];
        assert_eq!(*batching, block.side == Side::B);
        assert_eq!(
            run.environment.contains_key("MAX_BATCH_SIZE"),
            block.side == Side::B
        );
        assert!(
            run.environment.contains_key("KV_CACHE_SIZE"),
            "the rest is inherited"
        );
        // Nothing but the warm-up came before the measured requests: each server is new.
        let finished = Metrics::of(&block.record).server.prefix_query_tokens;
        assert!(finished.is_some_and(|tokens| tokens > 0));
    }
}

#[test]
fn no_line_of_a_record_can_be_changed_unseen() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let flags = [
        "--output",
        "raw.json",
        "--next",
        "Twice as much.",
        "--target",
        "itl_p99<1",
    ];
    let run = ab(folder.path(), A, B, &flags);
    assert!(run.status.success(), "{}", text(&run.stderr));
    let path = folder.path().join("BENCHMARKS.md");
    let sound = page(folder.path());
    verify(folder.path()).expect("nothing is changed yet");

    let lines: Vec<&str> = sound.lines().collect();
    let with_digits = (0..lines.len()).filter(|i| lines[*i].contains(|c: char| c.is_ascii_digit()));
    let mut num_changed = 0;
    for i in with_digits {
        let mut changed = lines.clone();
        let line = another_digit(lines[i]);
        changed[i] = &line;
        fs::write(&path, changed.join("\n")).expect("a writable page");
        assert!(verify(folder.path()).is_err(), "unseen: {line}");
        num_changed += 1;
    }
    assert!(num_changed > 30, "{num_changed} lines with digits");
}

/// The line with its last digit replaced by the next one.
fn another_digit(line: &str) -> String {
    let at = line.rfind(|c: char| c.is_ascii_digit()).expect("a digit");
    let next = (line.as_bytes()[at] - b'0' + 1) % 10;
    format!("{}{next}{}", &line[..at], &line[at + 1..])
}

#[test]
fn what_is_missing_added_or_repeated_is_found() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let run = ab(folder.path(), A, B, &["--output", "raw.json"]);
    assert!(run.status.success(), "{}", text(&run.stderr));
    let path = folder.path().join("BENCHMARKS.md");
    let sound = page(folder.path());
    let (head, section) = sound.split_once("\n## Optimization").expect("a section");
    let row = sound
        .lines()
        .find(|line| line.contains("| 1: "))
        .expect("a row");

    for (changed, fault) in [
        (
            format!("{sound}\n## We are fast\n\n500 tokens/s\n"),
            "names no raw records",
        ),
        (
            format!("{sound}\nTwice as fast as 7 others.\n"),
            "names no raw records",
        ),
        (
            sound.replace("raw.json` |\n", "other.json` |\n"),
            "cannot read",
        ),
        (
            format!("{sound}\n## Optimization{section}"),
            "has a section already",
        ),
        (sound.replace(row, "| x |"), "the raw records give: | 2"),
        (sound.replace(row, &format!("{row}\n{row}")), "repeated"),
        (head.to_owned(), "do not give: | 2"),
        (
            sound.replace("## Summary", "It does 900 tokens/s.\n\n## Summary"),
            "do not give: It does",
        ),
    ] {
        fs::write(&path, &changed).expect("a writable page");
        let faults = verify(folder.path()).expect_err(&changed);
        assert!(faults.contains(fault), "{fault:?} is not in {faults}");
    }

    fs::write(&path, &sound).expect("a writable page");
    verify(folder.path()).expect("as it was");
    let raw = fs::read_to_string(folder.path().join("raw.json")).expect("raw records");
    let slower = raw.replacen("\"duration_ms\": ", "\"duration_ms\": 9", 1);
    fs::write(folder.path().join("raw.json"), slower).expect("a writable file");
    let faults = verify(folder.path()).expect_err("the records are others now");
    assert!(faults.contains("output throughput"), "{faults}");
    fs::remove_file(folder.path().join("raw.json")).expect("a file");
    let faults = verify(folder.path()).expect_err("no records");
    assert!(faults.contains("cannot read"), "{faults}");
}

#[test]
fn a_side_that_cannot_be_measured_leaves_no_optimization() {
    for (b, reason) in [
        (
            "MAX_BATCHSIZE=16",
            "the server has no setting MAX_BATCHSIZE; it has MODEL, ",
        ),
        (
            "MODEL=no-such-file.gguf",
            "block 2 of 8, side B: the server ended before it was ready",
        ),
        ("REQUEST_TIMEOUT=1us", "no request succeeded on side B"),
    ] {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let run = ab(folder.path(), A, b, &[]);
        assert!(!run.status.success(), "{b}");
        let error = text(&run.stderr);
        assert!(error.contains(reason), "{b}: {error}");
        assert!(!folder.path().join("BENCHMARKS.md").exists(), "{b}");
    }
}
