//! The log of our own server as a second book: what it says of each request it ended, by id.

use std::collections::HashMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::record::RequestRecord;

/// The message of the line that the server writes at the end of each generation.
const MESSAGE: &str = "generation ended";

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
    let mut entries: HashMap<&str, Logged> = text.lines().filter_map(entry).collect();
    for request in requests {
        request.logged = entries.remove(request.request_id.as_str());
    }
}

/// The id of a line's request, and the rest; `None` for other lines.
fn entry(line: &str) -> Option<(&str, Logged)> {
    let (_, fields) = line.split_once(MESSAGE)?;
    let field = |name: &str| {
        fields.split_whitespace().find_map(|pair| {
            let value = pair.strip_prefix(name)?.strip_prefix('=')?;
            Some(value.trim_matches('"'))
        })
    };
    let count = |name: &str| field(name)?.parse().ok();
    let logged = Logged {
        outcome: field("outcome")?.to_owned(),
        prompt_tokens: count("prompt_tokens")?,
        cached_tokens: count("cached_tokens")?,
        generated_tokens: count("generated_tokens")?,
    };
    Some((field("request_id")?, logged))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_at_the_end_of_a_generation_is_read_and_others_are_not() {
        let line = "2026-01-01T00:00:00.000000Z  INFO candlepower::server::outcome: generation ended \
            request_id=\"bench-1-0\" endpoint=\"/v1/completions\" outcome=\"length\" prompt_tokens=12 \
            cached_tokens=0 generated_tokens=4 queue_ms=0.1";
        let expected = Logged {
            outcome: "length".to_owned(),
            prompt_tokens: 12,
            cached_tokens: 0,
            generated_tokens: 4,
        };
        assert_eq!(entry(line), Some(("bench-1-0", expected)));
        assert_eq!(entry("INFO listening on http://127.0.0.1:1"), None);
    }
}
