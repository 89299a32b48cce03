//! Is the process there, and does it take work?

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use super::error::{ApiError, NotReady};
use super::state::AppState;
use crate::engine::Health;

/// `GET /health/live`: the process answers.
pub async fn live() -> Json<Value> {
    Json(json!({"status": "live"}))
}

/// `GET /health/ready` and `/health`: requests are taken and get on; 503 and the reason if not.
pub async fn ready(State(state): State<Arc<AppState>>) -> Result<Json<Value>, ApiError> {
    if state.is_draining.load(Ordering::Relaxed) {
        return Err(ApiError::NotReady(NotReady::Draining));
    }
    match state.served.engine.health() {
        Health::Ready => Ok(Json(json!({"status": "ready"}))),
        Health::Stalled(silence) => Err(ApiError::NotReady(NotReady::Stalled(silence))),
        Health::Failed(_) => Err(ApiError::NotReady(NotReady::Failed)),
    }
}
