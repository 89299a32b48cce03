//! OpenAI's API, as its own client and the load generators call it.

pub mod chat;
pub mod completions;
pub mod models;
pub mod tokens;
pub mod usage;

mod answer;
mod calls;
mod choice;
mod logprobs;
mod messages;
mod stream_mode;
mod tool_calls;
mod tools;
