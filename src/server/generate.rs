//! `POST /generate`: the plain API, one prompt in, one text out.
//!
//! Streamed, each token is an event `{"token", "text"}`; the last event tells how it went, with no
//! text, so that the texts of all events in a row are the whole.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::Value;

use super::call::Call;
use super::choices;
use super::error::ApiError;
use super::fields::{Fields, Off};
use super::generation::Job;
use super::openai::usage::Usage;
use super::openapi::schema::{boolean, described, request};
use super::options::{self, Dialect, Options};
use super::outcome::finish_reason_name;
use super::piece::{Piece, Summary, Whole};
use super::prompt::Prompt;
use super::state::AppState;
use super::streaming::{self, Events, Format};
use super::timings::Timings;
use crate::engine::TokenId;

pub const PATH: &str = "/generate";

const DIALECT: Dialect = Dialect {
    max_tokens: &["max_tokens", "max_new_tokens"],
    default_max_tokens: Some(100),
    min_max_tokens: 1,
    default_temperature: 0.0,
};

/// Routers send these along with the values that mean off.
const UNSUPPORTED: &[(&str, &[Off])] = &[
    ("rid", &[Off::Anything]),
    ("user", &[Off::Anything]),
    ("n", &[Off::Number(1)]),
    ("best_of", &[Off::Number(1)]),
    ("return_logprob", &[Off::False]),
    ("return_hidden_states", &[Off::False]),
    ("return_full_text", &[Off::False]),
    ("details", &[Off::False]),
    ("decoder_input_details", &[Off::False]),
    ("watermark", &[Off::False]),
    ("min_new_tokens", &[Off::Number(0)]),
    ("skip_special_tokens", &[Off::True]),
    ("no_stop_trim", &[Off::False]),
    ("lora_path", &[]),
    ("session_params", &[]),
];

/// A checked body.
struct GenerateRequest {
    prompt: Prompt,
    options: Options,
    stream: bool,
}

impl GenerateRequest {
    /// Routers pass on only the fields they know, so everything may also stand in an object
    /// `parameters` or `sampling_params`, and the prompt be called `text` or `input_ids`.
    fn read(mut fields: Fields, state: &AppState) -> Result<Self, ApiError> {
        for nested in ["parameters", "sampling_params"] {
            if let Some(nested) = fields.take_object(nested)? {
                fields.absorb(nested)?;
            }
        }
        state.check_model(fields.take("model", "a string", |_: &String| true)?)?;
        let Some(prompt) = fields.take_alias(&["prompt", "text", "input_ids"])? else {
            return Err(ApiError::invalid("prompt", "`prompt` is missing"));
        };
        let path = prompt.path.clone();
        let Ok([prompt]) = <[Prompt; 1]>::try_from(Prompt::read(prompt, state.limits.vocab_size)?)
        else {
            return Err(ApiError::invalid(
                &path,
                format!("`{path}` must hold one prompt"),
            ));
        };
        let request = Self {
            prompt,
            options: Options::take(&mut fields, &DIALECT, &state.limits)?,
            stream: fields.take_flag("stream")?,
        };
        fields.finish(UNSUPPORTED)?;
        Ok(request)
    }
}

/// What [`GenerateRequest::read`] takes, under the names that it has here.
pub fn schema(state: &AppState) -> Value {
    let mut fields = options::schema(&DIALECT, state);
    let prompt = Prompt::schema_of_one(state.limits.vocab_size);
    let names = "`text` and `input_ids` are the same. All fields may also stand in an object \
                 `parameters` or `sampling_params`.";
    fields.insert("prompt".to_owned(), described(prompt, names));
    fields.insert("stream".to_owned(), boolean());
    request(&["prompt"], fields)
}

/// How a generation went, for people and load tests.
#[derive(Serialize)]
struct Report {
    /// The whole prompt but its last token came from the prefix cache.
    cached: bool,
    finish_reason: &'static str,
    usage: Usage,
    timings: Timings,
}

impl From<Summary> for Report {
    fn from(summary: Summary) -> Self {
        Self {
            cached: summary.cached,
            finish_reason: finish_reason_name(summary.finish_reason),
            usage: Usage::of(&[summary]),
            timings: summary.timings,
        }
    }
}

#[derive(Serialize)]
struct GenerateResponse {
    text: String,
    #[serde(flatten)]
    report: Report,
}

#[derive(Serialize)]
struct TokenEvent<'a> {
    token: Option<TokenId>,
    text: &'a str,
}

/// The handler.
pub async fn generate(
    State(state): State<Arc<AppState>>,
    call: Call,
) -> Result<Response, ApiError> {
    let request = GenerateRequest::read(call.fields, &state)?;
    let mut prompts = state.encode(vec![request.prompt], "prompt").await?;
    let job = Job {
        request_id: call.id.clone(),
        endpoint: PATH,
        arrived: call.arrived,
        sender: call.sender,
        prompt: prompts.remove(0),
        prompt_field: "prompt",
        options: &request.options,
        logprobs: None,
        echo: None,
    };
    let mut generations = choices::start(&state, vec![job], 1).await?;
    if request.stream {
        return streaming::respond(generations, TokenEvents, call.id).await;
    }
    let generation = generations.remove(0);
    let Whole { text, summary, .. } = generation.collect().await?;
    let report = summary.into();
    Ok(Json(GenerateResponse { text, report }).into_response())
}

struct TokenEvents;

impl Format for TokenEvents {
    fn piece(&mut self, events: &mut Events, _index: usize, piece: &Piece) {
        if piece.token.is_some() || !piece.text.is_empty() {
            events.push(&TokenEvent {
                token: piece.token,
                text: &piece.text,
            });
        }
        if let Some(summary) = piece.end {
            events.push(&Report::from(summary));
        }
    }

    fn end(&mut self, _events: &mut Events) {}
}
