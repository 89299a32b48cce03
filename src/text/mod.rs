//! Strings to token ids and back: tokenizer, incremental detokenizer, stop strings, chat template.
//!
//! One [`Tokenizer`] is built from a `tokenizer.json` or from GGUF metadata and shared by all
//! requests; each request has a [`Detokenizer`] and a [`StopMatcher`] of its own. Everything a
//! model file says is untrusted: it can give an error, not a panic. Imports nothing of ours.

mod bpe;
mod byte_level;
mod chat_template;
mod detokenizer;
mod error;
mod gguf_vocab;
mod pre_tokenizer;
mod sentencepiece;
mod stop;
mod token_table;
mod tokenizer;
mod tokenizer_json;
mod tool_calls;
mod utf8;

pub use chat_template::worker as template_worker;
pub use chat_template::{ChatTemplate, SpecialTokens};
pub use detokenizer::Detokenizer;
pub use error::TextError;
pub use gguf_vocab::GgufVocab;
pub use stop::{StopMatcher, StopOutcome};
pub use tokenizer::Tokenizer;
pub use tool_calls::{OPEN as TOOL_CALL_OPEN, ToolCall, ToolCallParser};
