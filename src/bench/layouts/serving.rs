//! The block that `vllm bench serve` prints, to the letter: values stand to the left in a column of
//! ten, so that lines end in spaces.
//!
//! Its percentiles lie between two samples, and so do these. Its times count from the sending of a
//! request, without the wait for a free client or a late load generator; these count from the due
//! time, so that nothing is hidden. In a closed loop the two are the same.

use std::fmt::{Display, Write as _};

use crate::bench::metrics::Metrics;
use crate::bench::record::Record;
use crate::bench::statistics::interpolated;

const WIDTH: usize = 50;

/// Each phase under its name.
pub fn render(record: &Record) -> String {
    let blocks: Vec<String> = record
        .run
        .phases
        .iter()
        .enumerate()
        .map(|(index, phase)| {
            let block = block(&record.of_phase(index));
            format!("# {}\n\n{block}", capitalised(&phase.name))
        })
        .collect();
    blocks.join("\n\n")
}

fn capitalised(name: &str) -> String {
    let mut chars = name.chars();
    let first = chars.next().map(|c| c.to_uppercase().to_string());
    first.unwrap_or_default() + chars.as_str()
}

pub fn block(record: &Record) -> String {
    let metrics = Metrics::of(record);
    let client = &record.run.client;
    let mut text = format!("{:=^WIDTH$}\n", " Serving Benchmark Result ");
    row(&mut text, "Successful requests:", metrics.num_successes);
    let failed = metrics.num_requests - metrics.num_successes;
    row(&mut text, "Failed requests:", failed);
    // What limits the clients below the number of requests is a setting; else all come at once.
    if let Some(concurrency) = client.concurrency.filter(|n| *n < metrics.num_requests) {
        row(&mut text, "Maximum request concurrency:", concurrency);
    }
    if let Some(rate) = client.request_rate_per_s {
        number(&mut text, "Request rate configured (RPS):", rate);
    }
    number(&mut text, "Benchmark duration (s):", metrics.duration_s);
    let tokens = [
        ("Total input tokens:", metrics.prompt_tokens),
        ("Total generated tokens:", metrics.output_tokens),
    ];
    for (name, count) in tokens {
        row(&mut text, name, count.unwrap_or(0));
    }
    number(
        &mut text,
        "Request throughput (req/s):",
        metrics.request_throughput_per_s,
    );
    if let Some(goodput) = metrics.goodput {
        number(&mut text, "Request goodput (req/s):", goodput.goodput_per_s);
    }
    let rates = [
        (
            "Output token throughput (tok/s):",
            metrics.output_throughput_tokens_per_s,
        ),
        (
            "Peak output token throughput (tok/s):",
            metrics.peak_output_throughput_tokens_per_s,
        ),
        (
            "Peak concurrent requests:",
            Some(metrics.peak_concurrent_requests as f64),
        ),
        (
            "Total token throughput (tok/s):",
            metrics.total_throughput_tokens_per_s,
        ),
    ];
    for (name, rate) in rates {
        number(&mut text, name, rate.unwrap_or(0.0));
    }
    let ms = Milliseconds::of(record);
    for (title, name, samples) in [
        ("Time to First Token", "TTFT", ms.ttft),
        ("Time per Output Token (excl. 1st token)", "TPOT", ms.tpot),
        ("Inter-token Latency", "ITL", ms.itl),
    ] {
        let _ = writeln!(text, "{}", titled(title));
        let sum: f64 = samples.iter().sum();
        let mean = (!samples.is_empty()).then(|| sum / samples.len() as f64);
        let values = [
            ("Mean", mean),
            ("Median", interpolated(&samples, 0.5)),
            ("P99", interpolated(&samples, 0.99)),
        ];
        for (statistic, value) in values {
            // Requests of a single token have no such time: the block says 0.
            let name = format!("{statistic} {name} (ms):");
            number(&mut text, &name, value.unwrap_or(0.0));
        }
    }
    let _ = writeln!(text, "{}", "=".repeat(WIDTH));
    text
}

/// The samples behind the block.
struct Milliseconds {
    ttft: Vec<f64>,
    tpot: Vec<f64>,
    itl: Vec<f64>,
}

impl Milliseconds {
    fn of(record: &Record) -> Self {
        let successes = || {
            record
                .requests
                .iter()
                .filter(|request| request.is_success())
        };
        Self {
            ttft: successes().filter_map(|r| r.ttft_ms()).collect(),
            tpot: successes().filter_map(|r| r.tpot_ms()).collect(),
            itl: successes().flat_map(|r| r.gaps_ms.clone()).collect(),
        }
    }
}

/// Centred among hyphens; of an odd number the right side has more.
fn titled(title: &str) -> String {
    format!("{title:-^WIDTH$}")
}

fn row(text: &mut String, name: &str, value: impl Display) {
    let _ = writeln!(text, "{name:<40} {value:<10}");
}

fn number(text: &mut String, name: &str, value: f64) {
    row(text, name, format!("{value:.2}"));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::metrics::tests::{record, request};

    #[test]
    fn the_block_is_the_one_that_people_know() {
        let mut run = record(vec![request(0, 5), request(1, 1)]);
        run.run.client.concurrency = Some(2);
        let expected = "\
============ Serving Benchmark Result ============
Successful requests:                     2         
Failed requests:                         0         
Benchmark duration (s):                  2.00      
Total input tokens:                      40        
Total generated tokens:                  6         
Request throughput (req/s):              1.00      
Output token throughput (tok/s):         3.00      
Peak output token throughput (tok/s):    6.00      
Peak concurrent requests:                2.00      
Total token throughput (tok/s):          23.00     
---------------Time to First Token----------------
Mean TTFT (ms):                          50.00     
Median TTFT (ms):                        50.00     
P99 TTFT (ms):                           50.00     
-----Time per Output Token (excl. 1st token)------
Mean TPOT (ms):                          10.00     
Median TPOT (ms):                        10.00     
P99 TPOT (ms):                           10.00     
---------------Inter-token Latency----------------
Mean ITL (ms):                           10.00     
Median ITL (ms):                         10.00     
P99 ITL (ms):                            10.00     
==================================================
";
        assert_eq!(block(&run), expected);
    }

    #[test]
    fn what_answers_of_one_token_do_not_have_is_0_without_a_sign() {
        let text = block(&record(vec![request(0, 1)]));
        for name in ["Mean TPOT (ms):", "P99 TPOT (ms):", "Mean ITL (ms):"] {
            let row = format!("{name:<40} {:<10}\n", "0.00");
            assert!(text.contains(&row), "{text}");
        }
    }
}
