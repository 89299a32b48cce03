//! One call of an endpoint with a JSON body: who asks, since when, and the fields.

use std::sync::Arc;
use std::time::Instant;

use axum::body::{Body, HttpBody};
use axum::extract::{FromRequest, Request};
use futures_util::StreamExt;

use super::error::ApiError;
use super::fields::Fields;
use super::request_id::RequestId;
use super::sender::Sender;
use super::state::AppState;

/// A larger body up to this size is read to its end and thrown away: a client that still sends
/// when the connection closes would see a reset instead of the 413.
const MAX_DRAINED_BYTES: usize = 64 << 20;

/// A request whose body is here and is a JSON object.
#[derive(Debug)]
pub struct Call {
    pub id: RequestId,
    /// When the body was complete: a slow sender's time is not the server's.
    pub arrived: Instant,
    pub sender: Sender,
    pub fields: Fields,
}

impl FromRequest<Arc<AppState>> for Call {
    type Rejection = ApiError;

    /// The content type is not looked at: everything here takes JSON, and `curl -d` calls it a form.
    async fn from_request(request: Request, state: &Arc<AppState>) -> Result<Self, ApiError> {
        let id = request
            .extensions()
            .get::<RequestId>()
            .cloned()
            .expect("bug: a route without the envelope");
        let sender = Sender::of(request.headers(), request.extensions())?;
        let http = &state.served.http;
        let body = read_body(request.into_body(), http.max_body_size);
        let body = tokio::time::timeout(http.read_timeout, body)
            .await
            .map_err(|_| ApiError::BodyTooSlow {
                limit: http.read_timeout,
            })??;
        Ok(Self {
            id,
            arrived: Instant::now(),
            sender,
            fields: Fields::parse(&body)?,
        })
    }
}

async fn read_body(body: Body, limit_bytes: usize) -> Result<Vec<u8>, ApiError> {
    let too_large = || ApiError::BodyTooLarge { limit_bytes };
    let declared_bytes = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    if declared_bytes > limit_bytes.max(MAX_DRAINED_BYTES) {
        return Err(too_large());
    }
    let mut chunks = body.into_data_stream();
    let mut bytes = Vec::with_capacity(declared_bytes.min(limit_bytes));
    let mut num_seen = 0;
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|error| ApiError::Invalid {
            param: None,
            message: format!("the body could not be read: {error}"),
            code: None,
        })?;
        num_seen += chunk.len();
        if num_seen <= limit_bytes {
            bytes.extend_from_slice(&chunk);
        } else if num_seen > limit_bytes.max(MAX_DRAINED_BYTES) {
            break;
        }
    }
    if num_seen > limit_bytes {
        return Err(too_large());
    }
    Ok(bytes)
}
