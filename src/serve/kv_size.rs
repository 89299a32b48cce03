//! How much memory the KV cache gets, and how long a sequence may then be.

use anyhow::{Context, bail, ensure};

use crate::config::{EngineConfig, MemorySize};
use crate::engine::KvCapacity;
use crate::kv_cache::BLOCK_SIZE;

/// Sizes the KV cache, and says how long a sequence may then be. `model_window` is the model's
/// longest sequence. Whether the size is free at all is the runner's to check.
///
/// # Errors
/// Names the setting that does not fit, with the numbers.
pub fn plan(
    config: &EngineConfig,
    bytes_per_token: u64,
    model_window: usize,
    free_bytes: Option<u64>,
) -> anyhow::Result<(KvCapacity, usize)> {
    let bytes = match config.kv_cache_size {
        MemorySize::Bytes(bytes) => bytes,
        MemorySize::PercentOfFree(percent) => {
            let free = free_bytes.context(
                "the free memory is not known here; give KV_CACHE_SIZE in bytes, such as 2GiB",
            )?;
            (free as f64 * percent / 100.0) as u64
        }
    };
    let block_bytes = bytes_per_token * BLOCK_SIZE as u64;
    let kv = KvCapacity {
        num_blocks: (bytes / block_bytes) as usize,
        bytes_per_token,
    };
    ensure!(
        kv.num_blocks > 0,
        "KV_CACHE_SIZE of {bytes} bytes does not hold one block of {BLOCK_SIZE} tokens, \
         {block_bytes} bytes for this model; raise it"
    );
    let max_model_len = match config.max_model_len {
        Some(len) if len > model_window => {
            bail!("MAX_MODEL_LEN {len} is above the model's window of {model_window} tokens")
        }
        Some(len) => len,
        None => model_window.min(kv.num_tokens()),
    };
    Ok((kv, max_model_len))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::{KvType, SpeculationConfig};

    const WINDOW: usize = 2048;

    fn plan_for(
        kv_cache_size: MemorySize,
        max_model_len: Option<usize>,
    ) -> anyhow::Result<(KvCapacity, usize)> {
        let config = EngineConfig {
            enable_batching: true,
            enable_prefix_caching: true,
            max_batch_size: 1,
            max_batch_tokens: 1,
            max_wait_time: Duration::ZERO,
            queue_max_size: 1,
            request_timeout: Duration::ZERO,
            stall_timeout: Duration::ZERO,
            max_model_len,
            kv_cache_size,
            kv_cache_type: KvType::F16,
            speculation: SpeculationConfig::OFF,
        };
        plan(&config, 100, WINDOW, Some(1_000_000))
    }

    #[test]
    fn the_pool_holds_whole_blocks_of_what_was_asked_for() {
        let (kv, len) = plan_for(MemorySize::Bytes(500_000), None).expect("it fits");
        assert_eq!((kv.num_blocks, len), (156, WINDOW));
        let (kv, len) = plan_for(MemorySize::PercentOfFree(10.0), None).expect("it fits");
        assert_eq!(
            (kv.num_blocks, len),
            (31, 31 * BLOCK_SIZE),
            "the pool bounds the length"
        );
    }

    #[test]
    fn what_does_not_fit_is_refused_by_name() {
        for (size, len, name) in [
            (MemorySize::Bytes(3_199), None, "KV_CACHE_SIZE"),
            (
                MemorySize::Bytes(500_000),
                Some(WINDOW + 1),
                "MAX_MODEL_LEN",
            ),
        ] {
            let error = plan_for(size, len).expect_err(name).to_string();
            assert!(error.contains(name), "{error}");
        }
    }
}
