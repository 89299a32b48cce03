//! The most that a run saw at one time.

use std::collections::BTreeMap;

use crate::bench::record::RequestRecord;

/// Most output tokens in one second, of seconds counted from the start of the run.
pub fn output_tokens_per_s(successes: &[&RequestRecord]) -> Option<f64> {
    let mut seconds: BTreeMap<u64, f64> = BTreeMap::new();
    for request in successes {
        let tokens_per_event = request.output_tokens()? as f64 / request.num_events() as f64;
        for at_ms in request.token_times_ms() {
            *seconds.entry((at_ms / 1e3) as u64).or_default() += tokens_per_event;
        }
    }
    seconds.into_values().reduce(f64::max)
}

/// Most requests that were sent and had not ended; one that ends when another is sent is over.
pub fn concurrent_requests(successes: &[&RequestRecord]) -> usize {
    let starts = successes.iter().map(|request| (request.sent_ms, 1));
    let ends = successes.iter().map(|request| (request.end_ms, -1));
    let mut changes: Vec<(f64, i64)> = starts.chain(ends).collect();
    changes.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let mut now = 0;
    let most = changes.iter().map(|(_, change)| {
        now += change;
        now
    });
    most.max().unwrap_or(0).try_into().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::metrics::tests::request;

    #[test]
    fn the_peak_is_the_fullest_second_and_tokens_are_those_of_usage() {
        // First tokens at 150 ms, then one each 10 ms: 86 events in the first second, 14 in the next.
        let mut long = request(0, 100);
        assert_eq!(output_tokens_per_s(&[&long]), Some(85.0));
        if let Some(usage) = long.usage.as_mut() {
            usage.completion_tokens = 200;
        }
        assert_eq!(output_tokens_per_s(&[&long]), Some(170.0));
        let short = request(1, 5);
        assert_eq!(output_tokens_per_s(&[&long, &short]), Some(175.0));
        assert_eq!(output_tokens_per_s(&[]), None);
    }

    #[test]
    fn requests_that_follow_each_other_do_not_overlap() {
        let first = request(0, 5);
        let mut second = request(1, 5);
        second.sent_ms = first.end_ms;
        second.end_ms = first.end_ms + 10.0;
        assert_eq!(concurrent_requests(&[&first, &second]), 1);
        second.sent_ms -= 1.0;
        assert_eq!(concurrent_requests(&[&first, &second]), 2);
        assert_eq!(concurrent_requests(&[]), 0);
    }
}
