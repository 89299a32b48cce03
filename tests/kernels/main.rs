//! Every kernel against plain arithmetic, in every instruction set of this machine.

mod attention;
mod products;
mod rows;

use candlepower::kernels::{Compute, Isa, Needs, Pool};

/// No codes.
pub const VALUES: Needs = Needs {
    values: true,
    codes: None,
    bf16: false,
};

pub fn compute(isa: Isa, threads: usize) -> Compute {
    Compute::new(isa, Pool::new(threads).expect("threads"))
}

pub fn isas() -> impl Iterator<Item = Isa> {
    Isa::ALL.into_iter().filter(|isa| isa.is_available())
}

/// Numbers between -1 and 1 that look random and are the same every time.
pub fn noise(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    };
    std::iter::repeat_with(next).take(len).collect()
}

pub fn assert_close(what: &str, actual: &[f32], exact: &[(f64, f64)], tolerance: f64) {
    assert_eq!(actual.len(), exact.len(), "{what}");
    let failures: Vec<_> = (actual.iter().zip(exact).enumerate())
        .filter(|(_, (a, (e, size)))| {
            let error = (f64::from(**a) - e).abs();
            error.is_nan() || error > tolerance * size + 1e-30
        })
        .map(|(i, (a, (e, _)))| format!("{i}: {a} is not {e}"))
        .collect();
    let first = &failures[..failures.len().min(8)];
    assert!(
        failures.is_empty(),
        "{what}: {} of {}: {first:?}",
        failures.len(),
        actual.len()
    );
}
