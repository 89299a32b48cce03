//! `/metrics`: what Prometheus, dashboards and routers read. Names and buckets are vLLM's, so that
//! those made for it work unchanged.
//!
//! Counts and times of requests are observed here, from the events of each generation; the
//! engine's own figures are read at scrape time, by `engine.rs`. All handles are resolved once, so
//! that a token costs a few atomic additions.

mod buckets;
mod engine;
mod families;
mod process;
mod speculation;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use prometheus::{
    Encoder, Histogram, HistogramOpts, IntCounter, IntCounterVec, Opts, Registry, TextEncoder,
};

use super::error::ApiError;
use super::outcome::Outcome;
use super::state::{AppState, ModelInfo};
use super::timings::{Progress, Timings};
use crate::engine::{EngineError, EngineHandle};

/// `GET /metrics`.
pub async fn scrape(State(state): State<Arc<AppState>>) -> Result<Response, ApiError> {
    let text = state.metrics.encode();
    let text =
        text.map_err(|error| ApiError::Internal(format!("cannot write metrics: {error}")))?;
    Ok(([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response())
}

/// The counters and histograms of this server.
pub struct Metrics {
    registry: Registry,
    /// Apart from the others, whose labels name model and engine.
    process: Registry,
    tokens: TokenCounters,
    latency: LatencyHistograms,
    size: SizeHistograms,
    /// By outcome, in the order of [`Outcome::ALL`].
    ended: [IntCounter; Outcome::ALL.len()],
    rejections: Rejections,
}

struct TokenCounters {
    prompt: IntCounter,
    computed: IntCounter,
    cache_hit: IntCounter,
    cached: IntCounter,
    recomputed: IntCounter,
    generated: IntCounter,
}

struct LatencyHistograms {
    first_token: Histogram,
    inter_token: Histogram,
    per_output_token: Histogram,
    e2e: Histogram,
    queue: Histogram,
    prefill: Histogram,
    decode: Histogram,
    inference: Histogram,
}

struct SizeHistograms {
    prompt_tokens: Histogram,
    generation_tokens: Histogram,
    max_tokens: Histogram,
    num_choices: Histogram,
    longest_choice: Histogram,
    prefill_computed_tokens: Histogram,
}

struct Rejections {
    unauthorized: IntCounter,
    too_many_connections: IntCounter,
    queue_full: IntCounter,
    deadline_unmet: IntCounter,
    too_long: IntCounter,
    unavailable: IntCounter,
}

impl Metrics {
    /// Metrics of a server of one model, all at zero.
    ///
    /// # Errors
    /// Two metrics have one name: a bug.
    pub fn new(model: &ModelInfo, engine: EngineHandle) -> prometheus::Result<Self> {
        let labels = HashMap::from([
            ("model_name".to_owned(), model.name.clone()),
            ("engine".to_owned(), "0".to_owned()),
        ]);
        let registry = Registry::new_custom(None, Some(labels))?;
        let max_model_len = engine.limits().max_model_len;
        registry.register(Box::new(engine::EngineFigures::new(engine)?))?;
        let process = Registry::new();
        process.register(Box::new(process::ProcessFigures::new(model)?))?;
        let ended = counters(
            &registry,
            "vllm:request_success_total",
            "Requests by the reason of their end.",
            "finished_reason",
        )?;
        Ok(Self {
            tokens: TokenCounters::new(&registry)?,
            latency: LatencyHistograms::new(&registry)?,
            size: SizeHistograms::new(&registry, max_model_len)?,
            ended: Outcome::ALL.map(|outcome| ended.with_label_values(&[outcome.name()])),
            rejections: Rejections::new(&registry)?,
            registry,
            process,
        })
    }

    /// The classic text format.
    fn encode(&self) -> prometheus::Result<Vec<u8>> {
        let mut text = Vec::new();
        for registry in [&self.registry, &self.process] {
            TextEncoder::new().encode(&registry.gather(), &mut text)?;
        }
        Ok(text)
    }

    pub fn count_rejection(&self, error: &EngineError) {
        match error {
            EngineError::Overloaded { .. } => self.rejections.queue_full.inc(),
            EngineError::DeadlineUnmet { .. } => self.rejections.deadline_unmet.inc(),
            EngineError::TooLong { .. } => self.rejections.too_long.inc(),
            _ => self.rejections.unavailable.inc(),
        }
    }

    /// A request without a key that opens the server.
    pub fn count_unauthorized(&self) {
        self.rejections.unauthorized.inc();
    }

    /// A connection above the limit.
    pub fn count_too_many_connections(&self) {
        self.rejections.too_many_connections.inc();
    }

    /// The first token of a request, `ttft` after its arrival.
    pub fn observe_first_token(&self, progress: &Progress, ttft: Duration) {
        self.latency.first_token.observe(ttft.as_secs_f64());
        self.tokens.observe_prompt(progress);
        self.tokens.generated.inc();
    }

    /// One more token of a request, `gap` after the one before.
    pub fn observe_next_token(&self, gap: Duration) {
        self.latency.inter_token.observe(gap.as_secs_f64());
        self.tokens.generated.inc();
    }

    /// A request that all `num_choices` answers were generated for, the longest of this many tokens.
    pub fn observe_choices(&self, num_choices: usize, longest_tokens: usize) {
        self.size.num_choices.observe(num_choices as f64);
        self.size.longest_choice.observe(longest_tokens as f64);
    }

    /// The end of a request. Only a complete one has times and sizes that mean something.
    pub fn observe_end(&self, outcome: Outcome, progress: &Progress, timings: &Timings) {
        let index = Outcome::ALL.iter().position(|other| *other == outcome);
        self.ended[index.expect("bug: an outcome that is not in ALL")].inc();
        if matches!(outcome, Outcome::Finished(_)) {
            self.latency.observe(progress, timings);
            self.size.observe(progress);
        }
    }
}

impl TokenCounters {
    fn new(registry: &Registry) -> prometheus::Result<Self> {
        let by_source = counters(
            registry,
            "vllm:prompt_tokens_by_source_total",
            "Those of prompt_tokens that were computed, and those that were not.",
            "source",
        )?;
        Ok(Self {
            computed: by_source.with_label_values(&["local_compute"]),
            cache_hit: by_source.with_label_values(&["local_cache_hit"]),
            recomputed: counter(
                registry,
                "vllm:prompt_tokens_recomputed_total",
                "Tokens that were in the prefix cache and computed again: the last of a whole prompt.",
            )?,
            prompt: counter(
                registry,
                "vllm:prompt_tokens_total",
                "Prompt tokens of requests that reached their first token.",
            )?,
            cached: counter(
                registry,
                "vllm:prompt_tokens_cached_total",
                "Those of prompt_tokens that came from the prefix cache.",
            )?,
            generated: counter(
                registry,
                "vllm:generation_tokens_total",
                "Tokens generated and handed to a response.",
            )?,
        })
    }

    fn observe_prompt(&self, progress: &Progress) {
        let (prompt, cached) = (progress.prompt_tokens, progress.cached_tokens);
        self.prompt.inc_by(prompt as u64);
        self.cached.inc_by(cached as u64);
        self.cache_hit.inc_by(cached as u64);
        self.computed.inc_by((prompt - cached) as u64);
        self.recomputed.inc_by(u64::from(progress.is_cached()));
    }
}

impl LatencyHistograms {
    fn new(registry: &Registry) -> prometheus::Result<Self> {
        let request = |name, help| histogram(registry, name, help, buckets::REQUEST_SECONDS);
        Ok(Self {
            first_token: histogram(
                registry,
                "vllm:time_to_first_token_seconds",
                "Arrival of the request to its first token.",
                buckets::FIRST_TOKEN_SECONDS,
            )?,
            inter_token: histogram(
                registry,
                "vllm:inter_token_latency_seconds",
                "Time between two tokens of a request.",
                buckets::TOKEN_SECONDS,
            )?,
            per_output_token: histogram(
                registry,
                "vllm:request_time_per_output_token_seconds",
                "Mean time between two tokens of a request.",
                buckets::TOKEN_SECONDS,
            )?,
            e2e: request(
                "vllm:e2e_request_latency_seconds",
                "Arrival of the request to its last token.",
            )?,
            queue: request(
                "vllm:request_queue_time_seconds",
                "Arrival of the request to its first step.",
            )?,
            prefill: request(
                "vllm:request_prefill_time_seconds",
                "First step of the request to its first token.",
            )?,
            decode: request(
                "vllm:request_decode_time_seconds",
                "First token of the request to its last.",
            )?,
            inference: request(
                "vllm:request_inference_time_seconds",
                "First step of the request to its last token.",
            )?,
        })
    }

    fn observe(&self, progress: &Progress, timings: &Timings) {
        self.e2e.observe(timings.total.as_secs_f64());
        self.queue.observe(timings.queue.as_secs_f64());
        self.prefill.observe(timings.prefill.as_secs_f64());
        self.decode.observe(timings.decode.as_secs_f64());
        let inference = timings.prefill + timings.decode;
        self.inference.observe(inference.as_secs_f64());
        if progress.generated_tokens > 1 {
            let gaps = (progress.generated_tokens - 1) as f64;
            self.per_output_token
                .observe(timings.decode.as_secs_f64() / gaps);
        }
    }
}

impl SizeHistograms {
    fn new(registry: &Registry, max_model_len: usize) -> prometheus::Result<Self> {
        let buckets = buckets::one_two_five(max_model_len);
        let tokens = |name, help| histogram(registry, name, help, &buckets);
        Ok(Self {
            prompt_tokens: tokens("vllm:request_prompt_tokens", "Prompt tokens of a request.")?,
            generation_tokens: tokens(
                "vllm:request_generation_tokens",
                "Tokens generated for a request.",
            )?,
            max_tokens: tokens(
                "vllm:request_params_max_tokens",
                "The max_tokens of a request.",
            )?,
            num_choices: histogram(
                registry,
                "vllm:request_params_n",
                "Answers to each prompt of a request.",
                &[1.0, 2.0, 5.0, 10.0, 20.0],
            )?,
            longest_choice: tokens(
                "vllm:request_max_num_generation_tokens",
                "Tokens of the longest answer of a request.",
            )?,
            prefill_computed_tokens: tokens(
                "vllm:request_prefill_kv_computed_tokens",
                "Prompt tokens of a request that were not in the prefix cache.",
            )?,
        })
    }

    fn observe(&self, progress: &Progress) {
        let computed = progress.prompt_tokens - progress.cached_tokens;
        self.prompt_tokens.observe(progress.prompt_tokens as f64);
        self.generation_tokens
            .observe(progress.generated_tokens as f64);
        self.max_tokens.observe(progress.max_tokens as f64);
        self.prefill_computed_tokens.observe(computed as f64);
    }
}

impl Rejections {
    fn new(registry: &Registry) -> prometheus::Result<Self> {
        let by_reason = counters(
            registry,
            "vllm:admission_rejections_total",
            "Requests that were turned away, by reason.",
            "reason",
        )?;
        Ok(Self {
            unauthorized: by_reason.with_label_values(&["unauthorized"]),
            too_many_connections: by_reason.with_label_values(&["too_many_connections"]),
            queue_full: by_reason.with_label_values(&["queue_full"]),
            deadline_unmet: by_reason.with_label_values(&["deadline_unmet"]),
            too_long: by_reason.with_label_values(&["too_long"]),
            unavailable: by_reason.with_label_values(&["unavailable"]),
        })
    }
}

fn counter(registry: &Registry, name: &str, help: &str) -> prometheus::Result<IntCounter> {
    let counter = IntCounter::new(name, help)?;
    registry.register(Box::new(counter.clone()))?;
    Ok(counter)
}

fn counters(
    registry: &Registry,
    name: &str,
    help: &str,
    label: &str,
) -> prometheus::Result<IntCounterVec> {
    let counters = IntCounterVec::new(Opts::new(name, help), &[label])?;
    registry.register(Box::new(counters.clone()))?;
    Ok(counters)
}

fn histogram(
    registry: &Registry,
    name: &str,
    help: &str,
    buckets: &[f64],
) -> prometheus::Result<Histogram> {
    let opts = HistogramOpts::new(name, help).buckets(buckets.to_vec());
    let histogram = Histogram::with_opts(opts)?;
    registry.register(Box::new(histogram.clone()))?;
    Ok(histogram)
}
