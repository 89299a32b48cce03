//! Where the time of requests went: waiting in the server's queue, prefill, decode, and what is
//! left, which passes outside of the server's own account: the network, the client, other handling.

use crate::bench::report::loads::Answer;

/// Mean times of some requests, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Breakdown {
    pub queue_ms: f64,
    pub prefill_ms: f64,
    pub decode_ms: f64,
    pub outside_ms: f64,
}

/// A band of ranks reaches this far to both sides of its percentile.
const BAND_HALF_WIDTH: f64 = 0.025;

impl Breakdown {
    /// `None` if there are none, or one of them has no account of the server.
    pub fn mean<'a>(answers: impl IntoIterator<Item = &'a Answer>) -> Option<Self> {
        let mut sum = Self::default();
        let mut count = 0.0;
        for answer in answers {
            let timings = answer.timings?;
            let inside_ms = timings.queue_ms + timings.prefill_ms + timings.decode_ms;
            sum.queue_ms += timings.queue_ms;
            sum.prefill_ms += timings.prefill_ms;
            sum.decode_ms += timings.decode_ms;
            sum.outside_ms += (answer.e2e_ms - inside_ms).max(0.0);
            count += 1.0;
        }
        (count > 0.0).then(|| Self {
            queue_ms: sum.queue_ms / count,
            prefill_ms: sum.prefill_ms / count,
            decode_ms: sum.decode_ms / count,
            outside_ms: sum.outside_ms / count,
        })
    }

    /// Of the requests about a percentile of the latency: percentiles of parts do not add up, the
    /// parts of the same requests do.
    pub fn near_percentile(answers: &[Answer], percentile: f64) -> Option<Self> {
        let mut by_latency: Vec<&Answer> = answers.iter().collect();
        by_latency.sort_by(|a, b| a.e2e_ms.total_cmp(&b.e2e_ms));
        let count = by_latency.len() as f64;
        let rank = |share: f64| (share.clamp(0.0, 1.0) * count).ceil().max(1.0) as usize - 1;
        let (from, to) = (
            rank(percentile - BAND_HALF_WIDTH),
            rank(percentile + BAND_HALF_WIDTH),
        );
        Self::mean(by_latency.get(from..=to)?.iter().copied())
    }

    pub fn total_ms(&self) -> f64 {
        self.parts().iter().map(|(_, ms)| ms).sum()
    }

    pub fn parts(&self) -> [(Part, f64); 4] {
        [
            (Part::Queue, self.queue_ms),
            (Part::Prefill, self.prefill_ms),
            (Part::Decode, self.decode_ms),
            (Part::Outside, self.outside_ms),
        ]
    }

    /// Of the total; 0 of nothing.
    pub fn share(&self, part: Part) -> f64 {
        let total = self.total_ms();
        let of_part = self
            .parts()
            .iter()
            .find(|(name, _)| *name == part)
            .map_or(0.0, |(_, ms)| *ms);
        if total > 0.0 { of_part / total } else { 0.0 }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Queue,
    Prefill,
    Decode,
    Outside,
}

impl Part {
    pub fn name(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::Prefill => "prefill",
            Self::Decode => "decode",
            Self::Outside => "outside the server",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::record::ServerTimings;

    fn answer(e2e_ms: f64, queue_ms: f64) -> Answer {
        Answer {
            class: None,
            prompt_tokens: Some(1),
            output_tokens: Some(1),
            e2e_ms,
            timings: Some(ServerTimings {
                queue_ms,
                prefill_ms: 1.0,
                decode_ms: 2.0,
            }),
        }
    }

    #[test]
    fn parts_add_up_to_the_latency() {
        let mean = Breakdown::mean(&[answer(10.0, 5.0), answer(20.0, 7.0)]).expect("two answers");
        assert_eq!(
            (mean.queue_ms, mean.prefill_ms, mean.decode_ms),
            (6.0, 1.0, 2.0)
        );
        assert_eq!((mean.outside_ms, mean.total_ms()), (6.0, 15.0));
        assert_eq!(mean.share(Part::Queue), 0.4);
    }

    #[test]
    fn an_answer_without_the_servers_account_gives_none() {
        let silent = Answer {
            timings: None,
            ..answer(1.0, 0.0)
        };
        assert_eq!(Breakdown::mean(&[answer(10.0, 5.0), silent]), None);
        assert_eq!(Breakdown::mean(&[]), None);
    }

    #[test]
    fn a_percentile_looks_at_the_requests_about_its_rank() {
        let answers: Vec<Answer> = (1..=100)
            .rev()
            .map(|i| answer(f64::from(i) + 3.0, f64::from(i)))
            .collect();
        // Ranks 48 to 53 (47.5 rounds up), and 97 to 100.
        let p50 = Breakdown::near_percentile(&answers, 0.5).expect("a median");
        assert_eq!(p50.queue_ms, 50.5);
        let p99 = Breakdown::near_percentile(&answers, 0.99).expect("a tail");
        assert_eq!(p99.queue_ms, 98.5);
        assert_eq!(Breakdown::near_percentile(&[], 0.5), None);
    }
}
