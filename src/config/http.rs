//! The door: who may come in, and how much of the server one client may hold.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use clap::builder::RangedU64ValueParser;
use hyper::header::HeaderValue;
use serde::{Serialize, Serializer};

use super::{MemorySize, as_seconds, parse_duration};

/// Access, and the limits of connections and bodies.
#[derive(Args, Clone, Debug, Serialize)]
#[command(next_help_heading = "Access and HTTP limits")]
pub struct HttpConfig {
    /// The key that clients must send, as `Authorization: Bearer KEY` [default: none is asked for]
    #[arg(long, env = "API_KEY", hide_env_values = true)]
    pub api_key: Option<ApiKey>,
    /// A file of such keys, one a line; lines that begin with # are comments [default: none]
    #[arg(long, env = "API_KEYS_FILE")]
    pub api_keys_file: Option<PathBuf>,
    /// What is answered without a key: health, metrics, both, or none
    #[arg(long, env = "OPEN_ENDPOINTS", default_value = "health,metrics")]
    pub open_endpoints: OpenEndpoints,
    /// Origins whose web pages may call the server, such as https://chat.example.org, or *
    /// [default: none]
    #[arg(long, env = "CORS_ALLOW_ORIGINS")]
    pub cors_allow_origins: Option<AllowedOrigins>,
    /// Most connections at a time; one more is told 429 and closed
    #[arg(long, env = "MAX_CONNECTIONS", default_value_t = 4096,
          value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    pub max_connections: usize,
    /// Largest body of a request
    #[arg(long, env = "MAX_BODY_SIZE", default_value = "4MiB", value_parser = parse_bytes)]
    #[serde(rename = "max_body_size_bytes")]
    pub max_body_size: usize,
    /// Most tokens that one request may ask for [default: what the prompt leaves of MAX_MODEL_LEN]
    #[arg(long, env = "MAX_OUTPUT_TOKENS",
          value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    pub max_output_tokens: Option<usize>,
    /// Most answers to one prompt that a request may ask for, as `n`
    #[arg(long, env = "MAX_CHOICES", default_value_t = 128,
          value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    pub max_choices: usize,
    /// Most time for the head of a request to arrive, and again for its body
    #[arg(long, env = "READ_TIMEOUT", default_value = "30", value_parser = parse_duration)]
    #[serde(rename = "read_timeout_s", serialize_with = "as_seconds")]
    pub read_timeout: Duration,
    /// How long a connection may lie idle between requests, or its client not read the answer
    #[arg(long, env = "IDLE_TIMEOUT", default_value = "75", value_parser = parse_duration)]
    #[serde(rename = "idle_timeout_s", serialize_with = "as_seconds")]
    pub idle_timeout: Duration,
}

/// A secret that clients prove to know. Never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey(String);

impl ApiKey {
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl FromStr for ApiKey {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_sane = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
        is_sane
            .then(|| Self(text.to_owned()))
            .ok_or_else(|| "a key is made of letters, digits and signs, without spaces".to_owned())
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(hidden)")
    }
}

impl Serialize for ApiKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("(hidden)")
    }
}

/// What needs no key, where keys are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenEndpoints {
    pub health: bool,
    pub metrics: bool,
}

impl FromStr for OpenEndpoints {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut open = Self {
            health: false,
            metrics: false,
        };
        if text == "none" {
            return Ok(open);
        }
        for name in text.split(',') {
            match name.trim() {
                "health" => open.health = true,
                "metrics" => open.metrics = true,
                _ => return Err("expected health, metrics, health,metrics or none".to_owned()),
            }
        }
        Ok(open)
    }
}

impl fmt::Display for OpenEndpoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.health, self.metrics) {
            (true, true) => "health,metrics",
            (true, false) => "health",
            (false, true) => "metrics",
            (false, false) => "none",
        })
    }
}

impl Serialize for OpenEndpoints {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The web pages that a browser lets call the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AllowedOrigins {
    Any,
    Only(Vec<HeaderValue>),
}

impl FromStr for AllowedOrigins {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "*" {
            return Ok(Self::Any);
        }
        // A browser sends scheme, host and port, and an origin is compared as a whole.
        let origins = text.split(',').map(|origin| {
            let origin = origin.trim();
            let host = origin.split_once("://").map(|(_, host)| host);
            host.filter(|host| !host.is_empty() && !host.contains('/'))
                .and_then(|_| HeaderValue::from_str(origin).ok())
                .ok_or_else(|| "expected origins such as https://chat.example.org, or *".to_owned())
        });
        origins.collect::<Result<_, _>>().map(Self::Only)
    }
}

impl fmt::Display for AllowedOrigins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::Only(origins) => {
                let origins = origins.iter().filter_map(|origin| origin.to_str().ok());
                f.write_str(&origins.collect::<Vec<_>>().join(","))
            }
        }
    }
}

impl Serialize for AllowedOrigins {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

fn parse_bytes(text: &str) -> Result<usize, String> {
    match text.parse()? {
        MemorySize::Bytes(bytes) => usize::try_from(bytes).map_err(|error| error.to_string()),
        MemorySize::PercentOfFree(_) => Err("expected bytes, or a size such as 4MiB".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_never_shown() {
        let key: ApiKey = "sk-secret".parse().expect("a key");
        assert_eq!(key.expose(), "sk-secret");
        let shown = format!("{key:?}{}", serde_json::to_string(&key).expect("JSON"));
        assert!(!shown.contains("secret"), "{shown}");
        for odd in ["", "two words", "line\n", "ümlaut"] {
            assert!(odd.parse::<ApiKey>().is_err(), "{odd:?}");
        }
    }

    #[test]
    fn lists_are_read_and_shown_again() {
        for text in ["health,metrics", "health", "metrics", "none"] {
            let open: OpenEndpoints = text.parse().expect(text);
            assert_eq!(open.to_string(), text);
        }
        assert!("stats".parse::<OpenEndpoints>().is_err());
        for text in [
            "*",
            "https://a.example",
            "http://localhost:3000,https://b.example",
        ] {
            let origins: AllowedOrigins = text.parse().expect(text);
            assert_eq!(origins.to_string(), text);
        }
        for odd in [
            "",
            "a.example",
            "https://",
            "https://a.example/chat",
            "https://a,*",
        ] {
            assert!(odd.parse::<AllowedOrigins>().is_err(), "{odd:?}");
        }
    }

    #[test]
    fn a_body_is_bounded_in_bytes() {
        assert_eq!(parse_bytes("4MiB"), Ok(4 << 20));
        assert!(parse_bytes("10%").is_err());
    }
}
