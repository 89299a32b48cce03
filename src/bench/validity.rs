//! Whether a run measured what it says: reasons for which it counts for nothing.
//!
//! * An open loop sent late: its latencies are the load generator's.
//! * The prefix cache was not in the state that was declared.
//! * A prompt had another length than the workload asks for.
//! * The whole workload did not add up to what its definition expects.
//! * The client's book and the server's do not balance: by request id from the server's log, and in
//!   sum from its counters. The sums are compared where every request succeeded: of others the client
//!   does not know what the server did.

use super::cache_state::CacheCheck;
use super::load::Arrivals;
use super::metrics::Metrics;
use super::record::{Record, RequestRecord, Usage};
use super::server_stats::ServerStats;

/// Most that an open loop may lag behind its schedule at p99 where a record does not say; timers are
/// good to 1 ms.
const SEND_DELAY_P99_MAX_MS: f64 = 10.0;

/// Most that this run's open loops may lag behind their schedule at p99.
pub fn max_send_delay_ms(record: &Record) -> f64 {
    let set = record.run.client.max_send_delay_ms;
    set.unwrap_or(SEND_DELAY_P99_MAX_MS)
}

/// Why the run is void; nothing if it is not.
pub fn faults(record: &Record) -> Vec<String> {
    let phases = 0..record.run.phases.len();
    let mut faults: Vec<String> = phases
        .filter_map(|index| late_phase(record, index))
        .collect();
    if let check @ CacheCheck::Refuted(..) = CacheCheck::of(record) {
        faults.push(format!("the prefix cache was {check}"));
    }
    faults.extend(wrong_lengths(record));
    faults.extend(unexpected_sums(record));
    faults.extend(unequal_books(record));
    faults
}

/// How late an open loop sent, if that is too much; a closed one has no schedule.
pub fn late_phase(record: &Record, index: usize) -> Option<String> {
    let phase = record.run.phases.get(index)?;
    if matches!(phase.arrivals, Arrivals::Closed { .. }) {
        return None;
    }
    let delay = Metrics::of(&record.of_phase(index))
        .latencies
        .send_delay_ms?;
    let most = max_send_delay_ms(record);
    (delay.p99 > most).then(|| {
        format!(
            "phase {:?}: the client sent {:.2} ms late at p99, more than {most} ms",
            phase.name, delay.p99
        )
    })
}

fn wrong_lengths(record: &Record) -> Option<String> {
    let wrong = |request: &&RequestRecord| {
        let asked = request.asked_prompt_tokens.map(|tokens| tokens as u64);
        let had = request.usage.map(|usage| usage.prompt_tokens);
        request.is_success() && asked.zip(had).is_some_and(|(asked, had)| asked != had)
    };
    let first = record.requests.iter().find(wrong)?;
    let count = record.requests.iter().filter(wrong).count();
    Some(format!(
        "{count} prompts did not have the length asked for: request {} was to have {} tokens and had {}",
        first.request_id,
        first.asked_prompt_tokens.unwrap_or_default(),
        first.usage.unwrap_or_default().prompt_tokens
    ))
}

fn unexpected_sums(record: &Record) -> Vec<String> {
    let client = &record.run.client;
    let expected = client
        .workload
        .as_ref()
        .and_then(|workload| workload.expected);
    let (Some(expected), Some(sum)) = (expected, sum_of_successes(record)) else {
        return Vec::new();
    };
    let requests = record.requests.len() as u64;
    let output = client.ignore_eos.then_some(expected.output_tokens);
    [
        ("requests", Some(expected.requests as u64), requests),
        ("prompt tokens", expected.prompt_tokens, sum.prompt_tokens),
        ("output tokens", output, sum.completion_tokens),
    ]
    .into_iter()
    .filter_map(|(what, expected, found)| {
        let expected = expected.filter(|expected| *expected != found)?;
        Some(format!(
            "the workload has {expected} {what}, and {found} were counted"
        ))
    })
    .collect()
}

/// The tokens of all requests, if all succeeded and have usage.
fn sum_of_successes(record: &Record) -> Option<Usage> {
    let mut sum = Usage::default();
    let mut cached_tokens = Some(0);
    for request in &record.requests {
        let usage = request.usage.filter(|_| request.is_success())?;
        sum.prompt_tokens += usage.prompt_tokens;
        sum.completion_tokens += usage.completion_tokens;
        cached_tokens = cached_tokens.zip(usage.cached_tokens).map(|(a, b)| a + b);
    }
    sum.cached_tokens = cached_tokens;
    Some(sum)
}

fn unequal_books(record: &Record) -> Vec<String> {
    let mut faults = Vec::new();
    let differs = |request: &&RequestRecord| {
        let Some((usage, logged)) = request.usage.zip(request.logged.as_ref()) else {
            return false;
        };
        request.is_success()
            && (usage.prompt_tokens != logged.prompt_tokens
                || usage.completion_tokens != logged.generated_tokens
                || usage
                    .cached_tokens
                    .is_some_and(|n| n != logged.cached_tokens))
    };
    let count = record.requests.iter().filter(differs).count();
    if let Some(first) = record.requests.iter().find(differs) {
        faults.push(format!(
            "the server's log tells of {count} requests otherwise than their answers, first of {}",
            first.request_id
        ));
    }
    let is_logged = |request: &RequestRecord| request.logged.is_some();
    let missing = |request: &&RequestRecord| request.is_success() && !is_logged(request);
    if record.requests.iter().any(is_logged) {
        let count = record.requests.iter().filter(missing).count();
        if count > 0 {
            faults.push(format!(
                "the server's log has no end of {count} requests that succeeded"
            ));
        }
    }
    for index in 0..record.run.phases.len() {
        faults.extend(unequal_sums(&record.of_phase(index)));
    }
    faults
}

fn unequal_sums(phase: &Record) -> Vec<String> {
    let Some(sum) = sum_of_successes(phase) else {
        return Vec::new();
    };
    let server = &phase.run.server;
    let (before, after) = (
        ServerStats::of(&server.stats_before),
        ServerStats::of(&server.stats_after),
    );
    let delta = |of: fn(&ServerStats) -> Option<u64>| {
        let (after, before) = of(&after).zip(of(&before))?;
        Some(after.saturating_sub(before))
    };
    [
        ("prompt tokens", Some(sum.prompt_tokens), delta(|s| s.prefix.query_tokens)),
        ("tokens from the cache", sum.cached_tokens, delta(|s| s.prefix.hit_tokens)),
        ("output tokens", Some(sum.completion_tokens), delta(|s| s.batch.num_generated_tokens)),
    ]
    .into_iter()
    .filter_map(|(what, client, server)| {
        let (client, server) = client.zip(server).filter(|(client, server)| client != server)?;
        Some(format!(
            "the answers add up to {client} {what}, and the server counted {server}: something else used it, or \
             its book is wrong"
        ))
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::bench::metrics::tests::{failed_with_429, record, request};
    use crate::bench::record::Phase;
    use crate::bench::server_log::Logged;

    fn run(requests: Vec<RequestRecord>, arrivals: Arrivals) -> Record {
        let mut record = record(requests);
        let stats = |prompt: u64, output: u64| {
            json!({
                "prefix": {"query_tokens": prompt, "hit_tokens": 0},
                "batch": {"num_generated_tokens": output},
            })
        };
        record.run.phases = vec![Phase {
            name: "only".to_owned(),
            arrivals,
            start_ms: 0.0,
            end_ms: 2000.0,
            duration_ms: 2000.0,
            client_cpu_ms: 1,
            stats_before: stats(100, 100),
            stats_after: stats(140, 110),
        }];
        record
    }

    /// Two of 20 prompt and 5 output tokens, as the server counted.
    fn sound() -> Record {
        let closed = Arrivals::Closed { concurrency: 1 };
        run(vec![request(0, 5), request(1, 5)], closed)
    }

    #[test]
    fn a_sound_run_has_no_faults() {
        assert_eq!(faults(&sound()), Vec::<String>::new());
    }

    #[test]
    fn an_open_loop_that_sent_late_is_void_and_a_closed_one_has_no_schedule() {
        let late = || RequestRecord {
            sent_ms: 120.0,
            ..request(0, 10)
        };
        let mut record = run(
            vec![late(), request(1, 10)],
            Arrivals::Closed { concurrency: 1 },
        );
        record.run.phases[0].stats_after = json!(null);
        assert_eq!(faults(&record), Vec::<String>::new());
        record.run.phases[0].arrivals = Arrivals::Open {
            request_rate_per_s: 1.0,
            burstiness: 1.0,
            ramp_from_per_s: None,
        };
        let faults = faults(&record);
        assert_eq!(faults.len(), 1, "{faults:?}");
        assert!(faults[0].contains("20.00 ms late"), "{faults:?}");
    }

    #[test]
    fn a_prompt_of_another_length_is_found() {
        let mut record = sound();
        record.requests[0].asked_prompt_tokens = Some(20);
        assert_eq!(faults(&record), Vec::<String>::new());
        record.requests[1].asked_prompt_tokens = Some(21);
        let faults = faults(&record);
        assert!(
            faults[0].contains("was to have 21 tokens and had 20"),
            "{faults:?}"
        );
    }

    #[test]
    fn books_that_differ_are_told_in_sum_and_by_request() {
        let mut record = sound();
        record.run.phases[0].stats_after["batch"]["num_generated_tokens"] = json!(111);
        let found = faults(&record);
        assert!(
            found[0].contains("10 output tokens, and the server counted 11"),
            "{found:?}"
        );

        let mut record = sound();
        let logged = |generated_tokens| Logged {
            outcome: "length".to_owned(),
            prompt_tokens: 20,
            cached_tokens: 0,
            generated_tokens,
        };
        record.requests[0].logged = Some(logged(5));
        record.requests[1].logged = Some(logged(4));
        let found = faults(&record);
        assert!(found[0].contains("1 requests otherwise"), "{found:?}");
        record.requests[1].logged = None;
        let found = faults(&record);
        assert!(found[0].contains("no end of 1 requests"), "{found:?}");
    }

    #[test]
    fn sums_are_not_compared_where_a_request_failed() {
        let closed = Arrivals::Closed { concurrency: 1 };
        let record = run(vec![request(0, 5), failed_with_429(1)], closed);
        assert_eq!(faults(&record), Vec::<String>::new());
    }
}
