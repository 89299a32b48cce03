//! The log of our own server as a second book: what it says of each request it ended, by id.
//!
//! A line is one JSON object where LOG_FORMAT=json, and else text with `name=value` at its end.

use std::collections::HashMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::record::RequestRecord;

/// The message of the line that the server writes at the end of each generation.
pub const GENERATION_ENDED: &str = "generation ended";

/// What the server wrote of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Logged {
    pub outcome: String,
    pub prompt_tokens: u64,
    pub cached_tokens: u64,
    pub generated_tokens: u64,
}

/// Adds to each request what the log says of it. A log that cannot be read says nothing.
pub fn join(requests: &mut [RequestRecord], log: &Path) {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let mut entries: HashMap<String, Logged> = text.lines().filter_map(end_of_request).collect();
    for request in requests {
        request.logged = entries.remove(request.request_id.as_str());
    }
}

/// The id of a line's request, and the rest; `None` for other lines.
fn end_of_request(line: &str) -> Option<(String, Logged)> {
    let event = match Event::of_json(line) {
        Some(event) => event,
        None => Event::of_text(line, GENERATION_ENDED)?,
    };
    (event.message() == GENERATION_ENDED).then_some(())?;
    let logged = Logged {
        outcome: event.text("outcome")?.to_owned(),
        prompt_tokens: event.count("prompt_tokens")?,
        cached_tokens: event.count("cached_tokens")?,
        generated_tokens: event.count("generated_tokens")?,
    };
    Some((event.text("request_id")?.to_owned(), logged))
}

/// What a line of the log tells.
pub struct Event(Map<String, Value>);

impl Event {
    /// `None` for a line that is no JSON object.
    pub fn of_json(line: &str) -> Option<Self> {
        serde_json::from_str(line).ok().map(Self)
    }

    /// Text does not say where its message ends, so that only one that is known can be read.
    fn of_text(line: &str, message: &str) -> Option<Self> {
        let (_, fields) = line.split_once(message)?;
        let mut event = Map::new();
        event.insert("message".to_owned(), message.into());
        for (name, value) in fields.split_whitespace().filter_map(|f| f.split_once('=')) {
            // The first of a name is the server's own; a later one may stand in a prompt.
            event.entry(name).or_insert_with(|| match value.parse() {
                Ok(count) => Value::Number(count),
                Err(_) => value.trim_matches('"').into(),
            });
        }
        Some(Self(event))
    }

    /// Empty if there is none.
    pub fn message(&self) -> &str {
        self.text("message").unwrap_or_default()
    }

    pub fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name)?.as_str()
    }

    pub fn count(&self, name: &str) -> Option<u64> {
        self.0.get(name)?.as_u64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_at_the_end_of_a_generation_is_read_and_others_are_not() {
        let text = "2026-01-01T00:00:00.000000Z  INFO candlepower::server::outcome: generation ended \
            request_id=\"bench-1-0\" endpoint=\"/v1/completions\" outcome=\"length\" prompt_tokens=12 \
            cached_tokens=0 generated_tokens=4 queue_ms=0.1 prompt=\"say outcome=1 or prompt_tokens=7\"";
        let json = r#"{"timestamp": "2026-01-01T00:00:00Z", "level": "INFO", "message": "generation ended",
            "request_id": "bench-1-0", "outcome": "length", "prompt_tokens": 12, "cached_tokens": 0,
            "generated_tokens": 4, "queue_ms": 0.1}"#
            .replace('\n', " ");
        let expected = Logged {
            outcome: "length".to_owned(),
            prompt_tokens: 12,
            cached_tokens: 0,
            generated_tokens: 4,
        };
        for line in [text, &json] {
            let found = end_of_request(line);
            assert_eq!(found, Some(("bench-1-0".to_owned(), expected.clone())));
        }
        for line in [
            "INFO listening on http://127.0.0.1:1",
            r#"{"message": "request refused", "request_id": "bench-1-0", "status": 429}"#,
            "",
        ] {
            assert_eq!(end_of_request(line), None, "{line}");
        }
    }
}
