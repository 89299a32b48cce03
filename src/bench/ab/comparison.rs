//! What differs between A and B: for each figure its ratio B/A with a 95 % interval, and a verdict.
//!
//! * A figure of a side is the geometric mean over its blocks, so that after / before is the ratio.
//! * The interval is that of the mean logarithm of the pairs' ratios, see [`interval`]: the unit is
//!   the block, because the requests of a block share a server, a moment and a queue.
//! * The error rate may be 0 and has no ratio: its arithmetic means are compared by their difference.
//! * A figure that one block lacks is compared in none: without it the pairs would be chosen by
//!   their outcome.
//! * Better or worse is said only where the interval leaves out "no difference".

use crate::bench::metrics::Metrics;
use crate::bench::statistics::Summary;
use crate::bench::statistics::interval::{Interval, mean_interval};

/// What to wish for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    LowerIsBetter,
    HigherIsBetter,
}

/// How two values are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    Ratio,
    /// Of shares, in [0, 1].
    Difference,
}

/// One of the figures that are compared.
pub struct Measure {
    /// As `--target` names it.
    pub key: &'static str,
    pub label: &'static str,
    pub unit: &'static str,
    pub direction: Direction,
    pub scale: Scale,
    of: fn(&Metrics) -> Option<f64>,
}

const fn latency(
    key: &'static str,
    label: &'static str,
    of: fn(&Metrics) -> Option<f64>,
) -> Measure {
    Measure {
        key,
        label,
        unit: "ms",
        direction: Direction::LowerIsBetter,
        scale: Scale::Ratio,
        of,
    }
}

/// All of them, in the order in which they are shown.
pub const MEASURES: [Measure; 10] = [
    latency("ttft_p50", "TTFT p50", |m| m.latencies.ttft_ms.map(p50)),
    latency("ttft_p95", "TTFT p95", |m| m.latencies.ttft_ms.map(p95)),
    latency("tpot_p50", "TPOT p50", |m| m.latencies.tpot_ms.map(p50)),
    latency("itl_p99", "ITL p99", |m| m.latencies.itl_ms.map(|s| s.p99)),
    latency("e2e_p50", "E2E p50", |m| m.latencies.e2e_ms.map(p50)),
    latency("e2e_p95", "E2E p95", |m| m.latencies.e2e_ms.map(p95)),
    Measure {
        key: THROUGHPUT,
        label: "output throughput",
        unit: "tokens/s",
        direction: Direction::HigherIsBetter,
        scale: Scale::Ratio,
        of: |m| m.output_throughput_tokens_per_s,
    },
    Measure {
        key: "request_throughput",
        label: "request throughput",
        unit: "requests/s",
        direction: Direction::HigherIsBetter,
        scale: Scale::Ratio,
        of: |m| Some(m.request_throughput_per_s),
    },
    Measure {
        key: ERROR_RATE,
        label: "error rate",
        unit: "",
        direction: Direction::LowerIsBetter,
        scale: Scale::Difference,
        of: |m| Some(m.error_rate),
    },
    Measure {
        key: PEAK_RAM,
        label: "RAM peak",
        unit: "MiB",
        direction: Direction::LowerIsBetter,
        scale: Scale::Ratio,
        of: |m| {
            m.server
                .memory_peak_bytes
                .map(|bytes| bytes as f64 / f64::from(1 << 20))
        },
    },
];

/// Beside them, where prompts are what is computed.
pub const TOTAL_THROUGHPUT: Measure = Measure {
    key: "total_throughput",
    label: "prompt and output throughput",
    unit: "tokens/s",
    direction: Direction::HigherIsBetter,
    scale: Scale::Ratio,
    of: |m| m.total_throughput_tokens_per_s,
};

pub const THROUGHPUT: &str = "throughput";
pub const ERROR_RATE: &str = "error_rate";
pub const PEAK_RAM: &str = "peak_ram";

fn p50(summary: Summary) -> f64 {
    summary.p50
}

fn p95(summary: Summary) -> f64 {
    summary.p95
}

/// The measure of a key.
pub fn measure_of(key: &str) -> Option<&'static Measure> {
    MEASURES.iter().find(|measure| measure.key == key)
}

impl Measure {
    /// Its value in each block; `None` where a block lacks it.
    pub fn values(&self, blocks: &[Metrics]) -> Option<Vec<f64>> {
        let is_usable = |value: &f64| self.scale == Scale::Difference || *value > 0.0;
        blocks
            .iter()
            .map(|block| (self.of)(block).filter(is_usable))
            .collect()
    }

    /// A side's value: the mean over its blocks.
    pub fn mean(&self, values: &[f64]) -> f64 {
        let mean =
            |of: &dyn Fn(&f64) -> f64| values.iter().map(of).sum::<f64>() / values.len() as f64;
        match self.scale {
            // Relative to one of them, so that the mean of equal values is that value exactly.
            Scale::Ratio => values[0] * mean(&|x| (x / values[0]).ln()).exp(),
            Scale::Difference => mean(&|x| *x),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Better,
    Worse,
    NoDifferenceShown,
}

/// A and B in one figure.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Comparison {
    pub before: f64,
    pub after: f64,
    /// B/A, or B - A on the scale of differences.
    pub change: f64,
    pub interval: Interval,
    pub verdict: Verdict,
}

impl Comparison {
    /// `None` where a block lacks the figure, or there are too few for an interval. The two sides
    /// are paired by position.
    pub fn of(measure: &Measure, a: &[Metrics], b: &[Metrics]) -> Option<Self> {
        let (a, b) = (measure.values(a)?, measure.values(b)?);
        Self::of_values(measure, &a, &b)
    }

    fn of_values(measure: &Measure, a: &[f64], b: &[f64]) -> Option<Self> {
        let pairs = a.iter().zip(b);
        let changes: Vec<f64> = match measure.scale {
            Scale::Ratio => pairs.map(|(a, b)| (b / a).ln()).collect(),
            Scale::Difference => pairs.map(|(a, b)| b - a).collect(),
        };
        let interval = mean_interval(&changes)?;
        let verdict = verdict(measure.direction, interval);
        let (before, after) = (measure.mean(a), measure.mean(b));
        let (change, interval) = match measure.scale {
            Scale::Ratio => (after / before, interval.map(f64::exp)),
            Scale::Difference => (after - before, interval.map(|x| x.clamp(-1.0, 1.0))),
        };
        Some(Self {
            before,
            after,
            change,
            interval,
            verdict,
        })
    }
}

/// By the interval of a change of which 0 is none.
fn verdict(direction: Direction, change: Interval) -> Verdict {
    if change.contains(0.0) {
        Verdict::NoDifferenceShown
    } else if (change.high < 0.0) == (direction == Direction::LowerIsBetter) {
        Verdict::Better
    } else {
        Verdict::Worse
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use rand::Rng as _;
    use rand::SeedableRng as _;
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::bench::ab::record::{AbRecord, Side};
    use crate::bench::raw_record::RawRecord as _;

    fn measure(key: &str) -> &'static Measure {
        measure_of(key).expect("a known key")
    }

    fn verdict_of(key: &str, a: &[f64], b: &[f64]) -> Verdict {
        let comparison = Comparison::of_values(measure(key), a, b);
        comparison.expect("enough blocks").verdict
    }

    #[test]
    fn which_direction_is_better_depends_on_the_figure() {
        let (low, high) = ([10.0, 10.1, 10.2, 9.9], [20.0, 20.1, 20.4, 19.9]);
        for (key, up, down) in [
            ("ttft_p50", Verdict::Worse, Verdict::Better),
            ("throughput", Verdict::Better, Verdict::Worse),
            ("peak_ram", Verdict::Worse, Verdict::Better),
        ] {
            assert_eq!(verdict_of(key, &low, &high), up, "{key}");
            assert_eq!(verdict_of(key, &high, &low), down, "{key}");
            assert_eq!(
                verdict_of(key, &low, &low),
                Verdict::NoDifferenceShown,
                "{key}"
            );
        }
        let (none, some) = ([0.0; 4], [0.5, 0.4, 0.5, 0.6]);
        assert_eq!(verdict_of("error_rate", &none, &some), Verdict::Worse);
        assert_eq!(
            verdict_of("error_rate", &none, &none),
            Verdict::NoDifferenceShown
        );
    }

    #[test]
    fn the_ratio_is_after_to_before_and_lies_in_its_interval() {
        let (a, b) = ([8.0, 10.0, 12.0, 9.0], [4.1, 5.0, 5.8, 4.6]);
        let comparison = Comparison::of_values(measure("e2e_p95"), &a, &b).expect("4 blocks");
        assert!((comparison.change - comparison.after / comparison.before).abs() < 1e-12);
        assert!((comparison.before - 9.642).abs() < 1e-3, "{comparison:?}");
        let Interval { low, high } = comparison.interval;
        assert!(low < comparison.change && comparison.change < high && high < 1.0);
        assert_eq!(comparison.verdict, Verdict::Better);
    }

    /// A machine as this program meets it: its speed drifts over the run, differs from block to
    /// block by 5 %, and every seventh block is disturbed by something else that runs.
    struct Machine {
        rng: ChaCha8Rng,
        drift: f64,
    }

    impl Machine {
        fn new(seed: u64) -> Self {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let drift = rng.random_range(-0.03..0.03);
            Self { rng, drift }
        }

        /// Blocks A B B A …: the figure is 100, and for B 100 * `effect`.
        fn run(&mut self, blocks: usize, effect: f64) -> (Vec<f64>, Vec<f64>) {
            let (mut a, mut b) = (Vec::new(), Vec::new());
            for (position, side) in super::super::order(blocks).into_iter().enumerate() {
                let normal = (0..12).map(|_| self.rng.random::<f64>()).sum::<f64>() - 6.0;
                let disturbed = if self.rng.random_ratio(1, 7) {
                    1.15
                } else {
                    1.0
                };
                let noise = (0.05 * normal + self.drift * position as f64).exp() * disturbed;
                match side.1 {
                    super::super::Side::A => a.push(100.0 * noise),
                    super::super::Side::B => b.push(100.0 * noise * effect),
                }
            }
            (a, b)
        }
    }

    /// So many that their share is good to 0.15 %.
    const NUM_RUNS: u64 = 20_000;

    fn verdicts(blocks: usize, effect: f64) -> Vec<Verdict> {
        let run = |seed| {
            let (a, b) = Machine::new(seed).run(blocks, effect);
            verdict_of("tpot_p50", &a, &b)
        };
        (0..NUM_RUNS).map(run).collect()
    }

    fn share(verdicts: &[Verdict], wanted: Verdict) -> f64 {
        let count = verdicts
            .iter()
            .filter(|verdict| **verdict == wanted)
            .count();
        count as f64 / verdicts.len() as f64
    }

    #[test]
    fn a_server_against_itself_shows_no_difference_at_least_19_times_in_20() {
        for blocks in [4, 6, 10] {
            let share = share(&verdicts(blocks, 1.0), Verdict::NoDifferenceShown);
            assert!(share >= 0.95, "{blocks} blocks: {share}");
        }
    }

    /// How far each block of the recorded runs lay from the mean of its side, as a factor.
    fn recorded_noise(measure: &Measure) -> Vec<f64> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/results");
        let files = std::fs::read_dir(folder).expect("the recorded runs");
        let mut factors = Vec::new();
        for file in files {
            let path = file.expect("a file").path();
            if !path.to_string_lossy().ends_with("-ab.json") {
                continue;
            }
            let record = AbRecord::read(&path).expect("a recorded run");
            for side in [Side::A, Side::B] {
                let values = measure.values(&record.metrics(side)).expect("every figure");
                let mean = measure.mean(&values);
                factors.extend(values.iter().map(|value| value / mean));
            }
        }
        factors
    }

    #[test]
    fn a_server_against_itself_shows_no_difference_on_recorded_noise() {
        for key in ["ttft_p50", "ttft_p95", "tpot_p50", "e2e_p95", THROUGHPUT] {
            let measure = measure(key);
            let noise = recorded_noise(measure);
            for blocks in [4, 6, 10] {
                let mut rng = ChaCha8Rng::seed_from_u64(5);
                let mut draw = || 100.0 * noise[rng.random_range(0..noise.len())];
                let verdicts: Vec<Verdict> = (0..NUM_RUNS)
                    .map(|_| {
                        let (a, b): (Vec<f64>, Vec<f64>) =
                            (0..blocks).map(|_| (draw(), draw())).unzip();
                        verdict_of(key, &a, &b)
                    })
                    .collect();
                let share = share(&verdicts, Verdict::NoDifferenceShown);
                assert!(share >= 0.95, "{key}, {blocks} blocks: {share}");
            }
        }
    }

    #[test]
    fn an_effect_of_20_percent_is_found_and_named_rightly() {
        for (effect, expected, opposite) in [
            (1.2, Verdict::Worse, Verdict::Better),
            (1.0 / 1.2, Verdict::Better, Verdict::Worse),
        ] {
            let verdicts = verdicts(10, effect);
            let found = share(&verdicts, expected);
            assert!(found >= 0.9, "x{effect}: found {found}");
            assert!(share(&verdicts, opposite) <= 0.005, "x{effect}");
        }
    }
}
