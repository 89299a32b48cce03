//! `--target`: what side B has to reach, and whether it did.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::comparison::{ERROR_RATE, MEASURES, Measure, PEAK_RAM, measure_of};
use crate::bench::figures::percent;
use crate::bench::metrics::Metrics;

/// Most failures with which speed counts, unless a target on the error rate says otherwise: the
/// requests that were served while others failed are not what was asked for.
pub const ERROR_RATE_MAX: f64 = 0.05;

/// A figure and its bound: `ttft_p95<500`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Criterion {
    key: String,
    bound: Bound,
    limit: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bound {
    Below,
    AtMost,
    Above,
    AtLeast,
}

const BOUNDS: [(&str, Bound); 4] = [
    ("<=", Bound::AtMost),
    (">=", Bound::AtLeast),
    ("<", Bound::Below),
    (">", Bound::Above),
];

impl FromStr for Criterion {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || "expected a figure and its bound, such as ttft_p95<500".to_owned();
        let split = |(sign, bound)| text.split_once(sign).map(|parts| (parts, bound));
        let ((key, limit), bound) = BOUNDS.into_iter().find_map(split).ok_or_else(expected)?;
        let key = key.trim();
        if measure_of(key).is_none() {
            let keys = MEASURES.map(|measure| measure.key).join(", ");
            return Err(format!("{key:?} is not one of {keys}"));
        }
        let limit: f64 = limit.trim().parse().map_err(|_| expected())?;
        if !limit.is_finite() || limit < 0.0 {
            return Err("a bound is a number from 0 up".to_owned());
        }
        Ok(Self {
            key: key.to_owned(),
            bound,
            limit,
        })
    }
}

impl fmt::Display for Criterion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = BOUNDS.iter().find(|(_, bound)| *bound == self.bound);
        let sign = named.map_or("", |(sign, _)| sign);
        write!(f, "{}{sign}{}", self.key, self.limit)
    }
}

impl From<Criterion> for String {
    fn from(criterion: Criterion) -> Self {
        criterion.to_string()
    }
}

impl TryFrom<String> for Criterion {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// Whether a target was met.
#[derive(Clone, Debug, PartialEq)]
pub struct Judgement {
    /// The side's value; `None` where a block lacks it.
    pub value: Option<f64>,
    /// Blocks that alone would meet it.
    pub num_blocks_met: usize,
    pub outcome: Outcome,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    Met,
    /// With the reason, where it is not the value.
    NotMet(Option<String>),
}

impl Criterion {
    pub fn measure(&self) -> &'static Measure {
        measure_of(&self.key).expect("bug: the key was checked when it was read")
    }

    /// Judges the blocks of a side; `all` are the targets that were set with this one.
    pub fn judge(&self, blocks: &[Metrics], all: &[Self]) -> Judgement {
        let measure = self.measure();
        let Some(values) = measure.values(blocks) else {
            let reason = "a block does not have this figure".to_owned();
            return Judgement {
                value: None,
                num_blocks_met: 0,
                outcome: Outcome::NotMet(Some(reason)),
            };
        };
        let value = measure.mean(&values);
        let outcome = match (self.allows(value), self.void(blocks, all)) {
            (true, None) => Outcome::Met,
            (true, reason) => Outcome::NotMet(reason),
            (false, _) => Outcome::NotMet(None),
        };
        Judgement {
            value: Some(value),
            num_blocks_met: values.iter().filter(|x| self.allows(**x)).count(),
            outcome,
        }
    }

    fn allows(&self, value: f64) -> bool {
        match self.bound {
            Bound::Below => value < self.limit,
            Bound::AtMost => value <= self.limit,
            Bound::Above => value > self.limit,
            Bound::AtLeast => value >= self.limit,
        }
    }

    /// Why a figure of speed does not count: too many requests failed.
    fn void(&self, blocks: &[Metrics], all: &[Self]) -> Option<String> {
        if [ERROR_RATE, PEAK_RAM].contains(&self.key.as_str()) {
            return None;
        }
        let rates: Vec<f64> = blocks.iter().map(|block| block.error_rate).collect();
        let rate = rates.iter().sum::<f64>() / rates.len() as f64;
        let broken = all.iter().find(|c| c.key == ERROR_RATE && !c.allows(rate));
        let failed = format!("{} of the requests failed", percent(rate));
        if let Some(broken) = broken {
            Some(format!("{failed}, against the target {broken}"))
        } else if rate > ERROR_RATE_MAX {
            let limit = percent(ERROR_RATE_MAX);
            Some(format!("{failed}; speed counts where at most {limit} do"))
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::metrics::tests::{failed_with_429, record, request};

    /// A block of 10 requests, each with a TTFT of 50 ms, of which some failed.
    fn block(num_failed: usize) -> Metrics {
        let requests = (0..10).map(|i| match i < num_failed {
            true => failed_with_429(i),
            false => request(i, 5),
        });
        Metrics::of(&record(requests.collect()))
    }

    fn judge(text: &str, others: &[&str], blocks: &[Metrics]) -> Judgement {
        let criterion: Criterion = text.parse().expect(text);
        let others = others
            .iter()
            .map(|text| text.parse().expect("a sound target"));
        let all: Vec<Criterion> = others.chain([criterion.clone()]).collect();
        criterion.judge(blocks, &all)
    }

    #[test]
    fn targets_are_read_and_written_alike() {
        for text in [
            "ttft_p95<500",
            "throughput>=100",
            "error_rate<0.05",
            "peak_ram<=800",
        ] {
            assert_eq!(text.parse::<Criterion>().expect(text).to_string(), text);
        }
        let spaced: Criterion = " ttft_p95 < 500 ".parse().expect("spaces do no harm");
        assert_eq!(spaced.to_string(), "ttft_p95<500");
        for (text, word) in [
            ("ttft_p95", "expected"),
            ("ttft_p95<soon", "expected"),
            ("ttft_p96<5", "not one of ttft_p50"),
            ("throughput>-1", "from 0 up"),
            ("throughput>inf", "from 0 up"),
        ] {
            let message = text.parse::<Criterion>().expect_err(text);
            assert!(message.contains(word), "{text}: {message}");
        }
    }

    #[test]
    fn a_value_is_met_or_not_and_blocks_are_counted_alone() {
        let blocks = [block(0), block(0)];
        for (text, met) in [
            ("ttft_p95<500", true),
            ("ttft_p95<50", false),
            ("ttft_p95<=50", true),
            ("request_throughput>4", true),
            ("request_throughput>5", false),
            ("request_throughput>=5", true),
            ("error_rate<0.05", true),
        ] {
            let judgement = judge(text, &[], &blocks);
            assert_eq!(
                judgement.outcome == Outcome::Met,
                met,
                "{text}: {judgement:?}"
            );
            assert_eq!(judgement.num_blocks_met, if met { 2 } else { 0 }, "{text}");
        }
    }

    #[test]
    fn speed_is_not_met_when_too_many_requests_failed() {
        let failing = [block(0), block(2)];
        for text in ["request_throughput>1", "ttft_p95<500"] {
            let Outcome::NotMet(Some(reason)) = judge(text, &[], &failing).outcome else {
                panic!("{text} was met with 10 % of errors");
            };
            assert!(reason.contains("10.0 % of the requests failed"), "{reason}");
        }
        let few = [block(1), block(0), block(0), block(0)];
        assert_eq!(judge("ttft_p95<500", &[], &few).outcome, Outcome::Met);
        let strict = judge("ttft_p95<500", &["error_rate<0.01"], &few).outcome;
        let Outcome::NotMet(Some(reason)) = strict else {
            panic!("met against the stricter target");
        };
        assert!(
            reason.contains("against the target error_rate<0.01"),
            "{reason}"
        );
        assert_eq!(judge("error_rate<0.2", &[], &failing).outcome, Outcome::Met);
    }

    #[test]
    fn a_figure_that_a_block_lacks_meets_nothing() {
        let judgement = judge("ttft_p95<500", &[], &[block(0), block(10)]);
        assert_eq!(judgement.value, None);
        assert_ne!(judgement.outcome, Outcome::Met);
    }
}
