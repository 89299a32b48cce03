//! The figures of a run, derived from its records. The definitions, stated once:
//!
//! Only successful requests give latencies and tokens. A request is successful when its answer
//! has status 200 and came to its end (see `FailureReason`). Per request, in milliseconds:
//!
//! * `ttft`: first event with text - due time: of an open loop the moment drawn beforehand, of a
//!   closed loop the moment when the client became free.
//! * `send_delay`: send time - due time, of failed requests too: how late the load generator was.
//! * `e2e`: last event with text or the finish reason - due time.
//! * `tpot`: (e2e - ttft) / (output tokens - 1); requests with one token have none. Without the
//!   first token, so a slow prefill does not show in it.
//! * `itl`: each gap between consecutive events with text, pooled over all requests. A server may
//!   put several tokens into an event, or hold back text; `tokens_per_event` tells.
//! * `service`: last event with text or the finish reason - send time: what `e2e` would be, had the
//!   load generator never been late. The difference is not the server's.
//! * `queue`, `prefill`, `decode`: as the server reports them; arrival > first prefill chunk >
//!   first token > last token.
//!
//! Over the run, which lasts from the first due time to the last end:
//!
//! * `request_throughput`: successful requests / duration.
//! * `output_throughput`, `total_throughput`: output tokens, or prompt and output tokens, of
//!   successful requests / duration. Tokens are those of the server's `usage`.
//! * `peak_output_throughput`: most output tokens in a second, of seconds counted from the start; a
//!   request's tokens are spread evenly over its events.
//! * `peak_concurrent_requests`: most successful requests between their send time and their end.
//! * `goodput`: successful requests that met the objective / duration; `good_rate`: / all requests.
//! * `shed_rate`: requests that the server refused for its load (429, 503) / all requests.
//! * `error_rate`: failed requests / all requests.
//! * `cached_request_rate`: successful requests whose whole prompt, but for the last token that is
//!   always computed, came from the prefix cache.
//! * `cached_token_rate`: prompt tokens from the prefix cache / prompt tokens.
//! * `draft_tokens`, `accepted_draft_tokens`: tokens that the server drafted, and those of them that
//!   were the next token, as it reports them.
//! * `client_cpu_share`: CPU time of the load generator / duration; it shares the machine.

mod peaks;

use std::collections::BTreeMap;

use serde::Serialize;

use super::goodput::{Slo, Took};
use super::record::{FailureReason, Record, RequestRecord, ServerSample, ServerTimings, Usage};
use super::server_stats::ServerStats;
use super::statistics::{Summary, histogram_base64};

/// See the module's description for the definitions. `None`: the server does not tell, or no
/// request has such a figure.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Metrics {
    pub num_requests: usize,
    pub num_successes: usize,
    pub error_rate: f64,
    pub shed_rate: f64,
    /// Failures by reason.
    pub failures: BTreeMap<String, usize>,
    pub duration_s: f64,
    pub latencies: Latencies,
    pub request_throughput_per_s: f64,
    pub output_throughput_tokens_per_s: Option<f64>,
    pub total_throughput_tokens_per_s: Option<f64>,
    pub peak_output_throughput_tokens_per_s: Option<f64>,
    pub peak_concurrent_requests: usize,
    /// Where an objective was set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub goodput: Option<Goodput>,
    pub prompt_tokens: Option<u64>,
    pub output_tokens: Option<u64>,
    /// Output tokens are counted by events, because the server sends no usage.
    pub counted_by_events: bool,
    pub tokens_per_event: Option<f64>,
    pub cached_request_rate: Option<f64>,
    pub cached_token_rate: Option<f64>,
    pub server: ServerMetrics,
    pub client_cpu_share: f64,
}

/// Requests that met the objective.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Goodput {
    pub num_good: usize,
    pub good_rate: f64,
    pub goodput_per_s: f64,
}

/// In milliseconds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Latencies {
    pub ttft_ms: Option<Summary>,
    pub tpot_ms: Option<Summary>,
    pub itl_ms: Option<Summary>,
    pub e2e_ms: Option<Summary>,
    pub service_ms: Option<Summary>,
    pub send_delay_ms: Option<Summary>,
    pub queue_ms: Option<Summary>,
    pub prefill_ms: Option<Summary>,
    pub decode_ms: Option<Summary>,
}

/// From samples over the run, and from the difference of `/stats` after and before it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ServerMetrics {
    pub memory_peak_bytes: Option<u64>,
    pub memory_mean_bytes: Option<f64>,
    /// Of the accelerator, where the server has one and tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_memory_peak_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_memory_mean_bytes: Option<f64>,
    pub model_load_time_ms: Option<f64>,
    pub mean_batch_size: Option<f64>,
    pub kv_peak_tokens: Option<u64>,
    pub kv_peak_bytes: Option<u64>,
    pub kv_capacity_tokens: Option<u64>,
    pub kv_capacity_bytes: Option<u64>,
    pub prefix_query_tokens: Option<u64>,
    pub prefix_hit_tokens: Option<u64>,
    pub evicted_blocks: Option<u64>,
    pub eviction_time_ms: Option<f64>,
    pub preemptions: Option<u64>,
    /// Of a server that speculates.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub draft_tokens: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accepted_draft_tokens: Option<u64>,
    /// Bytes of the model's tensors on disk, once a step / time of the steps in the runner: what
    /// decoding reads of a dense model, which computes with every weight in every step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight_read_bytes_per_s: Option<f64>,
}

impl Metrics {
    pub fn of(record: &Record) -> Self {
        let requests = &record.requests;
        let successes: Vec<&RequestRecord> = requests.iter().filter(|r| r.is_success()).collect();
        let duration_s = record.run.duration_ms / 1e3;
        let tokens = TokenCounts::of(&successes);
        Self {
            num_requests: requests.len(),
            num_successes: successes.len(),
            error_rate: share(requests.len() - successes.len(), requests.len()).unwrap_or(0.0),
            shed_rate: shed_rate(requests),
            failures: count_failures(requests),
            duration_s,
            latencies: Latencies::of(requests, &successes),
            request_throughput_per_s: per_second(successes.len() as u64, duration_s),
            output_throughput_tokens_per_s: tokens.output.map(|n| per_second(n, duration_s)),
            total_throughput_tokens_per_s: tokens
                .output
                .zip(tokens.prompt)
                .map(|(output, prompt)| per_second(output + prompt, duration_s)),
            peak_output_throughput_tokens_per_s: peaks::output_tokens_per_s(&successes),
            peak_concurrent_requests: peaks::concurrent_requests(&successes),
            goodput: record.run.client.slo.map(|slo| {
                let num_good = successes.iter().filter(|r| is_good(r, &slo)).count();
                Goodput {
                    num_good,
                    good_rate: share(num_good, requests.len()).unwrap_or(0.0),
                    goodput_per_s: per_second(num_good as u64, duration_s),
                }
            }),
            prompt_tokens: tokens.prompt,
            output_tokens: tokens.output,
            counted_by_events: tokens.output.is_some()
                && successes.iter().all(|r| r.usage.is_none()),
            tokens_per_event: tokens.per_event,
            cached_request_rate: cached_request_rate(&successes),
            cached_token_rate: tokens
                .cached
                .zip(tokens.prompt)
                .and_then(|(part, whole)| share(part, whole)),
            server: ServerMetrics::of(record),
            client_cpu_share: per_second(record.run.client_cpu_ms, duration_s) / 1e3,
        }
    }
}

/// The latencies' histograms by name, see [`histogram_base64`].
///
/// # Errors
/// One cannot be encoded.
pub fn histograms_us(record: &Record) -> anyhow::Result<BTreeMap<&'static str, String>> {
    let successes = || {
        record
            .requests
            .iter()
            .filter(|request| request.is_success())
    };
    let samples: [(&str, Vec<f64>); 5] = [
        (
            "ttft_us",
            successes().filter_map(RequestRecord::ttft_ms).collect(),
        ),
        (
            "tpot_us",
            successes().filter_map(RequestRecord::tpot_ms).collect(),
        ),
        (
            "itl_us",
            successes().flat_map(|r| r.gaps_ms.clone()).collect(),
        ),
        ("e2e_us", successes().map(RequestRecord::e2e_ms).collect()),
        (
            "service_us",
            successes().map(|r| r.end_ms - r.sent_ms).collect(),
        ),
    ];
    samples
        .into_iter()
        .map(|(name, samples)| Ok((name, histogram_base64(&samples)?)))
        .collect()
}

impl Latencies {
    fn of(requests: &[RequestRecord], successes: &[&RequestRecord]) -> Self {
        let summary = |of_request: fn(&RequestRecord) -> Option<f64>| {
            let samples: Vec<f64> = successes.iter().filter_map(|r| of_request(r)).collect();
            Summary::of_ms(&samples)
        };
        let phase = |of_timings: fn(ServerTimings) -> f64| {
            let samples: Vec<f64> = successes
                .iter()
                .filter_map(|r| r.timings.map(of_timings))
                .collect();
            Summary::of_ms(&samples)
        };
        let gaps: Vec<f64> = successes
            .iter()
            .flat_map(|r| r.gaps_ms.iter().copied())
            .collect();
        let send_delays: Vec<f64> = requests.iter().map(|r| r.sent_ms - r.due_ms).collect();
        Self {
            ttft_ms: summary(RequestRecord::ttft_ms),
            tpot_ms: summary(RequestRecord::tpot_ms),
            itl_ms: Summary::of_ms(&gaps),
            e2e_ms: summary(|r| Some(r.e2e_ms())),
            service_ms: summary(|r| Some(r.end_ms - r.sent_ms)),
            send_delay_ms: Summary::of_ms(&send_delays),
            queue_ms: phase(|timings| timings.queue_ms),
            prefill_ms: phase(|timings| timings.prefill_ms),
            decode_ms: phase(|timings| timings.decode_ms),
        }
    }
}

fn is_good(request: &RequestRecord, slo: &Slo) -> bool {
    slo.is_met_by(&Took {
        ttft_ms: request.ttft_ms(),
        tpot_ms: request.tpot_ms(),
        e2e_ms: request.e2e_ms(),
    })
}

fn shed_rate(requests: &[RequestRecord]) -> f64 {
    let is_shed = |request: &&RequestRecord| {
        let failure = request.failure.as_ref();
        failure.is_some_and(|failure| failure.reason == FailureReason::Status)
            && matches!(request.status, Some(429 | 503))
    };
    share(requests.iter().filter(is_shed).count(), requests.len()).unwrap_or(0.0)
}

/// Sums over the successful requests; `None` where a request of them does not tell.
struct TokenCounts {
    prompt: Option<u64>,
    cached: Option<u64>,
    output: Option<u64>,
    per_event: Option<f64>,
}

impl TokenCounts {
    fn of(successes: &[&RequestRecord]) -> Self {
        let of_usage = |count: fn(Usage) -> Option<u64>| {
            sum(successes.iter().map(|r| r.usage.and_then(count)))
        };
        let generated = of_usage(|usage| Some(usage.completion_tokens));
        let events: usize = successes.iter().map(|r| r.num_events()).sum();
        Self {
            prompt: of_usage(|usage| Some(usage.prompt_tokens)),
            cached: of_usage(|usage| usage.cached_tokens),
            output: sum(successes.iter().map(|r| r.output_tokens())),
            per_event: generated.and_then(|tokens| share(tokens, events as u64)),
        }
    }
}

/// `None` if there is nothing to sum, or a part of it is not known.
fn sum(counts: impl ExactSizeIterator<Item = Option<u64>>) -> Option<u64> {
    if counts.len() == 0 {
        None
    } else {
        counts.sum()
    }
}

/// By the server's own word where it gives one, else from its token counts.
fn cached_request_rate(successes: &[&RequestRecord]) -> Option<f64> {
    let is_cached = |request: &&RequestRecord| -> Option<bool> {
        request.cached.or_else(|| {
            let usage = request.usage?;
            let cached_tokens = usage.cached_tokens?;
            Some(cached_tokens > 0 && cached_tokens + 1 >= usage.prompt_tokens)
        })
    };
    let known: Vec<bool> = successes.iter().map(is_cached).collect::<Option<_>>()?;
    share(known.iter().filter(|cached| **cached).count(), known.len())
}

fn count_failures(requests: &[RequestRecord]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for request in requests {
        if let Some(failure) = &request.failure {
            *counts.entry(failure.label(request.status)).or_default() += 1;
        }
    }
    counts
}

impl ServerMetrics {
    fn of(record: &Record) -> Self {
        let server = &record.run.server;
        let before = ServerStats::of(&server.stats_before);
        let after = ServerStats::of(&server.stats_after);
        let peak = |of_sample: fn(&ServerSample) -> Option<u64>| {
            server.samples.iter().filter_map(of_sample).max()
        };
        let delta = |count: fn(&ServerStats) -> Option<u64>| {
            count(&after)
                .zip(count(&before))
                .map(|(after, before)| after.saturating_sub(before))
        };
        let all = |of_sample: fn(&ServerSample) -> Option<u64>| -> Vec<u64> {
            server.samples.iter().filter_map(of_sample).collect()
        };
        let mean = |values: &[u64]| share(values.iter().sum(), values.len() as u64);
        let memory = all(|sample| sample.memory_bytes);
        let device_memory = all(|sample| sample.device_memory_bytes);
        let eviction_time_ms = after
            .evictions
            .eviction_time_ms
            .zip(before.evictions.eviction_time_ms);
        Self {
            memory_peak_bytes: memory.iter().copied().max(),
            memory_mean_bytes: mean(&memory),
            device_memory_peak_bytes: device_memory.iter().copied().max(),
            device_memory_mean_bytes: mean(&device_memory),
            model_load_time_ms: before.model.load_time_ms,
            mean_batch_size: delta(|s| s.batch.num_step_sequences)
                .zip(delta(|s| s.batch.num_steps))
                .and_then(|(sequences, steps)| share(sequences, steps)),
            kv_peak_tokens: peak(|sample| sample.kv_used_tokens),
            kv_peak_bytes: peak(|sample| sample.kv_used_bytes),
            kv_capacity_tokens: before.kv_cache.capacity_tokens,
            kv_capacity_bytes: before.kv_cache.total_bytes,
            prefix_query_tokens: delta(|s| s.prefix.query_tokens),
            prefix_hit_tokens: delta(|s| s.prefix.hit_tokens),
            evicted_blocks: delta(|s| s.evictions.num_evicted_blocks),
            eviction_time_ms: eviction_time_ms.map(|(after, before)| after - before),
            preemptions: delta(|s| s.num_preemptions),
            draft_tokens: delta(|s| s.speculative?.num_draft_tokens),
            accepted_draft_tokens: delta(|s| s.speculative?.num_accepted_tokens),
            weight_read_bytes_per_s: weight_read_bytes_per_s(&before, &after),
        }
    }
}

fn weight_read_bytes_per_s(before: &ServerStats, after: &ServerStats) -> Option<f64> {
    let delta = |of: fn(&ServerStats) -> Option<f64>| Some(of(after)? - of(before)?);
    let steps = delta(|stats| stats.batch.num_steps.map(|n| n as f64))?;
    let seconds = delta(|stats| stats.batch.forward_time_ms)? / 1e3;
    let bytes = before.model.weight_bytes? as f64;
    (seconds > 0.0).then(|| bytes * steps / seconds)
}

/// `None` of nothing.
pub fn share<T: TryInto<u64>>(part: T, whole: T) -> Option<f64> {
    let (part, whole) = (part.try_into().ok()?, whole.try_into().ok()?);
    (whole > 0).then(|| part as f64 / whole as f64)
}

fn per_second(count: u64, duration_s: f64) -> f64 {
    if duration_s > 0.0 {
        count as f64 / duration_s
    } else {
        0.0
    }
}

#[cfg(test)]
pub(super) mod tests;
