//! The name of a request in headers, bodies and the log.

use std::fmt;
use std::sync::Arc;

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use uuid::Uuid;

/// The header that carries the id both ways.
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

const MAX_CHARS: usize = 128;

/// At most 128 letters, digits and `-_.:/=+`, so that an id can stand in a log line unquoted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestId(Arc<str>);

impl RequestId {
    /// The client's id where it is sane, else a fresh one.
    pub fn of(headers: &HeaderMap) -> Self {
        headers
            .get(X_REQUEST_ID)
            .and_then(|value| value.to_str().ok())
            .filter(|id| is_sane(id))
            .map_or_else(Self::fresh, |id| Self(id.into()))
    }

    pub fn fresh() -> Self {
        Self(Uuid::new_v4().simple().to_string().into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn header_value(&self) -> HeaderValue {
        HeaderValue::from_str(&self.0).expect("bug: a request id holds a control character")
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn is_sane(id: &str) -> bool {
    (1..=MAX_CHARS).contains(&id.len())
        && id
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_.:/=+".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sane_id_is_kept_and_any_other_replaced() {
        let id_of = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(X_REQUEST_ID, HeaderValue::from_str(text).expect("a header"));
            RequestId::of(&headers)
        };
        assert_eq!(id_of("run-7/req:3").as_str(), "run-7/req:3");
        let long = "x".repeat(MAX_CHARS + 1);
        for odd in ["", "two words", "quote\"", "ümlaut", &long] {
            assert_eq!(id_of(odd).as_str().len(), 32, "{odd}");
        }
        assert_ne!(RequestId::of(&HeaderMap::new()), id_of(""));
    }
}
