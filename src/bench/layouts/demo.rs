//! A report of several small loads: overall statistics, a table, each load in full, and what they
//! show together. Times in milliseconds, memory in MB of 2^20 bytes.

use std::fmt::Write as _;

use crate::bench::figures::or_na;
use crate::bench::metrics::{Metrics, share};
use crate::bench::record::Record;
use crate::bench::statistics::Summary;

/// Failures with which a load at its limit is still fine, in percent.
const STRESS_ERROR_PERCENT_MAX: f64 = 10.0;

/// The phase that is meant to be too much.
const STRESS: &str = "stress_test";

pub fn render(record: &Record) -> String {
    let loads: Vec<Load> = record
        .run
        .phases
        .iter()
        .enumerate()
        .map(|(index, phase)| Load {
            name: &phase.name,
            metrics: Metrics::of(&record.of_phase(index)),
        })
        .collect();
    let mut text = String::from("# Benchmark Results\n\n");
    write_overall(&mut text, &loads);
    write_table(&mut text, &loads);
    text.push_str("## Detailed Metrics\n\n");
    for load in &loads {
        load.write_details(&mut text);
    }
    write_analysis(&mut text, &loads);
    write_conclusion(&mut text, &loads);
    text
}

struct Load<'a> {
    name: &'a str,
    metrics: Metrics,
}

impl Load<'_> {
    fn errors(&self) -> usize {
        self.metrics.num_requests - self.metrics.num_successes
    }

    fn ttft_ms(&self) -> Option<f64> {
        self.metrics.latencies.ttft_ms.map(|ttft| ttft.mean)
    }

    fn throughput(&self) -> Option<f64> {
        self.metrics.output_throughput_tokens_per_s
    }

    fn write_details(&self, text: &mut String) {
        let metrics = &self.metrics;
        let latencies = &metrics.latencies;
        let server = &metrics.server;
        let ttft = |of: fn(Summary) -> f64| or_na(latencies.ttft_ms.map(|s| ms(of(s))));
        let mean = |summary: Option<Summary>| or_na(summary.map(|s| ms(s.mean)));
        let _ = writeln!(text, "### {}\n", self.name);
        let _ = writeln!(
            text,
            "- **TTFT**: avg={}, p50={}, p95={}, p99={}",
            ttft(|s| s.mean),
            ttft(|s| s.p50),
            ttft(|s| s.p95),
            ttft(|s| s.p99)
        );
        // Another name for the time between two tokens of a stream.
        let _ = writeln!(text, "- **TBT**: avg={}", mean(latencies.itl_ms));
        let _ = writeln!(text, "- **TPOT**: avg={}", mean(latencies.tpot_ms));
        let throughput = or_na(self.throughput().map(|x| format!("{x:.2} tok/s")));
        let _ = writeln!(text, "- **Throughput**: avg={throughput}");
        let peak = or_na(server.memory_peak_bytes.map(|bytes| mb(bytes as f64, 0)));
        let average = or_na(server.memory_mean_bytes.map(|bytes| mb(bytes, 2)));
        let _ = writeln!(text, "- **Memory**: peak={peak}, avg={average}");
        let error_rate = metrics.error_rate * 100.0;
        let _ = writeln!(text, "- **Error Rate**: {error_rate:.2}%");
        let tokens = or_na(server.kv_peak_tokens);
        let bytes = or_na(server.kv_peak_bytes);
        let _ = writeln!(text, "- **KV Cache**: {tokens} tokens, {bytes} bytes");
        let hit_rate = or_na(metrics.cached_token_rate.map(percent));
        let _ = writeln!(text, "- **Prefix Hit Rate**: {hit_rate}");
        let evictions = or_na(server.evicted_blocks);
        let eviction_time = or_na(server.eviction_time_ms.map(ms));
        let _ = writeln!(text, "- **Evictions**: {evictions} ({eviction_time})");
        let drafts = server.accepted_draft_tokens.zip(server.draft_tokens);
        let accepted = drafts.and_then(|(accepted, drafted)| share(accepted, drafted));
        let accepted = or_na(accepted.map(percent));
        let _ = writeln!(text, "- **Spec Accept Rate**: {accepted}\n");
    }
}

fn write_overall(text: &mut String, loads: &[Load]) {
    let total: usize = loads.iter().map(|load| load.metrics.num_requests).sum();
    let failed: usize = loads.iter().map(Load::errors).sum();
    let _ = writeln!(
        text,
        "## Overall Statistics\n\n- **Total Workloads**: {}\n- **Total Requests**: {total}\n\
         - **Successful**: {}\n- **Failed**: {failed}\n",
        loads.len(),
        total - failed
    );
}

fn write_table(text: &mut String, loads: &[Load]) {
    text.push_str(
        "## Workload Details\n\n\
         | Workload | Requests | Errors | Avg TTFT (ms) | Throughput (tok/s) |\n\
         |----------|----------|--------|---------------|---------------------|\n",
    );
    for load in loads {
        let number = |value: Option<f64>| or_na(value.map(|x| format!("{x:.2}")));
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} |",
            load.name,
            load.metrics.num_requests,
            load.errors(),
            number(load.ttft_ms()),
            number(load.throughput())
        );
    }
    text.push('\n');
}

fn write_analysis(text: &mut String, loads: &[Load]) {
    text.push_str("## Analysis\n\n### Performance Summary\n\n");
    let best = |of: &dyn Fn(&Load) -> Option<f64>| {
        let valued = loads.iter().filter_map(|load| Some((load, of(load)?)));
        valued.reduce(|a, b| if b.1 > a.1 { b } else { a })
    };
    if let Some((load, negative)) = best(&|load| load.ttft_ms().map(|ms| -ms)) {
        let _ = writeln!(text, "- **Best TTFT**: {} ({})", load.name, ms(-negative));
    }
    if let Some((load, speed)) = best(&|load| load.throughput()) {
        let _ = writeln!(
            text,
            "- **Best Throughput**: {} ({speed:.2} tok/s)",
            load.name
        );
    }
    let memory = |load: &Load| load.metrics.server.memory_peak_bytes.map(|n| n as f64);
    let highest = best(&memory);
    if let Some((load, bytes)) = highest {
        let _ = writeln!(
            text,
            "- **Highest Memory**: {} ({})",
            load.name,
            mb(bytes, 0)
        );
    }

    let total: usize = loads.iter().map(|load| load.metrics.num_requests).sum();
    let good: usize = loads.iter().map(|load| load.metrics.num_successes).sum();
    let _ = writeln!(
        text,
        "\n### Reliability\n\n- Overall success rate: {:.2}% ({good}/{total} requests)",
        good as f64 / total as f64 * 100.0
    );
    if let Some(stress) = loads.iter().find(|load| load.name == STRESS) {
        let rate = stress.metrics.error_rate * 100.0;
        let judged = match rate <= STRESS_ERROR_PERCENT_MAX {
            true => "acceptable under pressure",
            false => "NOT acceptable under pressure",
        };
        let _ = writeln!(text, "- Stress test error rate: {rate:.2}% ({judged})");
    }

    let sum = |of: &dyn Fn(&Metrics) -> Option<u64>| -> Option<u64> {
        loads.iter().map(|load| of(&load.metrics)).sum()
    };
    let _ = writeln!(
        text,
        "\n### Resource Usage\n\n- Total KV cache usage: {} tokens ({} bytes)",
        or_na(sum(&|m| m.server.kv_peak_tokens)),
        or_na(sum(&|m| m.server.kv_peak_bytes))
    );
    let peak = or_na(highest.map(|(_, bytes)| mb(bytes, 0)));
    let _ = writeln!(text, "- Peak memory across all workloads: {peak}\n");
}

/// Ticks only what the run backs.
fn write_conclusion(text: &mut String, loads: &[Load]) {
    text.push_str("## Conclusion\n\nWhat this run was to show:\n");
    let mut holds_all = true;
    let mut tick = |holds: bool, what: String| {
        holds_all &= holds;
        let _ = writeln!(text, "- {} {what}", if holds { "✓" } else { "✗" });
    };
    for load in loads {
        if load.name == STRESS {
            let rate = load.metrics.error_rate * 100.0;
            tick(
                rate <= STRESS_ERROR_PERCENT_MAX,
                format!(
                    "{}: at most {STRESS_ERROR_PERCENT_MAX:.0}% of the requests failed",
                    load.name
                ),
            );
        } else {
            let what = format!("{}: every request succeeded", load.name);
            tick(load.errors() == 0, what);
        }
    }
    let has_all = |load: &Load| {
        let server = &load.metrics.server;
        load.ttft_ms().is_some()
            && load.metrics.latencies.tpot_ms.is_some()
            && load.throughput().is_some()
            && server.memory_peak_bytes.is_some()
            && server.kv_peak_tokens.is_some()
            && server.evicted_blocks.is_some()
            && load.metrics.cached_token_rate.is_some()
    };
    tick(
        loads.iter().all(has_all),
        "latencies, throughput, memory, KV cache, prefix hits and evictions were reported for each"
            .to_owned(),
    );
    let verdict = match holds_all {
        true => "All of it holds on the machine and model of this run.",
        false => "Not all of it holds on the machine and model of this run.",
    };
    let _ = writeln!(text, "\n{verdict}");
}

fn ms(ms: f64) -> String {
    format!("{ms:.2}ms")
}

fn mb(bytes: f64, decimals: usize) -> String {
    format!("{:.decimals$} MB", bytes / f64::from(1 << 20))
}

fn percent(share: f64) -> String {
    format!("{:.2}%", share * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::load::Arrivals;
    use crate::bench::metrics::tests::{failed_with_429, record, request};
    use crate::bench::record::{Phase, RequestRecord};

    fn in_phase(phase: usize, request: RequestRecord) -> RequestRecord {
        RequestRecord { phase, ..request }
    }

    #[test]
    fn each_load_is_told_apart_and_a_failed_one_is_not_ticked() {
        let mut run = record(vec![
            in_phase(0, request(0, 5)),
            in_phase(1, request(1, 5)),
            in_phase(1, failed_with_429(2)),
        ]);
        let phase = |name: &str| Phase {
            name: name.to_owned(),
            arrivals: Arrivals::Closed { concurrency: 1 },
            start_ms: 0.0,
            end_ms: 1000.0,
            duration_ms: 1000.0,
            client_cpu_ms: 1,
            stats_before: serde_json::Value::Null,
            stats_after: serde_json::Value::Null,
        };
        run.run.phases = vec![phase("short_input"), phase(STRESS)];
        let text = render(&run);
        for part in [
            "- **Total Requests**: 3\n- **Successful**: 2\n- **Failed**: 1\n",
            "| short_input | 1 | 0 | 50.00 | 5.00 |\n| stress_test | 2 | 1 | 50.00 | 5.00 |",
            "- **TTFT**: avg=50.00ms, p50=50.00ms, p95=50.00ms, p99=50.00ms",
            "- **Error Rate**: 50.00%",
            "- **KV Cache**: n/a tokens, n/a bytes",
            "- Stress test error rate: 50.00% (NOT acceptable under pressure)",
            "- ✓ short_input: every request succeeded\n- ✗ stress_test",
            "Not all of it holds",
        ] {
            assert!(text.contains(part), "{part:?} is not in {text}");
        }
    }
}
