//! `POST /tokenize` and `/detokenize`, as load generators use them to make prompts of exact length.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use crate::server::call::Call;
use crate::server::error::ApiError;
use crate::server::openapi::schema::{boolean, properties, request, string};
use crate::server::prompt::{read_token_ids, token_ids_schema};
use crate::server::state::AppState;

pub const TOKENIZE_PATH: &str = "/tokenize";
pub const DETOKENIZE_PATH: &str = "/detokenize";

/// What [`tokenize`] takes.
pub fn tokenize_schema(state: &AppState) -> Value {
    let fields = properties([
        ("prompt", string()),
        ("add_special_tokens", boolean()),
        ("model", json!({"const": state.served.model.name})),
    ]);
    request(&["prompt"], fields)
}

/// What [`detokenize`] takes.
pub fn detokenize_schema(state: &AppState) -> Value {
    let fields = properties([
        ("tokens", token_ids_schema(state.limits.vocab_size)),
        ("model", json!({"const": state.served.model.name})),
    ]);
    request(&["tokens"], fields)
}

/// `{prompt, add_special_tokens}` to `{tokens, count}`.
pub async fn tokenize(
    State(state): State<Arc<AppState>>,
    call: Call,
) -> Result<Json<Value>, ApiError> {
    let mut fields = call.fields;
    state.check_model(fields.take("model", "a string", |_: &String| true)?)?;
    let prompt = fields.take("prompt", "a string", |_: &String| true)?;
    let prompt = prompt.ok_or_else(|| ApiError::invalid("prompt", "`prompt` is missing"))?;
    let special = fields.take("add_special_tokens", "true or false", |_: &bool| true)?;
    let special = special.unwrap_or(true);
    fields.finish(&[])?;
    let tokens = state
        .with_text(prompt.len(), move |served| {
            let tokens = served.tokenizer.encode_text(&prompt);
            let mut tokens =
                tokens.map_err(|error| ApiError::invalid("prompt", error.to_string()))?;
            // Text never encodes to the BOS token: one at the start was added.
            if !special && tokens.first().copied() == served.tokenizer.bos_id() {
                tokens.drain(..1);
            }
            Ok(tokens)
        })
        .await?;
    Ok(Json(json!({
        "count": tokens.len(),
        "max_model_len": state.limits.max_model_len,
        "tokens": tokens,
    })))
}

/// `{tokens}` to `{prompt}`.
pub async fn detokenize(
    State(state): State<Arc<AppState>>,
    call: Call,
) -> Result<Json<Value>, ApiError> {
    let mut fields = call.fields;
    state.check_model(fields.take("model", "a string", |_: &String| true)?)?;
    let Some(tokens) = fields.take_value("tokens") else {
        return Err(ApiError::invalid("tokens", "`tokens` is missing"));
    };
    let tokens = read_token_ids(tokens, state.limits.vocab_size)?;
    fields.finish(&[])?;
    let prompt = state
        .with_text(tokens.len(), move |served| {
            let text = served.tokenizer.decode(&tokens, false);
            text.map_err(|error| ApiError::invalid("tokens", error.to_string()))
        })
        .await?;
    Ok(Json(json!({ "prompt": prompt })))
}
