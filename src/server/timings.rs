//! Where a request's time went, from the stamps on the engine's events.

use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::Value;

use super::openapi::schema::{number, response};

/// What has happened to a generation so far.
#[derive(Clone, Debug)]
pub struct Progress {
    pub arrived: Instant,
    pub admitted: Option<Instant>,
    pub first_token: Option<Instant>,
    pub last_token: Option<Instant>,
    pub prompt_tokens: usize,
    pub max_tokens: usize,
    /// Prompt tokens taken from the prefix cache.
    pub cached_tokens: usize,
    pub generated_tokens: usize,
}

impl Progress {
    pub fn new(arrived: Instant, prompt_tokens: usize, max_tokens: usize) -> Self {
        Self {
            arrived,
            admitted: None,
            first_token: None,
            last_token: None,
            prompt_tokens,
            max_tokens,
            cached_tokens: 0,
            generated_tokens: 0,
        }
    }

    /// The whole prompt came from the cache, but for its last token, which is always computed.
    pub fn is_cached(&self) -> bool {
        self.cached_tokens > 0 && self.cached_tokens + 1 == self.prompt_tokens
    }

    /// The phases so far; one that still runs counts up to `now`, one not begun is zero.
    pub fn timings(&self, now: Instant) -> Timings {
        let admitted = self.admitted.unwrap_or(now);
        let first = self.first_token.unwrap_or(now);
        let last = self.last_token.unwrap_or(now);
        Timings {
            queue: admitted.saturating_duration_since(self.arrived),
            prefill: first.saturating_duration_since(admitted),
            decode: last.saturating_duration_since(first),
            ttft: first.saturating_duration_since(self.arrived),
            total: last.saturating_duration_since(self.arrived),
        }
    }
}

/// `queue` (arrival to first prefill chunk) + `prefill` (to the first token) = `ttft`;
/// `ttft` + `decode` (to the last token) = `total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Timings {
    #[serde(rename = "queue_ms", serialize_with = "as_milliseconds")]
    pub queue: Duration,
    #[serde(rename = "prefill_ms", serialize_with = "as_milliseconds")]
    pub prefill: Duration,
    #[serde(rename = "decode_ms", serialize_with = "as_milliseconds")]
    pub decode: Duration,
    #[serde(rename = "ttft_ms", serialize_with = "as_milliseconds")]
    pub ttft: Duration,
    #[serde(rename = "total_ms", serialize_with = "as_milliseconds")]
    pub total: Duration,
}

/// How [`Timings`] look.
pub fn schema() -> Value {
    let names = ["queue_ms", "prefill_ms", "decode_ms", "ttft_ms", "total_ms"];
    response(names.map(|name| (name, number(0.0, f64::MAX))))
}

/// Milliseconds to the microsecond; finer digits would be noise.
pub fn milliseconds(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1e3
}

fn as_milliseconds<S: serde::Serializer>(
    duration: &Duration,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(milliseconds(*duration))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_add_up_and_a_phase_not_begun_is_zero() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut progress = Progress::new(start, 8, 4);
        let waiting = progress.timings(at(5));
        assert_eq!(waiting.queue, Duration::from_millis(5));
        assert_eq!(waiting.prefill + waiting.decode, Duration::ZERO);

        progress.admitted = Some(at(10));
        progress.first_token = Some(at(30));
        progress.last_token = Some(at(70));
        let done = progress.timings(at(1000));
        assert_eq!(done.queue + done.prefill, done.ttft);
        assert_eq!(done.ttft + done.decode, done.total);
        assert_eq!(done.total, Duration::from_millis(70));
    }

    #[test]
    fn cached_means_all_but_the_last_prompt_token() {
        let mut progress = Progress::new(Instant::now(), 10, 4);
        assert!(!progress.is_cached());
        progress.cached_tokens = 8;
        assert!(!progress.is_cached());
        progress.cached_tokens = 9;
        assert!(progress.is_cached());
        assert!(!Progress::new(Instant::now(), 1, 4).is_cached());
    }
}
