//! A run as `vllm bench serve --save-result --save-detailed` writes it, for tools that read that.
//!
//! Its definitions, where they are not ours: times count from the sending of a request, percentiles
//! lie between two samples, the standard deviation is the population's, and what no request has is 0.

pub mod read;

use serde_json::{Map, Value, json};

use super::load::Arrivals;
use super::metrics::Metrics;
use super::record::{Record, RequestRecord};
use super::statistics::interpolated;

/// The file's text.
///
/// # Errors
/// A value that JSON cannot hold.
pub fn render(record: &Record) -> anyhow::Result<String> {
    let mut text = serde_json::to_string(&document(record))?;
    text.push('\n');
    Ok(text)
}

fn document(record: &Record) -> Value {
    let run = &record.run;
    let metrics = Metrics::of(record);
    let mut document = json!({
        "date": compact(&run.started),
        "endpoint_type": "openai",
        "backend": "openai",
        "label": run.client.workload.as_ref().map(|workload| &workload.name),
        "model_id": run.server.model,
        "tokenizer_id": run.server.model,
        "num_prompts": record.requests.len(),
        "request_rate": run.client.request_rate_per_s.map_or(json!("inf"), |rate| json!(rate)),
        "burstiness": burstiness(record),
        "max_concurrency": run.client.concurrency,
        "duration": metrics.duration_s,
        "completed": metrics.num_successes,
        "failed": metrics.num_requests - metrics.num_successes,
        "total_input_tokens": metrics.prompt_tokens.unwrap_or(0),
        "total_output_tokens": metrics.output_tokens.unwrap_or(0),
        "request_throughput": metrics.request_throughput_per_s,
        "request_goodput": metrics.goodput.map(|goodput| goodput.goodput_per_s),
        "output_throughput": metrics.output_throughput_tokens_per_s.unwrap_or(0.0),
        "total_token_throughput": metrics.total_throughput_tokens_per_s.unwrap_or(0.0),
        "max_output_tokens_per_s": metrics.peak_output_throughput_tokens_per_s.unwrap_or(0.0),
        "max_concurrent_requests": metrics.peak_concurrent_requests,
        "rtfx": 0.0,
    });
    if let Value::Object(fields) = &mut document {
        fields.extend(details(record));
        fields.extend(statistics(record));
    }
    document
}

/// 2026-01-01T00:00:00Z as 20260101-000000.
fn compact(started: &str) -> String {
    let digits = started.replace(['-', ':', 'Z'], "");
    digits.replace('T', "-")
}

fn burstiness(record: &Record) -> f64 {
    match record.run.phases.first().map(|phase| phase.arrivals) {
        Some(Arrivals::Open { burstiness, .. }) => burstiness,
        _ => 1.0,
    }
}

/// One entry a request, in seconds; a failed one has what it had.
fn details(record: &Record) -> Map<String, Value> {
    let all = |of: &dyn Fn(&RequestRecord) -> Value| -> Value {
        record.requests.iter().map(of).collect()
    };
    let usage = |request: &RequestRecord| request.usage.unwrap_or_default();
    let seconds = |ms: Option<f64>| json!(ms.unwrap_or(0.0) / 1e3);
    let itl = |request: &RequestRecord| {
        let gaps = request.gaps_ms.iter().map(|gap| gap / 1e3);
        Value::from(gaps.collect::<Vec<f64>>())
    };
    let error = |request: &RequestRecord| {
        let failure = request.failure.as_ref();
        json!(failure.map_or("", |failure| &failure.message))
    };
    let fields = [
        ("input_lens", all(&|r| json!(usage(r).prompt_tokens))),
        (
            "output_lens",
            all(&|r| json!(r.output_tokens().unwrap_or(0))),
        ),
        ("ttfts", all(&|r| seconds(since_sent_ms(r)))),
        ("itls", all(&itl)),
        ("latencies", all(&|r| seconds(Some(r.end_ms - r.sent_ms)))),
        ("start_times", all(&|r| seconds(Some(r.sent_ms)))),
        ("queue_times", all(&|r| seconds(Some(r.sent_ms - r.due_ms)))),
        // Texts are not kept: only their lengths in tokens count here.
        ("generated_texts", all(&|_| json!(""))),
        ("errors", all(&error)),
    ];
    fields
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

fn since_sent_ms(request: &RequestRecord) -> Option<f64> {
    request.first_token_ms.map(|first| first - request.sent_ms)
}

fn statistics(record: &Record) -> Map<String, Value> {
    let successes = || {
        record
            .requests
            .iter()
            .filter(|request| request.is_success())
    };
    let samples: [(&str, Vec<f64>); 4] = [
        ("ttft", successes().filter_map(since_sent_ms).collect()),
        (
            "tpot",
            successes().filter_map(RequestRecord::tpot_ms).collect(),
        ),
        ("itl", successes().flat_map(|r| r.gaps_ms.clone()).collect()),
        ("e2el", successes().map(|r| r.end_ms - r.sent_ms).collect()),
    ];
    let mut fields = Map::new();
    for (name, samples) in samples {
        let count = samples.len().max(1) as f64;
        let mean = samples.iter().sum::<f64>() / count;
        let squares: f64 = samples.iter().map(|x| (x - mean).powi(2)).sum();
        for (statistic, value) in [
            ("mean", mean),
            ("median", interpolated(&samples, 0.5).unwrap_or(0.0)),
            ("std", (squares / count).sqrt()),
            ("p99", interpolated(&samples, 0.99).unwrap_or(0.0)),
        ] {
            fields.insert(format!("{statistic}_{name}_ms"), json!(value));
        }
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::metrics::tests::{failed_with_429, record, request};

    #[test]
    fn the_document_has_the_fields_that_its_readers_look_for() {
        let run = record(vec![request(0, 5), request(1, 3), failed_with_429(2)]);
        let document = document(&run);
        for (name, value) in [
            ("date", json!("20260101-000000")),
            ("completed", json!(2)),
            ("failed", json!(1)),
            ("request_rate", json!("inf")),
            ("total_output_tokens", json!(8)),
            ("output_lens", json!([5, 3, 5])),
            ("mean_tpot_ms", json!(10.0)),
            ("median_itl_ms", json!(10.0)),
            ("request_goodput", Value::Null),
        ] {
            assert_eq!(document[name], value, "{name}");
        }
        // Sent at 100.5 ms, first token at 150 ms.
        let ttft = document["mean_ttft_ms"].as_f64().expect("a number");
        assert!((ttft - 49.5).abs() < 1e-9, "{ttft}");
        assert_eq!(document["itls"][0].as_array().map(Vec::len), Some(4));
        let p99 = document["p99_e2el_ms"].as_f64().expect("a number");
        assert!((p99 - (69.5 + 0.99 * 20.0)).abs() < 1e-9, "{p99}");
    }
}
