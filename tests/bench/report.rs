//! `bench report`: every figure is drawn and sound, the same records give the same bytes, nothing is
//! fetched, and nothing is said that the numbers do not back.
//!
//! The records are made here, so that what must be said of them is known. What is written by
//! `the_report_on_all_workloads_has_every_figure` stays in the target directory, where
//! tests/browser/report_page.py looks at it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use candlepower::bench::ab::record::AbRecord;
use candlepower::bench::raw_record::RawRecord as _;
use candlepower::bench::record::{
    Failure, FailureReason, Record, RequestRecord, ServerSample, ServerTimings, Usage,
};
use candlepower::bench::run_in;
use resvg::usvg::roxmltree;
use serde_json::json;

use super::{SMALL, args, bench};
use crate::script::Script;

const FIGURES: [&str; 9] = [
    "consistency",
    "dashboard",
    "latency-scaling",
    "percentiles",
    "queue-time",
    "sequence-length",
    "throughput",
    "timeline",
    "use-cases",
];

/// A request of known size and times; a token takes 10 ms.
fn request(due_ms: f64, prompt: u64, output: u64, queue_ms: f64) -> RequestRecord {
    let prefill_ms = prompt as f64 * 0.5;
    let first_token_ms = due_ms + queue_ms + prefill_ms;
    let gaps_ms = vec![10.0; output as usize - 1];
    let decode_ms = gaps_ms.iter().sum();
    RequestRecord {
        due_ms,
        sent_ms: due_ms,
        first_token_ms: Some(first_token_ms),
        end_ms: first_token_ms + decode_ms,
        gaps_ms,
        usage: Some(Usage {
            prompt_tokens: prompt,
            completion_tokens: output,
            cached_tokens: Some(0),
        }),
        timings: Some(ServerTimings {
            queue_ms,
            prefill_ms,
            decode_ms,
        }),
        status: Some(200),
        finish_reason: Some("length".to_owned()),
        ..RequestRecord::default()
    }
}

/// A record as `bench` writes it, with these requests in the place of its own.
fn record(requests: Vec<RequestRecord>, clients: usize) -> Record {
    let mut record = bench(Script::Sound, "", &SMALL).record;
    let end_ms = requests.iter().map(|r| r.end_ms).fold(0.0, f64::max);
    let samples = (0..(end_ms / 250.0) as u32).map(|i| ServerSample {
        at_ms: f64::from(i) * 250.0,
        num_running_requests: Some(u64::from(i) % 16),
        kv_used_tokens: Some(u64::from(i) * 10),
        ..ServerSample::default()
    });
    let run = &mut record.run;
    run.server.samples = samples.collect();
    run.phases.clear();
    run.duration_ms = end_ms;
    run.client_cpu_ms = 0;
    run.client.requests = requests.len();
    run.client.concurrency = Some(clients);
    run.client.cache_state = None;
    record.requests = requests;
    record
}

/// One client: 12 sizes, five runs of each, every one as fast as the others but for 1 ms.
fn latency() -> Record {
    let mut requests: Vec<RequestRecord> = Vec::new();
    for (prompt, outputs) in [
        (8, [10, 20, 50, 100]),
        (24, [20, 50, 100, 200]),
        (120, [50, 100, 200, 300]),
    ] {
        for output in outputs {
            for run in 0..5 {
                let due_ms = requests.last().map_or(0.0, |last| last.end_ms);
                requests.push(request(due_ms, prompt, output, f64::from(run % 2)));
            }
        }
    }
    record(requests, 1)
}

/// Sixteen clients, five use cases; most of the time is spent in the queue.
fn production() -> Record {
    let classes = [
        ("ultra-short Q&A", 12),
        ("short Q&A", 60),
        ("code", 100),
        ("medium", 150),
        ("long-form <b>", 400),
    ];
    let mut free_ms = [0.0f64; 16];
    let mut requests = Vec::new();
    for i in 0..100 {
        let (class, output) = classes[i % classes.len()];
        let client = (0..16)
            .min_by(|a, b| free_ms[*a].total_cmp(&free_ms[*b]))
            .expect("16 clients");
        let queue_ms = output as f64 * 20.0;
        let mut request = request(free_ms[client], 20 + i as u64, output, queue_ms);
        request.class = Some(class.to_owned());
        free_ms[client] = request.end_ms;
        requests.push(request);
    }
    record(requests, 16)
}

/// Writes the records and the report on them into `folder`; returns the folder of the report.
fn report(folder: &Path, records: &[(&str, &Record)]) -> PathBuf {
    let mut flags = vec!["report", "--output", "report"];
    for (name, record) in records {
        fs::write(folder.join(name), record.to_json().expect("JSON")).expect("a writable folder");
        flags.push(name);
    }
    run_in(folder, &args(&flags)).expect("a report");
    folder.join("report")
}

fn markdown_of(records: &[(&str, &Record)]) -> String {
    let folder = tempfile::tempdir().expect("a temporary folder");
    fs::read_to_string(report(folder.path(), records).join("report.md")).expect("a report")
}

fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut all = BTreeMap::new();
    for folder in [folder.to_owned(), folder.join("figures")] {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_file() {
                let name = path
                    .file_name()
                    .expect("a name")
                    .to_string_lossy()
                    .into_owned();
                all.insert(name, fs::read(path).expect("a readable file"));
            }
        }
    }
    all
}

#[test]
fn the_report_on_all_workloads_has_every_figure() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("bench-report");
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).expect("a folder");
    let report = report(
        &folder,
        &[
            ("latency.json", &latency()),
            ("production.json", &production()),
        ],
    );
    let files = files(&report);
    for figure in FIGURES {
        let svg = String::from_utf8(files[&format!("{figure}.svg")].clone()).expect("text");
        assert_sound(figure, &svg);
        let png = &files[&format!("{figure}.png")];
        assert!(
            png.starts_with(b"\x89PNG") && png.len() > 10_000,
            "{figure}.png has {} bytes",
            png.len()
        );
    }
    let page = String::from_utf8(files["report.html"].clone()).expect("text");
    let pictures = page.matches("<svg").count();
    assert_eq!(
        pictures,
        2 * FIGURES.len(),
        "one for screens and one for phones of each"
    );
    for svg in page.split("<svg").skip(1) {
        let svg = svg.split("</svg>").next().expect("an end");
        assert_sound("page", &format!("<svg{svg}</svg>"));
    }
    assert!(!page.contains("long-form <b>"), "a name became markup");
    for (name, text) in files.iter().filter(|(name, _)| !name.ends_with(".png")) {
        let text = String::from_utf8_lossy(text);
        for foreign in [
            "src=\"http",
            "href=\"http",
            "url(http",
            "@import",
            "<script",
        ] {
            assert!(!text.contains(foreign), "{name} has {foreign}");
        }
    }
}

/// Well-formed, and every number in it is one.
fn assert_sound(name: &str, svg: &str) {
    let document = roxmltree::Document::parse(svg).expect(name);
    let mut shapes = 0;
    for node in document.descendants().filter(roxmltree::Node::is_element) {
        let element = node.tag_name().name();
        for attribute in node.attributes() {
            let value = attribute.value();
            assert!(
                !value.is_empty(),
                "{name}: <{element} {}> is empty",
                attribute.name()
            );
            for word in ["NaN", "inf"] {
                let is_word = value
                    .split([' ', ',', 'M', 'L', 'A', 'Z'])
                    .any(|part| part.trim_start_matches('-') == word);
                assert!(!is_word, "{name}: {}=\"{value}\"", attribute.name());
            }
        }
        match element {
            "text" => assert!(
                !node.text().unwrap_or_default().trim().is_empty(),
                "{name}: an empty label"
            ),
            "rect" | "path" => shapes += 1,
            _ => {}
        }
        for length in ["width", "height"] {
            if let Some(value) = node.attribute(length) {
                let value: f64 = value.parse().expect(value);
                assert!(value >= 0.0, "{name}: {length} {value}");
            }
        }
    }
    assert!(shapes >= 3, "{name}: {shapes} shapes");
}

#[test]
fn the_same_records_give_the_same_bytes() {
    let records = [latency(), production()];
    let report_files = || {
        let folder = tempfile::tempdir().expect("a temporary folder");
        files(&report(
            folder.path(),
            &[
                ("latency.json", &records[0]),
                ("production.json", &records[1]),
            ],
        ))
    };
    let (first, second) = (report_files(), report_files());
    assert_eq!(
        first.keys().collect::<Vec<_>>(),
        second.keys().collect::<Vec<_>>()
    );
    for (name, bytes) in &first {
        assert!(*bytes == second[name], "{name} differs");
    }
}

#[test]
fn what_the_numbers_say_is_said() {
    let text = markdown_of(&[
        ("latency.json", &latency()),
        ("production.json", &production()),
    ]);
    for sentence in [
        // 20 ms of queue and 10 of decode a token, and some prefill.
        "Waiting dominates",
        "Latency grows in a straight line with the output: 10.",
        "A longer prompt takes 56.0 ms longer: 120 against 8 prompt tokens, 50 output tokens",
        // 12 tokens: 240 ms + 110 ms + at most 60 ms of prefill.
        "ultra-short Q&A (20 requests) keep 1 s (100 % of them within it)",
        "long-form &lt;b> (20 requests) do not keep 5 s (0 % of them within it)",
        "the tokens that a request generates (",
        "Equal requests take equal time",
    ] {
        assert!(text.contains(sentence), "no \"{sentence}\" in:\n{text}");
    }
}

#[test]
fn a_rule_without_its_data_says_nothing_and_its_figure_names_a_workload() {
    let mut plain = production();
    for request in &mut plain.requests {
        request.timings = None;
        request.class = None;
        request.usage = None;
        request.gaps_ms.clear();
    }
    plain.run.server.samples.clear();
    plain.run.server.stats_before = json!(null);
    plain.run.server.stats_after = json!(null);
    let text = markdown_of(&[("run.json", &plain)]);
    for topic in [
        "What dominates",
        "Output length",
        "Prompt length",
        "Sequence length",
        "Requests at once",
        "Consistency",
        "Next knob",
    ] {
        assert!(
            !text.contains(&format!("**{topic}")),
            "{topic} is said of nothing:\n{text}"
        );
    }
    for line in [
        "- Use cases: it takes requests of two named classes or more; the workload `production`",
        "- Consistency: it takes",
        "- Where the time goes: it takes",
    ] {
        assert!(text.contains(line), "no \"{line}\" in:\n{text}");
    }
    assert!(!text.contains("NaN"), "{text}");
}

#[test]
fn failed_requests_break_an_objective_and_are_told() {
    let mut failing = production();
    for request in failing
        .requests
        .iter_mut()
        .filter(|r| r.class.as_deref() == Some("ultra-short Q&A"))
        .take(2)
    {
        request.status = Some(429);
        request.failure = Some(Failure::new(FailureReason::Status, "full"));
    }
    failing.run.server.stats_before = json!({"settings": {"queue_max_size": 4}});
    let text = markdown_of(&[("run.json", &failing)]);
    for sentence in [
        "2 of 100 requests failed (2.0 %): 2 HTTP 429.",
        "ultra-short Q&A (20 requests) do not keep 5 s (90 % of them within it)",
        "QUEUE\\_MAX\\_SIZE, now 4: the queue was full for 2 requests",
    ] {
        assert!(text.contains(sentence), "no \"{sentence}\" in:\n{text}");
    }
}

#[test]
fn requests_that_ran_into_the_servers_timeout_name_it() {
    let mut slow = production();
    for request in slow
        .requests
        .iter_mut()
        .filter(|r| r.end_ms - r.sent_ms >= 12_000.0)
    {
        request.failure = Some(Failure::new(FailureReason::ErrorEvent, "timed out"));
    }
    slow.run.server.stats_before = json!({"settings": {"request_timeout_s": 12.0}});
    let text = markdown_of(&[("run.json", &slow)]);
    let sentence = "REQUEST\\_TIMEOUT, now 12 s, or less load: 20 requests failed when it was over";
    assert!(text.contains(sentence), "no \"{sentence}\" in:\n{text}");
}

#[test]
fn runs_without_a_success_give_no_report() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut failed = production();
    for request in &mut failed.requests {
        request.failure = Some(Failure::new(FailureReason::Timeout, "late"));
    }
    let json = failed.to_json().expect("JSON");
    fs::write(folder.path().join("run.json"), json).expect("a writable folder");
    let error =
        run_in(folder.path(), &args(&["report", "run.json"])).expect_err("nothing to report");
    assert!(
        error.to_string().contains("no request succeeded"),
        "{error}"
    );
    assert!(!folder.path().join("run-report").exists());
}

#[test]
fn each_block_of_a_run_in_turn_is_a_load_of_its_own() {
    let recorded = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("benches/results/20261125T172310Z-ab.json")
        .display()
        .to_string();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let flags = ["report", &recorded, "--output", "report"];
    run_in(folder.path(), &args(&flags)).expect("a report");
    let report = fs::read_to_string(folder.path().join("report/report.md")).expect("a report");
    let (loads, _) = report.split_once("## Reading").expect("a reading");
    let rows = |side: &str| {
        let is_of_side = |line: &&str| line.starts_with(&format!("| {side} "));
        loads.lines().filter(is_of_side).count()
    };
    let blocks = AbRecord::read(Path::new(&recorded))
        .expect("a record")
        .blocks;
    for side in ["A", "B"] {
        assert_eq!(rows(side), blocks.len() / 2, "{loads}");
    }
    let first = r"| B 1: ENABLE\_BATCHING=true, ";
    assert!(loads.contains(first), "{loads}");
}

#[test]
fn every_metric_that_the_table_of_reports_names_is_in_a_record() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/reports.md");
    let table = fs::read_to_string(path).expect("benches/reports.md");
    let record = bench(Script::Sound, "", &SMALL).record;
    let record: serde_json::Value =
        serde_json::from_str(&record.to_json().expect("JSON")).expect("JSON");
    let named = table.split('`').skip(1).step_by(2);
    let mut found = 0;
    for path in named.filter(|name| name.starts_with("metrics.") && !name.ends_with('…')) {
        assert!(
            record
                .pointer(&format!("/{}", path.replace('.', "/")))
                .is_some(),
            "{path} is in no record"
        );
        found += 1;
    }
    assert!(found > 30, "{found} metrics are named");
}
