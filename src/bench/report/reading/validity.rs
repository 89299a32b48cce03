//! Reasons not to trust the numbers.

use super::Finding;
use crate::bench::cache_state::CacheCheck;
use crate::bench::report::figures::Source;
use crate::bench::report::words::{counted, percent, time};

/// Most that an open loop may lag behind its schedule; timers are good to 1 ms.
const SEND_DELAY_P99_MAX_MS: f64 = 10.0;
/// Of one core. Above it the load generator takes from the server what it measures.
const CLIENT_CPU_SHARE_MAX: f64 = 0.15;

pub fn read(source: Source<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for load in source.loads {
        let metrics = &load.metrics;
        let is_open = load.record.run.client.request_rate_per_s.is_some();
        let lag = metrics
            .latencies
            .send_delay_ms
            .filter(|lag| is_open && lag.p99 > SEND_DELAY_P99_MAX_MS);
        if let Some(lag) = lag {
            findings.push(Finding {
                topic: "Void",
                claim: format!(
                    "{}: the client sent its requests {} late at P99, so the latencies are not the server's alone.",
                    load.name,
                    time(lag.p99)
                ),
                rule: "An open loop is void when the 99th percentile of send time - due time is above 10 ms.",
            });
        }
        if let CacheCheck::Refuted(_, found) = CacheCheck::of(&load.record) {
            findings.push(Finding {
                topic: "Void",
                claim: format!("{}: the prefix cache was not in the state that was declared: {found}.", load.name),
                rule: "Said when the declared state of the cache does not agree with the tokens that the server says it took from it.",
            });
        }
        if metrics.error_rate > 0.0 {
            let reasons: Vec<String> = metrics
                .failures
                .iter()
                .map(|(reason, n)| format!("{n} {reason}"))
                .collect();
            findings.push(Finding {
                topic: "Failures",
                claim: format!(
                    "{}: {} of {} failed ({}): {}. Latencies and throughput are those of the others.",
                    load.name,
                    metrics.num_requests - metrics.num_successes,
                    counted(metrics.num_requests, "request"),
                    percent(metrics.error_rate),
                    reasons.join(", ")
                ),
                rule: "Said when any request failed.",
            });
        }
        if metrics.client_cpu_share > CLIENT_CPU_SHARE_MAX {
            findings.push(Finding {
                topic: "Client",
                claim: format!(
                    "{}: the load generator took {} of one core; on a shared machine the server had that much less.",
                    load.name,
                    percent(metrics.client_cpu_share)
                ),
                rule: "Said when the client's CPU time is above 15 % of the duration.",
            });
        }
    }
    findings
}
