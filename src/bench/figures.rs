//! Figures as words: the lines of a report, each a name and what is to be shown beside it.

use std::fmt::Write as _;

use serde_json::Value;

use super::cache_state::CacheCheck;
use super::metrics::{Metrics, share};
use super::record::{ClientSettings, OWN_SERVER, Record};
use super::server_stats::ServerStats;
use super::validity::max_send_delay_ms;

/// Shown where a server does not tell: a missing figure must not read as 0.
pub const NOT_AVAILABLE: &str = "n/a";

/// What there is to show of a run beside its latencies.
pub struct Figures<'a> {
    pub record: &'a Record,
    pub metrics: &'a Metrics,
}

type Row = (&'static str, String);

impl Figures<'_> {
    /// What was measured.
    pub fn results(&self) -> Vec<Row> {
        let metrics = self.metrics;
        let server = &metrics.server;
        let per_second = |x: Option<f64>| or_na(x.map(|x| format!("{x:.1} tokens/s")));
        let mut rows = vec![
            (
                "successful requests",
                format!("{} of {}", metrics.num_successes, metrics.num_requests),
            ),
            ("error rate", self.error_rate()),
            ("shed by the server", percent(metrics.shed_rate)),
            ("duration", format!("{:.2} s", metrics.duration_s)),
            ("schedule", self.schedule()),
            (
                "request throughput",
                format!("{:.2} requests/s", metrics.request_throughput_per_s),
            ),
            (
                "output throughput",
                per_second(metrics.output_throughput_tokens_per_s),
            ),
            (
                "total throughput",
                per_second(metrics.total_throughput_tokens_per_s),
            ),
            (
                "peak output throughput",
                per_second(metrics.peak_output_throughput_tokens_per_s),
            ),
            (
                "peak concurrency",
                format!("{} requests", metrics.peak_concurrent_requests),
            ),
            ("goodput", self.goodput()),
            ("tokens in, out", self.tokens()),
            (
                "cache hit rate, requests",
                or_na(metrics.cached_request_rate.map(percent)),
            ),
            (
                "cache hit rate, tokens",
                or_na(metrics.cached_token_rate.map(percent)),
            ),
            ("prefix cache", self.prefix_cache()),
            ("KV cache in use, peak", self.kv_peak()),
            ("evictions", self.evictions()),
            ("preemptions", or_na(server.preemptions)),
            (
                "mean batch size",
                or_na(server.mean_batch_size.map(|x| format!("{x:.2} sequences"))),
            ),
            ("weights read", self.weights_read()),
            ("RAM of the server", self.memory()),
            ("memory of the accelerator", self.device_memory()),
            (
                "model load time",
                or_na(server.model_load_time_ms.map(|ms| format!("{ms:.0} ms"))),
            ),
            (
                "CPU of the client",
                format!("{} of one core", percent(metrics.client_cpu_share)),
            ),
        ];
        rows.extend(self.speculation().map(|text| ("speculation", text)));
        rows
    }

    /// `None` of a server that does not speculate.
    fn speculation(&self) -> Option<String> {
        let server = &self.metrics.server;
        let (accepted, drafted) = (server.accepted_draft_tokens?, server.draft_tokens?);
        let ratio = or_na(share(accepted, drafted).map(percent));
        Some(format!(
            "{accepted} of {drafted} draft tokens accepted ({ratio})"
        ))
    }

    fn error_rate(&self) -> String {
        let reasons: Vec<String> = self
            .metrics
            .failures
            .iter()
            .map(|(reason, count)| format!("{count} {reason}"))
            .collect();
        match reasons.is_empty() {
            true => percent(self.metrics.error_rate),
            false => format!(
                "{} ({})",
                percent(self.metrics.error_rate),
                reasons.join(", ")
            ),
        }
    }

    fn goodput(&self) -> String {
        let slo = self.record.run.client.slo;
        let Some((slo, goodput)) = slo.zip(self.metrics.goodput) else {
            return "no objective set".to_owned();
        };
        format!(
            "{:.2} requests/s: {} of {} ({}) met {slo}",
            goodput.goodput_per_s,
            goodput.num_good,
            self.metrics.num_requests,
            percent(goodput.good_rate)
        )
    }

    /// An open loop that could not send on time measured itself.
    fn schedule(&self) -> String {
        let client = &self.record.run.client;
        let delay = self.metrics.latencies.send_delay_ms;
        match (client.request_rate_per_s, delay) {
            (None, _) => "closed loop: none to keep".to_owned(),
            (Some(_), None) => NOT_AVAILABLE.to_owned(),
            (Some(_), Some(delay)) if delay.p99 > max_send_delay_ms(self.record) => format!(
                "MISSED: the client sent {:.2} ms late at p99; the latencies are not the server's alone",
                delay.p99
            ),
            (Some(_), Some(delay)) => format!("kept: sent {:.2} ms late at p99", delay.p99),
        }
    }

    fn tokens(&self) -> String {
        let metrics = self.metrics;
        let mut text = format!(
            "{}, {}",
            or_na(metrics.prompt_tokens),
            or_na(metrics.output_tokens)
        );
        if metrics.counted_by_events {
            text.push_str(" (counted by events: the server sends no usage)");
        } else if let Some(ratio) = metrics.tokens_per_event {
            let _ = write!(text, " ({ratio:.2} output tokens an event)");
        }
        text
    }

    fn prefix_cache(&self) -> String {
        let server = &self.metrics.server;
        or_na(
            server
                .prefix_hit_tokens
                .zip(server.prefix_query_tokens)
                .map(|(hit, asked)| format!("{hit} of {asked} tokens found")),
        )
    }

    fn kv_peak(&self) -> String {
        let server = &self.metrics.server;
        let used = or_na(server.kv_peak_tokens.map(|n| format!("{n} tokens")));
        let bytes = or_na(server.kv_peak_bytes.map(|n| mib(n as f64)));
        match server.kv_capacity_tokens.zip(server.kv_capacity_bytes) {
            Some((tokens, room)) => {
                format!(
                    "{used}, {bytes} (room for {tokens} tokens, {})",
                    mib(room as f64)
                )
            }
            None => format!("{used}, {bytes}"),
        }
    }

    fn evictions(&self) -> String {
        let server = &self.metrics.server;
        or_na(
            server
                .evicted_blocks
                .zip(server.eviction_time_ms)
                .map(|(blocks, ms)| format!("{blocks} blocks in {ms:.2} ms")),
        )
    }

    fn memory(&self) -> String {
        let server = &self.metrics.server;
        or_na(
            server
                .memory_peak_bytes
                .zip(server.memory_mean_bytes)
                .map(|(peak, mean)| format!("peak {}, mean {}", mib(peak as f64), mib(mean))),
        )
    }

    fn weights_read(&self) -> String {
        let Some(read) = self.metrics.server.weight_read_bytes_per_s else {
            return NOT_AVAILABLE.to_owned();
        };
        let gb = |bytes: f64| format!("{:.2} GB/s", bytes / 1e9);
        match self.record.run.machine.read_bytes_per_s {
            Some(most) => format!(
                "{}, {} of the {} that this machine's cores read",
                gb(read),
                percent(read / most),
                gb(most)
            ),
            None => gb(read),
        }
    }

    fn device_memory(&self) -> String {
        let server = &self.metrics.server;
        or_na(
            server
                .device_memory_peak_bytes
                .zip(server.device_memory_mean_bytes)
                .map(|(peak, mean)| format!("peak {}, mean {}", mib(peak as f64), mib(mean))),
        )
    }

    /// What it was measured on, and how.
    pub fn circumstances(&self) -> Vec<Row> {
        let run = &self.record.run;
        let stats = ServerStats::of(&run.server.stats_before);
        let commit = run.commit.as_ref().map(|commit| {
            format!(
                "{}{}",
                commit.id,
                if commit.dirty {
                    " + uncommitted changes"
                } else {
                    ""
                }
            )
        });
        let model = [
            run.server.model.clone(),
            stats.model.quantization.clone(),
            stats
                .model
                .device
                .as_ref()
                .map(|device| format!("on {device}")),
            stats
                .model
                .sha256
                .as_ref()
                .map(|hash| format!("sha256 {hash}")),
        ];
        let model: Vec<String> = model.into_iter().flatten().collect();
        let machine = &run.machine;
        vec![
            ("commit", or_na(commit)),
            ("program", run.tool.clone()),
            (
                "model",
                if model.is_empty() {
                    NOT_AVAILABLE.to_owned()
                } else {
                    model.join(", ")
                },
            ),
            (
                "server",
                format!("{} ({})", run.server.endpoint, run.server.api),
            ),
            ("server settings", settings(&stats)),
            ("client settings", self.client_settings()),
            ("cache at start", self.cache_state()),
            (
                "machine",
                format!(
                    "{}, {} cores, {}, {}, load average {:.2}",
                    machine.cpu,
                    machine.cores,
                    gib(machine.memory_bytes),
                    machine.os,
                    machine.load_average_1m
                ),
            ),
            ("CPU flags", machine.cpu_flags.join(" ")),
        ]
    }

    fn client_settings(&self) -> String {
        let client = &self.record.run.client;
        let mut text = format!("{}, requests={}", self.arrivals(), client.requests);
        let mut add = |name: &str, value: Option<String>| {
            if let Some(value) = value {
                let _ = write!(text, " {name}={value}");
            }
        };
        add("max_tokens", client.max_tokens.map(|n| n.to_string()));
        add(
            "prompt_words",
            client.prompt_words.map(|words| words.to_string()),
        );
        add(
            "repeat_ratio",
            client.repeat_ratio.map(|ratio| ratio.to_string()),
        );
        let _ = write!(
            text,
            " warmup={} seed={} ignore_eos={} temperature=0 request_timeout_s={} prompts_sha256={}",
            client.warmup,
            client.seed,
            client.ignore_eos,
            client.request_timeout_s,
            short(&client.prompts_sha256)
        );
        text
    }

    fn arrivals(&self) -> String {
        let client = &self.record.run.client;
        if let Some(workload) = &client.workload {
            let scale = workload.scale;
            return format!(
                "workload={} (sha256 {}) scale={} scale_lengths={} scale_rates={}{cut}",
                workload.name,
                short(&workload.sha256),
                scale.requests,
                scale.lengths,
                scale.rates,
                cut = match workload.num_cut_to_window {
                    0 => String::new(),
                    count => format!(" ({count} prompts cut to the model's window)"),
                }
            );
        }
        if let Some(search) = client.search {
            return format!(
                "search for a rate from {} a second, good_share={}",
                search.rate_from_per_s, search.good_share
            );
        }
        arrivals_in_short(client)
    }

    fn cache_state(&self) -> String {
        let run = &self.record.run;
        match (
            CacheCheck::of(self.record),
            run.server.endpoint == OWN_SERVER,
        ) {
            (CacheCheck::NotDeclared, true) => {
                "cold: a server of this run alone; warm-up prompts are never measured".to_owned()
            }
            (CacheCheck::NotDeclared, false) => {
                "as found: what the server kept from before is not known".to_owned()
            }
            (check, _) => check.to_string(),
        }
    }
}

fn arrivals_in_short(client: &ClientSettings) -> String {
    match client.request_rate_per_s {
        Some(rate) => format!("open loop, request_rate={rate}"),
        None => format!("closed loop, concurrency={}", or_na(client.concurrency)),
    }
}

/// The part of a hash that tells it apart.
fn short(hash: &str) -> &str {
    hash.get(..16).unwrap_or(hash)
}

/// Settings that the server reports, as pairs.
fn settings(stats: &ServerStats) -> String {
    let pairs: Vec<String> = stats
        .settings
        .iter()
        .map(|(name, value)| format!("{name}={}", plain(value)))
        .collect();
    if pairs.is_empty() {
        NOT_AVAILABLE.to_owned()
    } else {
        pairs.join(" ")
    }
}

/// A value of a setting as people write it.
pub fn plain(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}

pub fn or_na(value: Option<impl ToString>) -> String {
    value.map_or_else(|| NOT_AVAILABLE.to_owned(), |value| value.to_string())
}

pub fn milliseconds(ms: f64) -> String {
    format!("{ms:.2}")
}

pub fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

pub fn mib(bytes: f64) -> String {
    format!("{:.1} MiB", bytes / f64::from(1 << 20))
}

fn gib(bytes: u64) -> String {
    format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30))
}
