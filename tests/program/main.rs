//! The built program, run as a user runs it, with real models.

mod faithful;
mod real_model;
mod server;
mod startup;
