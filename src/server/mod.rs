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
mod error;
mod fields;
mod generate;
mod generation;
mod health;
mod metrics;
mod openai;
mod openapi;
mod options;
mod outcome;
mod output;
mod process;
mod prompt;
mod request_id;
mod routes;
mod state;
mod stats;
mod streaming;
mod timings;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use crate::engine::{EngineHandle, Health};
use door::connections;
use state::AppState;

pub use door::keys::ApiKeys;
pub use state::{ModelInfo, Served};

/// How much longer than the longest request a stop waits for clients that do not read.
const DRAIN_MARGIN: Duration = Duration::from_secs(5);

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
    let state = Arc::new(AppState::new(served)?);
    let app = routes::router(state.clone());

    let (stopping, stop_began) = oneshot::channel();
    let failure = engine.clone();
    let stop = async move {
        tokio::select! {
            () = shutdown => tracing::info!("stopping: finishing the requests in flight"),
            reason = failure.failed() => tracing::error!(reason, "the engine failed; stopping"),
        }
        // The other end is gone only if the server is.
        let _ = stopping.send(());
    };
    let http = &state.served.http;
    tokio::select! {
        () = connections::serve(listener, app, http, &state.metrics, stop) => {}
        () = drain_limit(stop_began, &engine) => {
            tracing::warn!("stopped with connections open: their clients do not read");
        }
    }
    match engine.health() {
        Health::Ready => Ok(()),
        Health::Failed(reason) => bail!("the engine failed: {reason}"),
    }
}

/// Completes when a stop has taken longer than any request can.
async fn drain_limit(stop_began: oneshot::Receiver<()>, engine: &EngineHandle) {
    if stop_began.await.is_err() {
        // The server ended by itself.
        std::future::pending::<()>().await;
    }
    tokio::time::sleep(engine.limits().request_timeout + DRAIN_MARGIN).await;
}
