//! What the server's prefix cache held when the measurement began: declared, then verified from
//! what the server says it took from the cache for each request.

use std::fmt;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::record::{Record, RequestRecord};

/// Tokens that prompts may share by accident: a begin marker and the few that set them apart.
const ACCIDENTAL_TOKENS: u64 = 8;

/// A warm cache gives at least this share of the prompt tokens; the last block is often computed.
const WARM_SHARE_MIN: f64 = 0.9;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum CacheState {
    /// Nothing of the prompts to be measured, but what the run itself puts there
    Cold,
    /// Every prompt to be measured: each is sent once before
    Warm,
    /// Whatever it held; nothing is verified
    AsIs,
}

/// Whether it was as declared.
#[derive(Clone, Debug, PartialEq)]
pub enum CacheCheck {
    NotDeclared,
    /// The server does not tell what it took from its cache.
    Unknown(CacheState),
    Verified(CacheState),
    /// With what was found instead.
    Refuted(CacheState, String),
}

impl CacheCheck {
    pub fn of(record: &Record) -> Self {
        let Some(state) = record.run.client.cache_state else {
            return Self::NotDeclared;
        };
        let requests = record.requests.iter().filter(|r| r.is_success());
        let found: Option<Vec<Found>> = requests.map(Found::of).collect();
        let Some(found) = found else {
            return match state {
                CacheState::AsIs => Self::Verified(state),
                _ => Self::Unknown(state),
            };
        };
        match state {
            CacheState::AsIs => Self::Verified(state),
            CacheState::Cold => cold(&found),
            CacheState::Warm => warm(&found),
        }
    }
}

/// In sum: of two requests that begin alike and are under way at once, either may come first.
fn cold(found: &[Found]) -> CacheCheck {
    let cached: u64 = found.iter().map(|f| f.cached).sum();
    let shared: u64 = found.iter().map(|f| f.shared).sum();
    match cached <= shared + ACCIDENTAL_TOKENS * found.len() as u64 {
        true => CacheCheck::Verified(CacheState::Cold),
        false => CacheCheck::Refuted(
            CacheState::Cold,
            format!(
                "{cached} prompt tokens came from the cache, and the run itself had put at most {shared} of them there"
            ),
        ),
    }
}

fn warm(found: &[Found]) -> CacheCheck {
    let cached: u64 = found.iter().map(|f| f.cached).sum();
    // The last token of a prompt is always computed.
    let prompt: u64 = found.iter().map(|f| f.prompt.saturating_sub(1)).sum();
    match cached as f64 >= prompt as f64 * WARM_SHARE_MIN {
        true => CacheCheck::Verified(CacheState::Warm),
        false => CacheCheck::Refuted(
            CacheState::Warm,
            format!("{cached} of {prompt} prompt tokens came from the cache"),
        ),
    }
}

/// Tokens of one prompt.
struct Found {
    prompt: u64,
    cached: u64,
    /// That an earlier request of the run began with too.
    shared: u64,
}

impl Found {
    fn of(request: &RequestRecord) -> Option<Self> {
        let usage = request.usage?;
        let shared = match request.repeat {
            true => usage.prompt_tokens,
            false => request.shared_prompt_tokens.unwrap_or(0) as u64,
        };
        Some(Self {
            prompt: usage.prompt_tokens,
            cached: usage.cached_tokens?,
            shared,
        })
    }
}

impl fmt::Display for CacheState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cold => "cold",
            Self::Warm => "warm",
            Self::AsIs => "as is",
        })
    }
}

impl fmt::Display for CacheCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotDeclared => f.write_str("not declared"),
            Self::Verified(CacheState::AsIs) => f.write_str("as it was found"),
            Self::Unknown(state) => write!(
                f,
                "{state}, as declared; the server does not tell, so it is not verified"
            ),
            Self::Verified(state) => {
                write!(
                    f,
                    "{state}, as declared and verified from each request's usage"
                )
            }
            Self::Refuted(state, found) => write!(f, "NOT {state}, as was declared: {found}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::metrics::tests::{record, request};
    use crate::bench::record::Usage;

    /// 20 prompt tokens each, of which so many were cached and shared.
    fn check(state: CacheState, requests: &[(u64, usize)]) -> CacheCheck {
        let requests = requests.iter().enumerate().map(|(i, (cached, shared))| {
            let mut request = request(i, 5);
            request.shared_prompt_tokens = Some(*shared);
            request.usage = Some(Usage {
                prompt_tokens: 20,
                completion_tokens: 5,
                cached_tokens: Some(*cached),
            });
            request
        });
        let mut record = record(requests.collect());
        record.run.client.cache_state = Some(state);
        CacheCheck::of(&record)
    }

    #[test]
    fn a_cold_cache_gives_no_more_than_the_run_put_there() {
        let cold = CacheState::Cold;
        let verified = CacheCheck::Verified(cold);
        assert_eq!(check(cold, &[(0, 0), (4, 0), (19, 16)]), verified);
        // Two that began alike at once: the one that was sent first came second.
        assert_eq!(check(cold, &[(19, 0), (0, 19)]), verified);
        let refuted = check(cold, &[(18, 0), (19, 0)]);
        assert!(refuted.to_string().contains("NOT cold"), "{refuted}");
    }

    #[test]
    fn a_warm_cache_gives_nearly_everything() {
        let warm = CacheState::Warm;
        assert_eq!(check(warm, &[(19, 0), (19, 0)]), CacheCheck::Verified(warm));
        let refuted = check(warm, &[(19, 0), (0, 0)]);
        assert!(refuted.to_string().contains("19 of 38"), "{refuted}");
    }

    #[test]
    fn a_server_that_does_not_tell_leaves_it_unverified() {
        let mut record = record(vec![request(0, 5)]);
        record.run.client.cache_state = Some(CacheState::Cold);
        record.requests[0].usage = None;
        let check = CacheCheck::of(&record);
        assert_eq!(check, CacheCheck::Unknown(CacheState::Cold));
    }
}
