//! What all handlers share: the model behind the server, its limits, its counters.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

use super::debug::Traces;
use super::door::keys::ApiKeys;
use super::error::ApiError;
use super::handover::Handover;
use super::metrics::Metrics;
use super::prompt::Prompt;
use super::templates::ChatTemplates;
use crate::config::{HttpConfig, ObserveConfig};
use crate::engine::{EngineHandle, Limits, TokenId};
use crate::text::Tokenizer;

/// Text above this size is tokenized away from the threads that serve sockets: it would take
/// longer than the few 100 us that others may be kept waiting.
const MAX_INLINE_TEXT_BYTES: usize = 8 << 10;

/// Everything that is served, loaded and running.
pub struct Served {
    pub engine: EngineHandle,
    pub tokenizer: Arc<Tokenizer>,
    /// Without one, `/v1/chat/completions` is refused.
    pub chat_template: Option<ChatTemplates>,
    /// Tokens that end a generation unless `ignore_eos` is asked for.
    pub eos_token_ids: Vec<TokenId>,
    pub model: ModelInfo,
    pub http: HttpConfig,
    pub keys: ApiKeys,
    pub observe: ObserveConfig,
    /// Most time for what is in flight when a stop is asked for.
    pub drain_timeout: Duration,
    pub handover: Handover,
    /// Every setting of `serve`, shown by `/stats`.
    pub settings: serde_json::Value,
}

/// The model as clients and `/stats` see it.
#[derive(Clone, Debug)]
pub struct ModelInfo {
    /// The name that requests use.
    pub name: String,
    /// The family, such as `llama`.
    pub architecture: String,
    /// The format of the weights, such as `Q4_1`.
    pub quantization: String,
    pub num_parameters: u64,
    /// Of the weights in the model's files.
    pub weight_bytes: u64,
    /// Of the weights as the runner holds them.
    pub loaded_weight_bytes: u64,
    /// Of the model file, in hex; `None` if it is not one file.
    pub sha256: Option<String>,
    /// From the start of loading to a model that can run.
    pub load_time: Duration,
    /// Seconds since 1970.
    pub created_unix_s: u64,
    /// Where it runs, such as `cpu`.
    pub device: String,
}

/// Shared by all connections.
pub struct AppState {
    pub served: Served,
    pub limits: Limits,
    pub metrics: Metrics,
    pub traces: Traces,
    pub started: Instant,
    /// A stop has begun: what is here is finished, and probes are told to send no more.
    pub is_draining: AtomicBool,
    /// Tells answers of different programs or weights apart, as OpenAI's `system_fingerprint`.
    pub fingerprint: String,
    /// Bounds how many threads tokenize long texts at a time: all of them would starve the engine.
    long_texts: Semaphore,
}

impl AppState {
    pub fn new(served: Served) -> anyhow::Result<Self> {
        let limits = served.engine.limits();
        Ok(Self {
            metrics: Metrics::new(&served.model, served.engine.clone())?,
            traces: Traces::new(served.observe.debug_requests),
            limits,
            started: Instant::now(),
            is_draining: AtomicBool::new(false),
            fingerprint: fingerprint(&served.model),
            long_texts: Semaphore::new(available_parallelism().map_or(1, |n| n.get().div_ceil(2))),
            served,
        })
    }

    /// Runs `work` over a text of `text_bytes`: here if it is short, else on a thread of its own.
    ///
    /// # Errors
    /// Those of `work`, and a panic in it.
    pub async fn with_text<T: Send + 'static>(
        self: &Arc<Self>,
        text_bytes: usize,
        work: impl FnOnce(&Served) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        if text_bytes <= MAX_INLINE_TEXT_BYTES {
            return work(&self.served);
        }
        let _permit = self
            .long_texts
            .acquire()
            .await
            .expect("bug: the semaphore of long texts was closed");
        let state = self.clone();
        tokio::task::spawn_blocking(move || work(&state.served))
            .await
            .map_err(|error| ApiError::Internal(format!("tokenizing failed: {error}")))?
    }

    /// The prompts as token ids, none empty. `field` is where they came from.
    ///
    /// # Errors
    /// A text has no token.
    pub async fn encode(
        self: &Arc<Self>,
        prompts: Vec<Prompt>,
        field: &'static str,
    ) -> Result<Vec<Vec<TokenId>>, ApiError> {
        let text_bytes = prompts.iter().map(Prompt::text_bytes).sum();
        self.with_text(text_bytes, move |served| {
            prompts
                .into_iter()
                .map(|prompt| encode_one(served, prompt, field))
                .collect()
        })
        .await
    }

    /// Whether requests that name a model mean this one.
    ///
    /// # Errors
    /// They mean another.
    pub fn check_model(&self, asked: Option<String>) -> Result<(), ApiError> {
        let served = &self.served.model.name;
        match asked {
            Some(asked) if asked != *served => Err(ApiError::ModelNotFound {
                asked,
                served: served.clone(),
            }),
            _ => Ok(()),
        }
    }
}

fn fingerprint(model: &ModelInfo) -> String {
    const DIGITS: usize = 12;
    let weights = model.sha256.as_deref().and_then(|hash| hash.get(..DIGITS));
    format!(
        "candlepower-{}-{}-{}",
        env!("CARGO_PKG_VERSION"),
        weights.unwrap_or(&model.name),
        model.quantization
    )
}

fn encode_one(served: &Served, prompt: Prompt, field: &str) -> Result<Vec<TokenId>, ApiError> {
    let tokens = match prompt {
        Prompt::Tokens(tokens) => tokens,
        Prompt::Text(text) => served
            .tokenizer
            .encode_text(&text)
            .map_err(|error| ApiError::invalid(field, error.to_string()))?,
    };
    if tokens.is_empty() {
        let message = format!("`{field}` holds no token of the model");
        return Err(ApiError::invalid(field, message));
    }
    Ok(tokens)
}
