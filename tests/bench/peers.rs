//! `candlepower bench peers` as a user runs it, with a tiny model: the program beside itself.

use std::fs;
use std::path::Path;
use std::process::Output;

use candlepower::bench::peers::record::PeersRecord;
use candlepower::bench::raw_record::RawRecord as _;

use super::ab::{SMALL, text, verify};
use super::own_server::bench;

fn peers(folder: &Path, peer: &str, flags: &[&str]) -> Output {
    let asked = ["peers", "--name", "4 clients", "--peer", peer];
    bench(folder, &[], &[&asked[..], &SMALL, flags].concat())
}

#[test]
fn servers_are_measured_in_turn_and_recorded_side_by_side() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let command = format!(
        "{} serve --max-batch-size 3 --port $PORT",
        env!("CARGO_BIN_EXE_candlepower")
    );
    let flags = ["--own", "MAX_BATCH_SIZE=5", "--output", "raw.json"];
    let run = peers(folder.path(), &format!("the other={command}"), &flags);
    assert!(run.status.success(), "{}", text(&run.stderr));
    assert!(text(&run.stdout).contains("beside the other"));

    let record = PeersRecord::read(&folder.path().join("raw.json")).expect("a record");
    let blocks: Vec<_> = record.blocks.iter().map(|b| (b.round, b.server)).collect();
    assert_eq!(
        blocks,
        [
            (0, 0),
            (0, 1),
            (1, 1),
            (1, 0),
            (2, 0),
            (2, 1),
            (3, 1),
            (3, 0)
        ]
    );
    for block in &record.blocks {
        let run = &block.record.run;
        let max_batch_size = &run.server.stats_before["settings"]["max_batch_size"];
        assert_eq!(*max_batch_size, if block.server == 0 { 5 } else { 3 });
        let prompts = &record.records(0)[block.round].run.client.prompts_sha256;
        assert_eq!(
            *prompts, run.client.prompts_sha256,
            "a round sends the same"
        );
        let sample = run.server.samples.first().expect("a sample");
        assert!(sample.memory_bytes.is_some(), "the peer's process is known");
    }

    let page = fs::read_to_string(folder.path().join("BENCHMARKS.md")).expect("a page");
    for part in [
        "## Beside the other: tiny-llama, 4 clients - ",
        "in the order candlepower, the other, the other, candlepower, and so on",
        "| candlepower | tiny-llama | `MAX_BATCH_SIZE=5 candlepower serve` |",
        &format!("| the other | tiny-llama | `{command}` |"),
        "### Beside the other\n\n| figure | theirs | ours | delta | ours / theirs |",
        "| prompt and output throughput (tokens/s) | ",
        "| 3 | the other | 2 | ",
        "| raw records | `raw.json` |",
    ] {
        assert!(page.contains(part), "{part:?} is not in {page}");
    }
    let row = |line: &&str| line.contains("| tiny-llama | 4 clients | the other | ");
    assert_eq!(page.lines().filter(row).count(), 1, "{page}");
    let sound = verify(folder.path()).expect("it follows from its records");
    assert!(sound.contains("other servers: 1"), "{sound}");

    let forged = page.replace("| 3 | the other", "| 3 | another");
    fs::write(folder.path().join("BENCHMARKS.md"), forged).expect("a writable page");
    let faults = verify(folder.path()).expect_err("a line was changed");
    assert!(faults.contains("the other"), "{faults}");
}

#[test]
fn a_peer_that_does_not_start_ends_the_run_with_its_output() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let run = peers(folder.path(), "other=echo no such model on $PORT", &[]);
    assert!(!run.status.success());
    let message = text(&run.stderr);
    for part in ["block 2 of 8, other", "no such model on "] {
        assert!(message.contains(part), "{part:?} is not in {message}");
    }
    assert!(!folder.path().join("BENCHMARKS.md").exists());
}
