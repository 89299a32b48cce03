//! Named workloads and files of prompts with the program's own server and a tiny model: exact
//! lengths, the layouts, and what makes a run void.

use std::fs;
use std::path::Path;
use std::process::Output;

use candlepower::bench::raw_record::RawRecord as _;
use candlepower::bench::record::Record;
use candlepower::bench::workload::definition::Definition;

use super::own_server::bench;

/// Flags that make every built-in workload small and quick.
const SMALL: [&str; 8] = [
    "--scale",
    "0.03",
    "--scale-lengths",
    "0.1",
    "--scale-rates",
    "50",
    // How late the client sends is the machine's affair, and no matter of these tests.
    "--max-send-delay",
    "3600000",
];

fn workload(folder: &Path, name: &str, flags: &[&str]) -> Output {
    let fixed = ["--workload", name, "--output", "run.json"];
    bench(folder, &[], &[&fixed[..], flags].concat())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn record(folder: &Path) -> Record {
    Record::read(&folder.join("run.json")).expect("a record")
}

#[test]
fn every_built_in_workload_runs_in_its_layout_and_its_page_follows_from_its_record() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (name, line) in [
        ("demo", "- **Total Workloads**: 3"),
        (
            "prefill",
            "============ Serving Benchmark Result ============",
        ),
        ("decode", "Total generated tokens:                  "),
        (
            "latency",
            "Linear fit: latency = intercept + output tokens x slope",
        ),
        ("production", "Latency by use case (s)"),
        (
            "sequence-length",
            "Latency by sequence length, prompt and output together (s)",
        ),
        ("cache", "Prefix cache, by what the prompts share"),
        (
            "burst",
            "Load by load; latencies count from when a request was due",
        ),
        (
            "rate",
            "Load by load; latencies count from when a request was due",
        ),
    ] {
        let output = format!("{name}.json");
        let fixed = ["--workload", name, "--output", &output];
        let run = bench(folder.path(), &[], &[&fixed[..], &SMALL].concat());
        assert!(run.status.success(), "{name}: {}", text(&run.stderr));
        let shown = text(&run.stdout);
        assert!(shown.contains(line), "{name}: {line:?} is not in {shown}");
        let record = Record::read(&folder.path().join(&output)).expect("a record");
        assert_lengths_are_exact(name, &record);
    }
    assert_eq!(Definition::built_in().count(), 9);
    let verified = bench(folder.path(), &[], &["verify"]);
    assert!(verified.status.success(), "{}", text(&verified.stderr));
    assert!(text(&verified.stdout).contains("runs: 9"));
}

fn assert_lengths_are_exact(name: &str, record: &Record) {
    for request in &record.requests {
        let usage = request.usage.expect("usage");
        let asked = (request.asked_prompt_tokens, request.max_tokens);
        let had = (
            usage.prompt_tokens as usize,
            usage.completion_tokens as usize,
        );
        assert_eq!(asked, (Some(had.0), Some(had.1)), "{name}: {request:?}");
        let logged = request
            .logged
            .as_ref()
            .expect("the server's log tells of each request");
        assert_eq!(logged.generated_tokens, usage.completion_tokens, "{name}");
    }
}

#[test]
fn the_same_seed_gives_the_same_prompts_and_another_seed_others() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let hash = |seed: &str| {
        let flags = [&SMALL[..], &["--seed", seed, "--no-append"]].concat();
        let run = workload(folder.path(), "demo", &flags);
        assert!(run.status.success(), "{}", text(&run.stderr));
        record(folder.path()).run.client.prompts_sha256
    };
    let [first, second, other] = ["7", "7", "8"].map(hash);
    assert_eq!(first, second);
    assert_ne!(first, other);
}

#[test]
fn a_turn_finds_the_turns_before_it_in_the_cache_and_a_first_request_nothing() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let flags = ["--scale", "0.2", "--scale-lengths", "0.5", "--no-append"];
    let run = workload(folder.path(), "cache", &flags);
    assert!(run.status.success(), "{}", text(&run.stderr));
    let record = record(folder.path());
    let cached = |class: &str| -> Vec<u64> {
        let of_class = record
            .requests
            .iter()
            .filter(|r| r.class.as_deref() == Some(class));
        let cached = of_class.map(|r| r.usage.and_then(|usage| usage.cached_tokens));
        cached
            .map(|tokens| tokens.expect("the server tells"))
            .collect()
    };
    for turn in ["multi-turn chat, turn 2", "multi-turn chat, turn 4"] {
        let cached = cached(turn);
        assert!(
            !cached.is_empty() && cached.iter().all(|n| *n > 0),
            "{turn}: {cached:?}"
        );
    }
    let first = &record.requests[0];
    assert_eq!(first.shared_prompt_tokens, Some(0));
    let shown = text(&run.stdout);
    assert!(shown.contains("cold, as declared and verified"), "{shown}");
}

#[test]
fn a_warm_cache_is_warmed_and_verified() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let flags = [&SMALL[..], &["--cache-state", "warm", "--no-append"]].concat();
    let run = workload(folder.path(), "production", &flags);
    assert!(run.status.success(), "{}", text(&run.stderr));
    let shown = text(&run.stdout);
    assert!(shown.contains("warm, as declared and verified"), "{shown}");
}

#[test]
fn prompts_counted_by_another_models_tokenizer_make_the_run_void() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    // The model's own without its merges: every byte is a token.
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny-llama/tokenizer.json");
    let own = fs::read_to_string(own).expect("the tokenizer");
    let mut other: serde_json::Value = serde_json::from_str(&own).expect("JSON");
    other["model"]["merges"] = serde_json::json!([]);
    fs::write(folder.path().join("other.json"), other.to_string()).expect("a writable folder");
    let flags = [&SMALL[..], &["--tokenizer", "other.json"]].concat();
    let run = workload(folder.path(), "demo", &flags);
    let error = text(&run.stderr);
    assert!(
        !run.status.success() && error.contains("did not have the length asked for"),
        "{error}"
    );
    assert!(!folder.path().join("BENCHMARKS.md").exists());
}

#[test]
fn a_workload_of_ones_own_is_read_from_a_file_and_its_sums_are_held_to() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let definition = |output_tokens: usize| {
        format!(
            "description = \"mine\"\nexpected = {{ requests = 3, prompt_tokens = 30, output_tokens = \
             {output_tokens} }}\n[[phases]]\nname = \"only\"\narrivals = {{ loop = \"closed\", concurrency = 2 }}\n\
             [[phases.classes]]\nrequests = 3\nprompt_tokens = 10\noutput_tokens = 4\n"
        )
    };
    fs::write(folder.path().join("mine.toml"), definition(12)).expect("a writable folder");
    let run = workload(folder.path(), "mine.toml", &["--no-append"]);
    assert!(run.status.success(), "{}", text(&run.stderr));
    fs::write(folder.path().join("mine.toml"), definition(13)).expect("a writable folder");
    let run = workload(folder.path(), "mine.toml", &["--no-append"]);
    let error = text(&run.stderr);
    assert!(
        error.contains("the workload has 13 output tokens, and 12 were counted"),
        "{error}"
    );
}

#[test]
fn prompts_from_a_file_are_sent_with_the_lengths_of_their_replies() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let conversations = r#"[
        {"conversations": [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hi!"}]},
        {"conversations": [{"from": "human", "value": "Once more"}, {"from": "gpt", "value": "Hi!"}]}
    ]"#;
    let lines =
        "{\"prompt\": \"one\", \"max_tokens\": 3}\n{\"prompt\": \"two\", \"max_tokens\": 3}\n";
    for (name, content) in [("sharegpt.json", conversations), ("prompts.jsonl", lines)] {
        fs::write(folder.path().join(name), content).expect("a writable folder");
        let flags = [
            "--dataset",
            name,
            "--requests",
            "2",
            "--warmup",
            "0",
            "--output",
            "run.json",
        ];
        let run = bench(folder.path(), &[], &flags);
        assert!(run.status.success(), "{name}: {}", text(&run.stderr));
        let record = record(folder.path());
        assert_eq!(record.requests.len(), 2);
        // "Hi!" is three tokens of this model.
        assert!(
            record.requests.iter().all(|r| r.max_tokens == Some(3)),
            "{:?}",
            record.requests
        );
        let run = bench(
            folder.path(),
            &[],
            &["--dataset", name, "--requests", "3", "--warmup", "0"],
        );
        assert!(
            text(&run.stderr).contains("and 3 are wanted"),
            "{}",
            text(&run.stderr)
        );
    }
}

#[test]
fn prompts_from_a_file_come_in_an_order_of_the_seeds_or_in_the_files() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let line = |tokens| format!("{{\"prompt\": \"one\", \"max_tokens\": {tokens}}}\n");
    let lines: String = (1..=6).map(line).collect();
    fs::write(folder.path().join("prompts.jsonl"), lines).expect("a writable folder");
    let lengths = |shuffle: &str| -> Vec<usize> {
        let flags = "--dataset prompts.jsonl --requests 6 --warmup 0 --cache-state as-is --output run.json --shuffle";
        let flags: Vec<&str> = flags.split(' ').chain([shuffle]).collect();
        let run = bench(folder.path(), &[], &flags);
        assert!(run.status.success(), "{}", text(&run.stderr));
        let mut requests = record(folder.path()).requests;
        requests.sort_by_key(|request| request.index);
        requests.iter().filter_map(|r| r.max_tokens).collect()
    };
    assert_eq!(lengths("false"), [1, 2, 3, 4, 5, 6]);
    let mut shuffled = lengths("true");
    assert_ne!(shuffled, [1, 2, 3, 4, 5, 6]);
    shuffled.sort_unstable();
    assert_eq!(shuffled, [1, 2, 3, 4, 5, 6]);
}

#[test]
fn flags_that_do_not_go_together_are_refused_before_a_server_is_started() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (flags, word) in [
        (vec!["--workload", "nothing"], "one of demo, prefill"),
        (
            vec!["--workload", "demo", "--requests", "5"],
            "cannot be used with",
        ),
        (vec!["--dataset", "none.jsonl"], "cannot read none.jsonl"),
        (vec!["--tokenizer", "x.json"], "neither is given"),
        (vec!["--goodput", "ttft:1", "ttft:2"], "twice"),
        (vec!["--burstiness", "2"], "--request-rate"),
        (vec!["--shuffle", "false"], "--dataset"),
        (vec!["search"], "needs an objective"),
    ] {
        let run = bench(folder.path(), &[], &flags);
        let error = text(&run.stderr);
        assert!(
            !run.status.success() && error.contains(word),
            "{flags:?}: {error}"
        );
    }
    let list = text(&bench(folder.path(), &[], &["workloads"]).stdout);
    assert_eq!(list.lines().count(), 10, "{list}");
}
