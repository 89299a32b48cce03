use serde_json::{Value, json};

use super::*;
use crate::bench::figures::Figures;
use crate::bench::record::{
    ClientSettings, FORMAT_VERSION, Failure, FailureReason, Run, ServerRecord, judge_missing_usage,
};

/// Due at 100, first token at 150, then one each 10 ms.
pub fn request(index: usize, tokens: u64) -> RequestRecord {
    RequestRecord {
        index,
        due_ms: 100.0,
        sent_ms: 100.5,
        first_token_ms: Some(150.0),
        gaps_ms: vec![10.0; tokens as usize - 1],
        end_ms: 150.0 + 10.0 * (tokens - 1) as f64,
        usage: Some(Usage {
            prompt_tokens: 20,
            completion_tokens: tokens,
            cached_tokens: Some(0),
        }),
        status: Some(200),
        ..RequestRecord::default()
    }
}

fn failed(index: usize, reason: FailureReason, status: Option<u16>) -> RequestRecord {
    RequestRecord {
        status,
        failure: Some(Failure::new(reason, "")),
        ..request(index, 5)
    }
}

pub fn failed_with_429(index: usize) -> RequestRecord {
    failed(index, FailureReason::Status, Some(429))
}

pub fn record(requests: Vec<RequestRecord>) -> Record {
    Record {
        run: Run {
            format_version: FORMAT_VERSION,
            tool: "candlepower 0.0.0".to_owned(),
            started: "2026-01-01T00:00:00Z".to_owned(),
            command: "candlepower bench".to_owned(),
            environment: BTreeMap::new(),
            commit: None,
            machine: Default::default(),
            client: ClientSettings {
                requests: requests.len(),
                concurrency: Some(1),
                request_rate_per_s: None,
                warmup: 0,
                workload: None,
                max_tokens: Some(5),
                prompt_words: Some("20".parse().expect("a number of words")),
                repeat_ratio: Some(0.0),
                cache_state: None,
                slo: None,
                max_send_delay_ms: None,
                search: None,
                seed: 1,
                ignore_eos: true,
                request_timeout_s: 10.0,
                prompts_sha256: String::new(),
            },
            server: ServerRecord {
                endpoint: "http://h".to_owned(),
                api: "/v1/completions".to_owned(),
                model: None,
                stats_before: Value::Null,
                stats_after: Value::Null,
                samples: Vec::new(),
            },
            phases: Vec::new(),
            duration_ms: 2000.0,
            client_cpu_ms: 100,
        },
        requests,
    }
}

fn mean(summary: Option<Summary>) -> Option<f64> {
    summary.map(|summary| summary.mean)
}

#[test]
fn latencies_count_from_the_due_time_and_tpot_leaves_the_first_token_out() {
    let metrics = Metrics::of(&record(vec![request(0, 5)]));
    let latencies = metrics.latencies;
    assert_eq!(mean(latencies.ttft_ms), Some(50.0));
    assert_eq!(mean(latencies.e2e_ms), Some(90.0));
    assert_eq!(mean(latencies.tpot_ms), Some(10.0));
    assert_eq!(mean(latencies.send_delay_ms), Some(0.5));
    assert_eq!(latencies.itl_ms.map(|itl| itl.count), Some(4));
}

#[test]
fn a_request_with_one_token_has_no_tpot_and_no_gap() {
    let latencies = Metrics::of(&record(vec![request(0, 1)])).latencies;
    assert_eq!(latencies.tpot_ms, None);
    assert_eq!(latencies.itl_ms, None);
    assert_eq!(mean(latencies.ttft_ms), Some(50.0));
}

#[test]
fn tpot_divides_by_usage_and_not_by_events() {
    let two_tokens_an_event = RequestRecord {
        gaps_ms: vec![20.0; 2],
        ..request(0, 5)
    };
    let metrics = Metrics::of(&record(vec![two_tokens_an_event]));
    assert_eq!(mean(metrics.latencies.tpot_ms), Some(10.0));
    assert_eq!(metrics.output_tokens, Some(5));
    assert_eq!(metrics.tokens_per_event, Some(5.0 / 3.0));
}

#[test]
fn failures_are_counted_by_reason_and_give_no_tokens_or_latencies() {
    let metrics = Metrics::of(&record(vec![
        request(0, 5),
        failed(1, FailureReason::Status, Some(429)),
        failed(2, FailureReason::Status, Some(429)),
        failed(3, FailureReason::CutStream, Some(200)),
    ]));
    assert_eq!(metrics.num_successes, 1);
    assert_eq!(metrics.error_rate, 0.75);
    let failures: Vec<(&str, usize)> = metrics
        .failures
        .iter()
        .map(|(reason, count)| (reason.as_str(), *count))
        .collect();
    assert_eq!(failures, [("HTTP 429", 2), ("stream cut short", 1)]);
    assert_eq!(metrics.output_tokens, Some(5));
    assert_eq!(metrics.latencies.ttft_ms.map(|ttft| ttft.count), Some(1));
}

#[test]
fn throughputs_divide_by_the_whole_duration() {
    let metrics = Metrics::of(&record(vec![request(0, 5), request(1, 3)]));
    assert_eq!(metrics.request_throughput_per_s, 1.0);
    assert_eq!(metrics.output_throughput_tokens_per_s, Some(4.0));
    assert_eq!(metrics.total_throughput_tokens_per_s, Some(24.0));
    assert_eq!(metrics.client_cpu_share, 0.05);
}

#[test]
fn a_run_without_a_success_has_an_error_rate_and_no_figures() {
    let metrics = Metrics::of(&record(vec![failed(0, FailureReason::Timeout, None)]));
    assert_eq!(metrics.error_rate, 1.0);
    assert_eq!(metrics.output_tokens, None);
    assert_eq!(metrics.cached_request_rate, None);
    assert_eq!(metrics.latencies.e2e_ms, None);
}

#[test]
fn a_hit_is_the_servers_word_or_all_prompt_tokens_but_one() {
    let with_cached = |index, cached_tokens| RequestRecord {
        usage: Some(Usage {
            prompt_tokens: 20,
            completion_tokens: 5,
            cached_tokens,
        }),
        ..request(index, 5)
    };
    let hit = RequestRecord {
        cached: Some(true),
        ..with_cached(3, Some(0))
    };
    let metrics = Metrics::of(&record(vec![
        with_cached(0, Some(19)),
        with_cached(1, Some(18)),
        with_cached(2, Some(0)),
        hit,
    ]));
    assert_eq!(metrics.cached_request_rate, Some(0.5));
    assert_eq!(metrics.cached_token_rate, Some(37.0 / 80.0));

    let silent = Metrics::of(&record(vec![with_cached(0, None)]));
    assert_eq!(silent.cached_request_rate, None);
    assert_eq!(silent.cached_token_rate, None);
}

#[test]
fn an_answer_in_one_piece_has_no_ttft_but_an_end() {
    let whole = RequestRecord {
        first_token_ms: None,
        gaps_ms: Vec::new(),
        usage: None,
        end_ms: 400.0,
        ..request(0, 5)
    };
    let metrics = Metrics::of(&record(vec![whole]));
    assert_eq!(metrics.latencies.ttft_ms, None);
    assert_eq!(mean(metrics.latencies.e2e_ms), Some(300.0));
    assert_eq!(metrics.output_tokens, None);
    assert_eq!(metrics.output_throughput_tokens_per_s, None);
}

#[test]
fn a_server_without_usage_is_counted_by_events_and_one_answer_without_it_fails() {
    let without = |index| RequestRecord {
        usage: None,
        ..request(index, 5)
    };
    let mut none = vec![without(0), without(1)];
    judge_missing_usage(&mut none);
    let metrics = Metrics::of(&record(none));
    assert!(metrics.counted_by_events);
    assert_eq!(
        (metrics.num_successes, metrics.output_tokens),
        (2, Some(10))
    );

    let mut one = vec![request(0, 5), without(1)];
    judge_missing_usage(&mut one);
    let metrics = Metrics::of(&record(one));
    assert!(!metrics.counted_by_events);
    assert_eq!(metrics.failures.get("no usage"), Some(&1));
}

#[test]
fn server_figures_are_differences_and_peaks_over_the_run() {
    let mut run = record(vec![request(0, 5)]);
    let stats = |steps: u64, sequences: u64, hit: u64, evicted: u64| {
        json!({
            "batch": {"num_steps": steps, "num_step_sequences": sequences},
            "prefix": {"query_tokens": 100 + hit, "hit_tokens": hit},
            "evictions": {"num_evicted_blocks": evicted, "eviction_time_ms": evicted as f64 * 0.5},
            "kv_cache": {"capacity_tokens": 1024},
            "model": {"load_time_ms": 12.5},
        })
    };
    run.run.server.stats_before = stats(10, 10, 0, 1);
    run.run.server.stats_after = stats(20, 45, 30, 3);
    let sample = |memory, tokens| ServerSample {
        memory_bytes: Some(memory),
        kv_used_tokens: tokens,
        ..ServerSample::default()
    };
    run.run.server.samples = vec![
        sample(100, Some(5)),
        sample(300, Some(9)),
        sample(200, None),
    ];

    let server = Metrics::of(&run).server;
    assert_eq!(server.memory_peak_bytes, Some(300));
    assert_eq!(server.memory_mean_bytes, Some(200.0));
    assert_eq!(server.mean_batch_size, Some(3.5));
    assert_eq!(server.prefix_hit_tokens, Some(30));
    assert_eq!(server.prefix_query_tokens, Some(30));
    assert_eq!(server.evicted_blocks, Some(2));
    assert_eq!(server.eviction_time_ms, Some(1.0));
    assert_eq!(server.kv_peak_tokens, Some(9));
    assert_eq!(server.kv_peak_bytes, None);
    assert_eq!(server.kv_capacity_tokens, Some(1024));
    assert_eq!(server.model_load_time_ms, Some(12.5));
    assert_eq!(server.preemptions, None);
    assert_eq!(server.draft_tokens, None);
}

#[test]
fn drafts_are_shown_of_a_server_that_makes_them() {
    let mut run = record(vec![request(0, 5)]);
    let shown = |run: &Record| {
        let figures = Figures {
            record: run,
            metrics: &Metrics::of(run),
        };
        let rows = figures.results();
        rows.into_iter().find(|(name, _)| *name == "speculation")
    };
    run.run.server.stats_before = json!({"speculative": null});
    run.run.server.stats_after = json!({"speculative": null});
    assert_eq!(shown(&run), None);

    let stats = |drafted, accepted| json!({"speculative": {"num_draft_tokens": drafted, "num_accepted_tokens": accepted}});
    run.run.server.stats_before = stats(100, 50);
    run.run.server.stats_after = stats(300, 200);
    let (_, text) = shown(&run).expect("it drafts");
    assert_eq!(text, "150 of 200 draft tokens accepted (75.0 %)");
}
