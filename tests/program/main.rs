//! The built program, run as a user runs it, with real models.

mod faithful;
mod keys;
mod log;
mod memory;
mod quantize;
mod real_model;
mod restart;
mod server;
mod startup;
#[path = "../synthetic/mod.rs"]
mod synthetic;
mod templates;
