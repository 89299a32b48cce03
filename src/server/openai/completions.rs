//! `POST /v1/completions`.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;

use super::answer::{self, Form, Shape};
use super::logprobs;
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
    min_max_tokens: 1,
    default_temperature: 1.0,
};

/// What is not supported, and the values that do not ask for it.
const UNSUPPORTED: &[(&str, &[Off])] = &[
    ("n", &[Off::Number(1)]),
    ("best_of", &[Off::Number(1)]),
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
    ("priority", &[Off::Number(0)]),
    ("user", &[Off::Anything]),
];

/// A checked body.
struct CompletionRequest {
    prompts: Vec<Prompt>,
    options: Options,
    logprobs: Option<usize>,
    /// The prompt comes first in the text.
    echo: bool,
    return_token_ids: bool,
    mode: StreamMode,
}

impl CompletionRequest {
    fn read(mut fields: Fields, state: &AppState) -> Result<Self, ApiError> {
        let vocab_size = state.limits.vocab_size;
        state.check_model(fields.take("model", "a string", |_: &String| true)?)?;
        let Some(prompt) = fields.take_value("prompt") else {
            return Err(ApiError::invalid("prompt", "`prompt` is missing"));
        };
        let echo = fields.take_flag("echo")?;
        let dialect = Dialect {
            min_max_tokens: if echo { 0 } else { 1 },
            ..DIALECT
        };
        let request = Self {
            prompts: Prompt::read(prompt, vocab_size)?,
            options: Options::take(&mut fields, &dialect, vocab_size)?,
            logprobs: logprobs::take_number(&mut fields, "logprobs")?,
            echo,
            return_token_ids: fields.take_flag("return_token_ids")?,
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
        logprobs,
        echo,
        return_token_ids,
        mode,
    } = CompletionRequest::read(call.fields, &state)?;
    let echoes = prompts
        .iter()
        .map(|prompt| echo.then(|| prompt.clone()))
        .collect::<Vec<_>>();
    let prompts = state.encode(prompts, "prompt").await?;
    let form = Form {
        shape: Shape::Completion,
        mode,
        logprobs: logprobs.is_some(),
        prompt_token_ids: return_token_ids.then(|| prompts.clone()),
    };
    let generations = prompts
        .into_iter()
        .zip(echoes)
        .map(|(prompt, echo)| {
            let job = Job {
                request_id: call.id.clone(),
                endpoint: PATH,
                arrived: call.arrived,
                prompt,
                prompt_field: "prompt",
                options: &options,
                logprobs,
                echo,
            };
            Generation::start(&state, job)
        })
        .collect::<Result<Vec<_>, _>>()?;
    answer::respond(&state, form, generations, call.id).await
}
