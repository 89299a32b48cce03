//! How far the slow requests are from the median, and what goes with it.

use super::Finding;
use crate::bench::report::figures::Source;
use crate::bench::report::loads::Answer;
use crate::bench::report::words::{percent, time, times};
use crate::bench::statistics::line;

/// P95 / P50 from which there is a tail to speak of.
const TAIL_FROM: f64 = 1.5;
/// Explained variance from which something goes with latency.
const EXPLAINED_FROM: f64 = 0.5;
/// Fewest requests of which a P95 is not just the slowest.
const REQUESTS_MIN: usize = 20;

/// Something of a request that may go with its latency.
type Quantity = fn(&Answer) -> Option<f64>;

pub fn read(source: Source<'_>) -> Vec<Finding> {
    let load = source.busiest(|load| load.answers.len() >= REQUESTS_MIN);
    let Some((load, e2e_ms)) = load.and_then(|load| Some((load, load.metrics.latencies.e2e_ms?)))
    else {
        return Vec::new();
    };
    let ratio = e2e_ms.p95 / e2e_ms.p50;
    if ratio < TAIL_FROM {
        return vec![Finding {
            topic: "Tail",
            claim: format!(
                "The slow requests are close to the others: P95 is {}, {} the median of {} ({}).",
                time(e2e_ms.p95),
                times(ratio),
                time(e2e_ms.p50),
                load.name
            ),
            rule: "Said when P95 is less than 1.5 times P50, of 20 requests or more.",
        }];
    }
    let causes: [(&str, Quantity); 3] = [
        ("the tokens that a request generates", |a| {
            a.output_tokens.map(|n| n as f64)
        }),
        ("the length of its prompt", |a| {
            a.prompt_tokens.map(|n| n as f64)
        }),
        ("its time in the queue", |a| {
            a.timings.map(|timings| timings.queue_ms)
        }),
    ];
    let explained: Vec<String> = causes
        .into_iter()
        .filter_map(|(name, of)| Some((name, explained(&load.answers, of)?)))
        .filter(|(_, r_squared)| *r_squared >= EXPLAINED_FROM)
        .map(|(name, r_squared)| format!("{name} ({} of its variance)", percent(r_squared)))
        .collect();
    let because = match explained.is_empty() {
        true => String::new(),
        false => format!(
            " In a straight line, latency goes with {}.",
            explained.join(", and with ")
        ),
    };
    vec![Finding {
        topic: "Tail",
        claim: format!(
            "One request in twenty takes {} or more, {} the median of {} ({}).{because}",
            time(e2e_ms.p95),
            times(ratio),
            time(e2e_ms.p50),
            load.name
        ),
        rule: "Said when P95 is 1.5 times P50 or more, of 20 requests or more; a cause is named when a straight line through it explains half of the variance of latency or more.",
    }]
}

fn explained(answers: &[Answer], of: Quantity) -> Option<f64> {
    let points: Option<Vec<(f64, f64)>> = answers
        .iter()
        .map(|answer| Some((of(answer)?, answer.e2e_ms)))
        .collect();
    line::fit(&points?)
        .filter(|fit| fit.slope > 0.0)
        .map(|fit| fit.r_squared)
}
