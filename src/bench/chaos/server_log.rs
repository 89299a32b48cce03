//! All that a server says of its requests and of itself: its log, which has one JSON object a line.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context as _, ensure};
use serde::Deserialize;

use crate::bench::server_log::{Event, GENERATION_ENDED};

/// A server's account of one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// The engine had it.
    Ended { outcome: String, tokens: u64 },
    /// It was turned away.
    Refused(u64),
}

/// All that one server's log tells.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ServerBook {
    pub requests: HashMap<String, Vec<Told>>,
    /// Its figures when it stopped.
    pub engine: EngineCounts,
}

/// The engine's own counts, from the last figures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct EngineCounts {
    pub requests: Requests,
    pub batch: Batch,
    pub kv_cache: Kv,
    pub num_preemptions: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Requests {
    pub num_submitted: u64,
    pub num_finished_stop: u64,
    pub num_finished_length: u64,
    pub num_cancelled: u64,
    pub num_timed_out: u64,
    pub num_failed: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Batch {
    pub num_running_requests: u64,
    pub num_generated_tokens: u64,
    pub num_failed_steps: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Kv {
    /// Blocks with a reference count above 0.
    pub used_blocks: u64,
}

impl ServerBook {
    /// Reads the log of a server that has stopped.
    ///
    /// # Errors
    /// The log cannot be read, has a line that is no JSON, or does not tell how it stopped.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("the server's log {}", path.display()))
    }

    fn parse(text: &str) -> anyhow::Result<Self> {
        let mut book = Self::default();
        let mut has_stopped = false;
        for line in text.lines() {
            let event = Event::of_json(line).with_context(|| format!("not JSON: {line}"))?;
            let told = match event.message() {
                GENERATION_ENDED => Told::Ended {
                    outcome: event.text("outcome").unwrap_or_default().to_owned(),
                    tokens: event.count("generated_tokens").unwrap_or_default(),
                },
                "request refused" | "request failed" => {
                    Told::Refused(event.count("status").unwrap_or_default())
                }
                "stopped" => {
                    has_stopped = true;
                    let stats = event.text("stats").unwrap_or_default();
                    book.engine = serde_json::from_str(stats).context("its last figures")?;
                    continue;
                }
                _ => continue,
            };
            let id = event.text("request_id").unwrap_or_default().to_owned();
            book.requests.entry(id).or_default().push(told);
        }
        ensure!(has_stopped, "it does not tell that the server stopped");
        Ok(book)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_refusals_and_the_last_figures_are_read() {
        let log = r#"{"message": "loaded", "model": "m"}
{"message": "generation ended", "request_id": "a", "outcome": "stop", "generated_tokens": 3}
{"message": "request refused", "request_id": "b", "status": 429}
{"message": "stopped", "stats": "{\"requests\": {\"num_submitted\": 1}, \"batch\": {}}"}
"#;
        let book = ServerBook::parse(log).expect("a log");
        let ended = Told::Ended {
            outcome: "stop".to_owned(),
            tokens: 3,
        };
        assert_eq!(book.requests["a"], [ended]);
        assert_eq!(book.requests["b"], [Told::Refused(429)]);
        assert_eq!(book.engine.requests.num_submitted, 1);
        let (cut, _) = log
            .split_once("{\"message\": \"stopped")
            .expect("it is there");
        assert!(
            ServerBook::parse(cut).is_err(),
            "a server that was killed tells nothing"
        );
        assert!(ServerBook::parse("panicked at\n").is_err());
    }
}
