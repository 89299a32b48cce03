//! What is sent: prompts cut from an English text, the same for the same seed.
//!
//! [`plain`] follows the flags.

mod openings;
pub mod plain;

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
}
