//! Reasons not to trust the numbers.

use super::Finding;
use crate::bench::report::figures::Source;
use crate::bench::report::words::{counted, percent};

/// Of one core. Above it the load generator takes from the server what it measures.
const CLIENT_CPU_SHARE_MAX: f64 = 0.15;

pub fn read(source: Source<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for load in source.loads {
        let metrics = &load.metrics;
        if !load.faults.is_empty() {
            findings.push(Finding {
                topic: "Void",
                claim: format!(
                    "The run {} counts for nothing: {}.",
                    load.file,
                    load.faults.join("; ")
                ),
                rule: "By the rules by which bench itself calls a run void: a client that sent late, a cache that was not as declared, prompts of another length, or books of client and server that do not agree.",
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
