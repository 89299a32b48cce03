//! `candlepower bench` as a user runs it, with its own server and a tiny model.

use std::path::Path;
use std::process::{Command, Output};

use candlepower::bench::metrics::Metrics;
use candlepower::bench::raw_record::RawRecord as _;
use candlepower::bench::record::Record;
use serde_json::Value;

/// Runs the program's `bench` in `folder`, with nothing from the environment but `settings`.
pub fn bench(folder: &Path, settings: &[(&str, &str)], flags: &[&str]) -> Output {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny-llama");
    Command::new(env!("CARGO_BIN_EXE_candlepower"))
        .arg("bench")
        .args(flags)
        .current_dir(folder)
        .env_clear()
        .env("MODEL", model)
        .env("KV_CACHE_SIZE", "1MiB")
        .envs(settings.iter().copied())
        .output()
        .expect("the program starts")
}

fn measure(folder: &Path, settings: &[(&str, &str)], output: &str) -> Record {
    let flags = [
        "--requests",
        "8",
        "--concurrency",
        "4",
        "--max-tokens",
        "6",
        "--prompt-words",
        "4-8",
    ];
    let run = bench(
        folder,
        settings,
        &[&flags[..], &["--output", output]].concat(),
    );
    assert!(
        run.status.success(),
        "{}",
        String::from_utf8_lossy(&run.stderr)
    );
    Record::read(&folder.join(output)).expect("a record")
}

#[test]
fn two_settings_give_two_rows_on_the_same_prompts_with_every_figure() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let runs = [("ENABLE_BATCHING", "false"), ("MAX_BATCH_SIZE", "16")].map(|(name, value)| {
        let log_format = match name {
            "MAX_BATCH_SIZE" => "json",
            _ => "text",
        };
        let settings = [(name, value), ("LOG_FORMAT", log_format)];
        (
            name,
            measure(folder.path(), &settings, &format!("{name}.json")),
        )
    });
    for (name, record) in &runs {
        assert!(
            record.run.environment.contains_key(*name),
            "{:?}",
            record.run.environment
        );
        assert_every_figure_is_there(record);
        assert_books_balance(record);
        let is_logged = record.requests.iter().all(|r| r.logged.is_some());
        assert!(is_logged, "the log of {name} does not tell of each request");
    }
    let [before, after] = runs.map(|(_, record)| record);
    assert_eq!(
        before.run.client.prompts_sha256,
        after.run.client.prompts_sha256
    );
    assert_eq!(Metrics::of(&before).server.mean_batch_size, Some(1.0));

    let page = std::fs::read_to_string(folder.path().join("BENCHMARKS.md")).expect("a page");
    for settings in ["ENABLE_BATCHING=false", "MAX_BATCH_SIZE=16"] {
        let rows = page
            .lines()
            .filter(|line| line.ends_with(".json` |") && line.contains(settings));
        assert_eq!(rows.count(), 1, "{settings} has no row: {page}");
        let is_command = |line: &str| line.starts_with("    ") && line.contains(settings);
        assert!(
            page.lines().any(is_command),
            "no command with {settings}: {page}"
        );
    }
    let log =
        std::fs::read_to_string(folder.path().join("ENABLE_BATCHING.server.log")).expect("a log");
    assert!(
        log.contains("stopping"),
        "the server was not asked to end: {log}"
    );

    let table = bench(
        folder.path(),
        &[],
        &["compare", "ENABLE_BATCHING.json", "MAX_BATCH_SIZE.json"],
    );
    let table = String::from_utf8_lossy(&table.stdout).into_owned();
    assert!(
        table.contains("output tokens/s") && !table.contains("do not compare"),
        "{table}"
    );
}

/// Against our own server nothing may be missing: a renamed statistic would read as n/a.
fn assert_every_figure_is_there(record: &Record) {
    fn assert_no_null(path: &str, value: &Value) {
        match value {
            Value::Null => panic!("{path} is missing"),
            Value::Object(fields) => {
                fields
                    .iter()
                    .for_each(|(name, value)| assert_no_null(&format!("{path}.{name}"), value));
            }
            _ => {}
        }
    }
    let metrics = serde_json::to_value(Metrics::of(record)).expect("metrics are JSON");
    assert_no_null("metrics", &metrics);
    assert_eq!(metrics["num_successes"], 8, "{metrics}");
}

/// What the client was told for each request adds up to what the server counted over the run.
fn assert_books_balance(record: &Record) {
    let usages: Vec<_> = record
        .requests
        .iter()
        .filter_map(|request| request.usage)
        .collect();
    let server = Metrics::of(record).server;
    let cached: u64 = usages.iter().filter_map(|usage| usage.cached_tokens).sum();
    assert_eq!(server.prefix_hit_tokens, Some(cached));
    let prompts: u64 = usages.iter().map(|usage| usage.prompt_tokens).sum();
    assert_eq!(server.prefix_query_tokens, Some(prompts));
    let generated_of = |stats: &Value| stats["batch"]["num_generated_tokens"].as_u64();
    let counted = generated_of(&record.run.server.stats_after)
        .zip(generated_of(&record.run.server.stats_before))
        .map(|(after, before)| after - before);
    let generated: u64 = usages.iter().map(|usage| usage.completion_tokens).sum();
    assert_eq!(counted, Some(generated));
}

#[test]
fn a_server_that_cannot_start_is_one_error_with_its_reason() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let run = bench(folder.path(), &[("MODEL", "no-such-file.gguf")], &[]);
    assert!(!run.status.success());
    let error = String::from_utf8_lossy(&run.stderr);
    assert!(
        error.contains("ended before it was ready") && error.contains("no-such-file.gguf"),
        "{error}"
    );
    assert!(!folder.path().join("BENCHMARKS.md").exists());
}
