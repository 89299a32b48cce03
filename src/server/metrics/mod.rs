//! `/metrics`: what Prometheus, dashboards and routers read. Names and buckets are vLLM's, so that
//! those made for it work unchanged.
//!
//! Counts and times of requests are observed here, from the events of each generation; the
//! engine's own figures are read at scrape time, by `engine.rs`. All handles are resolved once, so
//! that a token costs a few atomic additions.

mod buckets;
mod engine;
mod families;
mod latency;
mod process;
mod registered;
mod rejections;
mod size;
mod speculation;
mod tokens;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use prometheus::{Encoder, IntCounter, Registry, TextEncoder};

use self::latency::LatencyHistograms;
use self::registered::counters;
use self::rejections::Rejections;
use self::size::SizeHistograms;
use self::tokens::TokenCounters;
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

    /// A request that the engine did not take.
    pub fn count_rejection(&self, error: &EngineError) {
        self.rejections.count(error);
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
