//! The tokenizer part of GGUF metadata, key by key.

use anyhow::{Context, Result, bail, ensure};

use super::gguf::{Metadata, Value};
use crate::text::GgufVocab;

/// Moves the vocabulary out of the metadata; ids and lengths are checked.
pub(super) fn read(mut metadata: Metadata) -> Result<GgufVocab> {
    let key = |name: &str| format!("tokenizer.ggml.{name}");
    let tokens = match metadata.remove(&key("tokens")) {
        Some(Value::Strings(tokens)) => tokens,
        _ => bail!(
            "its metadata key {} is missing or not a list of strings",
            key("tokens")
        ),
    };
    let id = |name: &str| -> Result<Option<u32>> {
        let id = metadata.integer(&key(name))?;
        ensure!(
            id.is_none_or(|id| id < tokens.len()),
            "its metadata key {} lies outside the {} tokens",
            key(name),
            tokens.len()
        );
        Ok(id.map(|id| id as u32))
    };
    let model = metadata.string(&key("model"))?;
    let mut vocab = GgufVocab {
        model: model
            .with_context(|| format!("its metadata key {} is missing", key("model")))?
            .to_owned(),
        pre: metadata.string(&key("pre"))?.map(str::to_owned),
        bos_id: id("bos_token_id")?,
        eos_id: id("eos_token_id")?,
        unk_id: id("unknown_token_id")?,
        pad_id: id("padding_token_id")?,
        add_bos_token: metadata.bool(&key("add_bos_token"))?,
        add_space_prefix: metadata.bool(&key("add_space_prefix"))?,
        ..GgufVocab::default()
    };
    match metadata.remove(&key("merges")) {
        None => {}
        Some(Value::Strings(merges)) => vocab.merges = merges,
        Some(_) => bail!(
            "its metadata key {} is not a list of strings",
            key("merges")
        ),
    }
    match metadata.remove(&key("scores")) {
        None => {}
        Some(Value::Floats(scores)) => vocab.scores = scores,
        Some(_) => bail!(
            "its metadata key {} is not a list of numbers",
            key("scores")
        ),
    }
    match metadata.remove(&key("token_type")) {
        None => {}
        Some(Value::Integers(kinds)) => vocab.token_types = kinds,
        Some(_) => bail!(
            "its metadata key {} is not a list of integers",
            key("token_type")
        ),
    }
    let lengths = [vocab.scores.len(), vocab.token_types.len()];
    ensure!(
        lengths.iter().all(|&n| n == 0 || n == tokens.len()),
        "its tokenizer has {} tokens, {} scores and {} types",
        tokens.len(),
        lengths[0],
        lengths[1]
    );
    vocab.tokens = tokens;
    Ok(vocab)
}
