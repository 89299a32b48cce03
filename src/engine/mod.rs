//! The engine: one thread that owns all mutable state of generation.

mod request;

pub use request::{EngineError, Event, FinishReason, Request, SamplingParams, TokenId};
