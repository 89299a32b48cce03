//! What the headers of a request say about whose it is and how soon it is wanted.

use std::net::SocketAddr;
use std::time::Duration;

use axum::extract::ConnectInfo;
use axum::http::{Extensions, HeaderMap, HeaderName};

use super::door::keys::KeyHolder;
use super::error::ApiError;
use crate::engine::ClientId;

/// Routers name the client here for whom they pass a request on.
const FAIRNESS_ID: HeaderName = HeaderName::from_static("x-llm-d-inference-fairness-id");
/// Most milliseconds to the first token.
const SLO_TTFT_MS: HeaderName = HeaderName::from_static("x-llm-d-slo-ttft-ms");

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sender {
    pub client: ClientId,
    pub first_token_within: Option<Duration>,
}

impl Sender {
    /// # Errors
    /// A header has a value that it must not have.
    pub fn of(headers: &HeaderMap, extensions: &Extensions) -> Result<Self, ApiError> {
        let named = headers.get(FAIRNESS_ID).map(|name| {
            name.to_str()
                .map_err(|_| invalid(&FAIRNESS_ID, "plain text"))
        });
        let named = named.transpose()?;
        // Whoever has a key could give himself any name, and so more than one turn.
        let client = match (extensions.get::<KeyHolder>(), named) {
            (Some(KeyHolder(digest)), _) => ClientId::of(digest),
            (None, Some(name)) => ClientId::of(name),
            (None, None) => extensions
                .get::<ConnectInfo<SocketAddr>>()
                .map(|ConnectInfo(address)| ClientId::of(address.ip()))
                .unwrap_or_default(),
        };
        let first_token_within = headers.get(SLO_TTFT_MS).map(|value| {
            value
                .to_str()
                .ok()
                .and_then(|text| text.trim().parse().ok())
                .filter(|ms| *ms > 0)
                .map(Duration::from_millis)
                .ok_or_else(|| invalid(&SLO_TTFT_MS, "a whole number of milliseconds, at least 1"))
        });
        Ok(Self {
            client,
            first_token_within: first_token_within.transpose()?,
        })
    }
}

fn invalid(header: &HeaderName, expected: &str) -> ApiError {
    ApiError::invalid(
        header.as_str(),
        format!("the header `{header}` must be {expected}"),
    )
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn sender(headers: &[(HeaderName, &'static str)], peer: &str) -> Result<Sender, ApiError> {
        sender_with_key(headers, peer, None)
    }

    fn sender_with_key(
        headers: &[(HeaderName, &'static str)],
        peer: &str,
        key: Option<u8>,
    ) -> Result<Sender, ApiError> {
        let headers = headers
            .iter()
            .map(|(name, value)| (name.clone(), HeaderValue::from_static(value)))
            .collect();
        let mut extensions = Extensions::new();
        let peer: SocketAddr = peer.parse().expect("an address");
        extensions.insert(ConnectInfo(peer));
        if let Some(key) = key {
            extensions.insert(KeyHolder([key; 32]));
        }
        Sender::of(&headers, &extensions)
    }

    #[test]
    fn a_client_is_who_the_router_names_and_else_the_peer_whatever_its_port() {
        let client = |headers, peer| sender(headers, peer).expect("valid").client;
        assert_eq!(client(&[], "10.0.0.1:5"), client(&[], "10.0.0.1:6"));
        assert_ne!(client(&[], "10.0.0.1:5"), client(&[], "10.0.0.2:5"));
        let named = [(FAIRNESS_ID, "team-a")];
        assert_eq!(client(&named, "10.0.0.1:5"), client(&named, "10.0.0.2:5"));
        assert_ne!(client(&named, "10.0.0.1:5"), client(&[], "10.0.0.1:5"));
    }

    #[test]
    fn a_client_with_a_key_is_its_key_whatever_it_calls_itself() {
        let client = |name, peer, key| {
            let headers = [(FAIRNESS_ID, name)];
            let sender = sender_with_key(&headers, peer, Some(key));
            sender.expect("valid").client
        };
        let one = client("a", "10.0.0.1:5", 1);
        assert_eq!(one, client("b", "10.0.0.2:5", 1));
        assert_ne!(one, client("a", "10.0.0.1:5", 2));
    }

    #[test]
    fn the_time_to_the_first_token_is_read_or_refused_by_name() {
        let read = |value| sender(&[(SLO_TTFT_MS, value)], "[::1]:1");
        let within = read("250").expect("valid").first_token_within;
        assert_eq!(within, Some(Duration::from_millis(250)));
        for odd in ["", "0", "-5", "1.5", "soon"] {
            let error = read(odd).expect_err(odd);
            assert_eq!(error.param(), Some("x-llm-d-slo-ttft-ms"), "{odd}");
        }
    }
}
