//! The engine with a runner whose tokens depend on the whole prefix in its cache: whatever the
//! batch, the chunks, the cache and the preemptions, the tokens must be those of a run alone.

use std::sync::mpsc;
use std::time::Duration;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::sync::mpsc::UnboundedReceiver;

use super::*;
use crate::config::{EngineConfig, KvType, MemorySize, SpeculationConfig};
use crate::kv_cache::BLOCK_SIZE;
use crate::runner::Runner;

#[path = "../../tests/support/hash_runner.rs"]
pub(super) mod hash_runner;
mod speculation;
use hash_runner::{HashRunner, VOCAB_SIZE, greedy, logits_of};

pub(super) fn config() -> EngineConfig {
    EngineConfig {
        enable_batching: true,
        enable_prefix_caching: true,
        max_batch_size: 8,
        max_batch_tokens: 64,
        max_wait_time: Duration::ZERO,
        queue_max_size: 100,
        request_timeout: Duration::from_secs(600),
        stall_timeout: Duration::from_secs(600),
        max_model_len: None,
        kv_cache_size: MemorySize::Bytes(1),
        kv_cache_type: KvType::F16,
        speculation: SpeculationConfig::OFF,
    }
}

pub(super) fn start_with(
    runner: impl Runner + 'static,
    num_blocks: usize,
    config: &EngineConfig,
) -> EngineHandle {
    let kv = KvCapacity {
        num_blocks,
        bytes_per_token: 1,
    };
    start(Box::new(runner), kv, num_blocks * BLOCK_SIZE, config).expect("the settings fit")
}

pub(super) fn engine(num_blocks: usize, config: &EngineConfig) -> EngineHandle {
    start_with(HashRunner::new(num_blocks, BLOCK_SIZE), num_blocks, config)
}

pub(super) fn request(prompt: &[TokenId], max_tokens: usize) -> Request {
    Request::new(prompt.to_vec(), max_tokens)
}

/// The tokens of a request, its cached prompt tokens, and how it ended.
pub(super) fn collect(
    mut events: UnboundedReceiver<Event>,
) -> (Vec<TokenId>, usize, Result<FinishReason, EngineError>) {
    let mut tokens = Vec::new();
    let mut cached = 0;
    loop {
        match events.blocking_recv().expect("events end with an outcome") {
            Event::Admitted { cached_tokens, .. } => cached = cached_tokens,
            Event::Prompt(_) => {}
            Event::Token { id, .. } => tokens.push(id),
            Event::Finished(reason) => return (tokens, cached, Ok(reason)),
            Event::Failed(error) => return (tokens, cached, Err(error)),
        }
    }
}

pub(super) fn prompt(rng: &mut ChaCha8Rng, len: usize) -> Vec<TokenId> {
    (0..len)
        .map(|_| rng.random_range(0..VOCAB_SIZE as u32))
        .collect()
}

/// Prompts of which some begin alike, and how many tokens each generates; all fit in `capacity`.
fn workload(seed: u64, capacity: usize) -> Vec<(Vec<TokenId>, usize)> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let shared = prompt(&mut rng, 70);
    (0..12)
        .map(|_| {
            let len = rng.random_range(1..capacity.min(100));
            let head = rng.random_range(0..=len.min(shared.len()));
            let mut tokens = shared[..head].to_vec();
            tokens.extend(prompt(&mut rng, len - head));
            let max_tokens = rng.random_range(1..=(capacity - len).min(50));
            (tokens, max_tokens)
        })
        .collect()
}

#[test]
fn tokens_are_those_of_a_run_alone_for_every_pool_chunk_and_batch_size() {
    let mut preemptions = 0;
    for num_blocks in [1, 2, 3, 4, 6, 40] {
        for (max_batch_size, max_batch_tokens) in [(1, 1), (3, 3), (8, 17), (8, 512)] {
            let config = EngineConfig {
                max_batch_size,
                max_batch_tokens,
                ..config()
            };
            let engine = engine(num_blocks, &config);
            for seed in 0..3 {
                let work = workload(seed, num_blocks * BLOCK_SIZE);
                let events: Vec<_> = work
                    .iter()
                    .map(|(prompt, max_tokens)| {
                        engine
                            .submit(request(prompt, *max_tokens))
                            .expect("it fits")
                    })
                    .collect();
                for ((prompt, max_tokens), events) in work.iter().zip(events) {
                    let (tokens, _, end) = collect(events);
                    assert_eq!(end, Ok(FinishReason::Length));
                    assert_eq!(
                        tokens,
                        greedy(prompt, *max_tokens),
                        "{num_blocks} blocks, {config:?}, seed {seed}"
                    );
                }
            }
            let stats = engine.stats();
            assert_eq!(stats.kv_cache.used_blocks, 0);
            assert_eq!(stats.queue.num_waiting_requests, 0);
            assert_eq!(stats.requests.num_finished_length, 36);
            preemptions += stats.num_preemptions;
        }
    }
    assert!(preemptions > 0, "the small pools are meant to preempt");
}

#[test]
fn a_repeated_prompt_is_computed_but_for_its_last_token_and_the_next_turn_reuses_the_answer() {
    let engine = engine(20, &config());
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let first = prompt(&mut rng, 10);
    let (answer, cached, _) = collect(engine.submit(request(&first, 40)).expect("it fits"));
    assert_eq!(cached, 0);
    let (again, cached, _) = collect(engine.submit(request(&first, 40)).expect("it fits"));
    assert_eq!((again, cached), (answer.clone(), 9));

    let turn = [first.as_slice(), &answer, &prompt(&mut rng, 5)].concat();
    let (tokens, cached, _) = collect(engine.submit(request(&turn, 3)).expect("it fits"));
    // The last token of an answer is never computed: nothing came after it.
    assert_eq!((tokens, cached), (greedy(&turn, 3), 49));
    let stats = engine.stats();
    assert_eq!(stats.batch.num_prefill_tokens, 10 + 1 + 6);
    let prefix = stats.prefix;
    assert_eq!(
        (prefix.query_tokens, prefix.hit_tokens),
        (10 + 10 + 55, 9 + 49)
    );
}

#[test]
fn without_prefix_caching_every_prompt_is_computed_anew_and_the_tokens_are_the_same() {
    let config = EngineConfig {
        enable_prefix_caching: false,
        ..config()
    };
    let engine = engine(20, &config);
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let prompt = prompt(&mut rng, 40);
    for _ in 0..2 {
        let events: Vec<_> = (0..4)
            .map(|_| engine.submit(request(&prompt, 30)).expect("it fits"))
            .collect();
        for events in events {
            let (tokens, cached, _) = collect(events);
            assert_eq!((tokens, cached), (greedy(&prompt, 30), 0));
        }
    }
    let stats = engine.stats();
    assert_eq!(stats.prefix.hit_tokens, 0);
    assert!(stats.batch.num_prefill_tokens >= 8 * 40, "{stats:?}");
    assert_eq!(stats.kv_cache.used_blocks, 0);
}

#[test]
fn without_batching_one_sequence_runs_at_a_time() {
    let engine = engine(
        20,
        &EngineConfig {
            enable_batching: false,
            ..config()
        },
    );
    let events: Vec<_> = (0..4)
        .map(|i| engine.submit(request(&[i, i + 1], 5)).expect("it fits"))
        .collect();
    events.into_iter().for_each(|events| drop(collect(events)));
    assert!((engine.stats().batch.mean_batch_size - 1.0).abs() < f64::EPSILON);
}

#[test]
fn a_stop_token_ends_the_generation_and_is_reported() {
    let engine = engine(4, &config());
    let expected = greedy(&[1, 2, 3], 8);
    let stop = expected[4];
    let first = expected
        .iter()
        .position(|&token| token == stop)
        .expect("it is there");
    let request = Request {
        stop_token_ids: vec![stop],
        ..request(&[1, 2, 3], 8)
    };
    let (tokens, _, end) = collect(engine.submit(request).expect("it fits"));
    assert_eq!(
        (tokens.as_slice(), end),
        (&expected[..=first], Ok(FinishReason::Stop))
    );
}

#[test]
fn a_seed_gives_the_same_tokens_alone_and_in_company() {
    let engine = engine(20, &config());
    let seeded = || Request {
        sampling: SamplingParams {
            temperature: 1.0,
            seed: Some(3),
            ..SamplingParams::default()
        },
        ..request(&[4, 5], 20)
    };
    let (alone, ..) = collect(engine.submit(seeded()).expect("it fits"));
    let company: Vec<_> = (0..5)
        .map(|i| engine.submit(request(&[i], 30)).expect("it fits"))
        .collect();
    let (together, ..) = collect(engine.submit(seeded()).expect("it fits"));
    assert_eq!(alone, together);
    assert_ne!(
        alone,
        greedy(&[4, 5], 20),
        "sampling at temperature 1 is not greedy"
    );
    drop(company);
}

/// An engine whose steps wait for the gate.
pub(super) fn gated(num_blocks: usize, config: &EngineConfig) -> (EngineHandle, mpsc::Sender<()>) {
    let (runner, gate) = HashRunner::new(num_blocks, BLOCK_SIZE).gated();
    (start_with(runner, num_blocks, config), gate)
}

pub(super) fn wait_for_admission(events: &mut UnboundedReceiver<Event>) {
    let event = events.blocking_recv();
    assert!(matches!(event, Some(Event::Admitted { .. })), "{event:?}");
}

#[test]
fn a_full_queue_refuses_and_a_cancelled_request_leaves_its_place() {
    let config = EngineConfig {
        max_batch_size: 1,
        queue_max_size: 2,
        ..config()
    };
    let (engine, gate) = gated(4, &config);
    let mut running = engine.submit(request(&[1], 2)).expect("it fits");
    wait_for_admission(&mut running);
    let waiting = engine.submit(request(&[2], 2)).expect("first in the queue");
    let last = engine
        .submit(request(&[3], 2))
        .expect("second in the queue");
    let refused = engine
        .submit(request(&[4], 2))
        .expect_err("the queue is full");
    assert!(
        matches!(
            refused,
            EngineError::Overloaded {
                queued_requests: 2,
                ..
            }
        ),
        "{refused}"
    );

    drop(waiting);
    drop(gate);
    let (tokens, _, end) = collect(last);
    assert_eq!((tokens, end), (greedy(&[3], 2), Ok(FinishReason::Length)));
    let stats = engine.stats();
    assert_eq!(stats.requests.num_cancelled, 1);
    assert_eq!(stats.queue.num_rejected_requests, 1);
    assert_eq!(stats.queue.num_waiting_requests, 0);
}

#[test]
fn a_client_that_leaves_mid_decode_frees_its_blocks_before_the_next_step() {
    let (engine, gate) = gated(8, &config());
    let mut leaving = engine.submit(request(&[1; 40], 100)).expect("it fits");
    wait_for_admission(&mut leaving);
    gate.send(()).expect("the engine runs");
    assert!(matches!(leaving.blocking_recv(), Some(Event::Token { .. })));
    let staying = engine.submit(request(&[7, 8], 2)).expect("it fits");
    drop(leaving);
    drop(gate);
    let (tokens, ..) = collect(staying);
    assert_eq!(tokens, greedy(&[7, 8], 2));
    let stats = engine.stats();
    assert_eq!(
        (stats.requests.num_cancelled, stats.kv_cache.used_blocks),
        (1, 0)
    );
}

#[test]
fn what_can_never_fit_is_refused_with_the_numbers() {
    let engine = engine(1, &config());
    let refused = engine.submit(request(&[1; 30], 3)).expect_err("33 tokens");
    assert_eq!(
        refused,
        EngineError::TooLong {
            prompt_tokens: 30,
            max_tokens: 3,
            max_model_len: 32
        }
    );
    assert!(engine.submit(request(&[1], usize::MAX)).is_err());
}

#[test]
fn settings_that_do_not_fit_together_are_refused_by_name() {
    let try_start = |max_model_len, config: EngineConfig| {
        let kv = KvCapacity {
            num_blocks: 2,
            bytes_per_token: 1,
        };
        let runner = Box::new(HashRunner::new(2, BLOCK_SIZE));
        start(runner, kv, max_model_len, &config)
            .map(drop)
            .map_err(|e| e.to_string())
    };
    assert_eq!(try_start(64, config()), Ok(()));
    for (max_model_len, config, name) in [
        (65, config(), "KV_CACHE_SIZE"),
        (
            64,
            EngineConfig {
                max_batch_size: 0,
                ..config()
            },
            "MAX_BATCH_SIZE",
        ),
        (
            64,
            EngineConfig {
                queue_max_size: 0,
                ..config()
            },
            "QUEUE_MAX_SIZE",
        ),
        (
            64,
            EngineConfig {
                max_batch_tokens: 7,
                ..config()
            },
            "MAX_BATCH_TOKENS",
        ),
    ] {
        let error = try_start(max_model_len, config).expect_err(name);
        assert!(error.contains(name), "{error}");
    }
}

/// Log-probabilities of a request's prompt and output tokens, without engine and cache.
fn expected_logprobs(prompt: &[TokenId], output: &[TokenId]) -> Vec<TokenLogprobs> {
    let tokens = [prompt, output].concat();
    (1..tokens.len())
        .map(|position| {
            let logits: Vec<f32> = logits_of(&tokens[..position]).collect();
            TokenLogprobs::score(&logits, tokens[position], 2)
        })
        .collect()
}

#[test]
fn prompt_and_output_are_scored_whatever_is_cached_chunked_and_preempted() {
    let mut preemptions = 0;
    for (num_blocks, max_batch_tokens, seed) in [
        (3, 8, 0),
        (4, 8, 1),
        (4, 64, 2),
        (6, 17, 3),
        (6, 64, 4),
        (40, 9, 5),
        (40, 512, 6),
    ] {
        let config = EngineConfig {
            max_batch_size: 8,
            max_batch_tokens,
            ..config()
        };
        let engine = engine(num_blocks, &config);
        let work = workload(seed, num_blocks * BLOCK_SIZE);
        let submit = |(prompt, max_tokens): &(Vec<TokenId>, usize)| {
            let scored = Request {
                logprobs: Some(2),
                prompt_logprobs: Some(2),
                ..request(prompt, *max_tokens)
            };
            engine.submit(scored).expect("it fits")
        };
        let events: Vec<_> = work.iter().map(submit).collect();
        for ((prompt, max_tokens), mut events) in work.iter().zip(events) {
            let mut scored = Vec::new();
            while let Some(event) = events.blocking_recv() {
                match event {
                    Event::Prompt(part) => scored.extend(part),
                    Event::Token { logprobs, .. } => scored.extend(logprobs.map(|one| *one)),
                    Event::Admitted { .. } | Event::Finished(_) => {}
                    Event::Failed(error) => panic!("{error}"),
                }
            }
            assert_eq!(
                scored,
                expected_logprobs(prompt, &greedy(prompt, *max_tokens))
            );
        }
        preemptions += engine.stats().num_preemptions;
    }
    assert!(preemptions > 0, "the small pools are meant to preempt");
}

#[test]
fn a_request_for_no_tokens_scores_its_prompt_and_ends() {
    let engine = engine(4, &config());
    let request = Request {
        prompt_logprobs: Some(0),
        ..request(&[1, 2, 3], 0)
    };
    let mut events = engine.submit(request).expect("it fits");
    wait_for_admission(&mut events);
    assert!(matches!(events.blocking_recv(), Some(Event::Prompt(scored)) if scored.len() == 2));
    let end = events.blocking_recv();
    assert!(
        matches!(end, Some(Event::Finished(FinishReason::Length))),
        "{end:?}"
    );
    assert_eq!(engine.stats().batch.num_generated_tokens, 0);
}
