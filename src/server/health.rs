//! Is the process there, and does it take work?

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use super::error::ApiError;
use super::state::AppState;
use crate::engine::{EngineError, Health};

/// `GET /health/live`: the process answers.
pub async fn live() -> Json<Value> {
    Json(json!({"status": "live"}))
}

/// `GET /health/ready` and `/health`: the engine takes work; 503 and the reason if not.
pub async fn ready(State(state): State<Arc<AppState>>) -> Result<Json<Value>, ApiError> {
    match state.served.engine.health() {
        Health::Ready => Ok(Json(json!({"status": "ready"}))),
        Health::Failed(reason) => Err(ApiError::Refused(EngineError::Unavailable(reason))),
    }
}
