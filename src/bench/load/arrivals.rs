//! When requests are due.

use std::fmt;
use std::time::Duration;

use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution as _, Gamma};
use serde::{Deserialize, Serialize};

/// When the requests of a phase are sent.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "loop", rename_all = "snake_case", deny_unknown_fields)]
pub enum Arrivals {
    /// A fixed number of clients, each sending its next request when its last one ended.
    Closed { concurrency: usize },
    /// At moments drawn beforehand, however slow the server is.
    Open {
        request_rate_per_s: f64,
        /// Shape of the gamma distribution of the gaps: 1 is a Poisson process, less comes in
        /// bursts, more comes evenly.
        #[serde(default = "poisson")]
        burstiness: f64,
        /// The rate rises from this one, in a straight line over the requests.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ramp_from_per_s: Option<f64>,
    },
    /// Some at once, again and again.
    Bursts { burst_size: usize, interval_s: f64 },
}

fn poisson() -> f64 {
    1.0
}

impl Arrivals {
    pub fn concurrency(&self) -> Option<usize> {
        match self {
            Self::Closed { concurrency } => Some(*concurrency),
            _ => None,
        }
    }

    /// The mean rate that an open loop ends at.
    pub fn request_rate_per_s(&self) -> Option<f64> {
        match self {
            Self::Closed { .. } => None,
            Self::Open {
                request_rate_per_s, ..
            } => Some(*request_rate_per_s),
            Self::Bursts {
                burst_size,
                interval_s,
            } => Some(*burst_size as f64 / interval_s),
        }
    }

    /// Due times, from the start of the phase; `None` of a closed loop.
    pub fn due_times(&self, count: usize, seed: u64) -> Option<Vec<Duration>> {
        match *self {
            Self::Closed { .. } => None,
            Self::Open {
                request_rate_per_s,
                burstiness,
                ramp_from_per_s,
            } => {
                let from = ramp_from_per_s.unwrap_or(request_rate_per_s);
                Some(drawn(count, from, request_rate_per_s, burstiness, seed))
            }
            Self::Bursts {
                burst_size,
                interval_s,
            } => {
                let due = |i: usize| Duration::from_secs_f64((i / burst_size) as f64 * interval_s);
                Some((0..count).map(due).collect())
            }
        }
    }

    /// What is wrong with its numbers.
    ///
    /// # Errors
    /// One of them is out of range.
    pub fn check(&self) -> Result<(), String> {
        let positive = |name: &str, value: f64| match value.is_finite() && value > 0.0 {
            true => Ok(()),
            false => Err(format!("{name} must be above 0")),
        };
        match *self {
            Self::Closed { concurrency: 0 } => Err("concurrency must be above 0".to_owned()),
            Self::Closed { .. } => Ok(()),
            Self::Open {
                request_rate_per_s,
                burstiness,
                ramp_from_per_s,
            } => {
                positive("request_rate_per_s", request_rate_per_s)?;
                positive("burstiness", burstiness)?;
                positive("ramp_from_per_s", ramp_from_per_s.unwrap_or(1.0))
            }
            Self::Bursts { burst_size: 0, .. } => Err("burst_size must be above 0".to_owned()),
            Self::Bursts { interval_s, .. } => positive("interval_s", interval_s),
        }
    }
}

impl fmt::Display for Arrivals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed { concurrency: 1 } => f.write_str("1 client"),
            Self::Closed { concurrency } => write!(f, "{concurrency} clients"),
            Self::Open {
                request_rate_per_s,
                burstiness,
                ramp_from_per_s,
            } => {
                if let Some(from) = ramp_from_per_s {
                    write!(f, "from {from} to ")?;
                }
                write!(f, "{request_rate_per_s} a second")?;
                match *burstiness == 1.0 {
                    true => Ok(()),
                    false => write!(f, ", burstiness {burstiness}"),
                }
            }
            Self::Bursts {
                burst_size,
                interval_s,
            } => write!(f, "{burst_size} at once each {interval_s} s"),
        }
    }
}

/// Gaps of mean 1 / rate, the first request at 0; the rate goes from one to the other, request by
/// request.
fn drawn(count: usize, from_per_s: f64, to_per_s: f64, shape: f64, seed: u64) -> Vec<Duration> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let gap = Gamma::new(shape, 1.0 / shape).expect("bug: the shape was checked");
    let mut due_s = 0.0;
    (0..count)
        .map(|i| {
            let due = Duration::from_secs_f64(due_s);
            let part = i as f64 / (count.max(2) - 1) as f64;
            due_s += gap.sample(&mut rng) / (from_per_s + (to_per_s - from_per_s) * part);
            due
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(request_rate_per_s: f64, burstiness: f64, ramp_from_per_s: Option<f64>) -> Arrivals {
        Arrivals::Open {
            request_rate_per_s,
            burstiness,
            ramp_from_per_s,
        }
    }

    fn gaps_s(dues: &[Duration]) -> Vec<f64> {
        dues.windows(2)
            .map(|pair| (pair[1] - pair[0]).as_secs_f64())
            .collect()
    }

    #[test]
    fn arrivals_keep_their_rate_and_their_spread_and_follow_the_seed() {
        // Gaps of a gamma process of shape k spread 1 / sqrt(k) times as far as their mean.
        for (burstiness, spread) in [(1.0, 1.0), (0.25, 2.0), (16.0, 0.25)] {
            let dues = |seed| {
                let arrivals = open(50.0, burstiness, None);
                arrivals.due_times(20_001, seed).expect("an open loop")
            };
            assert_eq!(dues(3), dues(3));
            assert_ne!(dues(3), dues(4));
            assert_eq!(dues(3)[0], Duration::ZERO);
            let gaps = gaps_s(&dues(3));
            let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
            let squares: f64 = gaps.iter().map(|gap| (gap - mean).powi(2)).sum();
            let found = (squares / gaps.len() as f64).sqrt() / mean;
            assert!((mean * 50.0 - 1.0).abs() < 0.05, "mean gap {mean} s");
            assert!(
                (found / spread - 1.0).abs() < 0.06,
                "{found} is not {spread}"
            );
        }
    }

    #[test]
    fn a_ramp_begins_slowly_and_ends_at_its_rate() {
        let arrivals = open(100.0, 16.0, Some(10.0));
        let gaps = gaps_s(&arrivals.due_times(2001, 1).expect("an open loop"));
        let rate = |gaps: &[f64]| gaps.len() as f64 / gaps.iter().sum::<f64>();
        let (first, last) = (rate(&gaps[..200]), rate(&gaps[1800..]));
        assert!((10.0..20.0).contains(&first), "{first} a second at first");
        assert!((90.0..101.0).contains(&last), "{last} a second at last");
    }

    #[test]
    fn a_burst_is_due_at_one_moment() {
        let arrivals = Arrivals::Bursts {
            burst_size: 3,
            interval_s: 2.0,
        };
        let dues = arrivals.due_times(7, 1).expect("an open loop");
        let seconds: Vec<u64> = dues.iter().map(Duration::as_secs).collect();
        assert_eq!(seconds, [0, 0, 0, 2, 2, 2, 4]);
        assert_eq!(arrivals.request_rate_per_s(), Some(1.5));
    }

    #[test]
    fn numbers_out_of_range_are_named() {
        for (arrivals, name) in [
            (Arrivals::Closed { concurrency: 0 }, "concurrency"),
            (open(0.0, 1.0, None), "request_rate_per_s"),
            (open(1.0, -1.0, None), "burstiness"),
            (open(1.0, 1.0, Some(0.0)), "ramp_from_per_s"),
            (open(f64::NAN, 1.0, None), "request_rate_per_s"),
        ] {
            let message = arrivals.check().expect_err(name);
            assert!(message.contains(name), "{message}");
        }
    }
}
