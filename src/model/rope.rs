//! Rotation frequencies of rotary position embeddings, with the scalings that models are made with.
//!
//! All in f32 and in the order of operations of the reference implementation (transformers), so
//! that angles at large positions agree.

use std::f32::consts::PI;

use anyhow::{Result, ensure};
use candle_transformers::models::llama::Llama3RopeConfig;

use super::spec::MAX_HEAD_DIM;

/// `theta ^ (-2 i / head_dim)` for each pair. (head_dim / 2)
pub(super) fn inverse_frequencies(theta: f64, head_dim: usize) -> Result<Vec<f32>> {
    ensure!(
        theta.is_finite() && theta > 0.0,
        "its rope base (theta) is {theta}"
    );
    ensure!(
        head_dim.is_multiple_of(2) && (2..=MAX_HEAD_DIM).contains(&head_dim),
        "rope needs an even head dimension up to {MAX_HEAD_DIM}, it is {head_dim}"
    );
    Ok((0..head_dim)
        .step_by(2)
        .map(|i| 1.0 / (theta as f32).powf(i as f32 / head_dim as f32))
        .collect())
}

/// Linear scaling: positions are divided by `factor`.
pub(super) fn scale_linear(frequencies: &mut [f32], factor: f32) -> Result<()> {
    ensure!(
        factor.is_finite() && factor > 0.0,
        "its rope scaling factor is {factor}"
    );
    frequencies.iter_mut().for_each(|f| *f /= factor);
    Ok(())
}

/// Llama-3 scaling: slow pairs are slowed by `factor`, fast ones kept, those between blended.
pub(super) fn scale_llama3(frequencies: &mut [f32], config: &Llama3RopeConfig) -> Result<()> {
    let (low, high) = (config.low_freq_factor, config.high_freq_factor);
    ensure!(
        config.factor > 0.0 && low > 0.0 && high > low,
        "its llama3 rope scaling has factor {}, low_freq_factor {low}, high_freq_factor {high}",
        config.factor
    );
    let original = config.original_max_position_embeddings as f32;
    for f in frequencies {
        let wavelength = 2.0 * PI / *f;
        if wavelength > original / low {
            *f /= config.factor;
        } else if wavelength >= original / high {
            let smooth = (original / wavelength - low) / (high - low);
            *f = (1.0 - smooth) * *f / config.factor + smooth * *f;
        }
    }
    Ok(())
}

/// Divides each pair's frequency by its own factor, as GGUF's `rope_freqs.weight` asks for.
pub(super) fn divide(frequencies: &mut [f32], divisors: &[f32]) -> Result<()> {
    ensure!(
        frequencies.len() == divisors.len() && divisors.iter().all(|d| d.is_finite() && *d > 0.0),
        "its rope_freqs.weight does not hold {} positive factors",
        frequencies.len()
    );
    frequencies
        .iter_mut()
        .zip(divisors)
        .for_each(|(f, d)| *f /= d);
    Ok(())
}

#[cfg(test)]
mod tests {
    use candle_transformers::models::llama::Llama3RopeType;

    use super::*;

    #[test]
    fn llama3_scaling_keeps_fast_pairs_and_slows_slow_ones() {
        let plain = inverse_frequencies(500_000.0, 64).expect("valid");
        let mut scaled = plain.clone();
        let config = Llama3RopeConfig {
            factor: 32.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192,
            rope_type: Llama3RopeType::Llama3,
        };
        scale_llama3(&mut scaled, &config).expect("valid");
        assert_eq!(scaled[0], plain[0]);
        assert_eq!(scaled[31], plain[31] / 32.0);
        let blended = scaled
            .iter()
            .zip(&plain)
            .filter(|(s, p)| **s < **p && **s > **p / 32.0);
        assert!(blended.count() > 0);
    }
}
