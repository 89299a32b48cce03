//! How many requests were between their sending and their end, and what the server gave meanwhile.

use std::collections::BTreeMap;

use crate::bench::record::RequestRecord;

/// From this moment on, so many requests were in flight.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    pub at_ms: f64,
    pub count: usize,
}

/// The number in flight over time, failed requests included.
pub fn steps(requests: &[RequestRecord]) -> Vec<Step> {
    let starts = requests.iter().map(|r| (r.sent_ms, 1i64));
    let ends = requests.iter().map(|r| (r.end_ms, -1i64));
    let mut changes: Vec<(f64, i64)> = starts.chain(ends).collect();
    // At the same moment, what ends makes room for what begins.
    changes.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let mut count = 0;
    let mut steps: Vec<Step> = Vec::with_capacity(changes.len());
    for (at_ms, change) in changes {
        count += change;
        let step = Step {
            at_ms,
            count: usize::try_from(count).unwrap_or(0),
        };
        match steps.last_mut() {
            Some(last) if last.at_ms == at_ms => *last = step,
            _ => steps.push(step),
        }
    }
    steps
}

/// What the server gave while a certain number of requests was in flight.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Served {
    pub duration_ms: f64,
    pub events: usize,
}

impl Served {
    pub fn events_per_s(&self) -> f64 {
        self.events as f64 / self.duration_ms * 1e3
    }
}

/// Events with text by how many requests were in flight when they came.
pub fn served_by_count(requests: &[RequestRecord]) -> BTreeMap<usize, Served> {
    let steps = steps(requests);
    let mut served: BTreeMap<usize, Served> = BTreeMap::new();
    for pair in steps.windows(2) {
        served.entry(pair[0].count).or_default().duration_ms += pair[1].at_ms - pair[0].at_ms;
    }
    for at_ms in requests.iter().flat_map(RequestRecord::token_times_ms) {
        // The last event of a request comes at its end, and belongs to the time before it.
        let after = steps.partition_point(|step| step.at_ms < at_ms);
        if let Some(step) = after.checked_sub(1).and_then(|i| steps.get(i)) {
            served.entry(step.count).or_default().events += 1;
        }
    }
    served.remove(&0);
    served
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(sent_ms: f64, first: f64, gaps_ms: &[f64], end_ms: f64) -> RequestRecord {
        RequestRecord {
            sent_ms,
            first_token_ms: Some(first),
            gaps_ms: gaps_ms.to_vec(),
            end_ms,
            ..RequestRecord::default()
        }
    }

    #[test]
    fn requests_are_in_flight_from_their_sending_to_their_end() {
        let requests = [
            request(0.0, 1.0, &[], 10.0),
            request(4.0, 5.0, &[], 6.0),
            request(10.0, 11.0, &[], 12.0),
        ];
        let counts: Vec<(f64, usize)> = steps(&requests)
            .iter()
            .map(|s| (s.at_ms, s.count))
            .collect();
        assert_eq!(counts, [(0.0, 1), (4.0, 2), (6.0, 1), (10.0, 1), (12.0, 0)]);
    }

    #[test]
    fn events_count_for_the_number_in_flight_when_they_came() {
        let requests = [
            request(0.0, 2.0, &[3.0, 5.0], 10.0),
            request(4.0, 6.0, &[2.0], 8.0),
        ];
        let served = served_by_count(&requests);
        let alone = Served {
            duration_ms: 6.0,
            events: 2,
        };
        let together = Served {
            duration_ms: 4.0,
            events: 3,
        };
        assert_eq!(served, BTreeMap::from([(1, alone), (2, together)]));
    }
}
