//! The address of a server, and which of two request forms it is asked in.

use std::fmt;
use std::str::FromStr;

use serde_json::{Value, json};

/// How a generation is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Api {
    /// POST /v1/completions, always streamed.
    Completions,
    /// POST /generate: `prompt` in, `text` out, streamed where the server can.
    Generate,
}

/// A server to measure. Plain HTTP: the harness measures servers, not TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Scheme, host, port, and what stands before the API's own path; no slash at the end.
    base: String,
    pub api: Api,
}

impl Endpoint {
    /// One of our own servers.
    pub fn own(base: &str) -> Self {
        Self {
            base: base.trim_end_matches('/').to_owned(),
            api: Api::Completions,
        }
    }

    /// The address of a path of this server.
    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    /// The path that generations are posted to.
    pub fn path(&self) -> &'static str {
        match self.api {
            Api::Completions => "/v1/completions",
            Api::Generate => "/generate",
        }
    }

    /// The body of one request, greedy so that runs compare. `ignore_eos` is left out when off:
    /// it is no field of OpenAI's.
    pub fn body(&self, ask: &Ask) -> Value {
        let mut body = json!({
            "prompt": ask.prompt,
            "max_tokens": ask.max_tokens,
            "temperature": 0.0,
            "stream": true,
        });
        if self.api == Api::Completions {
            body["stream_options"] = json!({ "include_usage": true });
            body["model"] = json!(ask.model);
        }
        if ask.ignore_eos {
            body["ignore_eos"] = json!(true);
        }
        body
    }
}

/// One generation to ask for.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    pub model: &'a str,
    pub prompt: &'a str,
    pub max_tokens: usize,
    /// Generate to `max_tokens` even where the model would stop.
    pub ignore_eos: bool,
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || {
            "expected a server's address such as http://127.0.0.1:8000, or the address of its /generate"
                .to_owned()
        };
        let with_scheme = match text.split_once("://") {
            Some(("http", _)) => text.to_owned(),
            Some(("https", _)) => {
                return Err("https is not supported: measure the server itself over http, without a TLS proxy".to_owned());
            }
            Some(_) => return Err(expected()),
            None => format!("http://{text}"),
        };
        let uri: hyper::Uri = with_scheme.parse().map_err(|_| expected())?;
        if uri.host().is_none_or(str::is_empty) || uri.query().is_some() {
            return Err(expected());
        }
        let url = with_scheme.trim_end_matches('/');
        if let Some(base) = url.strip_suffix("/generate") {
            return Ok(Self {
                base: base.to_owned(),
                api: Api::Generate,
            });
        }
        let base = url.strip_suffix("/completions").unwrap_or(url);
        let base = base.strip_suffix("/v1").unwrap_or(base);
        Ok(Self {
            base: base.to_owned(),
            api: Api::Completions,
        })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.base)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base_addresses_mean_completions_and_generate_is_itself() {
        for (text, url) in [
            (
                "http://127.0.0.1:8000",
                "http://127.0.0.1:8000/v1/completions",
            ),
            (
                "http://127.0.0.1:8000/",
                "http://127.0.0.1:8000/v1/completions",
            ),
            ("localhost:8000", "http://localhost:8000/v1/completions"),
            ("http://h/v1", "http://h/v1/completions"),
            ("http://h/v1/completions", "http://h/v1/completions"),
            ("http://h/team/v1/", "http://h/team/v1/completions"),
            ("http://h:1/generate", "http://h:1/generate"),
            ("http://h:1/a/generate/", "http://h:1/a/generate"),
        ] {
            let endpoint: Endpoint = text.parse().expect(text);
            assert_eq!(endpoint.url(endpoint.path()), url, "{text}");
        }
    }

    #[test]
    fn other_addresses_are_refused_with_a_reason() {
        for (text, word) in [
            ("https://h", "https is not supported"),
            ("ftp://h", "expected"),
            ("http://", "expected"),
            ("http://h?x=1", "expected"),
            ("two words", "expected"),
        ] {
            let message = text.parse::<Endpoint>().expect_err(text);
            assert!(message.contains(word), "{text}: {message}");
        }
    }

    #[test]
    fn ignore_eos_is_sent_only_when_it_is_on() {
        let endpoint = Endpoint::own("http://h");
        let ask = Ask {
            model: "m",
            prompt: "p",
            max_tokens: 3,
            ignore_eos: false,
        };
        assert_eq!(endpoint.body(&ask).get("ignore_eos"), None);
        let body = endpoint.body(&Ask {
            ignore_eos: true,
            ..ask
        });
        assert_eq!(body["ignore_eos"], true);
        assert_eq!(body["stream_options"]["include_usage"], true);
    }
}
