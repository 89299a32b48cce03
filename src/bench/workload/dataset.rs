//! Prompts from a file: conversations in ShareGPT's JSON, or one JSON object a line.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use rand::SeedableRng as _;
use rand::seq::SliceRandom as _;
use rand_chacha::ChaCha8Rng;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::Prompt;
use super::tokenizer::PromptTokenizer;

/// A file of prompts, read.
#[derive(Clone, Debug, PartialEq)]
pub struct Dataset {
    pub path: PathBuf,
    pub sha256: String,
    entries: Vec<Entry>,
}

/// A prompt, and how much is to be generated for it: as much as it says, or as the reply has.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    prompt: String,
    reply: Option<String>,
    max_tokens: Option<usize>,
}

/// The fields that are read; files have others.
#[derive(Deserialize)]
struct Line {
    prompt: Option<String>,
    #[serde(alias = "output_tokens")]
    max_tokens: Option<usize>,
    #[serde(default)]
    conversations: Vec<Turn>,
}

#[derive(Deserialize)]
struct Turn {
    from: String,
    value: String,
}

/// How many prompts are taken, and how.
pub struct Draw {
    pub requests: usize,
    pub warmup: usize,
    /// Where an entry has neither a length nor a reply.
    pub max_tokens: usize,
    /// Of the order; the file's own without one.
    pub shuffle_seed: Option<u64>,
    /// Tokens of a prompt and its answer together.
    pub window: Option<usize>,
}

impl Dataset {
    /// # Errors
    /// The file cannot be read, is neither form, or has no prompt.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        let lines: Vec<Line> = if text.trim_start().starts_with('[') {
            serde_json::from_str(&text)
                .with_context(|| format!("{} is not a list of conversations", path.display()))?
        } else {
            let lines = text.lines().enumerate();
            lines
                .filter(|(_, line)| !line.trim().is_empty())
                .map(|(number, line)| {
                    serde_json::from_str(line)
                        .with_context(|| format!("{}, line {}", path.display(), number + 1))
                })
                .collect::<anyhow::Result<_>>()?
        };
        let entries: Vec<Entry> = lines.into_iter().filter_map(Entry::of).collect();
        ensure!(
            !entries.is_empty(),
            "{} has no prompt: each entry has a \"prompt\", or \"conversations\" of which the first is a \
             person's",
            path.display()
        );
        let digest = Sha256::digest(text.as_bytes());
        Ok(Self {
            path: path.to_owned(),
            sha256: digest.iter().map(|byte| format!("{byte:02x}")).collect(),
            entries,
        })
    }

    /// The file's name.
    pub fn name(&self) -> String {
        let name = self.path.file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }

    /// Warm-up and measured prompts; those that do not fit into the model's window are passed over.
    ///
    /// # Errors
    /// The tokenizer does not answer, or too few prompts fit.
    pub async fn draw(
        &self,
        draw: &Draw,
        tokenizer: &PromptTokenizer<'_>,
    ) -> anyhow::Result<(Vec<Prompt>, Vec<Prompt>)> {
        let mut order: Vec<usize> = (0..self.entries.len()).collect();
        if let Some(seed) = draw.shuffle_seed {
            order.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
        }
        let wanted = draw.requests + draw.warmup;
        let mut prompts = Vec::with_capacity(wanted);
        // What a tokenizer begins each text with is no token of a reply.
        let num_special = tokenizer.encode("").await.map_or(0, |ids| ids.len());
        for entry in order.into_iter().map(|index| &self.entries[index]) {
            if prompts.len() == wanted {
                break;
            }
            let tokens = tokenizer.encode(&entry.prompt).await?.len();
            let max_tokens = match (entry.max_tokens, &entry.reply) {
                (Some(max_tokens), _) => max_tokens,
                (None, Some(reply)) => tokenizer.encode(reply).await?.len() - num_special,
                (None, None) => draw.max_tokens,
            };
            let fits = draw
                .window
                .is_none_or(|window| tokens + max_tokens <= window);
            if fits && max_tokens > 0 {
                prompts.push(Prompt {
                    id: prompts.len(),
                    text: entry.prompt.clone(),
                    max_tokens,
                    tokens: Some(tokens),
                    ..Prompt::default()
                });
            }
        }
        ensure!(
            prompts.len() == wanted,
            "{} has {} prompts that fit into the model's window, and {wanted} are wanted: ask for fewer \
             --requests or --warmup",
            self.path.display(),
            prompts.len()
        );
        // The measured ones depend on no number of warm-up prompts.
        let warmup = prompts.split_off(draw.requests);
        Ok((warmup, prompts))
    }
}

impl Entry {
    fn of(line: Line) -> Option<Self> {
        if let Some(prompt) = line.prompt.filter(|prompt| !prompt.is_empty()) {
            return Some(Self {
                prompt,
                reply: None,
                max_tokens: line.max_tokens,
            });
        }
        let mut turns = line.conversations.into_iter();
        let first = turns.next()?;
        let is_person = ["human", "user"].contains(&first.from.as_str());
        (is_person && !first.value.is_empty()).then(|| Self {
            prompt: first.value,
            reply: turns.next().map(|turn| turn.value),
            max_tokens: line.max_tokens,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str, text: &str) -> anyhow::Result<Dataset> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join(name);
        std::fs::write(&path, text)?;
        Dataset::read(&path)
    }

    #[test]
    fn conversations_give_their_first_question_and_its_answer() {
        let text = r#"[
            {"id": "1", "conversations": [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hi"}]},
            {"id": "2", "conversations": [{"from": "gpt", "value": "unasked"}]},
            {"id": "3", "conversations": []}
        ]"#;
        let dataset = read("sharegpt.json", text).expect("sound");
        let expected = Entry {
            prompt: "Hello".to_owned(),
            reply: Some("Hi".to_owned()),
            max_tokens: None,
        };
        assert_eq!(dataset.entries, [expected]);
    }

    #[test]
    fn lines_give_their_prompt_and_length() {
        let text =
            "{\"prompt\": \"one\", \"output_tokens\": 7, \"other\": 1}\n\n{\"prompt\": \"two\"}\n";
        let dataset = read("prompts.jsonl", text).expect("sound");
        let lengths: Vec<_> = dataset
            .entries
            .iter()
            .map(|entry| (entry.prompt.as_str(), entry.max_tokens))
            .collect();
        assert_eq!(lengths, [("one", Some(7)), ("two", None)]);
    }

    #[test]
    fn what_is_no_dataset_is_refused_with_the_line() {
        for (text, word) in [
            ("[1]", "conversations"),
            ("{\"prompt\": \"a\"}\n{broken\n", "line 2"),
            ("{\"text\": \"a\"}\n", "no prompt"),
            ("", "no prompt"),
        ] {
            let error = read("x.jsonl", text).expect_err(text);
            assert!(format!("{error:#}").contains(word), "{error:#}");
        }
    }
}
