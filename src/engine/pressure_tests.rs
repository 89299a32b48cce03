//! The engine under pressure: time limits, urgency, turns, broken steps, stuck steps.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use tokio::sync::mpsc::UnboundedReceiver;

use super::tests::hash_runner::{HashRunner, VOCAB_SIZE, greedy};
use super::tests::{
    collect, config, engine, gated, prompt, request, start_with, wait_for_admission,
};
use super::*;
use crate::config::EngineConfig;
use crate::kv_cache::BLOCK_SIZE;
use crate::runner::{Logits, RaggedBatch, Runner};

type Events = UnboundedReceiver<Event>;
type Fault = Box<dyn FnMut(&mut Logits) -> anyhow::Result<()> + Send>;

/// Does what `fault` says in every step that computes token 13.
struct FaultyRunner {
    inner: HashRunner,
    fault: Fault,
    logits: Logits,
}

const POISON: TokenId = 13;

impl Runner for FaultyRunner {
    fn forward(&mut self, batch: &RaggedBatch) -> anyhow::Result<&Logits> {
        self.logits.clone_from(self.inner.forward(batch)?);
        if batch.token_ids.contains(&POISON) {
            (self.fault)(&mut self.logits)?;
        }
        Ok(&self.logits)
    }

    fn vocab_size(&self) -> usize {
        VOCAB_SIZE
    }
}

const NUM_BLOCKS: usize = 8;

fn faulty(
    inner: HashRunner,
    fault: impl FnMut(&mut Logits) -> anyhow::Result<()> + Send + 'static,
) -> EngineHandle {
    let logits = Logits {
        values: Vec::new(),
        vocab_size: VOCAB_SIZE,
    };
    let runner = FaultyRunner {
        inner,
        fault: Box::new(fault),
        logits,
    };
    start_with(runner, NUM_BLOCKS, &config())
}

fn runner() -> HashRunner {
    HashRunner::new(NUM_BLOCKS, BLOCK_SIZE)
}

fn submit(engine: &EngineHandle, request: Request) -> Events {
    engine.submit(request).expect("it is taken")
}

/// A prompt whose greedy tokens, up to `max_tokens`, are none of them the poison.
fn healthy_prompt(max_tokens: usize) -> Vec<TokenId> {
    (0..)
        .map(|seed| vec![seed % 12, seed / 12 % 12, seed / 144])
        .find(|prompt| !greedy(prompt, max_tokens).contains(&POISON))
        .expect("there are many prompts")
}

#[test]
fn a_step_that_fails_or_panics_fails_its_requests_and_the_engine_goes_on() {
    let faults: [fn(&mut Logits) -> anyhow::Result<()>; 2] =
        [|_| anyhow::bail!("out of luck"), |_| panic!("out of luck")];
    for fault in faults {
        let engine = faulty(runner(), fault);
        for round in 1..=5 {
            let (.., end) = collect(submit(&engine, request(&[POISON], 5)));
            assert_eq!(end, Err(EngineError::StepFailed("out of luck".to_owned())));
            let prompt = healthy_prompt(3);
            let (tokens, cached, end) = collect(submit(&engine, request(&prompt, 3)));
            assert_eq!(
                (tokens, cached, end),
                (greedy(&prompt, 3), 0, Ok(FinishReason::Length)),
                "the cache begins afresh"
            );
            let stats = engine.stats();
            assert_eq!(
                (stats.requests.num_failed, stats.batch.num_failed_steps),
                (round, round)
            );
            assert_eq!(stats.kv_cache.used_blocks, 0);
        }
        assert_eq!(engine.health(), Health::Ready);
    }
}

#[test]
fn who_waited_while_a_step_failed_gets_its_tokens() {
    let (inner, gate) = runner().gated();
    let engine = faulty(inner, |_| anyhow::bail!("out of luck"));
    // More than one step holds: the poison and one other compute, the last waits for its turn.
    let company = healthy_prompt(3);
    let mut poisoned = submit(&engine, request(&[POISON; 64], 5));
    wait_for_admission(&mut poisoned);
    let late = submit(&engine, request(&company, 3));
    drop(gate);
    let (.., end) = collect(poisoned);
    assert!(matches!(end, Err(EngineError::StepFailed(_))), "{end:?}");
    let (tokens, _, end) = collect(late);
    assert_eq!(
        (tokens, end),
        (greedy(&company, 3), Ok(FinishReason::Length))
    );
    assert_eq!(engine.stats().requests.num_failed, 1);
}

#[test]
fn steps_that_never_work_end_the_engine() {
    let engine = faulty(runner(), |_| anyhow::bail!("out of luck"));
    for _ in 0..3 {
        let (.., end) = collect(submit(&engine, request(&[POISON], 5)));
        assert!(matches!(end, Err(EngineError::StepFailed(_))), "{end:?}");
    }
    let reason = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime")
        .block_on(engine.failed());
    assert_eq!(engine.health(), Health::Failed(reason.clone()));
    let refused = engine
        .submit(request(&[1], 1))
        .expect_err("the engine has ended");
    assert_eq!(refused, EngineError::Unavailable(reason));
}

#[test]
fn broken_logits_fail_their_own_request_and_are_not_cached() {
    let is_broken = Arc::new(AtomicBool::new(true));
    let still_broken = Arc::clone(&is_broken);
    let engine = faulty(runner(), move |logits| {
        if still_broken.load(Ordering::Relaxed) {
            logits.values.fill(f32::NAN);
        }
        Ok(())
    });
    let poison = [POISON; 40];
    let (.., end) = collect(submit(&engine, request(&poison, 5)));
    assert!(matches!(end, Err(EngineError::StepFailed(_))), "{end:?}");
    let scored = Request {
        prompt_logprobs: Some(0),
        ..request(&[POISON, 1], 0)
    };
    let (.., end) = collect(submit(&engine, scored));
    assert!(matches!(end, Err(EngineError::StepFailed(_))), "{end:?}");
    let stats = engine.stats();
    assert_eq!(stats.kv_cache.cached_blocks, 0);
    assert_eq!(
        (stats.requests.num_corrupted, stats.requests.num_failed),
        (2, 2)
    );

    is_broken.store(false, Ordering::Relaxed);
    let (tokens, cached, end) = collect(submit(&engine, request(&poison, 5)));
    assert_eq!(
        (tokens, cached, end),
        (greedy(&poison, 5), 0, Ok(FinishReason::Length))
    );
    assert_eq!(engine.health(), Health::Ready);
}

#[test]
fn a_stuck_step_turns_the_engine_unready_and_then_ends_it() {
    let (runner, gate) = runner().gated();
    let config = EngineConfig {
        stall_timeout: Duration::from_millis(1),
        ..config()
    };
    let engine = start_with(runner, NUM_BLOCKS, &config);
    assert_eq!(
        engine.health(),
        Health::Ready,
        "an idle engine has nothing to get on with"
    );
    let stuck = submit(&engine, request(&[1], 2));
    while engine.health() == Health::Ready {
        std::thread::yield_now();
    }
    assert!(matches!(engine.health(), Health::Stalled(_)));
    while !matches!(engine.health(), Health::Failed(_)) {
        engine.give_up_if_stuck();
    }
    // The step ends after all: too late, its requests are told.
    drop(gate);
    let (.., end) = collect(stuck);
    assert!(matches!(end, Err(EngineError::Unavailable(_))), "{end:?}");
}

#[test]
fn each_chunk_of_a_long_prompt_is_progress() {
    let config = EngineConfig {
        max_batch_tokens: 8,
        ..config()
    };
    let (engine, gate) = gated(NUM_BLOCKS, &config);
    let long = submit(&engine, request(&[1; 80], 1));
    for chunk in 1..10 {
        let silence = || engine.shared.heartbeat.silence();
        while silence() < Duration::from_millis(5) {
            std::thread::yield_now();
        }
        let released = Instant::now();
        gate.send(()).expect("the engine runs");
        while engine.stats().batch.num_steps < chunk {
            std::thread::yield_now();
        }
        let resolution = Duration::from_millis(1);
        assert!(
            silence() <= released.elapsed() + resolution,
            "chunk {chunk}"
        );
    }
    drop(gate);
    assert_eq!(collect(long).2, Ok(FinishReason::Length));
}

/// Waits for the end; when the first token and the last came.
fn span(mut events: Events) -> (Instant, Instant) {
    let mut times = Vec::new();
    loop {
        match events.blocking_recv().expect("events end with an outcome") {
            Event::Token { at, .. } => times.push(at),
            Event::Finished(_) => return (times[0], times[times.len() - 1]),
            Event::Failed(error) => panic!("{error}"),
            Event::Admitted { .. } | Event::Prompt(_) => {}
        }
    }
}

fn assert_never_computed(engine: &EngineHandle, request: Request) {
    let (tokens, _, end) = collect(submit(engine, request));
    let Err(EngineError::Timeout {
        prefill,
        decode,
        generated_tokens,
        ..
    }) = end
    else {
        panic!("{end:?}");
    };
    assert_eq!(
        (tokens, prefill, decode, generated_tokens),
        (Vec::new(), Duration::ZERO, Duration::ZERO, 0)
    );
}

#[test]
fn an_expired_request_says_what_its_time_was_spent_on_and_never_starts_prefill() {
    let no_time = EngineConfig {
        request_timeout: Duration::ZERO,
        ..config()
    };
    let impatient = engine(4, &no_time);
    assert_never_computed(&impatient, request(&[1], 5));
    let patient = engine(4, &config());
    let own_limit = Request {
        timeout: Some(Duration::ZERO),
        ..request(&[1], 5)
    };
    assert_never_computed(&patient, own_limit);
    let first_token = Request {
        first_token_within: Some(Duration::ZERO),
        ..request(&[1], 5)
    };
    assert_never_computed(&patient, first_token);
    for (engine, num_timed_out) in [(impatient, 1), (patient, 2)] {
        let stats = engine.stats();
        assert_eq!(stats.requests.num_timed_out, num_timed_out);
        assert_eq!(
            (stats.batch.num_steps, stats.queue.num_waiting_requests),
            (0, 0)
        );
    }
}

#[test]
fn who_would_be_late_because_of_the_queue_is_refused_with_the_time_to_come_back() {
    let one_at_a_time = EngineConfig {
        max_batch_size: 1,
        ..config()
    };
    let (engine, gate) = gated(4, &one_at_a_time);
    assert_eq!(
        engine.stats().queue.predicted_wait_ms,
        None,
        "nothing was measured yet"
    );
    let first = submit(&engine, request(&[1], 10));
    for _ in 0..10 {
        std::thread::sleep(Duration::from_millis(3));
        gate.send(()).expect("the engine runs");
    }
    assert_eq!(collect(first).2, Ok(FinishReason::Length));
    while engine.stats().queue.predicted_wait_ms.is_none() {
        std::thread::yield_now();
    }
    // Alone, even what cannot be done in time is tried.
    let hasty = |prompt: &[TokenId]| Request {
        timeout: Some(Duration::from_millis(1)),
        ..request(prompt, 10)
    };
    drop(submit(&engine, hasty(&[2])));
    gate.send(()).expect("the engine runs");

    let running = submit(&engine, request(&[3], 10));
    let predicted_wait_ms = engine.stats().queue.predicted_wait_ms.expect("measured");
    assert!(predicted_wait_ms >= 20.0, "{predicted_wait_ms} ms");
    let refusals = [
        (hasty(&[4]), Awaited::End),
        (
            Request {
                first_token_within: Some(Duration::from_millis(1)),
                ..request(&[5], 10)
            },
            Awaited::FirstToken,
        ),
    ];
    for (request, expected) in refusals {
        let refused = engine.submit(request).expect_err("it cannot be in time");
        let EngineError::DeadlineUnmet {
            awaited,
            predicted,
            limit,
            retry_after,
        } = refused
        else {
            panic!("{refused}");
        };
        assert_eq!((awaited, limit), (expected, Duration::from_millis(1)));
        assert!(predicted >= Duration::from_millis(20), "{predicted:?}");
        assert!(retry_after >= Duration::from_secs(1));
    }
    let waiting = submit(&engine, request(&[6], 2));
    assert_eq!(engine.stats().queue.num_hopeless_requests, 2);
    drop(gate);
    for events in [running, waiting] {
        assert_eq!(collect(events).2, Ok(FinishReason::Length));
    }
}

#[test]
fn the_lower_priority_value_goes_first() {
    let one_at_a_time = EngineConfig {
        max_batch_size: 1,
        ..config()
    };
    let (engine, gate) = gated(4, &one_at_a_time);
    let mut running = submit(&engine, request(&[1], 2));
    wait_for_admission(&mut running);
    let waiting: Vec<Events> = [5, 0, -1, 0]
        .into_iter()
        .map(|priority| {
            let request = Request {
                priority,
                ..request(&[2], 2)
            };
            submit(&engine, request)
        })
        .collect();
    drop(gate);
    let mut ends: Vec<_> = waiting
        .into_iter()
        .map(|events| span(events).1)
        .enumerate()
        .collect();
    ends.sort_by_key(|(_, end)| *end);
    let order: Vec<usize> = ends.into_iter().map(|(index, _)| index).collect();
    assert_eq!(order, [2, 1, 3, 0]);
}

#[test]
fn where_blocks_lack_the_less_urgent_gives_way() {
    let (engine, gate) = gated(4, &config());
    // Older, and it needs its third block when there is none left.
    let lax_prompt = [7; 33];
    let lax = Request {
        priority: 1,
        ..request(&lax_prompt, 60)
    };
    let mut lax = submit(&engine, lax);
    wait_for_admission(&mut lax);
    let urgent = submit(&engine, request(&[9; 20], 70));
    drop(gate);
    let (_, urgent_end) = span(urgent);
    let (_, lax_end) = span(lax);
    assert!(lax_end > urgent_end);
    assert_eq!(engine.stats().num_preemptions, 1);
    let again = submit(&engine, request(&lax_prompt, 60));
    assert_eq!(collect(again).0, greedy(&lax_prompt, 60));
}

fn of_client(name: &str, prompt: &[TokenId], max_tokens: usize) -> Request {
    Request {
        client: ClientId::of(name),
        ..request(prompt, max_tokens)
    }
}

#[test]
fn a_flood_of_one_client_does_not_hold_up_another() {
    let one_at_a_time = EngineConfig {
        max_batch_size: 1,
        ..config()
    };
    let (engine, gate) = gated(4, &one_at_a_time);
    let flood: Vec<Events> = (0..30)
        .map(|_| submit(&engine, of_client("flood", &[1, 2], 3)))
        .collect();
    let other = submit(&engine, of_client("other", &[3, 4], 3));
    drop(gate);
    let (_, other_end) = span(other);
    let num_before = flood
        .into_iter()
        .map(span)
        .filter(|(_, end)| *end < other_end)
        .count();
    assert!(num_before <= 2, "{num_before} of the flood went first");
}

/// Notes how many tokens of each sequence a step computes.
struct Recorder {
    inner: HashRunner,
    steps: mpsc::Sender<Vec<u32>>,
}

impl Runner for Recorder {
    fn forward(&mut self, batch: &RaggedBatch) -> anyhow::Result<&Logits> {
        let lengths = batch
            .q_start
            .windows(2)
            .map(|pair| pair[1] - pair[0])
            .collect();
        let _ = self.steps.send(lengths);
        self.inner.forward(batch)
    }

    fn vocab_size(&self) -> usize {
        VOCAB_SIZE
    }
}

#[test]
fn a_long_prompt_delays_no_decode_by_more_than_its_chunk_and_takes_turns_with_other_prompts() {
    const CHUNK: usize = 16;
    let (inner, gate) = HashRunner::new(60, BLOCK_SIZE).gated();
    let (steps, recorded) = mpsc::channel();
    let config = EngineConfig {
        max_batch_tokens: CHUNK,
        ..config()
    };
    let engine = start_with(Recorder { inner, steps }, 60, &config);
    let mut decoding = submit(&engine, of_client("chat", &[1], 50));
    wait_for_admission(&mut decoding);
    let long_prompt = prompt(&mut ChaCha8Rng::seed_from_u64(1), 1200);
    let long = submit(&engine, of_client("book", &long_prompt, 2));
    for _ in 0..10 {
        gate.send(()).expect("the engine runs");
    }
    let lengths: Vec<Vec<u32>> = recorded.iter().take(10).collect();
    assert_eq!(lengths[0], [1]);
    assert!(
        lengths[1..].iter().all(|lengths| lengths == &[1, 15]),
        "{lengths:?}"
    );

    let short_prompt = [5; 10];
    let short = submit(&engine, of_client("search", &short_prompt, 2));
    drop(gate);
    let (short_first, _) = span(short);
    let (long_first, _) = span(long);
    assert!(
        short_first < long_first,
        "a short prompt need not wait for a long one of another"
    );
    assert_eq!(collect(decoding).0, greedy(&[1], 50));
    let lengths: Vec<Vec<u32>> = recorded.try_iter().collect();
    let largest = lengths
        .iter()
        .map(|lengths| lengths.iter().sum::<u32>())
        .max();
    assert_eq!(largest, Some(CHUNK as u32));
    // The decode had its token in each of the 50 steps from its first on.
    assert!(
        lengths[..39].iter().all(|lengths| lengths[0] == 1),
        "{lengths:?}"
    );
    let place = lengths.iter().position(|lengths| lengths.contains(&10));
    assert!(
        place.is_some_and(|place| place <= 3),
        "the short prompt came at step {place:?}"
    );
}

#[test]
fn a_client_that_leaves_mid_prefill_frees_its_blocks_within_one_step() {
    let config = EngineConfig {
        max_batch_tokens: 8,
        ..config()
    };
    let (engine, gate) = gated(NUM_BLOCKS, &config);
    let mut leaving = submit(&engine, request(&[1; 100], 4));
    wait_for_admission(&mut leaving);
    gate.send(()).expect("the engine runs");
    let staying = submit(&engine, request(&[2, 3], 2));
    while engine.stats().batch.num_steps < 1 {
        std::thread::yield_now();
    }
    // The second chunk waits at the gate, and is the last.
    drop(leaving);
    gate.send(()).expect("the engine runs");
    gate.send(()).expect("the engine runs");
    gate.send(()).expect("the engine runs");
    assert_eq!(collect(staying).0, greedy(&[2, 3], 2));
    let stats = engine.stats();
    assert_eq!(
        (stats.requests.num_cancelled, stats.kv_cache.used_blocks),
        (1, 0)
    );
    assert!(stats.batch.num_prefill_tokens <= 16 + 2, "{stats:?}");
}

#[test]
fn leaving_clients_leave_nothing_behind_in_any_pool() {
    use rand::Rng;
    for num_blocks in 1..=5 {
        let engine = engine(num_blocks, &config());
        let mut rng = ChaCha8Rng::seed_from_u64(num_blocks as u64);
        for _ in 0..30 {
            let capacity = num_blocks * BLOCK_SIZE;
            let requests: Vec<_> = (0..6)
                .map(|_| {
                    let len = rng.random_range(1..capacity);
                    let max_tokens = rng.random_range(1..=capacity - len);
                    (prompt(&mut rng, len), max_tokens)
                })
                .collect();
            let events: Vec<Events> = requests
                .iter()
                .map(|(prompt, max_tokens)| submit(&engine, request(prompt, *max_tokens)))
                .collect();
            for ((prompt, max_tokens), mut events) in requests.iter().zip(events) {
                if rng.random_bool(0.5) {
                    let num_seen = rng.random_range(0..5);
                    for _ in 0..num_seen {
                        let _ = events.blocking_recv();
                    }
                } else {
                    assert_eq!(collect(events).0, greedy(prompt, *max_tokens));
                }
            }
        }
        // Behind all that left.
        assert_eq!(
            collect(submit(&engine, request(&[1], 1))).0,
            greedy(&[1], 1)
        );
        let stats = engine.stats();
        let ended = &stats.requests;
        assert_eq!(stats.kv_cache.used_blocks, 0, "{num_blocks} blocks");
        assert_eq!(
            ended.num_submitted,
            ended.num_cancelled + ended.num_finished_length,
            "{num_blocks} blocks"
        );
        assert!(ended.num_cancelled > 0);
    }
}
