//! What crosses the border between server and engine: a [`Request`] in, [`Event`]s out.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::fairness::ClientId;
use super::logprobs::TokenLogprobs;
use super::timeline::Timeline;

/// One token id of the model's vocabulary.
pub type TokenId = u32;

/// One generation to run, fully checked by the server: token ids, not text.
#[derive(Clone, Debug)]
pub struct Request {
    pub prompt: Vec<TokenId>,
    /// Most tokens to generate; 0 only scores the prompt.
    pub max_tokens: usize,
    /// Tokens that end the generation: the model's end tokens, unless `ignore_eos` was asked for.
    pub stop_token_ids: Vec<TokenId>,
    pub sampling: SamplingParams,
    /// Report the log-probability of each generated token, with this many alternatives.
    pub logprobs: Option<usize>,
    /// The same for each prompt token but the first. The prompt is then computed whole.
    pub prompt_logprobs: Option<usize>,
    /// When the server took the request; the engine's timings count from here.
    pub arrived: Instant,
    /// Where to write down what happens to it, if anybody wants to know.
    pub timeline: Option<Arc<Timeline>>,
    /// Most time for waiting and generating; `Limits::request_timeout` if the request has no own.
    pub timeout: Option<Duration>,
    /// Within this time the first token is wanted: else the request is refused, or ends in the queue.
    pub first_token_within: Option<Duration>,
    /// Lower goes first.
    pub priority: i32,
    /// Clients of one priority take turns.
    pub client: ClientId,
}

impl Request {
    /// A greedy generation that nothing but `max_tokens` ends, taken now.
    pub fn new(prompt: Vec<TokenId>, max_tokens: usize) -> Self {
        Self {
            prompt,
            max_tokens,
            stop_token_ids: Vec::new(),
            sampling: SamplingParams::default(),
            logprobs: None,
            prompt_logprobs: None,
            arrived: Instant::now(),
            timeline: None,
            timeout: None,
            first_token_within: None,
            priority: 0,
            client: ClientId::default(),
        }
    }
}

/// How the next token is chosen. The default is greedy.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// 0 is greedy.
    pub temperature: f32,
    /// Keep the `top_k` most likely tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep the smallest set of tokens whose probability reaches `top_p`, in (0, 1].
    pub top_p: f32,
    /// Drop tokens less likely than `min_p` times the most likely one, in [0, 1].
    pub min_p: f32,
    /// The same seed and the same request give the same tokens; `None` draws a seed.
    pub seed: Option<u64>,
    /// Divides (or multiplies, below 0) the logits of tokens in prompt or output; 1 is off.
    pub repetition_penalty: f32,
    /// Subtracted once from the logits of tokens in the output; 0 is off.
    pub presence_penalty: f32,
    /// Subtracted for each time that a token stands in the output; 0 is off.
    pub frequency_penalty: f32,
    /// Added to the logits of these tokens, each named once.
    pub logit_bias: Vec<(TokenId, f32)>,
}

impl SamplingParams {
    /// For one of several answers to a prompt: from one seed, each draws other tokens.
    pub fn for_choice(&self, choice: usize) -> Self {
        Self {
            seed: self.seed.map(|seed| seed.wrapping_add(choice as u64)),
            ..self.clone()
        }
    }
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            seed: None,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
        }
    }
}

/// What the engine tells the owner of a request, in this order: `Admitted` once, `Prompt` for each
/// scored part of the prompt, `Token` for each generated token, then `Finished` or `Failed`.
/// Dropping the receiver cancels the request.
#[derive(Clone, Debug)]
pub enum Event {
    /// The first prefill chunk is in a step; the wait is over.
    Admitted {
        at: Instant,
        /// Prompt tokens taken from the prefix cache.
        cached_tokens: usize,
    },
    /// The next scored prompt tokens, if `Request::prompt_logprobs` asks for them.
    Prompt(Vec<TokenLogprobs>),
    Token {
        at: Instant,
        id: TokenId,
        /// If `Request::logprobs` asks for them.
        logprobs: Option<Box<TokenLogprobs>>,
    },
    Finished(FinishReason),
    Failed(EngineError),
}

/// Why the engine ended a generation. A stop token is reported as a `Token` before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// One of `Request::stop_token_ids` was generated.
    Stop,
    /// `Request::max_tokens` were generated.
    Length,
}

/// What a time limit is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Awaited {
    FirstToken,
    End,
}

impl fmt::Display for Awaited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::FirstToken => "first token",
            Self::End => "end",
        })
    }
}

/// Why a request was refused or ended early.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum EngineError {
    #[error("the queue is full: {queued_requests} requests are waiting; try again in {} s", retry_after.as_secs())]
    Overloaded {
        queued_requests: usize,
        retry_after: Duration,
    },
    #[error(
        "the queue is too long for this request's time limit: its {awaited} is predicted in {} ms, \
         and is wanted within {} ms; try again in {} s",
        predicted.as_millis(), limit.as_millis(), retry_after.as_secs()
    )]
    DeadlineUnmet {
        awaited: Awaited,
        predicted: Duration,
        limit: Duration,
        retry_after: Duration,
    },
    #[error(
        "prompt of {prompt_tokens} tokens and max_tokens {max_tokens} make {}, above the limit of {max_model_len} tokens",
        prompt_tokens + max_tokens
    )]
    TooLong {
        prompt_tokens: usize,
        max_tokens: usize,
        max_model_len: usize,
    },
    #[error(
        "timed out after {} ms: {} ms waiting, {} ms prefill, {} ms decode, {generated_tokens} tokens generated",
        (*queue + *prefill + *decode).as_millis(), queue.as_millis(), prefill.as_millis(), decode.as_millis()
    )]
    Timeout {
        queue: Duration,
        prefill: Duration,
        decode: Duration,
        generated_tokens: usize,
    },
    #[error("the step that held this request failed: {0}")]
    StepFailed(String),
    #[error("the engine does not run: {0}")]
    Unavailable(String),
}
