//! Drafts change the number of steps and nothing else.

use rand::Rng;

use super::*;
use crate::config::Speculative;

/// Texts repeat themselves, so that many drafts hold and many do not.
fn repetitive_engine(num_blocks: usize, config: &EngineConfig) -> EngineHandle {
    let runner = HashRunner::new(num_blocks, BLOCK_SIZE).repetitive();
    start_with(runner, num_blocks, config)
}

fn with_drafts(draft_tokens: usize, step_tokens: usize) -> SpeculationConfig {
    SpeculationConfig {
        speculative: Speculative::Ngram,
        speculative_tokens: draft_tokens,
        speculative_step_tokens: step_tokens,
    }
}

/// The requests of [`workload`], each sampled, penalised, scored and stopped in its own way.
fn varied_requests(seed: u64, capacity: usize) -> Vec<Request> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let work = workload(seed, capacity);
    let requests = work.into_iter().map(|(prompt, max_tokens)| {
        let sampling = SamplingParams {
            temperature: *pick(&mut rng, &[0.0, 0.5, 1.0]),
            top_k: *pick(&mut rng, &[0, 5]),
            top_p: *pick(&mut rng, &[1.0, 0.9]),
            seed: Some(rng.random()),
            repetition_penalty: *pick(&mut rng, &[1.0, 1.0, 1.1]),
            frequency_penalty: *pick(&mut rng, &[0.0, 0.0, 0.1]),
            logit_bias: pick(&mut rng, &[vec![], vec![], vec![(7, 3.0)]]).clone(),
            ..SamplingParams::default()
        };
        Request {
            sampling,
            logprobs: *pick(&mut rng, &[None, Some(0), Some(2)]),
            prompt_logprobs: *pick(&mut rng, &[None, None, Some(1)]),
            stop_token_ids: vec![rng.random_range(0..VOCAB_SIZE as u32)],
            ..request(&prompt, max_tokens)
        }
    });
    requests.collect()
}

fn pick<'a, T>(rng: &mut ChaCha8Rng, choices: &'a [T]) -> &'a T {
    &choices[rng.random_range(0..choices.len())]
}

/// All that a client sees of a request but times and cache hits, as text.
fn transcript(mut events: UnboundedReceiver<Event>) -> Vec<String> {
    let mut seen = Vec::new();
    while let Some(event) = events.blocking_recv() {
        match event {
            Event::Admitted { .. } => {}
            Event::Prompt(scored) => seen.extend(scored.iter().map(|one| format!("{one:?}"))),
            Event::Token { id, logprobs, .. } => seen.push(format!("{id} {logprobs:?}")),
            Event::Finished(reason) => seen.push(format!("{reason:?}")),
            Event::Failed(error) => panic!("{error}"),
        }
    }
    seen
}

fn transcripts(engine: &EngineHandle, requests: &[Request]) -> Vec<Vec<String>> {
    let submit = |request: &Request| engine.submit(request.clone()).expect("it fits");
    let events: Vec<_> = requests.iter().map(submit).collect();
    events.into_iter().map(transcript).collect()
}

#[test]
fn clients_see_the_same_with_and_without_drafts_for_every_pool_batch_and_draft_length() {
    let (mut preemptions, mut hit_tokens) = (0, 0);
    let (mut drafted, mut accepted) = (0, 0);
    for num_blocks in [1, 2, 3, 4, 6, 40] {
        let capacity = num_blocks * BLOCK_SIZE;
        let plain = repetitive_engine(num_blocks, &config());
        for (max_batch_size, max_batch_tokens, draft_tokens, step_tokens) in [
            (1, 1, 4, 16),
            (1, 9, 8, 9),
            (3, 64, 1, 2),
            (8, 17, 5, 16),
            (8, 512, 32, 200),
        ] {
            let config = EngineConfig {
                max_batch_size,
                max_batch_tokens,
                speculation: with_drafts(draft_tokens, step_tokens),
                ..config()
            };
            let engine = repetitive_engine(num_blocks, &config);
            for seed in 0..3 {
                let requests = varied_requests(seed, capacity);
                let expected = transcripts(&plain, &requests);
                // The second time, what the first one left is in the prefix cache.
                for _ in 0..2 {
                    let seen = transcripts(&engine, &requests);
                    assert_eq!(seen, expected, "{num_blocks} blocks, {config:?}");
                }
            }
            let stats = engine.stats();
            let kv = &stats.kv_cache;
            assert_eq!((kv.used_blocks, kv.leaked_blocks), (0, 0));
            assert_eq!(stats.requests.num_submitted, 72);
            let drafts = stats.speculative.expect("drafts are on");
            let per_position = &drafts.num_accepted_tokens_per_position;
            assert_eq!(per_position.len(), draft_tokens);
            assert_eq!(per_position.iter().sum::<u64>(), drafts.num_accepted_tokens);
            drafted += drafts.num_draft_tokens;
            accepted += drafts.num_accepted_tokens;
            preemptions += stats.num_preemptions;
            hit_tokens += stats.prefix.hit_tokens;
        }
    }
    assert!(preemptions > 0, "the small pools are meant to preempt");
    assert!(hit_tokens > 0, "the second runs are meant to find prefixes");
    assert!(
        accepted > 0 && accepted < drafted,
        "{accepted} of {drafted}"
    );
}

#[test]
fn drafts_that_hold_save_steps() {
    let steps = |speculation| {
        let config = EngineConfig {
            speculation,
            ..config()
        };
        let engine = repetitive_engine(8, &config);
        let (tokens, ..) = collect(engine.submit(request(&[1, 2, 3], 200)).expect("it fits"));
        let stats = engine.stats();
        assert_eq!(stats.batch.num_generated_tokens, 200);
        assert_eq!(stats.batch.num_prefill_tokens, 3);
        (tokens, stats)
    };
    let (expected, plain) = steps(SpeculationConfig::OFF);
    let (tokens, drafted) = steps(with_drafts(8, 16));
    assert_eq!(tokens, expected);
    assert_eq!((plain.batch.num_steps, plain.speculative), (200, None));
    let saved = drafted
        .speculative
        .expect("drafts are on")
        .num_accepted_tokens;
    assert_eq!(drafted.batch.num_steps, 200 - saved);
    assert!(saved > 50, "{saved}");
}

#[test]
fn only_verified_tokens_can_be_found_again() {
    let config = EngineConfig {
        speculation: with_drafts(8, 16),
        ..config()
    };
    let engine = engine(8, &config);
    let prompt = [1, 2, 3, 4, 1, 2];
    // Once before, so that the first step of the second time has one token and a draft: 3, 4.
    drop(collect(
        engine.submit(request(&prompt, 1)).expect("it fits"),
    ));
    let (tokens, ..) = collect(engine.submit(request(&prompt, 6)).expect("it fits"));
    assert_eq!(tokens, greedy(&prompt, 6));
    let drafts = engine.stats().speculative.expect("drafts are on");
    assert!(drafts.num_draft_tokens > drafts.num_accepted_tokens);

    let drafted = [&prompt[..], &[3, 4, 9]].concat();
    let (_, cached, _) = collect(engine.submit(request(&drafted, 1)).expect("it fits"));
    let expected = 6 + tokens
        .iter()
        .zip([3, 4, 1])
        .take_while(|(a, b)| *a == b)
        .count();
    assert_eq!(cached, expected);
}

#[test]
fn a_full_batch_drafts_nothing() {
    let config = EngineConfig {
        speculation: with_drafts(8, 4),
        ..config()
    };
    let (runner, gate) = HashRunner::new(40, BLOCK_SIZE).repetitive().gated();
    let engine = start_with(runner, 40, &config);
    let mut events: Vec<_> = (0..4)
        .map(|i| {
            engine
                .submit(request(&[i, 1, 2, 1, 2], 60))
                .expect("it fits")
        })
        .collect();
    // Nobody takes a second step before all have had their first.
    for events in &mut events {
        gate.send(()).expect("the engine runs");
        wait_for_admission(events);
    }
    drop(gate);
    let tokens: Vec<_> = events.into_iter().map(|events| collect(events).0).collect();
    assert!(tokens.iter().all(|tokens| tokens.len() == 60));
    let stats = engine.stats();
    let drafts = stats.speculative.as_ref().expect("drafts are on");
    let in_company = stats.batch.num_step_sequences - stats.batch.num_steps;
    assert!(
        in_company > 100,
        "they are meant to run together: {stats:?}"
    );
    assert_eq!(drafts.num_draft_tokens, 0, "{drafts:?}");
}

#[test]
fn draft_settings_of_no_use_are_refused_by_name() {
    for (speculation, name) in [
        (with_drafts(0, 16), "SPECULATIVE_TOKENS"),
        (with_drafts(33, 16), "SPECULATIVE_TOKENS"),
        (with_drafts(8, 1), "SPECULATIVE_STEP_TOKENS"),
    ] {
        let config = EngineConfig {
            speculation,
            ..config()
        };
        let kv = KvCapacity {
            num_blocks: 2,
            bytes_per_token: 1,
        };
        let runner = Box::new(HashRunner::new(2, BLOCK_SIZE));
        let error = start(runner, kv, 64, &config).expect_err(name).to_string();
        assert!(error.contains(name), "{error}");
    }
}
