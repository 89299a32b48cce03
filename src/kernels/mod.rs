//! The arithmetic of a decoder on a CPU: slices in, slices out.
//!
//! Nothing here knows candle, a model file or a batch of requests. Every kernel has a portable
//! version, which is also its reference, and versions for wider instruction sets, chosen at run
//! time ([`Isa`]). A result row never depends on which other rows are computed with it nor on the
//! number of threads, not even in its last bit.
//!
//! Beside the runner for GPUs, this is the one part of the crate that may use `unsafe`: for intrinsics, for handing disjoint parts of one slice to several threads, and for the parts of a
//! map that are a matrix each.
#![allow(unsafe_code)]

mod activations;
mod aligned;
mod attention;
mod blocks;
mod elementwise;
mod isa;
mod kv_storage;
mod math;
mod matmul;
mod packed;
mod pool;
mod prefetch;
mod shared;
mod weight_memory;

pub use activations::{Activations, CODE_GROUP, CodeGroup, Needs, PairBits};
pub use aligned::Aligned;
pub use attention::{AttentionBatch, AttentionPlan, AttentionShape, attend};
pub use blocks::SourceFormat;
pub use elementwise::{Activation, HeadTransform, NormKind, Rotation, embed, normalize};
pub use isa::Isa;
pub use kv_storage::{KvShape, KvStorage, KvType, KvWrites, TILE_TOKENS};
pub use matmul::{Epilogue, matmul, matmul_activated, needs};
pub use packed::{PackedMatrix, PanelFormat, SourceMatrix};
pub use pool::Pool;

use weight_memory::WeightMemory;

/// What kernels run on: an instruction set that this machine has, threads, and memory for weights.
#[derive(Debug)]
pub struct Compute {
    isa: Isa,
    pool: Pool,
    weight_memory: WeightMemory,
}

impl Compute {
    /// # Panics
    /// If this machine lacks `isa`: to run its instructions would be undefined behaviour.
    pub fn new(isa: Isa, pool: Pool) -> Self {
        assert!(isa.is_available(), "bug: this machine has no {isa}");
        Self {
            isa,
            pool,
            weight_memory: WeightMemory::default(),
        }
    }

    pub fn isa(&self) -> Isa {
        self.isa
    }

    pub fn pool(&self) -> &Pool {
        &self.pool
    }
}
