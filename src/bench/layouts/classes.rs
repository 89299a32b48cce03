//! A mixed load by its classes: use cases, or classes of sequence length.

use std::fmt::Write as _;

use crate::bench::compare::aligned;
use crate::bench::figures::{NOT_AVAILABLE, or_na, percent};
use crate::bench::metrics::Metrics;
use crate::bench::record::{Record, RequestRecord};
use crate::bench::statistics::Summary;

type OfSummary = fn(Summary) -> f64;

const PERCENTILES: [(&str, OfSummary); 6] = [
    ("P50", |s| s.p50),
    ("P90", |s| s.p90),
    ("P95", |s| s.p95),
    ("P99", |s| s.p99),
    ("max", |s| s.max),
    ("mean", |s| s.mean),
];

/// Latency by use case, over all requests, throughput, and queue against generation time.
pub fn use_cases(record: &Record) -> String {
    let metrics = Metrics::of(record);
    let mut text = String::from("Latency by use case (s)\n\n");
    text.push_str(&by_class(record, "use case", &[]));
    write_throughput(&mut text, record, &metrics);
    write_queue(&mut text, record);
    text
}

/// Latency by class of sequence length, and how it grows from the shortest.
pub fn sequence_lengths(record: &Record) -> String {
    let metrics = Metrics::of(record);
    let base = by_length(record).first().and_then(|class| {
        let metrics = Metrics::of(&record.of_class(class));
        metrics.latencies.e2e_ms.map(|s| s.p95)
    });
    let scaling = |summary: Option<Summary>| {
        let factor = summary.zip(base).map(|(s, base)| s.p95 / base);
        or_na(factor.map(|factor| format!("{factor:.1}x")))
    };
    let mut text = String::from("Latency by sequence length, prompt and output together (s)\n\n");
    text.push_str(&by_class(record, "class", &[("P95 scaling", &scaling)]));
    write_throughput(&mut text, record, &metrics);
    text
}

/// The classes by what their requests ask for in the mean, prompt and answer together, the least
/// first: requests are sent mixed, so that the order of their first ones says nothing.
fn by_length(record: &Record) -> Vec<&str> {
    let tokens = |class: &&str| {
        let part = record.of_class(class);
        let asked = part.requests.iter().map(|request| {
            request.asked_prompt_tokens.unwrap_or(0) + request.max_tokens.unwrap_or(0)
        });
        asked.sum::<usize>() / part.requests.len()
    };
    let mut classes = record.classes();
    classes.sort_by_cached_key(tokens);
    classes
}

type Extra<'a> = (&'a str, &'a dyn Fn(Option<Summary>) -> String);

/// A row for each class, and one for all requests.
fn by_class(record: &Record, first: &str, extras: &[Extra]) -> String {
    let mut heading = vec![first.to_owned(), "requests".to_owned(), "failed".to_owned()];
    heading.extend(["tokens in", "tokens out"].map(str::to_owned));
    heading.extend(PERCENTILES.map(|(name, _)| name.to_owned()));
    heading.push("tok/s each".to_owned());
    heading.extend(extras.iter().map(|(name, _)| (*name).to_owned()));
    let mut rows = vec![heading];
    let classes = by_length(record);
    let parts = classes.iter().map(|class| (*class, record.of_class(class)));
    for (name, part) in parts.chain([("all", record.clone())]) {
        let metrics = Metrics::of(&part);
        let latency = metrics.latencies.e2e_ms;
        let mean_tokens = |sum: Option<u64>| {
            let mean = sum.map(|sum| sum as f64 / metrics.num_successes as f64);
            or_na(mean.map(|mean| format!("{mean:.0}")))
        };
        let mut row = vec![
            name.to_owned(),
            metrics.num_requests.to_string(),
            (metrics.num_requests - metrics.num_successes).to_string(),
            mean_tokens(metrics.prompt_tokens),
            mean_tokens(metrics.output_tokens),
        ];
        row.extend(PERCENTILES.map(|(_, of)| seconds(latency.map(of))));
        row.push(own_speed(&part));
        row.extend(extras.iter().map(|(_, of)| of(latency)));
        rows.push(row);
    }
    aligned(&rows)
}

/// Output tokens a second of a request's own time, the mean over its kind.
fn own_speed(record: &Record) -> String {
    let speeds: Vec<f64> = record
        .requests
        .iter()
        .filter(|request| request.is_success())
        .filter_map(|request| Some(request.output_tokens()? as f64 / request.e2e_ms() * 1e3))
        .collect();
    match speeds.is_empty() {
        true => NOT_AVAILABLE.to_owned(),
        false => format!("{:.1}", speeds.iter().sum::<f64>() / speeds.len() as f64),
    }
}

fn write_throughput(text: &mut String, record: &Record, metrics: &Metrics) {
    let tokens = metrics.output_tokens.zip(metrics.prompt_tokens);
    let _ = writeln!(
        text,
        "\nTotal tokens:  {} generated, {} with the prompts\nTotal time:    {:.1} s",
        or_na(metrics.output_tokens),
        or_na(tokens.map(|(output, prompt)| output + prompt)),
        metrics.duration_s
    );
    let throughput = metrics.output_throughput_tokens_per_s;
    let _ = writeln!(
        text,
        "Throughput:    {} tokens/s generated\nRequest rate:  {:.2} requests/s",
        or_na(throughput.map(|x| format!("{x:.1}"))),
        metrics.request_throughput_per_s
    );
    let at_once = record.run.client.concurrency;
    let _ = writeln!(
        text,
        "Batch size:    {} requests at once, {} in a step on average",
        or_na(at_once),
        or_na(metrics.server.mean_batch_size.map(|x| format!("{x:.2}")))
    );
}

/// By the server's own account of each request; what it leaves is the way to and fro.
fn write_queue(text: &mut String, record: &Record) {
    let timed: Vec<(f64, f64, f64)> = record
        .requests
        .iter()
        .filter(|request: &&RequestRecord| request.is_success())
        .filter_map(|request| {
            let timings = request.timings?;
            let generation = timings.prefill_ms + timings.decode_ms;
            Some((request.e2e_ms(), timings.queue_ms, generation))
        })
        .collect();
    if timed.is_empty() {
        text.push_str("\nQueue and generation time: the server does not tell\n");
        return;
    }
    let summary = |of: fn(&(f64, f64, f64)) -> f64| {
        let samples: Vec<f64> = timed.iter().map(of).collect();
        Summary::of_ms(&samples)
    };
    let parts = [
        ("total latency", summary(|t| t.0)),
        ("queue time", summary(|t| t.1)),
        ("generation time", summary(|t| t.2)),
    ];
    let mut rows = vec![
        ["seconds", "P50", "P90", "P95", "P99"]
            .map(str::to_owned)
            .to_vec(),
    ];
    for (name, summary) in parts {
        let cells = PERCENTILES[..4]
            .iter()
            .map(|(_, of)| seconds(summary.map(of)));
        rows.push([name.to_owned()].into_iter().chain(cells).collect());
    }
    let _ = write!(text, "\n{}", aligned(&rows));
    let sum = |of: fn(&(f64, f64, f64)) -> f64| timed.iter().map(of).sum::<f64>();
    let (queue, generation) = (sum(|t| t.1), sum(|t| t.2));
    if queue + generation > 0.0 {
        let waiting = queue / (queue + generation);
        let _ = writeln!(
            text,
            "\nOf all time in the server: {} waiting, {} working",
            percent(waiting),
            percent(1.0 - waiting)
        );
    }
}

fn seconds(ms: Option<f64>) -> String {
    or_na(ms.map(|ms| format!("{:.3}", ms / 1e3)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::metrics::tests::{failed_with_429, record, request};
    use crate::bench::record::ServerTimings;

    fn mixed() -> Record {
        let of_class = |class: &str, mut request: RequestRecord| {
            request.class = Some(class.to_owned());
            request.max_tokens = request.output_tokens().map(|tokens| tokens as usize);
            request.timings = Some(ServerTimings {
                queue_ms: 30.0,
                prefill_ms: 4.0,
                decode_ms: 6.0,
            });
            request
        };
        record(vec![
            of_class("long", request(1, 41)),
            of_class("tiny", request(0, 5)),
            of_class("tiny", failed_with_429(2)),
        ])
    }

    fn cells(text: &str, start: &str) -> Vec<String> {
        let line = text.lines().find(|line| line.starts_with(start));
        let line = line.unwrap_or_else(|| panic!("no {start} in {text}"));
        line.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn each_class_has_its_own_percentiles_and_its_own_failures() {
        let text = use_cases(&mixed());
        assert_eq!(
            cells(&text, "tiny")[..6],
            ["tiny", "2", "1", "20", "5", "0.090"]
        );
        assert_eq!(
            cells(&text, "long")[..6],
            ["long", "1", "0", "20", "41", "0.450"]
        );
        assert_eq!(cells(&text, "all")[1..3], ["3", "1"]);
        assert!(text.contains("75.0 % waiting, 25.0 % working"), "{text}");
    }

    #[test]
    fn scaling_is_to_the_shortest_class() {
        let text = sequence_lengths(&mixed());
        assert_eq!(
            cells(&text, "tiny").last().map(String::as_str),
            Some("1.0x")
        );
        assert_eq!(
            cells(&text, "long").last().map(String::as_str),
            Some("5.0x")
        );
    }
}
