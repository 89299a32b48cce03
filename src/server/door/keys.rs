//! API keys: who has one may use the server.

use std::fs;
use std::sync::Arc;

use anyhow::{Context, ensure};
use axum::extract::{Request, State};
use axum::http::header;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

use crate::config::{ApiKey, HttpConfig, OpenEndpoints};
use crate::server::error::ApiError;
use crate::server::state::AppState;

/// The keys that open the server, as digests: all of one length, and none of them in memory.
#[derive(Clone, Debug)]
pub struct ApiKeys {
    digests: Vec<[u8; 32]>,
    open: OpenEndpoints,
}

impl ApiKeys {
    /// The keys of the settings; without any, everybody may come in.
    ///
    /// # Errors
    /// The file of keys cannot be read, or a line of it is no key, or it has none.
    pub fn load(config: &HttpConfig) -> anyhow::Result<Self> {
        let mut keys: Vec<ApiKey> = config.api_key.iter().cloned().collect();
        if let Some(path) = &config.api_keys_file {
            let text = fs::read_to_string(path)
                .with_context(|| format!("API_KEYS_FILE: cannot read {}", path.display()))?;
            let of_file = parse_keys(&text)
                .with_context(|| format!("API_KEYS_FILE: {} is no list of keys", path.display()))?;
            keys.extend(of_file);
        }
        Ok(Self {
            digests: keys.iter().map(|key| digest(key.expose())).collect(),
            open: config.open_endpoints,
        })
    }

    /// Whether anything is asked of clients.
    pub fn are_needed(&self) -> bool {
        !self.digests.is_empty()
    }

    /// Who has this key, if it is one of ours.
    fn holder(&self, key: &str) -> Option<KeyHolder> {
        let digest = digest(key);
        // Every key is compared, and in full: the time tells nothing of which came close.
        let found = self
            .digests
            .iter()
            .fold(Choice::from(0), |found, known| found | known.ct_eq(&digest));
        bool::from(found).then_some(KeyHolder(digest))
    }

    fn guards(&self, path: &str) -> bool {
        let is_open = match path {
            "/metrics" => self.open.metrics,
            "/health" | "/health/live" | "/health/ready" => self.open.health,
            _ => false,
        };
        self.are_needed() && !is_open
    }
}

fn digest(key: &str) -> [u8; 32] {
    Sha256::digest(key).into()
}

fn parse_keys(text: &str) -> anyhow::Result<Vec<ApiKey>> {
    let lines = text.lines().map(str::trim).enumerate();
    let keys = lines
        .filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
        .map(|(index, line)| {
            line.parse()
                .map_err(anyhow::Error::msg)
                .with_context(|| format!("line {}", index + 1))
        })
        .collect::<anyhow::Result<Vec<ApiKey>>>()?;
    ensure!(!keys.is_empty(), "it holds no key");
    Ok(keys)
}

/// Whose key opened the server, by its digest: goes with the request, as an extension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyHolder(pub [u8; 32]);

/// Lets a request pass that needs no key, or has one.
pub async fn check(
    State(state): State<Arc<AppState>>,
    mut request: Request,
    next: Next,
) -> Response {
    let keys = &state.served.keys;
    if !keys.guards(request.uri().path()) {
        return next.run(request).await;
    }
    let key = bearer_token(&request);
    let has_key = key.is_some();
    if let Some(holder) = key.and_then(|key| keys.holder(key)) {
        request.extensions_mut().insert(holder);
        return next.run(request).await;
    }
    state.metrics.count_unauthorized();
    ApiError::Unauthorized { has_key }.into_response()
}

fn bearer_token(request: &Request) -> Option<&str> {
    let value = request.headers().get(header::AUTHORIZATION)?;
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    scheme
        .eq_ignore_ascii_case("bearer")
        .then_some(token.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_holds_a_key_a_line_and_comments() {
        let keys = parse_keys("# ours\nsk-one\n\n  sk-two  \n").expect("two keys");
        let keys: Vec<_> = keys.iter().map(ApiKey::expose).collect();
        assert_eq!(keys, ["sk-one", "sk-two"]);
        assert!(parse_keys("# none\n").is_err());
        let error = parse_keys("sk-one\nnot a key\n").expect_err("a space");
        assert!(format!("{error:#}").contains("line 2"), "{error:#}");
    }

    #[test]
    fn only_the_keys_are_admitted_and_only_open_paths_need_none() {
        let keys = |names: &[&str], open: &str| ApiKeys {
            digests: names.iter().map(|name| digest(name)).collect(),
            open: open.parse().expect(open),
        };
        let two = keys(&["sk-one", "sk-two"], "health");
        let one = two.holder("sk-one");
        assert!(one.is_some() && one != two.holder("sk-two"));
        for wrong in ["", "sk-", "sk-one ", "sk-three"] {
            assert_eq!(two.holder(wrong), None, "{wrong:?}");
        }
        assert!(two.guards("/metrics") && two.guards("/stats") && two.guards("/health/other"));
        assert!(!two.guards("/health/live"));
        assert!(!keys(&[], "none").guards("/v1/models"));
    }
}
