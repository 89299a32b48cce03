//! One row a phase: how the server fares as the load changes.

use crate::bench::compare::aligned;
use crate::bench::figures::{or_na, percent};
use crate::bench::metrics::Metrics;
use crate::bench::record::Record;
use crate::bench::statistics::Summary;

const HEADING: [&str; 12] = [
    "load",
    "asked (req/s)",
    "served (req/s)",
    "output (tok/s)",
    "TTFT p50 (ms)",
    "TTFT p99 (ms)",
    "TPOT p50 (ms)",
    "E2E p50 (ms)",
    "E2E p99 (ms)",
    "sent late p99 (ms)",
    "failed",
    "good",
];

pub fn render(record: &Record) -> String {
    let mut rows = vec![HEADING.map(str::to_owned).to_vec()];
    for (index, phase) in record.run.phases.iter().enumerate() {
        let metrics = Metrics::of(&record.of_phase(index));
        let latencies = &metrics.latencies;
        let ms = |summary: Option<Summary>, of: fn(Summary) -> f64| {
            or_na(summary.map(|s| format!("{:.2}", of(s))))
        };
        let rate = |rate: Option<f64>| or_na(rate.map(|rate| format!("{rate:.2}")));
        rows.push(vec![
            phase.name.clone(),
            rate(phase.arrivals.request_rate_per_s()),
            rate(Some(metrics.request_throughput_per_s)),
            rate(metrics.output_throughput_tokens_per_s),
            ms(latencies.ttft_ms, |s| s.p50),
            ms(latencies.ttft_ms, |s| s.p99),
            ms(latencies.tpot_ms, |s| s.p50),
            ms(latencies.e2e_ms, |s| s.p50),
            ms(latencies.e2e_ms, |s| s.p99),
            ms(latencies.send_delay_ms, |s| s.p99),
            percent(metrics.error_rate),
            or_na(metrics.goodput.map(|goodput| percent(goodput.good_rate))),
        ]);
    }
    format!(
        "Load by load; latencies count from when a request was due\n\n{}",
        aligned(&rows)
    )
}
