//! The benchmark harness: a client over HTTP. Imports nothing of the server, the engine or the
//! model, so it can measure any other server and cannot flatter ours.
//!
//! The walk: [`workload`] (what is sent) > [`load`] (when) > [`client`] (one request) >
//! [`record`] (what was seen) > [`metrics`] (what it means) > [`statistics`] > [`figures`] >
//! [`section`] > [`benchmarks_md`]. Beside it: [`own_server`] starts the server to measure,
//! [`watch`] samples it, [`compare`] sets recorded runs side by side, [`report`] draws and reads them,
//! [`ab`] measures two settings in turn, [`peers`] other servers, and [`verify`] holds BENCHMARKS.md to
//! the raw records.

pub mod ab;
mod args;
pub mod bandwidth;
mod benchmarks_md;
pub mod cache_state;
pub mod chaos;
mod client;
pub mod compare;
mod drill;
mod endpoint;
mod figures;
pub mod goodput;
pub mod layouts;
pub mod load;
mod machine;
mod measurement;
pub mod metrics;
mod own_server;
pub mod peers;
mod plan;
mod planning;
mod progress;
mod provenance;
pub mod raw_record;
pub mod record;
mod relay;
mod report;
mod result_file;
pub mod rollback;
mod search;
mod section;
pub mod server_log;
mod server_process;
mod server_stats;
mod session;
mod sse;
pub mod statistics;
mod terminal;
mod turns;
pub mod validity;
mod verify;
pub mod vllm_json;
mod watch;
mod wire;
pub mod workload;

pub use args::BenchArgs;
pub use session::{run, run_in};
