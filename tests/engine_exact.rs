//! The whole engine over real runners: the greedy tokens of a request are those of transformers,
//! alone, in any batch, after a prefix hit, in chunks of any size, and after a preemption. With K and V
//! of 8 bits they are those of a run alone.

mod ragged;

use std::time::Duration;

use candlepower::config::{EngineConfig, KvType, MemorySize, SpeculationConfig};
use candlepower::engine::{EngineHandle, Event, FinishReason, KvCapacity, Request, start};
use candlepower::kernels::Isa;
use candlepower::kv_cache::BLOCK_SIZE;
use candlepower::model::LoadedModel;
use candlepower::runner::candle::CandleRunner;
use candlepower::runner::cpu::CpuRunner;
use candlepower::runner::{KvLayout, Runner};
use ragged::{Case, MODELS, cases, load_folder};
use tokio::sync::mpsc::UnboundedReceiver;

/// A runner and the type of its K and V.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Candle,
    Cpu(Isa, KvType),
}

impl Kind {
    fn kv_type(self) -> KvType {
        match self {
            Self::Candle => KvType::F32,
            Self::Cpu(_, kv_type) => kv_type,
        }
    }

    /// Whether K and V are close enough for the reference's greedy tokens of tiny models.
    fn follows_the_reference(self) -> bool {
        match self {
            Self::Candle => true,
            // V is in bf16 then.
            Self::Cpu(isa, KvType::F16) => isa != Isa::Avx512Bf16,
            Self::Cpu(_, kv_type) => kv_type == KvType::F32,
        }
    }
}

fn kinds() -> impl Iterator<Item = Kind> {
    let isas = Isa::ALL.into_iter().filter(|isa| isa.is_available());
    let fast = isas.flat_map(|isa| KvType::ALL.map(|kv_type| Kind::Cpu(isa, kv_type)));
    std::iter::once(Kind::Candle).chain(fast)
}

fn engine(
    model: &LoadedModel,
    kind: Kind,
    num_blocks: usize,
    (max_batch_size, max_batch_tokens): (usize, usize),
) -> EngineHandle {
    let (spec, weights) = (&model.spec, &model.weights);
    let layout = KvLayout {
        kv_type: kind.kv_type(),
        num_blocks,
        block_size: BLOCK_SIZE,
    };
    let runner: Box<dyn Runner> = match kind {
        Kind::Candle => {
            let runner = CandleRunner::new(spec, weights, layout);
            Box::new(runner.expect("a runner"))
        }
        Kind::Cpu(isa, _) => {
            let runner = CpuRunner::new(spec, weights, (isa, 2), layout);
            Box::new(runner.expect("a runner"))
        }
    };
    let config = EngineConfig {
        enable_batching: true,
        enable_prefix_caching: true,
        max_batch_size,
        max_batch_tokens,
        max_wait_time: Duration::ZERO,
        queue_max_size: 100,
        request_timeout: Duration::from_secs(600),
        stall_timeout: Duration::from_secs(600),
        max_model_len: None,
        kv_cache_size: MemorySize::Bytes(1),
        kv_cache_type: kind.kv_type(),
        speculation: SpeculationConfig::OFF,
    };
    let kv = KvCapacity {
        num_blocks,
        bytes_per_token: 1,
    };
    let max_model_len = spec.max_positions.min(num_blocks * BLOCK_SIZE);
    start(runner, kv, max_model_len, &config).expect("the settings fit")
}

fn submit(engine: &EngineHandle, case: &Case) -> UnboundedReceiver<Event> {
    submit_for(engine, case, case.greedy.len())
}

fn submit_for(engine: &EngineHandle, case: &Case, max_tokens: usize) -> UnboundedReceiver<Event> {
    let request = Request::new(case.ids.clone(), max_tokens);
    engine.submit(request).expect("it fits")
}

/// The tokens of a request and how many of its prompt came from the cache.
fn finish(mut events: UnboundedReceiver<Event>) -> (Vec<u32>, usize) {
    let (mut tokens, mut num_cached) = (Vec::new(), 0);
    loop {
        match events.blocking_recv().expect("events end with an outcome") {
            Event::Admitted { cached_tokens, .. } => num_cached = cached_tokens,
            Event::Prompt(_) => {}
            Event::Token { id, .. } => tokens.push(id),
            Event::Finished(reason) => {
                assert_eq!(reason, FinishReason::Length);
                return (tokens, num_cached);
            }
            Event::Failed(error) => panic!("{error}"),
        }
    }
}

/// The tokens that a request must get in any company: the reference's, or those of a run alone.
fn expected(model: &LoadedModel, kind: Kind, case: &Case) -> Vec<u32> {
    if kind.follows_the_reference() {
        return case.greedy.clone();
    }
    finish(submit(&engine(model, kind, 64, (1, 1024)), case)).0
}

/// The prompts that a small pool holds too.
fn short_cases(model: &str) -> Vec<Case> {
    let mut cases = cases(model);
    cases.retain(|case| case.ids.len() <= 40);
    assert!(cases.len() >= 3);
    cases
}

#[test]
fn chunks_of_every_size_and_prefix_hits_give_the_reference_s_tokens() {
    for name in MODELS {
        let model = load_folder(name);
        let cases = short_cases(name);
        let longest = cases.iter().max_by_key(|case| case.ids.len());
        let case = longest.expect("a case");
        for kind in kinds() {
            let expected = expected(&model, kind, case);
            for chunk in 1..=case.ids.len() {
                let what = format!("{name}, {kind:?}, chunks of {chunk}");
                let engine = engine(&model, kind, 4, (1, chunk));
                let (tokens, num_cached) = finish(submit(&engine, case));
                assert_eq!((&tokens, num_cached), (&expected, 0), "{what}");
                let (tokens, num_cached) = finish(submit(&engine, case));
                assert_eq!(tokens, expected, "{what}, from the cache");
                assert_eq!(num_cached, case.ids.len() - 1, "{what}");
            }
        }
    }
}

#[test]
fn batches_and_preemptions_give_the_tokens_of_a_run_alone() {
    const NUM_TOKENS: usize = 72;
    for name in MODELS {
        let model = load_folder(name);
        let cases = short_cases(name);
        for kind in kinds() {
            let alone = engine(&model, kind, 5, (1, 512));
            let expected: Vec<Vec<u32>> = cases
                .iter()
                .map(|case| finish(submit_for(&alone, case, NUM_TOKENS)).0)
                .collect();
            for (tokens, case) in expected.iter().zip(&cases) {
                let follows = tokens.starts_with(&case.greedy);
                assert!(follows || !kind.follows_the_reference(), "{name}, {kind:?}");
            }
            // Room for one of them whole, or for the beginnings of several.
            for max_batch_tokens in [6, 512] {
                let what = format!("{name}, {kind:?}, {max_batch_tokens} tokens a step");
                let engine = engine(&model, kind, 5, (6, max_batch_tokens));
                let work: Vec<usize> = (0..cases.len()).cycle().take(2 * cases.len()).collect();
                let events = work
                    .iter()
                    .map(|&case| submit_for(&engine, &cases[case], NUM_TOKENS));
                let events: Vec<_> = events.collect();
                for (&case, events) in work.iter().zip(events) {
                    assert_eq!(finish(events).0, expected[case], "{what}");
                }
                let stats = engine.stats();
                assert!(stats.num_preemptions > 0, "{what}: {stats:?}");
                assert!(stats.batch.mean_batch_size > 1.0, "{what}: {stats:?}");
            }
        }
    }
}

#[test]
fn a_long_prompt_among_short_ones_gives_the_reference_s_tokens() {
    for name in MODELS {
        let model = load_folder(name);
        let cases = cases(name);
        for kind in kinds() {
            let expected: Vec<_> = cases
                .iter()
                .map(|case| expected(&model, kind, case))
                .collect();
            for max_batch_tokens in [8, 100, 1024] {
                let engine = engine(&model, kind, 64, (8, max_batch_tokens));
                let events: Vec<_> = cases.iter().map(|case| submit(&engine, case)).collect();
                for ((case, expected), events) in cases.iter().zip(&expected).zip(events) {
                    let what = format!("{name}, {kind:?}, {} tokens", case.ids.len());
                    assert_eq!(&finish(events).0, expected, "{what}");
                }
            }
        }
    }
}
