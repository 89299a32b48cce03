//! `GET /stats`: what the engine does, what is loaded and with which settings, as one JSON object.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use serde_json::Value;

use super::process::Process;
use super::state::AppState;
use super::timings::milliseconds;
use crate::engine::EngineStats;

#[derive(Serialize)]
pub struct Stats {
    #[serde(flatten)]
    engine: EngineStats,
    memory: Memory,
    model: Model,
    uptime_ms: f64,
    settings: Value,
}

#[derive(Serialize)]
struct Memory {
    /// Resident memory of this process; `null` where the system does not tell.
    rss_bytes: Option<u64>,
}

#[derive(Serialize)]
struct Model {
    name: String,
    architecture: String,
    quantization: String,
    num_parameters: u64,
    /// Of the weights in the model's files.
    weight_bytes: u64,
    /// Of the weights as the runner holds them; less than the files have where QUANTIZE is set.
    loaded_weight_bytes: u64,
    sha256: Option<String>,
    load_time_ms: f64,
    max_model_len_tokens: usize,
    vocab_size_tokens: usize,
    device: String,
}

/// The handler.
pub async fn stats(State(state): State<Arc<AppState>>) -> Json<Stats> {
    let model = state.served.model.clone();
    Json(Stats {
        engine: state.served.engine.stats(),
        memory: Memory {
            rss_bytes: Process::look().map(|process| process.resident_bytes),
        },
        model: Model {
            name: model.name,
            architecture: model.architecture,
            quantization: model.quantization,
            num_parameters: model.num_parameters,
            weight_bytes: model.weight_bytes,
            loaded_weight_bytes: model.loaded_weight_bytes,
            sha256: model.sha256,
            load_time_ms: milliseconds(model.load_time),
            max_model_len_tokens: state.limits.max_model_len,
            vocab_size_tokens: state.limits.vocab_size,
            device: model.device,
        },
        uptime_ms: milliseconds(state.started.elapsed()),
        settings: state.served.settings.clone(),
    })
}
