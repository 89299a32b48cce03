//! `POST /v1/completions`.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use serde_json::{Value, json};

use super::answer::{self, Form, Shape};
use super::logprobs;
use super::stream_mode::{self, StreamMode};
use crate::server::call::Call;
use crate::server::choices;
use crate::server::error::ApiError;
use crate::server::fields::{Fields, Off};
use crate::server::generation::Job;
use crate::server::openapi::schema::{boolean, properties, request};
use crate::server::options::{self, Dialect, Options};
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
    ("best_of", &[Off::Number(1)]),
    ("prompt_logprobs", &[Off::False]),
    ("suffix", &[Off::Empty]),
    ("response_format", &[Off::TypeText]),
    ("min_tokens", &[Off::Number(0)]),
    ("length_penalty", &[Off::Number(1)]),
    ("use_beam_search", &[Off::False]),
    ("add_special_tokens", &[Off::True]),
    ("skip_special_tokens", &[Off::True]),
    ("spaces_between_special_tokens", &[Off::True]),
    ("include_stop_str_in_output", &[Off::False]),
    ("truncate_prompt_tokens", &[]),
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
    n: usize,
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
            n: choices::take_number(&mut fields, state.served.http.max_choices)?,
            options: Options::take(&mut fields, &dialect, &state.limits)?,
            logprobs: logprobs::take_number(&mut fields, "logprobs")?,
            echo,
            return_token_ids: fields.take_flag("return_token_ids")?,
            mode: StreamMode::take(&mut fields)?,
        };
        fields.finish(UNSUPPORTED)?;
        Ok(request)
    }
}

/// What [`CompletionRequest::read`] takes.
pub fn schema(state: &AppState) -> Value {
    let with_echo = Dialect {
        min_max_tokens: 0,
        ..DIALECT
    };
    let (stream_fields, stream_rule) = stream_mode::schema();
    let mut fields = options::schema(&with_echo, state);
    fields.extend(stream_fields);
    fields.extend(properties([
        ("prompt", Prompt::schema(state.limits.vocab_size)),
        ("n", choices::schema(state.served.http.max_choices)),
        ("logprobs", logprobs::number_schema()),
        ("echo", boolean()),
        ("return_token_ids", boolean()),
    ]));
    let mut schema = request(&["prompt"], fields);
    // Without echo, no output would be no answer.
    let echo_rule = json!({"anyOf": [
        {"required": ["echo"], "properties": {"echo": {"const": true}}},
        {"properties": {"max_tokens": {"not": {"const": 0}}}},
    ]});
    schema["allOf"] = json!([stream_rule, echo_rule]);
    schema
}

/// The handler. Each prompt has `n` choices, and all are generated side by side.
pub async fn create(State(state): State<Arc<AppState>>, call: Call) -> Result<Response, ApiError> {
    let CompletionRequest {
        prompts,
        options,
        logprobs,
        echo,
        return_token_ids,
        n,
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
        calls: None,
        prompt_token_ids: return_token_ids.then(|| {
            let of_choices = prompts.iter().flat_map(|prompt| vec![prompt.clone(); n]);
            of_choices.collect()
        }),
    };
    let jobs = prompts.into_iter().zip(echoes).map(|(prompt, echo)| Job {
        request_id: call.id.clone(),
        endpoint: PATH,
        arrived: call.arrived,
        sender: call.sender,
        prompt,
        prompt_field: "prompt",
        options: &options,
        logprobs,
        echo,
    });
    let generations = choices::start(&state, jobs.collect(), n).await?;
    answer::respond(&state, form, generations, call.id).await
}
