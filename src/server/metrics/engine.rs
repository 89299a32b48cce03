//! The engine's own figures as metrics, read from its snapshot when a scrape asks.

use prometheus::core::{Collector, Desc};
use prometheus::proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType};

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
        name: "candlepower:engine_step_seconds_total",
        help: "Time spent in steps of the engine.",
        kind: MetricType::COUNTER,
        value: |stats| stats.batch.step_time_ms / 1e3,
    },
];

const CACHE_CONFIG: (&str, &str) = (
    "vllm:cache_config_info",
    "The size of the KV cache, as labels; always 1.",
);

/// Collects [`FIGURES`] and the cache's configuration.
pub struct EngineFigures {
    engine: EngineHandle,
    descriptions: Vec<Desc>,
}

impl EngineFigures {
    /// # Errors
    /// A name is malformed: a bug.
    pub fn new(engine: EngineHandle) -> prometheus::Result<Self> {
        let names = FIGURES.iter().map(|figure| (figure.name, figure.help));
        let descriptions = names
            .chain([CACHE_CONFIG])
            .map(|(name, help)| {
                Desc::new(name.to_owned(), help.to_owned(), vec![], Default::default())
            })
            .collect::<Result<_, _>>()?;
        Ok(Self {
            engine,
            descriptions,
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
            let metric = metric(figure.kind, (figure.value)(&stats));
            family(figure.name, figure.help, figure.kind, metric)
        });
        figures.chain([cache_config(&stats)]).collect()
    }
}

fn cache_config(stats: &EngineStats) -> MetricFamily {
    let mut metric = metric(MetricType::GAUGE, 1.0);
    // Routers look for the blocks under this name, whatever the device.
    metric.set_label(vec![
        label("block_size", stats.kv_cache.block_size_tokens),
        label("num_gpu_blocks", stats.kv_cache.total_blocks),
    ]);
    family(CACHE_CONFIG.0, CACHE_CONFIG.1, MetricType::GAUGE, metric)
}

fn family(name: &str, help: &str, kind: MetricType, metric: Metric) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    family.set_field_type(kind);
    family.set_metric(vec![metric]);
    family
}

fn metric(kind: MetricType, value: f64) -> Metric {
    let mut metric = Metric::default();
    if kind == MetricType::COUNTER {
        let mut counter = Counter::default();
        counter.set_value(value);
        metric.set_counter(counter);
    } else {
        let mut gauge = Gauge::default();
        gauge.set_value(value);
        metric.set_gauge(gauge);
    }
    metric
}

fn label(name: &str, value: usize) -> LabelPair {
    let mut label = LabelPair::default();
    label.set_name(name.to_owned());
    label.set_value(value.to_string());
    label
}
