//! The HTTP API over real sockets: the real engine, with a runner whose next token is known.

mod client;
mod model;
mod server;

mod bad_input;
mod chat;
mod completions;
mod debug;
mod door;
mod generate;
mod life;
mod observe;
mod pressure;
mod scoring;
mod speculation;
mod templates;
mod tools;
