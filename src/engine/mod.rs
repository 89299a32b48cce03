//! The engine: one thread that owns all mutable state of generation.
//!
//! A step is schedule > forward > sample > publish. Others hold an [`EngineHandle`]: they send a
//! [`Request`] and receive its [`Event`]s. The engine knows no text, no socket and no tensor.

mod batch;
mod fairness;
mod forecast;
mod generation;
mod handle;
mod heartbeat;
mod histogram;
mod logprobs;
mod request;
mod sampler;
mod scheduler;
mod sequence;
mod speculation;
mod stats;
#[cfg(test)]
mod tests;
mod timeline;
mod worker;

#[cfg(test)]
mod pressure_tests;

pub use fairness::ClientId;
pub use handle::{EngineHandle, Health, Limits};
pub use histogram::{Histogram, StepHistograms};
pub use logprobs::TokenLogprobs;
pub use request::{Awaited, EngineError, Event, FinishReason, Request, SamplingParams, TokenId};
pub use stats::{
    BatchStats, EngineStats, EvictionStats, KvStats, PrefixStats, QueueStats, RequestStats,
    SpeculationStats,
};
pub use timeline::{Entry, Happening, Timeline, WaitCause};
pub use worker::{KvCapacity, start};
