//! What a client of the storm does, drawn by a seed.

use std::time::Duration;

use rand::Rng;
use rand::seq::IndexedRandom as _;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::bench::workload::CORPUS;

/// Long enough to be in prefill for several steps.
const LONG_PROMPT_WORDS: usize = 450;
/// More than the storm's MAX_MODEL_LEN allows.
const OVERSIZED_PROMPT_WORDS: usize = 4_000;
/// More than a body may have.
const OVERSIZED_BODY_BYTES: usize = 5 << 20;

/// What kind of client it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Waits for the whole answer.
    Patient,
    /// Reads the stream to its end.
    Streaming,
    /// The same, with a prompt that takes several steps.
    LongPrompt,
    /// Reads the stream slowly.
    SlowReader,
    /// Hangs up while it waits, or where the queue is empty, soon after.
    LeavesInQueue,
    /// Hangs up while its long prompt is computed.
    LeavesInPrefill,
    /// Hangs up after some tokens.
    LeavesInDecode,
    /// Wants the end within a short time.
    Hasty,
    /// Wants the first token within a short time.
    HastyForFirstToken,
    /// Sends what is no request.
    Malformed,
    /// Sends a prompt or a body that is too long.
    Oversized,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Patient => "patient",
            Self::Streaming => "streaming",
            Self::LongPrompt => "long prompt",
            Self::SlowReader => "slow reader",
            Self::LeavesInQueue => "leaves in queue",
            Self::LeavesInPrefill => "leaves in prefill",
            Self::LeavesInDecode => "leaves in decode",
            Self::Hasty => "hasty",
            Self::HastyForFirstToken => "hasty for the first token",
            Self::Malformed => "malformed",
            Self::Oversized => "oversized",
        }
    }
}

/// One request, and how its client behaves.
#[derive(Clone, Debug)]
pub struct Act {
    pub kind: Kind,
    pub body: Vec<u8>,
    pub headers: Vec<(&'static str, String)>,
    pub leaves: Leaves,
    /// Pause before each read.
    pub pause: Duration,
    pub max_tokens: usize,
}

/// When the client hangs up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaves {
    AtTheEnd,
    After(Duration),
    AfterTokens(usize),
}

/// How often each kind comes.
const WEIGHTS: [(Kind, u32); 11] = [
    (Kind::Patient, 20),
    (Kind::Streaming, 26),
    (Kind::LongPrompt, 4),
    (Kind::SlowReader, 6),
    (Kind::LeavesInQueue, 8),
    (Kind::LeavesInPrefill, 6),
    (Kind::LeavesInDecode, 10),
    (Kind::Hasty, 6),
    (Kind::HastyForFirstToken, 4),
    (Kind::Malformed, 7),
    (Kind::Oversized, 3),
];

const MALFORMED: [&[u8]; 10] = [
    b"",
    b"{",
    b"[]",
    b"null",
    b"{\"prompt\": 5}",
    b"{\"prompt\": \"a\", \"max_tokens\": -1}",
    b"{\"prompt\": \"a\", \"temperature\": \"hot\"}",
    b"{\"prompt\": [999999999]}",
    b"{\"prompt\": \"a\", \"unheard_of\": true}",
    b"{\"prompt\": \"\xff\xfe\"}",
];

impl Act {
    pub fn draw(rng: &mut ChaCha8Rng) -> Self {
        let kinds: &[(Kind, u32)] = &WEIGHTS;
        let (kind, _) = kinds
            .choose_weighted(rng, |(_, weight)| *weight)
            .expect("bug: there are weights");
        Self::of(*kind, rng)
    }

    pub fn of(kind: Kind, rng: &mut ChaCha8Rng) -> Self {
        let max_tokens = match kind {
            Kind::LeavesInDecode => rng.random_range(20..80),
            _ => rng.random_range(1..40),
        };
        let num_words = match kind {
            Kind::LongPrompt | Kind::LeavesInPrefill => LONG_PROMPT_WORDS,
            Kind::Oversized => OVERSIZED_PROMPT_WORDS,
            _ => rng.random_range(1..80),
        };
        let stream = !matches!(kind, Kind::Patient | Kind::Hasty);
        let mut body = json!({
            "prompt": prompt(num_words, rng),
            "max_tokens": max_tokens,
            "stream": stream,
            "ignore_eos": true,
        });
        let mut headers = Vec::new();
        if rng.random_bool(0.2) {
            body["priority"] = json!(rng.random_range(-2..=2));
        }
        if rng.random_bool(0.5) {
            let client = format!("client-{}", rng.random_range(0..4));
            headers.push(("x-llm-d-inference-fairness-id", client));
        }
        match kind {
            Kind::Hasty => body["timeout_ms"] = json!(rng.random_range(1..400)),
            Kind::HastyForFirstToken => {
                let slo_ms = rng.random_range(1..200).to_string();
                headers.push(("x-llm-d-slo-ttft-ms", slo_ms));
            }
            _ => {}
        }
        Self {
            kind,
            body: bytes(kind, &body, rng),
            headers,
            leaves: match kind {
                Kind::LeavesInQueue => Leaves::After(Duration::from_millis(rng.random_range(0..8))),
                Kind::LeavesInPrefill => {
                    Leaves::After(Duration::from_millis(rng.random_range(5..120)))
                }
                Kind::LeavesInDecode => Leaves::AfterTokens(rng.random_range(1..12)),
                _ => Leaves::AtTheEnd,
            },
            pause: match kind {
                Kind::SlowReader => Duration::from_millis(rng.random_range(10..80)),
                _ => Duration::ZERO,
            },
            max_tokens,
        }
    }
}

fn bytes(kind: Kind, body: &Value, rng: &mut ChaCha8Rng) -> Vec<u8> {
    match kind {
        Kind::Malformed => MALFORMED.choose(rng).copied().unwrap_or_default().to_vec(),
        Kind::Oversized if rng.random_bool(0.3) => vec![b' '; OVERSIZED_BODY_BYTES],
        _ => body.to_string().into_bytes(),
    }
}

/// Words of the corpus from a random place; prompts often begin alike, so that prefixes are shared.
fn prompt(num_words: usize, rng: &mut ChaCha8Rng) -> String {
    let start = rng.random_range(0..200);
    let words: Vec<&str> = CORPUS
        .split_whitespace()
        .cycle()
        .skip(start)
        .take(num_words)
        .collect();
    words.join(" ")
}
