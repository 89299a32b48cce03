//! The workload of the flags alone: prompts of so many words, the same for the same seed.
//!
//! No two different prompts begin with the same word (the same few words, where more prompts are
//! wanted than the text has words), so a prefix cache finds something only in exact repeats.
//! Warm-up prompts come from the same draw and are never measured.

use std::fmt;
use std::str::FromStr;

use anyhow::ensure;
use rand::Rng as _;
use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::openings::{distinct_starts, repeat_plan};
use super::{CORPUS, Prompt};

/// Longest opening, in words, that sets two prompts apart.
const HEAD_WORDS_MAX: usize = 4;

/// How many words a prompt has: `64`, or `20-120` for lengths spread evenly between the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct WordRange {
    pub min: usize,
    pub max: usize,
}

impl FromStr for WordRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (min, max) = text.split_once('-').unwrap_or((text, text));
        match (min.trim().parse(), max.trim().parse()) {
            (Ok(min), Ok(max)) if 1 <= min && min <= max => Ok(Self { min, max }),
            _ => Err("expected a number of words above 0, or a range such as 20-120".to_owned()),
        }
    }
}

impl fmt::Display for WordRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.min == self.max {
            true => write!(f, "{}", self.min),
            false => write!(f, "{}-{}", self.min, self.max),
        }
    }
}

impl From<WordRange> for String {
    fn from(range: WordRange) -> Self {
        range.to_string()
    }
}

impl TryFrom<String> for WordRange {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// What a workload is drawn from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WorkloadParams {
    pub requests: usize,
    pub warmup: usize,
    /// Share of the measured requests that repeat an earlier prompt exactly, in [0, 1).
    pub repeat_ratio: f64,
    pub prompt_words: WordRange,
    pub max_tokens: usize,
    pub seed: u64,
}

/// The prompts of one run, in sending order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    pub warmup: Vec<Prompt>,
    pub measured: Vec<Prompt>,
}

impl Workload {
    /// Draws the prompts. The measured ones depend on all parameters but `warmup`.
    ///
    /// # Errors
    /// More different prompts are wanted than the text has openings.
    pub fn draw(params: &WorkloadParams) -> anyhow::Result<Self> {
        let words: Vec<&str> = CORPUS.split_whitespace().collect();
        let mut rng = ChaCha8Rng::seed_from_u64(params.seed);
        let head_words_max = HEAD_WORDS_MAX.min(params.prompt_words.min);
        let starts = distinct_starts(&words, head_words_max, &mut rng);
        let repeats = repeat_plan(params.requests, params.repeat_ratio, &mut rng);
        let unique = repeats.iter().filter(|is_repeat| !**is_repeat).count();
        ensure!(
            unique + params.warmup <= starts.len(),
            "the text gives {} prompts with different openings, and {} are wanted: ask for fewer --requests \
             or longer --prompt-words, or raise --repeat-ratio",
            starts.len(),
            unique + params.warmup
        );
        let mut starts = starts.into_iter();
        let mut cut = |id: usize, rng: &mut ChaCha8Rng| {
            let start = starts.next().expect("bug: counted above");
            let length = rng.random_range(params.prompt_words.min..=params.prompt_words.max);
            let text: Vec<&str> = words
                .iter()
                .cycle()
                .skip(start)
                .take(length)
                .copied()
                .collect();
            Prompt {
                id,
                text: text.join(" "),
                max_tokens: params.max_tokens,
                ..Prompt::default()
            }
        };
        let mut measured: Vec<Prompt> = Vec::with_capacity(params.requests);
        let mut originals: Vec<usize> = Vec::with_capacity(unique);
        for is_repeat in repeats {
            let prompt = if is_repeat {
                let original = originals[rng.random_range(0..originals.len())];
                Prompt {
                    repeat: true,
                    ..measured[original].clone()
                }
            } else {
                originals.push(measured.len());
                cut(originals.len() - 1, &mut rng)
            };
            measured.push(prompt);
        }
        let warmup = (0..params.warmup)
            .map(|i| cut(unique + i, &mut rng))
            .collect();
        Ok(Self { warmup, measured })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn params() -> WorkloadParams {
        WorkloadParams {
            requests: 50,
            warmup: 5,
            repeat_ratio: 0.3,
            prompt_words: WordRange { min: 20, max: 120 },
            max_tokens: 100,
            seed: 1,
        }
    }

    fn draw(params: &WorkloadParams) -> Workload {
        Workload::draw(params).expect("the text is long enough")
    }

    #[test]
    fn the_same_seed_gives_the_same_prompts_and_another_seed_others() {
        assert_eq!(draw(&params()), draw(&params()));
        let other = draw(&WorkloadParams {
            seed: 2,
            ..params()
        });
        assert_ne!(draw(&params()).measured, other.measured);
    }

    #[test]
    fn the_measured_prompts_do_not_depend_on_the_warm_up() {
        let without = draw(&WorkloadParams {
            warmup: 0,
            ..params()
        });
        assert_eq!(draw(&params()).measured, without.measured);
    }

    #[test]
    fn the_asked_share_repeats_an_earlier_prompt_exactly() {
        for (requests, repeat_ratio, repeats) in [
            (50, 0.3, 15),
            (50, 0.0, 0),
            (50, 1.0, 49),
            (1, 0.9, 0),
            (3, 0.5, 2),
        ] {
            let workload = draw(&WorkloadParams {
                requests,
                repeat_ratio,
                ..params()
            });
            let prompts = &workload.measured;
            assert_eq!(prompts.len(), requests);
            assert_eq!(prompts.iter().filter(|p| p.repeat).count(), repeats);
            for (i, prompt) in prompts.iter().enumerate() {
                let earlier = prompts[..i].iter().find(|p| p.text == prompt.text);
                assert_eq!(earlier.is_some(), prompt.repeat, "prompt {i}");
                assert!(earlier.is_none_or(|p| p.id == prompt.id), "prompt {i}");
            }
        }
    }

    #[test]
    fn different_prompts_begin_with_different_words_warm_up_included() {
        let workload = draw(&params());
        let mut first_words = HashSet::new();
        for prompt in workload
            .warmup
            .iter()
            .chain(&workload.measured)
            .filter(|p| !p.repeat)
        {
            let first = prompt.text.split(' ').next().expect("a prompt has words");
            assert!(first_words.insert(first), "two prompts begin with {first}");
            let length = prompt.text.split(' ').count();
            assert!((20..=120).contains(&length), "{length} words");
        }
    }

    #[test]
    fn many_prompts_differ_within_their_first_four_words() {
        let workload = draw(&WorkloadParams {
            requests: 4000,
            repeat_ratio: 0.0,
            ..params()
        });
        let heads: HashSet<Vec<&str>> = workload
            .measured
            .iter()
            .map(|p| p.text.split(' ').take(4).collect())
            .collect();
        assert_eq!(heads.len(), 4000);
    }

    #[test]
    fn more_prompts_than_the_text_gives_is_an_error_with_the_numbers() {
        let params = WorkloadParams {
            requests: 100_000,
            repeat_ratio: 0.0,
            ..params()
        };
        let message = Workload::draw(&params).expect_err("too many").to_string();
        assert!(message.contains("100005 are wanted"), "{message}");
    }

    #[test]
    fn word_ranges_are_read_and_written_alike() {
        for text in ["64", "20-120"] {
            assert_eq!(text.parse::<WordRange>().expect(text).to_string(), text);
        }
        for text in ["", "0", "5-3", "-4", "a few", "1-"] {
            assert!(text.parse::<WordRange>().is_err(), "{text}");
        }
    }
}
