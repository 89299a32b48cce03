//! The parts of a server's answers that are measured; every other field is skipped unread.
//!
//! One type reads the events and whole answers of both APIs. A stream chunk costs no allocation
//! but its list of choices: of a text only the length is kept.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, IgnoredAny, Visitor};

use super::record::{ServerTimings, Usage};

/// A stream event, or a whole answer.
#[derive(Debug, Default, Deserialize)]
pub struct Answer {
    #[serde(default)]
    choices: Vec<Choice>,
    #[serde(default)]
    text: TextBytes,
    finish_reason: Option<String>,
    usage: Option<WireUsage>,
    pub cached: Option<bool>,
    timings: Option<Timings>,
    pub error: Option<WireError>,
}

#[derive(Debug, Default, Deserialize)]
struct Choice {
    #[serde(default)]
    text: TextBytes,
    finish_reason: Option<String>,
}

#[derive(Debug, Deserialize)]
struct WireUsage {
    #[serde(default)]
    prompt_tokens: u64,
    #[serde(default)]
    completion_tokens: u64,
    prompt_tokens_details: Option<PromptTokensDetails>,
}

#[derive(Debug, Deserialize)]
struct PromptTokensDetails {
    cached_tokens: Option<u64>,
}

/// llama.cpp's server has a field of this name too, with other content.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Timings {
    Ours(ServerTimings),
    Others(IgnoredAny),
}

/// An error object, or only its message.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub enum WireError {
    Object { message: String },
    Text(String),
}

impl WireError {
    pub fn into_message(self) -> String {
        match self {
            Self::Object { message } | Self::Text(message) => message,
        }
    }
}

impl Answer {
    pub fn has_text(&self) -> bool {
        self.text.0 > 0 || self.choices.iter().any(|choice| choice.text.0 > 0)
    }

    pub fn finish_reason(&mut self) -> Option<String> {
        let of_choice = self
            .choices
            .iter_mut()
            .find_map(|choice| choice.finish_reason.take());
        of_choice.or_else(|| self.finish_reason.take())
    }

    pub fn timings(&self) -> Option<ServerTimings> {
        match self.timings {
            Some(Timings::Ours(timings)) => Some(timings),
            Some(Timings::Others(_)) | None => None,
        }
    }

    pub fn usage(&self) -> Option<Usage> {
        self.usage.as_ref().map(|usage| Usage {
            prompt_tokens: usage.prompt_tokens,
            completion_tokens: usage.completion_tokens,
            cached_tokens: usage
                .prompt_tokens_details
                .as_ref()
                .and_then(|d| d.cached_tokens),
        })
    }
}

/// The message of an error body: OpenAI's, a plain `error` or `detail` field, or the start of the
/// body itself.
pub fn error_message(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct ErrorBody {
        #[serde(alias = "detail")]
        error: WireError,
    }
    const CHARS_MAX: usize = 200;
    let message = match serde_json::from_slice::<ErrorBody>(body) {
        Ok(body) => body.error.into_message(),
        Err(_) => String::from_utf8_lossy(body).trim().to_owned(),
    };
    message.chars().take(CHARS_MAX).collect()
}

/// The length of a string whose content is not wanted; null counts as empty.
#[derive(Clone, Copy, Debug, Default)]
struct TextBytes(usize);

impl<'de> Deserialize<'de> for TextBytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TextVisitor)
    }
}

struct TextVisitor;

impl Visitor<'_> for TextVisitor {
    type Value = TextBytes;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text or null")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<TextBytes, E> {
        Ok(TextBytes(text.len()))
    }

    fn visit_unit<E: Error>(self) -> Result<TextBytes, E> {
        Ok(TextBytes(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(text: &str) -> Answer {
        serde_json::from_str(text).expect(text)
    }

    #[test]
    fn timings_of_other_servers_are_passed_over() {
        let others = answer(r#"{"timings":{"cache_n":0,"prompt_n":2,"prompt_ms":10.148}}"#);
        assert_eq!(others.timings(), None);
    }

    #[test]
    fn completions_chunks_and_generate_events_read_alike() {
        let chunk =
            answer(r#"{"id":"x","choices":[{"index":0,"text":"a\n","finish_reason":null}]}"#);
        assert!(chunk.has_text());
        let event = answer(r#"{"text":"a"}"#);
        assert!(event.has_text());
        for empty in [
            r#"{"choices":[{"text":""}]}"#,
            r#"{"choices":[]}"#,
            r#"{"text":null}"#,
        ] {
            assert!(!answer(empty).has_text(), "{empty}");
        }
    }

    #[test]
    fn the_end_of_a_stream_carries_reason_usage_and_timings() {
        let mut last = answer(r#"{"choices":[{"text":"","finish_reason":"length"}]}"#);
        assert_eq!(last.finish_reason().as_deref(), Some("length"));
        let usage = answer(
            r#"{"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":4,"total_tokens":13,
                "prompt_tokens_details":{"cached_tokens":8}},
                "timings":{"queue_ms":1.5,"prefill_ms":2,"decode_ms":3,"ttft_ms":3.5,"total_ms":6.5}}"#,
        );
        let expected = Usage {
            prompt_tokens: 9,
            completion_tokens: 4,
            cached_tokens: Some(8),
        };
        assert_eq!(usage.usage(), Some(expected));
        assert_eq!(usage.timings().map(|timings| timings.queue_ms), Some(1.5));
    }

    #[test]
    fn error_bodies_of_any_shape_give_a_message() {
        for (body, message) in [
            (
                r#"{"error":{"message":"queue full","type":"x"}}"#,
                "queue full",
            ),
            (r#"{"error":"queue full"}"#, "queue full"),
            (r#"{"detail":"queue full"}"#, "queue full"),
            (" queue full\n", "queue full"),
            ("", ""),
        ] {
            assert_eq!(error_message(body.as_bytes()), message, "{body}");
        }
    }
}
