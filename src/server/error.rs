//! What can go wrong with a request, and the only place that chooses status codes and the words
//! of an error body.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::request_id::RequestId;
use super::timings::milliseconds;
use crate::engine::EngineError;

/// Why a request gets no answer, or no full one.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The client must change the field `param`, or the body as a whole.
    #[error("{message}")]
    Invalid {
        param: Option<String>,
        message: String,
        code: Option<&'static str>,
    },
    #[error("the model `{asked}` does not exist here; this server has `{served}`")]
    ModelNotFound { asked: String, served: String },
    #[error("no such path: {0}")]
    PathNotFound(String),
    #[error("{method} is not allowed for {path}")]
    MethodNotAllowed { method: Method, path: String },
    #[error("the body is larger than {limit_bytes} bytes")]
    BodyTooLarge { limit_bytes: usize },
    #[error("the body did not come within {} s", limit.as_secs_f64())]
    BodyTooSlow { limit: Duration },
    #[error("{}", if *has_key {
        "this API key does not open the server"
    } else {
        "an API key is needed: send `Authorization: Bearer KEY`"
    })]
    Unauthorized { has_key: bool },
    #[error("the server has {max_connections} connections already, which is its limit")]
    TooManyConnections { max_connections: usize },
    /// The engine did not take the request.
    #[error(transparent)]
    Refused(EngineError),
    /// The engine took the request and could not finish it.
    #[error(transparent)]
    Failed(EngineError),
    /// Nothing is wrong with this request, but others should go elsewhere.
    #[error("not ready: {0}")]
    NotReady(NotReady),
    /// A fault of ours. The client is told the request id, the log the reason.
    #[error("{0}")]
    Internal(String),
}

/// Why a server is up and not ready.
#[derive(Debug, thiserror::Error)]
pub enum NotReady {
    #[error("it is stopping, and finishes the requests in flight")]
    Draining,
    #[error("there is work, and no step has ended for {} s", .0.as_secs())]
    Stalled(Duration),
    /// The log tells why.
    #[error("the engine has ended")]
    Failed,
}

/// How an error looks from outside.
struct Appearance {
    status: StatusCode,
    kind: &'static str,
    code: Option<&'static str>,
}

impl ApiError {
    /// A 400 that names the field `param`.
    pub fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Invalid {
            param: Some(param.into()),
            message: message.into(),
            code: None,
        }
    }

    /// The status code of this error.
    pub fn status(&self) -> StatusCode {
        self.appearance().status
    }

    /// What kind of error it is, for programs.
    pub fn code(&self) -> Option<&'static str> {
        self.appearance().code
    }

    /// The field that the client must change.
    pub fn param(&self) -> Option<&str> {
        match self {
            Self::Invalid { param, .. } => param.as_deref(),
            Self::ModelNotFound { .. } => Some("model"),
            Self::Refused(EngineError::TooLong { .. }) => Some("max_tokens"),
            _ => None,
        }
    }

    /// The error as a response of its own.
    pub fn response(&self, id: &RequestId) -> Response {
        let mut response = (self.status(), Json(self.body(id))).into_response();
        let headers = response.headers_mut();
        if let Some(wait) = self.retry_after() {
            let seconds = wait.as_secs().max(1);
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Self::Unauthorized { .. } = self {
            let scheme = HeaderValue::from_static("Bearer");
            headers.insert(header::WWW_AUTHENTICATE, scheme);
        }
        if self.status() == StatusCode::REQUEST_TIMEOUT {
            // The `openai` package repeats a 408 unless told not to, and so triples the load that
            // made the request late.
            headers.insert(
                HeaderName::from_static("x-should-retry"),
                HeaderValue::from_static("false"),
            );
        }
        response
    }

    /// The error as JSON: the body of a response, or the last event of a stream.
    pub fn body(&self, id: &RequestId) -> Value {
        let Appearance { status, kind, code } = self.appearance();
        let message = match self {
            Self::Internal(_) | Self::Failed(EngineError::StepFailed(_)) => {
                format!("internal error; the server's log tells more under request id {id}")
            }
            other => other.to_string(),
        };
        let param = self.param();
        let mut error = json!({"message": message, "type": kind, "param": param, "code": code});
        if status.is_server_error() {
            error["request_id"] = json!(id.as_str());
        }
        if let Some(spent) = self.spent() {
            error["spent"] = spent;
        }
        json!({ "error": error })
    }

    /// Where the time of a request went that ran out of it.
    fn spent(&self) -> Option<Value> {
        let (Self::Refused(error) | Self::Failed(error)) = self else {
            return None;
        };
        let EngineError::Timeout {
            queue,
            prefill,
            decode,
            generated_tokens,
        } = error
        else {
            return None;
        };
        Some(json!({
            "queue_ms": milliseconds(*queue),
            "prefill_ms": milliseconds(*prefill),
            "decode_ms": milliseconds(*decode),
            "generated_tokens": generated_tokens,
        }))
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused(
                EngineError::Overloaded { retry_after, .. }
                | EngineError::DeadlineUnmet { retry_after, .. },
            ) => Some(*retry_after),
            _ => None,
        }
    }

    fn appearance(&self) -> Appearance {
        let (status, kind, code) = match self {
            Self::Invalid { code, .. } => (StatusCode::BAD_REQUEST, "invalid_request_error", *code),
            Self::ModelNotFound { .. } => (
                StatusCode::NOT_FOUND,
                "invalid_request_error",
                Some("model_not_found"),
            ),
            Self::PathNotFound(_) => (
                StatusCode::NOT_FOUND,
                "invalid_request_error",
                Some("path_not_found"),
            ),
            Self::MethodNotAllowed { .. } => (
                StatusCode::METHOD_NOT_ALLOWED,
                "invalid_request_error",
                Some("method_not_allowed"),
            ),
            Self::BodyTooLarge { .. } => (
                StatusCode::PAYLOAD_TOO_LARGE,
                "invalid_request_error",
                Some("body_too_large"),
            ),
            Self::BodyTooSlow { .. } => (
                StatusCode::REQUEST_TIMEOUT,
                "timeout_error",
                Some("body_too_slow"),
            ),
            Self::Unauthorized { .. } => (
                StatusCode::UNAUTHORIZED,
                "authentication_error",
                Some("invalid_api_key"),
            ),
            Self::TooManyConnections { .. } => (
                StatusCode::TOO_MANY_REQUESTS,
                "overloaded_error",
                Some("too_many_connections"),
            ),
            Self::Refused(error) | Self::Failed(error) => return engine_appearance(error),
            Self::NotReady(reason) => (
                StatusCode::SERVICE_UNAVAILABLE,
                "server_error",
                Some(match reason {
                    NotReady::Draining => "draining",
                    NotReady::Stalled(_) => "stalled",
                    NotReady::Failed => "engine_failed",
                }),
            ),
            Self::Internal(_) => (
                StatusCode::INTERNAL_SERVER_ERROR,
                "server_error",
                Some("internal_error"),
            ),
        };
        Appearance { status, kind, code }
    }
}

/// Overload is a 429 and not a 503: routers take a 5xx for a broken server and stop sending.
fn engine_appearance(error: &EngineError) -> Appearance {
    let (status, kind, code) = match error {
        EngineError::Overloaded { .. } => (
            StatusCode::TOO_MANY_REQUESTS,
            "overloaded_error",
            "queue_full",
        ),
        EngineError::DeadlineUnmet { .. } => (
            StatusCode::TOO_MANY_REQUESTS,
            "overloaded_error",
            "deadline_unmet",
        ),
        EngineError::TooLong { .. } => (
            StatusCode::BAD_REQUEST,
            "invalid_request_error",
            "context_length_exceeded",
        ),
        EngineError::Timeout { .. } => (
            StatusCode::REQUEST_TIMEOUT,
            "timeout_error",
            "request_timeout",
        ),
        EngineError::StepFailed(_) => (
            StatusCode::INTERNAL_SERVER_ERROR,
            "server_error",
            "internal_error",
        ),
        EngineError::Unavailable(_) => (
            StatusCode::SERVICE_UNAVAILABLE,
            "server_error",
            "unavailable",
        ),
    };
    Appearance {
        status,
        kind,
        code: Some(code),
    }
}

/// The body needs the request id, which a handler does not have at hand: the error travels beside
/// an empty response to `routes::envelope`, which writes it out.
impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = self.status().into_response();
        response.extensions_mut().insert(Arc::new(self));
        response
    }
}
