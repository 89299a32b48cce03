//! `GET /v1/models`: the one model that is served.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use serde_json::{Value, json};

use crate::server::error::ApiError;
use crate::server::state::AppState;

/// `GET /v1/models`.
pub async fn list(State(state): State<Arc<AppState>>) -> Json<Value> {
    Json(json!({"object": "list", "data": [describe(&state)]}))
}

/// `GET /v1/models/{id}`; ids may hold slashes.
pub async fn retrieve(
    State(state): State<Arc<AppState>>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    state.check_model(Some(id))?;
    Ok(Json(describe(&state)))
}

fn describe(state: &AppState) -> Value {
    let model = &state.served.model;
    json!({
        "id": model.name,
        "object": "model",
        "created": model.created_unix_s,
        "owned_by": "candlepower",
        "root": model.name,
        "parent": null,
        "max_model_len": state.limits.max_model_len,
    })
}
