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

    fn admits(&self, key: &str) -> bool {
        let digest = digest(key);
        // Every key is compared, and in full: the time tells nothing of which came close.
        let found = self
            .digests
            .iter()
            .fold(Choice::from(0), |found, known| found | known.ct_eq(&digest));
        found.into()
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

/// Lets a request pass that needs no key, or has one.
pub async fn check(State(state): State<Arc<AppState>>, request: Request, next: Next) -> Response {
    let keys = &state.served.keys;
    if !keys.guards(request.uri().path()) {
        return next.run(request).await;
    }
    let is_admitted = bearer_token(&request).map(|key| keys.admits(key));
    if is_admitted == Some(true) {
        return next.run(request).await;
    }
    state.metrics.count_unauthorized();
    ApiError::Unauthorized {
        has_key: is_admitted.is_some(),
    }
    .into_response()
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
        assert!(two.admits("sk-one") && two.admits("sk-two"));
        for wrong in ["", "sk-", "sk-one ", "sk-three"] {
            assert!(!two.admits(wrong), "{wrong:?}");
        }
        assert!(two.guards("/metrics") && two.guards("/stats") && two.guards("/health/other"));
        assert!(!two.guards("/health/live"));
        assert!(!keys(&[], "none").guards("/v1/models"));
    }
}
