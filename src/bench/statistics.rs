//! Numbers about samples: mean, standard deviation, percentiles. Knows nothing of requests.
//!
//! Percentiles come from an HDR histogram of microseconds with four significant digits, and are
//! nearest-rank: a p99 of 50 samples is the largest of them, never a value between two.

pub mod interval;
pub mod line;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Serializer as _, V2DeflateSerializer};
use serde::Serialize;

/// Samples in milliseconds, summed up.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Summary {
    pub count: usize,
    pub mean: f64,
    /// Sample standard deviation (n - 1); 0 for one sample.
    pub std: f64,
    pub min: f64,
    pub p50: f64,
    pub p90: f64,
    pub p95: f64,
    pub p99: f64,
    pub max: f64,
}

impl Summary {
    /// `None` where there is nothing to sum up: a missing figure must not read as 0.
    pub fn of_ms(samples: &[f64]) -> Option<Self> {
        let count = samples.len();
        let min = samples.iter().copied().reduce(f64::min)?;
        let max = samples.iter().copied().reduce(f64::max)?;
        let mean = samples.iter().sum::<f64>() / count as f64;
        let squares: f64 = samples.iter().map(|x| (x - mean).powi(2)).sum();
        let std = (squares / (count.max(2) - 1) as f64).sqrt();
        let histogram = histogram_us(samples);
        let percentile = |q: f64| (histogram.value_at_quantile(q) as f64 / 1e3).clamp(min, max);
        Some(Self {
            count,
            mean,
            std,
            min,
            p50: percentile(0.50),
            p90: percentile(0.90),
            p95: percentile(0.95),
            p99: percentile(0.99),
            max,
        })
    }
}

/// The histogram itself, compressed, as the HDR tools read it: base64 of V2, in microseconds.
///
/// # Errors
/// It cannot be encoded.
pub fn histogram_base64(samples_ms: &[f64]) -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    V2DeflateSerializer::new().serialize(&histogram_us(samples_ms), &mut bytes)?;
    Ok(BASE64_STANDARD.encode(bytes))
}

/// A quantile between two samples, as numpy gives it by default; `None` of nothing.
pub fn interpolated(samples: &[f64], quantile: f64) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = quantile * sorted.len().checked_sub(1)? as f64;
    let below = sorted[rank.floor() as usize];
    let above = sorted[rank.ceil() as usize];
    Some(below + (above - below) * rank.fract())
}

fn histogram_us(samples_ms: &[f64]) -> Histogram<u64> {
    let mut histogram = Histogram::new(4).expect("bug: 4 significant digits are allowed");
    for ms in samples_ms {
        histogram
            .record((ms * 1e3).round().max(0.0) as u64)
            .expect("bug: an auto-resizing histogram takes every value");
    }
    histogram
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(left: f64, right: f64) -> bool {
        (left - right).abs() <= right.abs() * 1e-4
    }

    #[test]
    fn no_samples_give_no_summary() {
        assert_eq!(Summary::of_ms(&[]), None);
    }

    #[test]
    fn one_sample_is_every_percentile_and_has_no_spread() {
        let summary = Summary::of_ms(&[12.345]).expect("one sample");
        assert_eq!(summary.std, 0.0);
        for value in [summary.mean, summary.p50, summary.p99, summary.max] {
            assert_eq!(value, 12.345);
        }
    }

    #[test]
    fn percentiles_are_samples_by_nearest_rank() {
        let samples: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        let summary = Summary::of_ms(&samples).expect("100 samples");
        for (value, expected) in [
            (summary.p50, 50.0),
            (summary.p90, 90.0),
            (summary.p95, 95.0),
            (summary.p99, 99.0),
            (summary.max, 100.0),
            (summary.mean, 50.5),
            (summary.std, 29.011_491_975_882_016),
        ] {
            assert!(close(value, expected), "{value} is not {expected}");
        }
    }

    #[test]
    fn a_written_histogram_reads_back_with_its_percentiles() {
        let samples: Vec<f64> = (1..=1000).map(f64::from).collect();
        let text = histogram_base64(&samples).expect("a histogram");
        let bytes = BASE64_STANDARD.decode(text).expect("base64");
        let mut reader = hdrhistogram::serialization::Deserializer::new();
        let again: Histogram<u64> = reader.deserialize(&mut &bytes[..]).expect("a histogram");
        assert_eq!(again, histogram_us(&samples));
        assert_eq!(again.len(), 1000);
    }

    #[test]
    fn interpolated_quantiles_lie_between_their_neighbours() {
        let samples = [4.0, 1.0, 2.0, 3.0];
        assert_eq!(interpolated(&samples, 0.5), Some(2.5));
        assert_eq!(interpolated(&samples, 1.0), Some(4.0));
        assert_eq!(interpolated(&samples, 0.25), Some(1.75));
        assert_eq!(interpolated(&[], 0.5), None);
    }

    #[test]
    fn the_p99_of_few_samples_is_the_largest() {
        let summary = Summary::of_ms(&[1.0, 2.0, 70_000.0]).expect("3 samples");
        assert_eq!(summary.p99, 70_000.0);
        assert!(close(summary.p50, 2.0));
    }
}
