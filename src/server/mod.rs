//! HTTP in, tokens out. Knows no tensor: it turns JSON into token ids for the engine, and the
//! engine's events back into JSON or server-sent events.
//!
//! All generating endpoints walk the same path:
//!
//! ```text
//! call > fields > prompt + options > generation (engine events > echo + output > pieces) > answer or stream
//! ```
//!
//! Before it stands the `door`: connections, keys, other web sites. `fields` refuses what no endpoint takes, `error` alone chooses status codes, and `outcome` tells
//! the end of each generation once, to log and metrics. Prompts and texts are logged only if asked for.

mod call;
mod choices;
mod debug;
mod door;
mod echo;
mod engine_events;
mod error;
mod fields;
mod generate;
mod generation;
mod handover;
mod health;
mod metrics;
mod openai;
mod openapi;
mod options;
mod outcome;
mod output;
mod piece;
mod process;
mod prompt;
mod request_id;
mod routes;
mod sender;
mod state;
mod stats;
mod streaming;
mod templates;
mod timings;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::bail;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use crate::engine::{EngineHandle, Health};
use door::connections;
use state::AppState;

pub use door::keys::ApiKeys;
pub use handover::Handover;
pub use state::{ModelInfo, Served};
pub use templates::{ChatTemplates, RenderError};

/// After a drain that was cut short, time for the last answers to go out.
const CUT_TIME: Duration = Duration::from_secs(2);

/// Serves until `shutdown` completes, then finishes what is in flight.
///
/// # Errors
/// The engine failed: requests in flight have had their answers, and the process should end so
/// that a supervisor starts a new one.
pub async fn run(
    listener: TcpListener,
    served: Served,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> anyhow::Result<()> {
    let engine = served.engine.clone();
    let drain_timeout = served.drain_timeout;
    let leave = served.handover.prepare(&listener);
    let state = Arc::new(AppState::new(served)?);
    let app = routes::router(state.clone());

    let (stopping, stop_began) = oneshot::channel();
    let failure = engine.clone();
    let draining = state.clone();
    let stop = async move {
        tokio::select! {
            () = shutdown => tracing::info!("stopping: finishing the requests in flight"),
            reason = failure.failed() => tracing::error!(reason, "the engine failed; stopping"),
        }
        draining.is_draining.store(true, Ordering::Relaxed);
        // The other end is gone only if the server is.
        let _ = stopping.send(());
        leave.run().await;
    };
    let was_cut = AtomicBool::new(false);
    let http = &state.served.http;
    tokio::select! {
        () = connections::serve(listener, app, http, &state.metrics, stop) => {}
        () = cut_drain(stop_began, drain_timeout, &engine, &was_cut) => {
            tracing::warn!("stopped with connections open: their clients do not read");
        }
        never = watch_over(&engine) => never,
    }
    tell_figures(&engine).await;
    match engine.health() {
        Health::Failed(reason) if !was_cut.load(Ordering::Relaxed) => {
            bail!("the engine failed: {reason}")
        }
        _ => Ok(()),
    }
}

/// Logs the engine's last figures, once it has noticed that the last clients have left.
async fn tell_figures(engine: &EngineHandle) {
    let deadline = Instant::now() + CUT_TIME;
    let mut stats = engine.stats();
    while stats.batch.num_running_requests + stats.queue.num_waiting_requests > 0
        && Instant::now() < deadline
    {
        tokio::time::sleep(Duration::from_millis(5)).await;
        stats = engine.stats();
    }
    let stats = serde_json::to_string(&stats).unwrap_or_default();
    tracing::info!(stats, "stopped");
}

/// Ends what is in flight when a stop has taken too long, and completes soon after.
async fn cut_drain(
    stop_began: oneshot::Receiver<()>,
    drain_timeout: Duration,
    engine: &EngineHandle,
    was_cut: &AtomicBool,
) {
    if stop_began.await.is_err() {
        // The server ended by itself.
        std::future::pending::<()>().await;
    }
    tokio::time::sleep(drain_timeout).await;
    if !matches!(engine.health(), Health::Failed(_)) {
        tracing::warn!("DRAIN_TIMEOUT is over: ending what is in flight");
        was_cut.store(true, Ordering::Relaxed);
        engine.stop("the server stopped before the end of this request");
    }
    tokio::time::sleep(CUT_TIME).await;
}

/// Looks after the engine from outside: a thread that is stuck cannot say so.
async fn watch_over<T>(engine: &EngineHandle) -> T {
    const LOOKS_PER_STALL: u32 = 8;
    loop {
        tokio::time::sleep(engine.limits().stall_timeout / LOOKS_PER_STALL).await;
        engine.give_up_if_stuck();
    }
}
