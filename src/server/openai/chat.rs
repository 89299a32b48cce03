//! `POST /v1/chat/completions`.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use serde_json::{Map, Value, json};

use super::answer::{self, Form, Shape};
use super::calls::CallReader;
use super::logprobs;
use super::messages;
use super::stream_mode::{self, StreamMode};
use super::tools::{self, Tools};
use crate::engine::TokenId;
use crate::server::call::Call;
use crate::server::choices;
use crate::server::error::ApiError;
use crate::server::fields::{Fields, Off};
use crate::server::generation::Job;
use crate::server::openapi::schema::{boolean, properties, request};
use crate::server::options::{self, Dialect, Options};
use crate::server::state::AppState;
use crate::server::templates::{RenderError, Rendered};
use crate::text::TextError;
use crate::text::template_worker::Rendering;

pub const PATH: &str = "/v1/chat/completions";

const DIALECT: Dialect = Dialect {
    max_tokens: &["max_completion_tokens", "max_tokens"],
    default_max_tokens: None,
    min_max_tokens: 1,
    default_temperature: 1.0,
};

/// What is not supported, and the values that do not ask for it.
const UNSUPPORTED: &[(&str, &[Off])] = &[
    ("prompt_logprobs", &[Off::False]),
    ("response_format", &[Off::TypeText]),
    ("functions", &[Off::Empty]),
    ("function_call", &[Off::Text("none"), Off::Text("auto")]),
    ("modalities", &[Off::TextOnly]),
    ("audio", &[]),
    ("prediction", &[]),
    ("reasoning_effort", &[Off::Text("none")]),
    ("verbosity", &[Off::Text("medium")]),
    ("web_search_options", &[]),
    ("service_tier", &[Off::Text("auto"), Off::Text("default")]),
    ("store", &[Off::False]),
    ("metadata", &[Off::Anything]),
    ("user", &[Off::Anything]),
    ("safety_identifier", &[Off::Anything]),
    ("prompt_cache_key", &[Off::Anything]),
    ("min_tokens", &[Off::Number(0)]),
    ("length_penalty", &[Off::Number(1)]),
    ("use_beam_search", &[Off::False]),
    ("echo", &[Off::False]),
    ("add_special_tokens", &[Off::False]),
    ("skip_special_tokens", &[Off::True]),
    ("spaces_between_special_tokens", &[Off::True]),
    ("include_stop_str_in_output", &[Off::False]),
    ("continue_final_message", &[Off::False]),
    ("truncate_prompt_tokens", &[]),
    ("return_token_ids", &[Off::False]),
];

/// A checked body.
struct ChatRequest {
    messages: Value,
    tools: Option<Tools>,
    template: TemplateOptions,
    options: Options,
    logprobs: Option<usize>,
    n: usize,
    mode: StreamMode,
}

/// How the messages become one prompt.
struct TemplateOptions {
    add_generation_prompt: bool,
    /// More variables for the template.
    kwargs: Map<String, Value>,
}

impl ChatRequest {
    fn read(mut fields: Fields, state: &AppState) -> Result<Self, ApiError> {
        state.check_model(fields.take("model", "a string", |_: &String| true)?)?;
        let Some(messages) = fields.take_value("messages") else {
            return Err(ApiError::invalid("messages", "`messages` is missing"));
        };
        let request = Self {
            messages: messages::read(messages, tools::can_call(&state.served))?,
            tools: Tools::take(&mut fields, &state.served)?,
            template: TemplateOptions {
                add_generation_prompt: fields
                    .take("add_generation_prompt", "true or false", |_: &bool| true)?
                    .unwrap_or(true),
                kwargs: read_kwargs(&mut fields)?,
            },
            options: Options::take(&mut fields, &DIALECT, &state.limits)?,
            logprobs: read_logprobs(&mut fields)?,
            n: choices::take_number(&mut fields, state.served.http.max_choices)?,
            mode: StreamMode::take(&mut fields)?,
        };
        fields.finish(UNSUPPORTED)?;
        Ok(request)
    }
}

/// What [`ChatRequest::read`] takes.
pub fn schema(state: &AppState) -> Value {
    let (stream_fields, stream_rule) = stream_mode::schema();
    let mut fields = options::schema(&DIALECT, state);
    fields.extend(stream_fields);
    let can_call = tools::can_call(&state.served);
    if can_call {
        fields.extend(tools::schema());
    }
    let kwargs = json!({
        "description": "More variables for the model's chat template",
        "type": "object",
        "propertyNames": {"not": {"enum": TEMPLATES_OWN}},
    });
    fields.extend(properties([
        ("messages", messages::schema(can_call)),
        ("n", choices::schema(state.served.http.max_choices)),
        ("logprobs", boolean()),
        ("top_logprobs", logprobs::number_schema()),
        ("add_generation_prompt", boolean()),
        ("chat_template_kwargs", kwargs),
    ]));
    let mut schema = request(&["messages"], fields);
    let logprobs_rule = json!({"anyOf": [
        {"required": ["logprobs"], "properties": {"logprobs": {"const": true}}},
        {"properties": {"top_logprobs": {"enum": [0, null]}}},
    ]});
    schema["allOf"] = json!([stream_rule, logprobs_rule]);
    schema
}

/// The handler.
pub async fn create(State(state): State<Arc<AppState>>, call: Call) -> Result<Response, ApiError> {
    let ChatRequest {
        messages,
        tools,
        template,
        options,
        logprobs,
        n,
        mode,
    } = ChatRequest::read(call.fields, &state)?;
    let calls = tools.as_ref().map(|tools| CallReader::new(tools.one_call));
    let tools = tools.map(|tools| tools.list);
    let prompt = encode(&state, messages, tools, template).await?;
    let job = Job {
        request_id: call.id.clone(),
        endpoint: PATH,
        arrived: call.arrived,
        sender: call.sender,
        prompt,
        prompt_field: "messages",
        options: &options,
        logprobs,
        echo: None,
    };
    let form = Form {
        shape: Shape::Chat,
        mode,
        logprobs: logprobs.is_some(),
        prompt_token_ids: None,
        calls,
    };
    let generations = choices::start(&state, vec![job], n).await?;
    answer::respond(&state, form, generations, call.id).await
}

/// How many alternatives to report of each token, if any token is reported.
fn read_logprobs(fields: &mut Fields) -> Result<Option<usize>, ApiError> {
    let is_wanted = fields.take_flag("logprobs")?;
    let num_top = logprobs::take_number(fields, "top_logprobs")?.unwrap_or(0);
    if num_top > 0 && !is_wanted {
        let message = "`top_logprobs` is only for `logprobs: true`";
        return Err(ApiError::invalid("top_logprobs", message));
    }
    Ok(is_wanted.then_some(num_top))
}

/// Variables that the template has from elsewhere.
const TEMPLATES_OWN: [&str; 4] = ["messages", "tools", "documents", "add_generation_prompt"];

/// Variables that the template has from elsewhere would be ignored, so they are refused.
fn read_kwargs(fields: &mut Fields) -> Result<Map<String, Value>, ApiError> {
    let name = "chat_template_kwargs";
    let kwargs = fields
        .take(name, "an object", |_: &Map<_, _>| true)?
        .unwrap_or_default();
    match TEMPLATES_OWN
        .iter()
        .find(|taken| kwargs.contains_key(**taken))
    {
        None => Ok(kwargs),
        Some(taken) => {
            let path = format!("{name}.{taken}");
            let message = format!("`{path}` cannot be set: the request itself tells it");
            Err(ApiError::invalid(path, message))
        }
    }
}

async fn encode(
    state: &Arc<AppState>,
    messages: Value,
    tools: Option<Value>,
    options: TemplateOptions,
) -> Result<Vec<TokenId>, ApiError> {
    let Some(templates) = &state.served.chat_template else {
        let message = "this model has no chat template: use /v1/completions";
        return Err(ApiError::invalid("messages", message));
    };
    let invalid = |error: TextError| ApiError::invalid("messages", error.to_string());
    let TemplateOptions {
        add_generation_prompt,
        kwargs,
    } = options;
    let rendering = Rendering(messages, tools, add_generation_prompt, kwargs);
    let Rendered { text, permit } =
        templates
            .render(&rendering)
            .await
            .map_err(|error| match error {
                RenderError::Template(error) => invalid(error),
                error => ApiError::Internal(error.to_string()),
            })?;
    let tokens = state
        .with_text(text.len(), move |served| {
            served.tokenizer.encode_chat(&text).map_err(invalid)
        })
        .await?;
    drop(permit);
    if tokens.is_empty() {
        return Err(ApiError::invalid(
            "messages",
            "`messages` hold no token of the model",
        ));
    }
    Ok(tokens)
}
