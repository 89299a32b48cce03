//! Refuses what cannot fit before it is allocated, with the numbers.

use anyhow::{Result, bail};
use sysinfo::System;

/// Errors if weights and KV cache, in bytes, are more than the memory that is free now, if known.
pub(super) fn ensure_free(free_bytes: Option<u64>, weight_bytes: u64, kv_bytes: u64) -> Result<()> {
    let Some(free_bytes) = free_bytes else {
        return Ok(());
    };
    if weight_bytes.saturating_add(kv_bytes) <= free_bytes {
        return Ok(());
    }
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    let advice = match weight_bytes < free_bytes {
        true => "lower KV_CACHE_SIZE",
        false => "take a smaller model or free memory",
    };
    bail!(
        "not enough memory: {} MiB of weights and {} MiB of KV cache, {} MiB are free; {advice}",
        mib(weight_bytes),
        mib(kv_bytes),
        mib(free_bytes)
    )
}

/// What can be allocated without swapping, inside this process's own limit; `None` if unknown.
pub fn free_bytes() -> Option<u64> {
    let mut system = System::new().ok()?;
    system.refresh_memory();
    let available = system.available_memory();
    // The limit's own "free" counts cached file pages as used, which give way when needed.
    let limit = system.cgroup_limits();
    Some(limit.map_or(available, |limit| {
        available.min(limit.total_memory.saturating_sub(limit.rss))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_fit_is_refused_with_the_numbers() {
        assert!(ensure_free(free_bytes(), 1, 1).is_ok());
        assert!(ensure_free(None, u64::MAX, 1).is_ok());
        let error = ensure_free(free_bytes(), 1 << 20, 1 << 60)
            .expect_err("an exbibyte")
            .to_string();
        assert!(
            error.contains("1 MiB of weights and 1099511627776 MiB of KV cache"),
            "{error}"
        );
        assert!(error.contains("KV_CACHE_SIZE"), "{error}");
        assert!(ensure_free(Some(1), u64::MAX, 1).is_err());
    }
}
