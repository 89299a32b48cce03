//! What each kind of sharing took from the prefix cache, and what it saved.

use std::fmt::Write as _;

use crate::bench::compare::aligned;
use crate::bench::figures::{or_na, percent};
use crate::bench::metrics::Metrics;
use crate::bench::record::Record;
use crate::bench::statistics::Summary;

const HEADING: [&str; 8] = [
    "kind",
    "requests",
    "prompt tokens",
    "from the cache",
    "hit rate, tokens",
    "hit rate, requests",
    "TTFT p50, hit (ms)",
    "TTFT p50, miss (ms)",
];

pub fn render(record: &Record) -> String {
    let mut rows = vec![HEADING.map(str::to_owned).to_vec()];
    let classes = record.classes();
    let parts = classes.iter().map(|class| (*class, record.of_class(class)));
    for (name, part) in parts.chain([("all", record.clone())]) {
        rows.push(row(name, &part));
    }
    let mut text = format!(
        "Prefix cache, by what the prompts share\n\n{}",
        aligned(&rows)
    );
    let server = Metrics::of(record).server;
    let _ = writeln!(
        text,
        "\nA hit took at least half of its prompt from the cache. Evictions: {} blocks in {} ms.",
        or_na(server.evicted_blocks),
        or_na(server.eviction_time_ms.map(|ms| format!("{ms:.2}")))
    );
    text
}

fn row(name: &str, part: &Record) -> Vec<String> {
    let metrics = Metrics::of(part);
    let usages = || {
        part.requests
            .iter()
            .filter(|r| r.is_success())
            .filter_map(|r| r.usage)
    };
    let cached: Option<u64> = usages().map(|usage| usage.cached_tokens).sum();
    let ttft = |wanted: bool| {
        let samples: Vec<f64> = part
            .requests
            .iter()
            .filter(|request| request.is_success())
            .filter_map(|request| {
                let usage = request.usage?;
                let is_hit = usage.cached_tokens? * 2 >= usage.prompt_tokens;
                request.ttft_ms().filter(|_| is_hit == wanted)
            })
            .collect();
        or_na(Summary::of_ms(&samples).map(|s| format!("{:.2}", s.p50)))
    };
    vec![
        name.to_owned(),
        metrics.num_requests.to_string(),
        or_na(metrics.prompt_tokens),
        or_na(cached),
        or_na(metrics.cached_token_rate.map(percent)),
        or_na(metrics.cached_request_rate.map(percent)),
        ttft(true),
        ttft(false),
    ]
}
