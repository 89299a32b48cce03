//! Whether 95 % of the requests of a class end within a time. A failed request never does.

use crate::bench::record::RequestRecord;

/// The share of requests that must end in time.
pub const SHARE: f64 = 0.95;

/// How a class does against one objective.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Verdict {
    pub limit_ms: f64,
    pub share_within: f64,
    pub holds: bool,
}

/// Of `requests`, all of a class, failed ones included; `None` of none.
pub fn judge(requests: &[&RequestRecord], limit_ms: f64) -> Option<Verdict> {
    let is_within = |r: &&&RequestRecord| r.is_success() && r.end_ms - r.due_ms <= limit_ms;
    let within = requests.iter().filter(is_within).count();
    (!requests.is_empty()).then(|| {
        let share_within = within as f64 / requests.len() as f64;
        Verdict {
            limit_ms,
            share_within,
            holds: share_within >= SHARE,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::record::{Failure, FailureReason};

    #[test]
    fn nineteen_of_twenty_hold_and_a_failure_is_never_in_time() {
        let request = |end_ms: f64| RequestRecord {
            end_ms,
            ..RequestRecord::default()
        };
        let mut requests: Vec<RequestRecord> = (0..19).map(|_| request(100.0)).collect();
        requests.push(request(5000.0));
        let judged = |requests: &[RequestRecord]| {
            let all: Vec<&RequestRecord> = requests.iter().collect();
            judge(&all, 1000.0).expect("a verdict")
        };
        assert!(judged(&requests).holds);
        requests[0].failure = Some(Failure::new(FailureReason::Timeout, "late"));
        let verdict = judged(&requests);
        assert!(!verdict.holds);
        assert_eq!(verdict.share_within, 0.9);
        assert_eq!(judge(&[], 1000.0), None);
    }
}
