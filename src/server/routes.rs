//! Paths to handlers, and what every answer has in common.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, Uri, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures_util::FutureExt;

use super::door::{cors, keys};
use super::error::ApiError;
use super::request_id::{RequestId, X_REQUEST_ID};
use super::state::AppState;
use super::{debug, generate, health, metrics, openai, openapi, stats};

/// The whole API.
pub fn router(state: Arc<AppState>) -> Router {
    let check_key = middleware::from_fn_with_state(state.clone(), keys::check);
    let origins = state.served.http.cors_allow_origins.as_ref();
    let cors = origins.map(cors::layer);
    let mut router = Router::new()
        .route(generate::PATH, post(generate::generate))
        .route(openai::completions::PATH, post(openai::completions::create))
        .route(openai::chat::PATH, post(openai::chat::create))
        .route("/v1/models", get(openai::models::list))
        .route("/v1/models/{*id}", get(openai::models::retrieve))
        .route(openapi::PATH, get(openapi::document))
        .route(
            openai::tokens::TOKENIZE_PATH,
            post(openai::tokens::tokenize),
        )
        .route(
            openai::tokens::DETOKENIZE_PATH,
            post(openai::tokens::detokenize),
        )
        .route("/health", get(health::ready))
        .route("/health/ready", get(health::ready))
        .route("/health/live", get(health::live))
        .route("/metrics", get(metrics::scrape))
        .route("/stats", get(stats::stats));
    if state.served.observe.debug_requests > 0 {
        router = router.route(debug::PATH, get(debug::requests));
    }
    let router = router
        .fallback(async |uri: Uri| ApiError::PathNotFound(uri.path().to_owned()))
        .method_not_allowed_fallback(async |request: Request| ApiError::MethodNotAllowed {
            method: request.method().clone(),
            path: request.uri().path().to_owned(),
        })
        .layer(check_key)
        .layer(middleware::from_fn_with_state(state.clone(), envelope))
        .with_state(state);
    match cors {
        // Outside of all: what a browser asks beforehand carries no key.
        Some(cors) => router.layer(cors),
        None => router,
    }
}

/// Gives each request its id and each error its body; a panic in a handler is an error like others.
async fn envelope(
    State(state): State<Arc<AppState>>,
    mut request: Request,
    next: Next,
) -> Response {
    let id = RequestId::of(request.headers());
    let path = request.uri().path().to_owned();
    request.extensions_mut().insert(id.clone());
    let answer = AssertUnwindSafe(next.run(request)).catch_unwind().await;
    let mut response = answer.unwrap_or_else(|panic| {
        ApiError::Internal(format!("a handler panicked: {}", panic_message(&*panic)))
            .into_response()
    });
    if let Some(error) = response.extensions_mut().remove::<Arc<ApiError>>() {
        log_refusal(&error, &id, &path);
        response = error.response(&id);
    }
    response
        .headers_mut()
        .insert(X_REQUEST_ID, id.header_value());
    if state.is_draining.load(Ordering::Relaxed) {
        // The next request of this client belongs to another process.
        response
            .headers_mut()
            .insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// A generation that failed has told its end itself. The message of a refusal is not logged: it may
/// quote the client.
fn log_refusal(error: &ApiError, id: &RequestId, path: &str) {
    let status = error.status().as_u16();
    let id = id.as_str();
    match error {
        ApiError::Failed(_) => {}
        ApiError::Internal(reason) => {
            tracing::error!(request_id = id, path, status, reason, "request failed");
        }
        _ => {
            let (code, param) = (error.code(), error.param());
            tracing::info!(
                request_id = id,
                path,
                status,
                code,
                param,
                "request refused"
            );
        }
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}
