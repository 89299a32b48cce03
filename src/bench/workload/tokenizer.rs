//! Counts tokens as the measured model does: by asking its server, or from a tokenizer file.

use std::path::Path;

use anyhow::{Context as _, bail};
use serde_json::{Value, json};

use crate::bench::client::Client;
use crate::text::Tokenizer;

pub enum PromptTokenizer<'a> {
    /// `/tokenize` and `/detokenize`, as vLLM has them too.
    Server { client: &'a Client, model: &'a str },
    /// For a server that has neither.
    File(Box<Tokenizer>),
}

impl<'a> PromptTokenizer<'a> {
    /// From `file`, a tokenizer.json, or else from the server.
    ///
    /// # Errors
    /// The file is no tokenizer.
    pub fn open(file: Option<&Path>, client: &'a Client, model: &'a str) -> anyhow::Result<Self> {
        let Some(file) = file else {
            return Ok(Self::Server { client, model });
        };
        let tokenizer = Tokenizer::from_file(file)
            .with_context(|| format!("--tokenizer {}", file.display()))?;
        Ok(Self::File(Box::new(tokenizer)))
    }

    /// Token ids of a text, those that the model begins each prompt with included.
    ///
    /// # Errors
    /// The server does not tell.
    pub async fn encode(&self, text: &str) -> anyhow::Result<Vec<u32>> {
        match self {
            Self::File(tokenizer) => Ok(tokenizer.encode_text(text)?),
            Self::Server { model, .. } => {
                let ask = json!({"model": model, "prompt": text, "add_special_tokens": true});
                let answer = self.ask("/tokenize", &ask).await?;
                let ids = serde_json::from_value(answer["tokens"].clone());
                ids.context("the answer of /tokenize has no list of tokens")
            }
        }
    }

    /// The text of token ids.
    ///
    /// # Errors
    /// The server does not tell.
    pub async fn decode(&self, ids: &[u32]) -> anyhow::Result<String> {
        match self {
            Self::File(tokenizer) => Ok(tokenizer.decode(ids, false)?),
            Self::Server { model, .. } => {
                let ask = json!({"model": model, "tokens": ids});
                let answer = self.ask("/detokenize", &ask).await?;
                let text = answer["prompt"].as_str();
                let text = text.context("the answer of /detokenize has no prompt")?;
                Ok(text.to_owned())
            }
        }
    }

    async fn ask(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        let Self::Server { client, .. } = self else {
            bail!("bug: a file is asked nothing");
        };
        match client.ask_json(path, body).await? {
            Some(answer) => Ok(answer),
            None => bail!(
                "prompts of exact length need the model's tokenizer, and {} does not answer: give it with \
                 --tokenizer FILE, its tokenizer.json",
                client.endpoint.url(path)
            ),
        }
    }
}
