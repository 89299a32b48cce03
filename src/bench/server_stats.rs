//! What `bench` reads from a server's `/stats`. Every field may be missing: another server has
//! other statistics or none, and a figure that is not there is reported as such.

use serde::Deserialize;
use serde_json::{Map, Value};

/// Counts are since the server's start; the report takes differences.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ServerStats {
    pub queue: Queue,
    pub batch: Batch,
    pub kv_cache: KvCache,
    pub prefix: Prefix,
    pub evictions: Evictions,
    pub num_preemptions: Option<u64>,
    pub speculative: Option<Speculation>,
    pub memory: Memory,
    pub model: Model,
    pub settings: Map<String, Value>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Queue {
    pub num_waiting_requests: Option<u64>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Batch {
    pub num_running_requests: Option<u64>,
    pub num_steps: Option<u64>,
    pub num_step_sequences: Option<u64>,
    pub num_generated_tokens: Option<u64>,
    pub forward_time_ms: Option<f64>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub struct KvCache {
    pub capacity_tokens: Option<u64>,
    pub used_tokens: Option<u64>,
    pub total_bytes: Option<u64>,
    pub used_bytes: Option<u64>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Prefix {
    pub query_tokens: Option<u64>,
    pub hit_tokens: Option<u64>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Evictions {
    pub num_evicted_blocks: Option<u64>,
    pub eviction_time_ms: Option<f64>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Speculation {
    pub num_draft_tokens: Option<u64>,
    pub num_accepted_tokens: Option<u64>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Memory {
    /// Resident memory of the server's process.
    pub rss_bytes: Option<u64>,
    /// In use on its accelerator.
    pub device_bytes: Option<u64>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Model {
    pub name: Option<String>,
    pub sha256: Option<String>,
    pub device: Option<String>,
    pub quantization: Option<String>,
    pub load_time_ms: Option<f64>,
    pub weight_bytes: Option<u64>,
}

impl ServerStats {
    /// A document of another shape counts as empty.
    pub fn of(stats: &Value) -> Self {
        Self::deserialize(stats).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_foreign_document_reads_as_nothing_known() {
        for foreign in [
            Value::Null,
            json!([1]),
            json!({"queue": {"other": 1}}),
            json!({"model": 3}),
        ] {
            let stats = ServerStats::of(&foreign);
            assert_eq!(stats.queue.num_waiting_requests, None, "{foreign}");
            assert!(stats.settings.is_empty(), "{foreign}");
        }
    }
}
