//! `bench` against a scripted server on a real socket: what it sends, what it counts, what it
//! writes down; and the whole of it with the program's own server. No test looks at the clock.

mod ab;
mod own_server;
mod peers;
mod report;
mod reports;
mod script;
mod workloads;

use std::collections::HashSet;
use std::fs::File;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use candlepower::bench::compare::compare;
use candlepower::bench::load::Arrivals;
use candlepower::bench::metrics::Metrics;
use candlepower::bench::raw_record::RawRecord as _;
use candlepower::bench::record::{FailureReason, Record};
use candlepower::bench::{BenchArgs, run_in};
use clap::Parser;
use script::{Script, ScriptedServer};

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    bench: BenchArgs,
}

pub fn args(flags: &[&str]) -> BenchArgs {
    let words = ["bench"].iter().chain(flags);
    Cli::try_parse_from(words).expect("sound flags").bench
}

/// Runs a bench of `path` of a fresh server in a folder of its own; `check` gets the outcome, the
/// record and the server.
pub fn bench(script: Script, path: &str, flags: &[&str]) -> Outcome {
    let server = ScriptedServer::start(script);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let endpoint = format!("{}{path}", server.base);
    let fixed = ["--endpoint", &endpoint, "--output", "run.json"];
    let result = run_in(folder.path(), &args(&[&fixed[..], flags].concat()));
    Outcome {
        record: Record::read(&folder.path().join("run.json")).expect("a record"),
        error: result.err().map(|error| format!("{error:#}")),
        folder,
        server,
    }
}

pub struct Outcome {
    record: Record,
    error: Option<String>,
    folder: tempfile::TempDir,
    server: ScriptedServer,
}

impl Outcome {
    fn metrics(&self) -> Metrics {
        Metrics::of(&self.record)
    }

    /// The one reason for which all requests failed.
    fn only_reason(&self) -> (FailureReason, String) {
        let reasons: HashSet<FailureReason> = self
            .record
            .requests
            .iter()
            .filter_map(|r| Some(r.failure.as_ref()?.reason))
            .collect();
        assert_eq!(reasons.len(), 1, "{:?}", self.record.requests);
        let failure = self.record.requests[0]
            .failure
            .as_ref()
            .expect("every request failed");
        (failure.reason, failure.message.clone())
    }

    fn benchmarks_md(&self) -> Option<String> {
        std::fs::read_to_string(self.folder.path().join("BENCHMARKS.md")).ok()
    }
}

pub const SMALL: [&str; 8] = [
    "--requests",
    "6",
    "--concurrency",
    "2",
    "--max-tokens",
    "4",
    "--warmup",
    "2",
];

#[test]
fn a_sound_server_is_measured_and_tokens_are_those_of_usage() {
    let outcome = bench(Script::Sound, "", &SMALL);
    assert_eq!(outcome.error, None);
    let metrics = outcome.metrics();
    assert_eq!((metrics.num_requests, metrics.num_successes), (6, 6));
    assert_eq!(metrics.output_tokens, Some(24));
    assert_eq!(metrics.tokens_per_event, Some(1.0));
    assert_eq!(metrics.latencies.itl_ms.map(|itl| itl.count), Some(18));
    for request in &outcome.record.requests {
        assert_eq!(request.status, Some(200));
        assert_eq!(request.finish_reason.as_deref(), Some("length"));
        let first = request.first_token_ms.expect("a first token");
        assert!(request.due_ms <= request.sent_ms && request.sent_ms <= first);
        assert!(first <= request.end_ms);
        assert_eq!(request.timings.map(|timings| timings.prefill_ms), Some(2.0));
    }
}

#[test]
fn events_with_two_tokens_are_counted_by_usage_all_the_same() {
    let metrics = bench(Script::TwoTokensAnEvent, "", &SMALL).metrics();
    assert_eq!(metrics.output_tokens, Some(24));
    assert_eq!(metrics.tokens_per_event, Some(2.0));
    assert!(!metrics.counted_by_events);
}

#[test]
fn a_server_without_usage_is_counted_by_events_and_says_so() {
    let outcome = bench(Script::NoUsage, "", &SMALL);
    let metrics = outcome.metrics();
    assert_eq!(
        (metrics.num_successes, metrics.output_tokens),
        (6, Some(24))
    );
    assert!(metrics.counted_by_events);
    let page = outcome.benchmarks_md().expect("a page");
    assert!(page.contains("counted by events"), "{page}");
}

#[test]
fn an_answer_without_usage_among_others_is_a_failure() {
    let metrics = bench(Script::UsageOfEverySecond, "", &SMALL).metrics();
    assert_eq!(metrics.num_successes, 3);
    assert_eq!(metrics.failures.get("no usage"), Some(&3));
    assert_eq!(metrics.output_tokens, Some(12));
}

#[test]
fn every_kind_of_failure_is_told_apart() {
    for (script, reason, word) in [
        (Script::Status(429), FailureReason::Status, "scripted"),
        (Script::Status(500), FailureReason::Status, "scripted"),
        (Script::NoFinish, FailureReason::CutStream, "finish reason"),
        (Script::NoDone, FailureReason::CutStream, "[DONE]"),
        (Script::BrokenBody, FailureReason::CutStream, ""),
        (Script::NotJson, FailureReason::Malformed, "JSON"),
        (Script::Html, FailureReason::Malformed, "neither"),
        (Script::ErrorEvent, FailureReason::ErrorEvent, "scripted"),
    ] {
        let outcome = bench(script, "", &SMALL);
        let (found, message) = outcome.only_reason();
        assert_eq!(found, reason, "{script:?}: {message}");
        assert!(message.contains(word), "{script:?}: {message}");
        let error = outcome.error.as_deref().expect("no request succeeded");
        assert!(
            error.contains("no request succeeded"),
            "{script:?}: {error}"
        );
        assert_eq!(outcome.benchmarks_md(), None, "{script:?} was published");
    }
}

#[test]
fn a_server_that_never_answers_ends_in_the_clients_timeout() {
    let flags = [&SMALL[..6], &["--warmup", "0", "--request-timeout", "0.05"]].concat();
    let outcome = bench(Script::Silent, "", &flags);
    assert_eq!(outcome.only_reason().0, FailureReason::Timeout);
}

#[test]
fn failures_among_successes_are_part_of_the_result() {
    let outcome = bench(Script::EverySecondRefused, "", &SMALL);
    assert_eq!(outcome.error, None);
    let metrics = outcome.metrics();
    assert_eq!(metrics.error_rate, 0.5);
    assert_eq!(metrics.failures.get("HTTP 429"), Some(&3));
    assert_eq!(metrics.output_tokens, Some(12));
    let page = outcome.benchmarks_md().expect("a page");
    assert!(
        page.contains("| error rate | 50.0 % (3 HTTP 429) |"),
        "{page}"
    );
}

#[test]
fn generate_is_measured_streamed_where_the_server_can() {
    let outcome = bench(Script::Sound, "/generate", &SMALL);
    let metrics = outcome.metrics();
    assert_eq!(
        (metrics.num_successes, metrics.output_tokens),
        (6, Some(24))
    );
    assert_eq!(metrics.latencies.ttft_ms.map(|ttft| ttft.count), Some(6));
    assert_eq!(metrics.cached_request_rate, Some(0.0));
}

#[test]
fn a_plain_generate_has_no_ttft_rather_than_a_made_up_one() {
    let outcome = bench(Script::PlainJson, "/generate", &SMALL);
    assert_eq!(outcome.error, None);
    let metrics = outcome.metrics();
    assert_eq!(metrics.num_successes, 6);
    assert_eq!(metrics.latencies.ttft_ms, None);
    assert_eq!(metrics.latencies.e2e_ms.map(|e2e| e2e.count), Some(6));
    assert_eq!(metrics.output_tokens, None);
    assert_eq!(metrics.cached_request_rate, Some(1.0));
    let page = outcome.benchmarks_md().expect("a page");
    assert!(page.contains("| TTFT | n/a | n/a |"), "{page}");
}

#[test]
fn the_same_seed_sends_the_same_prompts_and_repeats_as_many_as_asked() {
    let flags = |seed: &'static str| {
        [
            &SMALL[2..6],
            &["--requests", "20", "--repeat-ratio", "0.5", "--seed", seed],
        ]
        .concat()
    };
    let runs = ["7", "7", "8"].map(|seed| bench(Script::Sound, "", &flags(seed)));
    let sorted = |outcome: &Outcome| {
        let mut prompts = outcome.server.measured_prompts();
        prompts.sort();
        prompts
    };
    let [first, second, other] = &runs;
    assert_eq!(sorted(first), sorted(second));
    assert_ne!(sorted(first), sorted(other));
    let hash = |outcome: &Outcome| outcome.record.run.client.prompts_sha256.clone();
    assert_eq!(hash(first), hash(second));
    assert_ne!(hash(first), hash(other));

    let texts = sorted(first);
    assert_eq!(texts.len(), 20);
    assert_eq!(texts.iter().collect::<HashSet<_>>().len(), 10);
    assert_eq!(
        first.record.requests.iter().filter(|r| r.repeat).count(),
        10
    );
    let warmup: HashSet<String> = first.server.warmup_prompts().into_iter().collect();
    assert_eq!(warmup.len(), 5);
    assert!(texts.iter().all(|text| !warmup.contains(text)));
}

#[test]
fn exactly_the_asked_number_of_clients_are_in_flight() {
    // The server answers only when three requests are waiting, so fewer clients would hang.
    let flags = [
        "--requests",
        "9",
        "--concurrency",
        "3",
        "--max-tokens",
        "2",
        "--warmup",
        "0",
    ];
    let outcome = bench(Script::WaitForThree, "", &flags);
    assert_eq!(outcome.metrics().num_successes, 9);
    assert_eq!(outcome.server.max_in_flight(), 3);
}

#[test]
fn an_open_loop_sends_on_time_while_nothing_is_answered() {
    // The server answers only when three requests wait: a client that waited would hang.
    let flags = [
        "--requests",
        "9",
        "--request-rate",
        "1000",
        "--max-tokens",
        "2",
        "--warmup",
        "0",
    ];
    let outcome = bench(Script::WaitForThree, "", &flags);
    assert_eq!(outcome.metrics().num_successes, 9);
    let requests = &outcome.record.requests;
    assert!(requests.is_sorted_by(|a, b| a.due_ms < b.due_ms));
    assert!(
        requests
            .iter()
            .all(|request| request.due_ms <= request.sent_ms)
    );
    let client = &outcome.record.run.client;
    assert_eq!(
        (client.concurrency, client.request_rate_per_s),
        (None, Some(1000.0))
    );
}

#[test]
fn a_stall_shows_in_every_request_that_was_due_meanwhile() {
    // No request is answered before all have come, so each must count the wait from its due time.
    let flags = [
        "--requests",
        "20",
        "--request-rate",
        "100",
        "--max-tokens",
        "2",
        "--warmup",
        "0",
    ];
    let outcome = bench(Script::StallUntil(20), "", &flags);
    let requests = &outcome.record.requests;
    let last_sent = requests.iter().map(|r| r.sent_ms).fold(0.0, f64::max);
    assert!(requests.iter().all(|r| r.end_ms >= last_sent));
    let first_wait = last_sent - requests[0].due_ms;
    let p99 = outcome.metrics().latencies.e2e_ms.map(|e2e| e2e.p99);
    assert!(
        p99.is_some_and(|p99| p99 >= first_wait),
        "{p99:?} < {first_wait}"
    );
}

#[test]
fn gaps_ramp_and_bursts_are_kept_in_the_record() {
    let flags = [
        "--requests",
        "4",
        "--max-tokens",
        "2",
        "--warmup",
        "0",
        "--max-send-delay",
        "3600000",
    ];
    let open = [
        "--request-rate",
        "1000",
        "--burstiness",
        "0.5",
        "--ramp-from",
        "500",
    ];
    let outcome = bench(Script::Sound, "", &[&flags[..], &open].concat());
    assert_eq!(outcome.error, None);
    let phase = &outcome.record.run.phases[0];
    let expected = Arrivals::Open {
        request_rate_per_s: 1000.0,
        burstiness: 0.5,
        ramp_from_per_s: Some(500.0),
    };
    assert_eq!(phase.arrivals, expected);
}

#[test]
fn goodput_counts_the_requests_that_met_the_objective() {
    let flags = [&SMALL[..], &["--goodput", "ttft:60000", "e2e:60000"]].concat();
    let outcome = bench(Script::EverySecondRefused, "", &flags);
    let goodput = outcome.metrics().goodput.expect("an objective was set");
    assert_eq!((goodput.num_good, goodput.good_rate), (3, 0.5));
    assert_eq!(outcome.metrics().shed_rate, 0.5);
    let page = outcome.benchmarks_md().expect("a page");
    assert!(
        page.contains("3 of 6 (50.0 %) met ttft:60000 e2e:60000"),
        "{page}"
    );
}

#[test]
fn a_cache_that_is_not_as_declared_makes_the_run_void() {
    // The scripted server never takes anything from a cache.
    for (state, error) in [("cold", None), ("as-is", None), ("warm", Some("NOT warm"))] {
        let flags = [&SMALL[..], &["--cache-state", state]].concat();
        let outcome = bench(Script::Sound, "", &flags);
        match error {
            None => assert_eq!(outcome.error, None, "{state}"),
            Some(word) => {
                let error = outcome.error.as_deref().expect("a void run");
                assert!(
                    error.contains("the run is void") && error.contains(word),
                    "{error}"
                );
                assert_eq!(outcome.benchmarks_md(), None, "a void run was published");
            }
        }
    }
}

#[test]
fn a_search_ends_with_the_highest_rate_that_holds_or_none() {
    for (script, answer) in [
        (Script::Sound, "requests/s, the highest tried"),
        (Script::EverySecondRefused, "none of those tried"),
    ] {
        let server = ScriptedServer::start(script);
        let folder = tempfile::tempdir().expect("a temporary folder");
        let flags = [
            "search",
            "--endpoint",
            &server.base,
            "--output",
            "run.json",
            "--goodput",
            "e2e:60000",
            "--requests",
            "4",
            "--max-tokens",
            "2",
            "--max-send-delay",
            "3600000",
            "--rate-from",
            "40",
            "--rate-min",
            "20",
            "--warmup",
            "0",
        ];
        run_in(folder.path(), &args(&flags)).expect("a sound search");
        let page = std::fs::read_to_string(folder.path().join("BENCHMARKS.md")).expect("a page");
        assert!(page.contains(answer), "{page}");
        let record = Record::read(&folder.path().join("run.json")).expect("a record");
        assert!(record.run.phases.len() > 1, "one rate is no search");
        run_in(folder.path(), &args(&["verify"])).expect("the answer follows from the record");
    }
}

#[test]
fn another_programs_format_lies_beside_the_raw_records() {
    let outcome = bench(
        Script::Sound,
        "",
        &[&SMALL[..], &["--format", "vllm-json"]].concat(),
    );
    assert_eq!(outcome.error, None);
    let path = outcome.folder.path().join("run.vllm.json");
    let text = std::fs::read_to_string(path).expect("the other file");
    let result: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(
        (&result["completed"], &result["total_output_tokens"]),
        (&6.into(), &24.into())
    );
    assert_eq!(result["ttfts"].as_array().map(Vec::len), Some(6));
}

#[test]
fn recorded_runs_are_compared_with_ratios_and_with_what_differs() {
    let outcome = bench(Script::Sound, "", &SMALL);
    let mut slower = outcome.record.clone();
    slower.run.duration_ms *= 2.0;
    slower.run.server.stats_before["settings"]["enable_batching"] = false.into();
    let base = ("base".to_owned(), outcome.record.clone());
    let table = compare(&[base.clone(), ("slower".to_owned(), slower.clone())]);
    let line = |start: &str| {
        table
            .lines()
            .find(|line| line.starts_with(start))
            .unwrap_or_default()
    };
    assert!(line("output tokens/s").ends_with("(x0.50)"), "{table}");
    let setting: Vec<&str> = line("enable_batching").split_whitespace().collect();
    assert_eq!(setting, ["enable_batching", "true", "false"], "{table}");
    assert!(!table.contains("do not compare"), "{table}");

    slower.run.client.prompts_sha256 = "another".to_owned();
    let table = compare(&[base, ("slower".to_owned(), slower)]);
    assert!(table.contains("do not compare"), "{table}");
}

#[test]
fn requests_carry_the_flags_and_ids_that_the_record_keeps() {
    let outcome = bench(
        Script::Sound,
        "",
        &[&SMALL[..], &["--ignore-eos", "false"]].concat(),
    );
    let bodies = outcome.server.bodies();
    assert_eq!(bodies.len(), 8);
    for body in &bodies {
        assert_eq!(body["model"], "scripted-model");
        assert_eq!(body["max_tokens"], 4);
        assert_eq!(body["temperature"], 0.0);
        assert_eq!(body["stream_options"]["include_usage"], true);
        assert_eq!(body.get("ignore_eos"), None);
    }
    let ids = outcome.server.request_ids();
    let recorded = outcome
        .record
        .requests
        .iter()
        .map(|request| &request.request_id);
    assert!(recorded.clone().all(|id| ids.contains(id)));
    assert_eq!(recorded.collect::<HashSet<_>>().len(), 6);
}

#[test]
fn a_record_reads_back_as_it_was_written() {
    let outcome = bench(Script::Sound, "", &SMALL);
    let text = outcome.record.to_json().expect("JSON");
    let path = outcome.folder.path().join("again.json");
    std::fs::write(&path, &text).expect("a writable folder");
    assert_eq!(Record::read(&path).expect("a record"), outcome.record);
    let request_lines = text
        .lines()
        .filter(|line| line.contains("\"due_ms\""))
        .count();
    assert_eq!(request_lines, 6, "one line a request");
}

#[test]
fn each_run_adds_a_row_and_a_section_with_the_figures_of_its_record() {
    let server = ScriptedServer::start(Script::Sound);
    let folder = tempfile::tempdir().expect("a temporary folder");
    for output in ["one.json", "two.json"] {
        let flags = ["--endpoint", &server.base, "--output", output];
        run_in(folder.path(), &args(&[&flags[..], &SMALL].concat())).expect("a sound run");
    }
    let kept = [&["--endpoint", &server.base, "--no-append"][..], &SMALL].concat();
    run_in(folder.path(), &args(&kept)).expect("a sound run");

    let page = std::fs::read_to_string(folder.path().join("BENCHMARKS.md")).expect("a page");
    let rows: Vec<&str> = page
        .lines()
        .filter(|line| line.ends_with(".json` |"))
        .collect();
    let sections = page.lines().filter(|line| line.starts_with("## 2")).count();
    assert_eq!(
        (rows.len(), sections),
        (4, 2),
        "a row and a section for each run: {page}"
    );
    let record = Record::read(&folder.path().join("one.json")).expect("a record");
    assert_page_has_the_figures_of(&page, &record);
    run_in(folder.path(), &args(&["verify"])).expect("the page follows from the records");
    let path = folder.path().join("BENCHMARKS.md");
    std::fs::write(&path, page.replace("| TPOT |", "| speed |")).expect("a writable page");
    run_in(folder.path(), &args(&["verify"])).expect_err("no record says so");
    run_in(folder.path(), &args(&["verify", "--rewrite"])).expect("the records are there");
    assert_eq!(std::fs::read_to_string(path).expect("a page"), page);
    let results = folder.path().join("benches/results");
    assert_eq!(json_files(&results), 1, "the run without --output");
}

fn assert_page_has_the_figures_of(page: &str, record: &Record) {
    let metrics = Metrics::of(record);
    let ttft = metrics.latencies.ttft_ms.expect("a TTFT");
    let throughput = metrics
        .output_throughput_tokens_per_s
        .expect("a throughput");
    for line in [
        format!(
            "| TTFT | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} | 6 |",
            ttft.mean, ttft.std, ttft.p50, ttft.p95, ttft.p99, ttft.max
        ),
        format!("| output throughput | {throughput:.1} tokens/s |"),
        "| successful requests | 6 of 6 |".to_owned(),
        "| RAM of the server | peak 10.0 MiB, mean 10.0 MiB |".to_owned(),
        "| model load time | 12 ms |".to_owned(),
        "| server settings | enable_batching=true |".to_owned(),
        "| raw records | `one.json` |".to_owned(),
    ] {
        assert!(page.contains(&line), "{line} is not in: {page}");
    }
}

fn json_files(folder: &Path) -> usize {
    let files = std::fs::read_dir(folder).expect("a folder");
    files
        .filter(|file| {
            file.as_ref()
                .is_ok_and(|f| f.path().extension() == Some("json".as_ref()))
        })
        .count()
}

#[test]
fn a_server_that_is_not_there_is_one_clear_error() {
    let closed = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        listener.local_addr().expect("an address")
    };
    let folder = tempfile::tempdir().expect("a temporary folder");
    for path in ["", "/generate"] {
        let endpoint = format!("http://{closed}{path}");
        let error =
            run_in(folder.path(), &args(&["--endpoint", &endpoint])).expect_err("no server");
        assert!(
            format!("{error:#}").contains("cannot reach http://127.0.0.1"),
            "{error:#}"
        );
    }
}

/// The program itself, because what it prints is the point.
fn program(server: &ScriptedServer, folder: &Path, output: &str, stdout: Stdio) -> Output {
    Command::new(env!("CARGO_BIN_EXE_candlepower"))
        .args(["bench", "--endpoint", &server.base, "--output", output])
        .args(SMALL)
        .current_dir(folder)
        .stdout(stdout)
        .output()
        .expect("the program starts")
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_costs_the_record_and_not_the_result() {
    let server = ScriptedServer::start(Script::Sound);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let output = program(&server, folder.path(), "/dev/full", Stdio::piped());
    assert_eq!(output.status.code(), Some(1));
    let (stdout, stderr) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(stdout.contains("TTFT"), "{stdout}");
    assert!(stderr.contains("cannot write /dev/full: "), "{stderr}");
    let page = folder.path().join("BENCHMARKS.md");
    assert!(!page.exists(), "a section without a record");
}

#[test]
#[cfg(target_os = "linux")]
fn a_lost_standard_output_costs_nothing_else() {
    let server = ScriptedServer::start(Script::Sound);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let full = File::options()
        .write(true)
        .open("/dev/full")
        .expect("a device");
    let output = program(&server, folder.path(), "run.json", full.into());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    assert!(stderr.contains("standard output is lost"), "{stderr}");
    assert!(folder.path().join("run.json").exists());
    assert!(folder.path().join("BENCHMARKS.md").exists());
}

#[test]
fn flags_out_of_range_are_refused() {
    for flags in [
        ["--requests", "0"],
        ["--concurrency", "0"],
        ["--repeat-ratio", "1.5"],
        ["--repeat-ratio", "nan"],
        ["--request-timeout", "0"],
        ["--endpoint", "https://h"],
        ["--prompt-words", "9-3"],
        ["--request-rate", "0"],
        ["--scale", "0.5"],
        ["--cache-state", "hot"],
        ["--goodput", "itl:5"],
        ["--format", "csv"],
        ["compare", "one.json"],
        ["verify", "one.json"],
    ] {
        assert!(
            Cli::try_parse_from(["bench"].iter().chain(&flags)).is_err(),
            "{flags:?}"
        );
    }
}

#[test]
fn settings_of_an_a_b_run_out_of_range_are_refused() {
    let sound = ["ab", "--name", "X", "--a", "A=1", "--b", ""];
    for flags in [
        ["--blocks", "5"],
        ["--blocks", "2"],
        ["--target", "ttft_p95"],
        ["--target", "speed>1"],
        ["--next", "# heading"],
        ["--endpoint", "http://h"],
        ["--requests", "0"],
    ] {
        let words = ["bench"].iter().chain(&sound).chain(&flags);
        assert!(Cli::try_parse_from(words).is_err(), "{flags:?}");
    }
    let words = ["bench"].iter().chain(&sound);
    assert!(Cli::try_parse_from(words).is_ok());
}

#[test]
fn a_server_that_dies_leaves_its_records() {
    let flags = [
        "--requests",
        "6",
        "--concurrency",
        "1",
        "--max-tokens",
        "4",
        "--warmup",
        "2",
    ];
    let outcome = bench(Script::DiesAfterFive, "", &flags);
    assert_eq!(outcome.error, None);
    let metrics = outcome.metrics();
    assert_eq!(metrics.num_successes, 3);
    assert_eq!(metrics.failures.get("connection"), Some(&3));
}
