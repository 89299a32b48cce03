//! What is sent: prompts cut from an English text, the same for the same seed.
//!
//! [`plain`] follows the flags; [`definition`] is a named workload, a data file; [`dataset`] is
//! somebody's prompts from a file. The latter two count tokens with the model's [`tokenizer`].

pub mod dataset;
pub mod definition;
mod exact;
pub mod expand;
mod openings;
pub mod plain;
pub mod tokenizer;

/// Two chapters of a novel; benches/corpus.md says where it is from.
pub(super) const CORPUS: &str = include_str!("../../benches/corpus.txt");

/// One prompt to send.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prompt {
    /// Equal for equal texts.
    pub id: usize,
    /// The same text stands earlier in the workload.
    pub repeat: bool,
    pub text: String,
    /// Tokens to generate.
    pub max_tokens: usize,
    /// What the workload calls requests of this kind.
    pub class: Option<String>,
    /// How many tokens it is meant to have.
    pub tokens: Option<usize>,
    /// With how many of them an earlier prompt begins too.
    pub shared_tokens: Option<usize>,
    /// The conversation it is a turn of; a turn is sent when the one before was answered.
    pub session: Option<usize>,
}
