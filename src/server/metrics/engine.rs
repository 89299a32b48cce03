//! The engine's own figures as metrics, read from its snapshot when a scrape asks.

use prometheus::core::{Collector, Desc};
use prometheus::proto::{MetricFamily, MetricType};

use super::{families, speculation};
use crate::engine::{EngineHandle, EngineStats};

struct Figure {
    name: &'static str,
    help: &'static str,
    kind: MetricType,
    value: fn(&EngineStats) -> f64,
}

const FIGURES: &[Figure] = &[
    Figure {
        name: "vllm:num_requests_running",
        help: "Requests in the batch.",
        kind: MetricType::GAUGE,
        value: |stats| stats.batch.num_running_requests as f64,
    },
    Figure {
        name: "vllm:num_requests_waiting",
        help: "Requests in the queue.",
        kind: MetricType::GAUGE,
        value: |stats| stats.queue.num_waiting_requests as f64,
    },
    Figure {
        name: "candlepower:queue_predicted_wait_seconds",
        help: "How long a request that came now would wait for its first step; 0 before anything was measured.",
        kind: MetricType::GAUGE,
        value: |stats| stats.queue.predicted_wait_ms.unwrap_or(0.0) / 1e3,
    },
    Figure {
        name: "vllm:kv_cache_usage_perc",
        help: "Share of the KV blocks in use, from 0 to 1.",
        kind: MetricType::GAUGE,
        value: |stats| stats.kv_cache.usage_ratio,
    },
    Figure {
        name: "vllm:prefix_cache_queries_total",
        help: "Prompt tokens looked up in the prefix cache.",
        kind: MetricType::COUNTER,
        value: |stats| stats.prefix.query_tokens as f64,
    },
    Figure {
        name: "vllm:prefix_cache_hits_total",
        help: "Prompt tokens found in the prefix cache.",
        kind: MetricType::COUNTER,
        value: |stats| stats.prefix.hit_tokens as f64,
    },
    Figure {
        name: "vllm:num_preemptions_total",
        help: "Requests that gave up their blocks and were computed again.",
        kind: MetricType::COUNTER,
        value: |stats| stats.num_preemptions as f64,
    },
    Figure {
        name: "vllm:corrupted_requests_total",
        help: "Requests for which the model computed logits that are no numbers.",
        kind: MetricType::COUNTER,
        value: |stats| stats.requests.num_corrupted as f64,
    },
    Figure {
        name: "candlepower:kv_evicted_blocks_total",
        help: "Cached KV blocks given to other tokens.",
        kind: MetricType::COUNTER,
        value: |stats| stats.evictions.num_evicted_blocks as f64,
    },
    Figure {
        name: "candlepower:kv_eviction_seconds_total",
        help: "Time spent on evictions.",
        kind: MetricType::COUNTER,
        value: |stats| stats.evictions.eviction_time_ms / 1e3,
    },
    Figure {
        name: "candlepower:engine_steps_total",
        help: "Steps of the engine.",
        kind: MetricType::COUNTER,
        value: |stats| stats.batch.num_steps as f64,
    },
    Figure {
        name: "candlepower:engine_failed_steps_total",
        help: "Steps that broke; their requests failed, and the engine began afresh.",
        kind: MetricType::COUNTER,
        value: |stats| stats.batch.num_failed_steps as f64,
    },
    Figure {
        name: "candlepower:engine_step_seconds_total",
        help: "Time spent in steps of the engine.",
        kind: MetricType::COUNTER,
        value: |stats| stats.batch.step_time_ms / 1e3,
    },
    Figure {
        name: "candlepower:engine_forward_seconds_total",
        help: "Those of engine_step_seconds that the model took.",
        kind: MetricType::COUNTER,
        value: |stats| stats.batch.forward_time_ms / 1e3,
    },
    Figure {
        name: "candlepower:kv_leaked_blocks",
        help: "KV blocks that nobody gave back, found when nothing runs; anything but 0 is a bug.",
        kind: MetricType::GAUGE,
        value: |stats| stats.kv_cache.leaked_blocks as f64,
    },
];

const CACHE_CONFIG: (&str, &str) = (
    "vllm:cache_config_info",
    "The size of the KV cache, as labels; always 1.",
);
const STEP_TOKENS: (&str, &str) = (
    "vllm:iteration_tokens_total",
    "Tokens of a step, of prompts and outputs together.",
);
const STEP_SECONDS: (&str, &str) = ("candlepower:step_seconds", "Time that a step took.");
const STEP_SEQUENCES: (&str, &str) = ("candlepower:step_sequences", "Sequences in a step.");

/// Collects [`FIGURES`], the distributions of the steps, the cache's configuration, and what became
/// of drafts.
pub struct EngineFigures {
    engine: EngineHandle,
    descriptions: Vec<Desc>,
}

impl EngineFigures {
    /// # Errors
    /// A name is malformed: a bug.
    pub fn new(engine: EngineHandle) -> prometheus::Result<Self> {
        let names = FIGURES.iter().map(|figure| (figure.name, figure.help));
        let others = [CACHE_CONFIG, STEP_TOKENS, STEP_SECONDS, STEP_SEQUENCES];
        Ok(Self {
            engine,
            descriptions: families::describe(names.chain(others).chain(speculation::NAMES))?,
        })
    }
}

impl Collector for EngineFigures {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let stats = self.engine.stats();
        let figures = FIGURES.iter().map(|figure| {
            families::number(
                figure.name,
                figure.help,
                figure.kind,
                (figure.value)(&stats),
            )
        });
        let steps = &stats.step_histograms;
        let others = [
            cache_config(&stats),
            families::histogram(STEP_TOKENS.0, STEP_TOKENS.1, &steps.tokens),
            families::histogram(STEP_SECONDS.0, STEP_SECONDS.1, &steps.seconds),
            families::histogram(STEP_SEQUENCES.0, STEP_SEQUENCES.1, &steps.sequences),
        ];
        let drafts = stats.speculative.iter().flat_map(speculation::collect);
        figures.chain(others).chain(drafts).collect()
    }
}

fn cache_config(stats: &EngineStats) -> MetricFamily {
    // Routers look for the blocks under this name, whatever the device.
    let labels = [
        ("block_size", stats.kv_cache.block_size_tokens.to_string()),
        ("cache_dtype", stats.kv_cache.cache_type.to_string()),
        ("num_gpu_blocks", stats.kv_cache.total_blocks.to_string()),
    ];
    families::info(CACHE_CONFIG.0, CACHE_CONFIG.1, &labels)
}
