//! Cross-origin requests: which web pages a browser lets call the server.

use std::time::Duration;

use axum::http::{Method, header};
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

use crate::config::AllowedOrigins;
use crate::server::request_id::X_REQUEST_ID;

/// How long a browser may remember the answer.
const MAX_AGE: Duration = Duration::from_secs(3600);

/// The headers that tell a browser so. Keys come in a header that pages set themselves, so no
/// cookie needs to be allowed.
pub fn layer(origins: &AllowedOrigins) -> CorsLayer {
    let origins = match origins {
        AllowedOrigins::Any => AllowOrigin::any(),
        AllowedOrigins::Only(list) => AllowOrigin::list(list.iter().cloned()),
    };
    CorsLayer::new()
        .allow_origin(origins)
        .allow_methods([Method::GET, Method::POST])
        // A `*` would leave out Authorization.
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers([X_REQUEST_ID, header::RETRY_AFTER])
        .max_age(MAX_AGE)
}
