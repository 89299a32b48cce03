//! `POST /v1/completions`.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;

use super::answer::{self, Shape};
use super::stream_mode::StreamMode;
use crate::server::call::Call;
use crate::server::error::ApiError;
use crate::server::fields::{Fields, Off};
use crate::server::generation::{Generation, Job};
use crate::server::options::{Dialect, Options};
use crate::server::prompt::Prompt;
use crate::server::state::AppState;

pub const PATH: &str = "/v1/completions";

const DIALECT: Dialect = Dialect {
    max_tokens: &["max_tokens"],
    default_max_tokens: Some(16),
    default_temperature: 1.0,
};

/// What is not supported, and the values that do not ask for it.
const UNSUPPORTED: &[(&str, &[Off])] = &[
    ("n", &[Off::Number(1)]),
    ("best_of", &[Off::Number(1)]),
    ("echo", &[Off::False]),
    ("logprobs", &[Off::False]),
    ("prompt_logprobs", &[Off::False]),
    ("suffix", &[Off::Empty]),
    ("logit_bias", &[Off::Empty]),
    ("response_format", &[Off::TypeText]),
    ("min_tokens", &[Off::Number(0)]),
    ("length_penalty", &[Off::Number(1)]),
    ("use_beam_search", &[Off::False]),
    ("add_special_tokens", &[Off::True]),
    ("skip_special_tokens", &[Off::True]),
    ("spaces_between_special_tokens", &[Off::True]),
    ("include_stop_str_in_output", &[Off::False]),
    ("truncate_prompt_tokens", &[]),
    ("return_token_ids", &[Off::False]),
    ("priority", &[Off::Number(0)]),
    ("user", &[Off::Anything]),
];

/// A checked body.
struct CompletionRequest {
    prompts: Vec<Prompt>,
    options: Options,
    mode: StreamMode,
}

impl CompletionRequest {
    fn read(mut fields: Fields, state: &AppState) -> Result<Self, ApiError> {
        let vocab_size = state.limits.vocab_size;
        state.check_model(fields.take("model", "a string", |_: &String| true)?)?;
        let Some(prompt) = fields.take_value("prompt") else {
            return Err(ApiError::invalid("prompt", "`prompt` is missing"));
        };
        let request = Self {
            prompts: Prompt::read(prompt, vocab_size)?,
            options: Options::take(&mut fields, &DIALECT, vocab_size)?,
            mode: StreamMode::take(&mut fields)?,
        };
        fields.finish(UNSUPPORTED)?;
        Ok(request)
    }
}

/// The handler. Several prompts are several choices, generated side by side.
pub async fn create(State(state): State<Arc<AppState>>, call: Call) -> Result<Response, ApiError> {
    let CompletionRequest {
        prompts,
        options,
        mode,
    } = CompletionRequest::read(call.fields, &state)?;
    let generations = state
        .encode(prompts, "prompt")
        .await?
        .into_iter()
        .map(|prompt| {
            let job = Job {
                request_id: call.id.clone(),
                endpoint: PATH,
                arrived: call.arrived,
                prompt,
                prompt_field: "prompt",
                options: &options,
            };
            Generation::start(&state, job)
        })
        .collect::<Result<Vec<_>, _>>()?;
    answer::respond(&state, Shape::Completion, mode, generations, call.id).await
}
