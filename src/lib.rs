//! candlepower: an LLM inference server with a built-in benchmark harness.
//!
//! Two walks lead through the crate, in folder order:
//!
//! * a request: [`cli`] > [`server`] > [`text`] > [`engine`] (with [`kv_cache`]) > [`model`] >
//!   [`runner`] > the engine's sampler > back through [`server`];
//! * a benchmark: [`cli`] > [`bench`], which is a client over HTTP and imports nothing of the server.

// Test support files are shared with tests/, which know the crate by this name.
#[cfg(test)]
extern crate self as candlepower;

pub mod bench;
pub mod cli;
pub mod config;
pub mod engine;
pub mod kernels;
pub mod kv_cache;
pub mod model;
pub mod runner;
pub mod serve;
pub mod server;
pub mod text;
