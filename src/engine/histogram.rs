//! Distributions of the engine's steps: plain counts, so that a snapshot is a copy.

use std::time::Duration;

/// How many values lie in each bucket.
#[derive(Clone, Debug, PartialEq)]
pub struct Histogram<const N: usize> {
    /// Upper bounds of the buckets, ascending.
    pub bounds: &'static [f64; N],
    /// Values above the bound before and not above the bucket's own.
    pub counts: [u64; N],
    pub num_above: u64,
    pub sum: f64,
}

impl<const N: usize> Histogram<N> {
    fn new(bounds: &'static [f64; N]) -> Self {
        Self {
            bounds,
            counts: [0; N],
            num_above: 0,
            sum: 0.0,
        }
    }

    fn observe(&mut self, value: f64) {
        self.sum += value;
        match self.bounds.iter().position(|bound| value <= *bound) {
            Some(bucket) => self.counts[bucket] += 1,
            None => self.num_above += 1,
        }
    }
}

/// The steps since start.
#[derive(Clone, Debug, PartialEq)]
pub struct StepHistograms {
    pub seconds: Histogram<14>,
    pub sequences: Histogram<11>,
    /// Of prompts and outputs together.
    pub tokens: Histogram<13>,
}

impl StepHistograms {
    pub(super) fn observe(&mut self, time: Duration, num_sequences: usize, num_tokens: usize) {
        self.seconds.observe(time.as_secs_f64());
        self.sequences.observe(num_sequences as f64);
        self.tokens.observe(num_tokens as f64);
    }
}

impl Default for StepHistograms {
    fn default() -> Self {
        Self {
            seconds: Histogram::new(&[
                0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0,
            ]),
            sequences: Histogram::new(&[
                1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0,
            ]),
            tokens: Histogram::new(&[
                1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0,
                16384.0,
            ]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_counts_in_the_first_bucket_that_holds_it() {
        let mut histogram = Histogram::new(&[1.0, 2.0]);
        for value in [0.5, 1.0, 1.5, 9.0] {
            histogram.observe(value);
        }
        assert_eq!((histogram.counts, histogram.num_above), ([2, 1], 1));
        assert_eq!(histogram.sum, 12.0);
    }
}
