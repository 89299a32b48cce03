//! A model that anybody can compute: its tokens are bytes, and it counts on from the last one.

use std::sync::Arc;
use std::sync::mpsc;

use candlepower::runner::{Logits, RaggedBatch, Runner};
use candlepower::text::Tokenizer;
use serde_json::{Map, json};

/// Ends a generation; comes after `!`.
pub const END: u32 = 256;
pub const VOCAB_SIZE: usize = 257;

/// A step fails that sees this byte.
pub const POISON: u8 = b'#';

/// `a` to `z` go round; `0` is followed by the two bytes of `é` and then `a`.
fn successor(token: u32) -> u32 {
    match u8::try_from(token) {
        Ok(b'z') => u32::from(b'a'),
        Ok(b'!') => END,
        Ok(b'0') => 0xC3,
        Ok(0xC3) => 0xA9,
        Ok(0xA9) => u32::from(b'a'),
        Ok(byte) => u32::from(byte.wrapping_add(1)),
        Err(_) => END,
    }
}

pub struct CountingRunner {
    logits: Logits,
    /// With a gate, each step waits for one message; a closed gate is open.
    gate: Option<mpsc::Receiver<()>>,
}

impl CountingRunner {
    pub fn new() -> Self {
        let logits = Logits {
            values: Vec::new(),
            vocab_size: VOCAB_SIZE,
        };
        Self { logits, gate: None }
    }

    pub fn gated() -> (Self, mpsc::Sender<()>) {
        let (open, gate) = mpsc::channel();
        (
            Self {
                gate: Some(gate),
                ..Self::new()
            },
            open,
        )
    }
}

impl Runner for CountingRunner {
    fn forward(&mut self, batch: &RaggedBatch) -> anyhow::Result<&Logits> {
        if let Some(gate) = &self.gate {
            // An error means that the gate is closed, and so open for good.
            let _ = gate.recv();
        }
        anyhow::ensure!(
            !batch.token_ids.contains(&u32::from(POISON)),
            "poison at /secret/path"
        );
        self.logits.values.clear();
        for &row in &batch.logit_rows {
            let next = successor(batch.token_ids[row as usize]) as usize;
            // Far enough apart that sampling at temperature 1 takes the same token as greedy.
            let logits = (0..VOCAB_SIZE).map(|id| if id == next { 0.0 } else { -1e4 });
            self.logits.values.extend(logits);
        }
        Ok(&self.logits)
    }

    fn vocab_size(&self) -> usize {
        VOCAB_SIZE
    }
}

/// Token `n` is the byte `n`.
pub fn tokenizer() -> Arc<Tokenizer> {
    let vocab: Map<_, _> = (0..=255u8)
        .map(|byte| (spelling(byte).into(), json!(byte)))
        .collect();
    let byte_level = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true,
    });
    let end = json!({
        "id": END, "content": "<|end|>", "special": true, "single_word": false, "lstrip": false,
        "rstrip": false, "normalized": false,
    });
    let tokenizer = json!({
        "version": "1.0",
        "added_tokens": [end],
        "pre_tokenizer": byte_level,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    });
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("tokenizer.json");
    std::fs::write(&path, tokenizer.to_string()).expect("a file");
    Arc::new(Tokenizer::from_file(&path).expect("a tokenizer"))
}

/// How byte-level vocabularies spell a byte: printable ones as they are, others from U+0100 on.
fn spelling(byte: u8) -> char {
    let is_printable = |byte: u8| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    if is_printable(byte) {
        return char::from(byte);
    }
    let rank = (0..byte).filter(|other| !is_printable(*other)).count();
    char::from_u32(0x100 + rank as u32).expect("a character")
}

/// Writes `[role]content`, and `a` where the answer begins.
pub const CHAT_TEMPLATE: &str = "\
    {%- if messages[0].role == 'assistant' %}{{ raise_exception('the user begins') }}{% endif %}\
    {%- for message in messages %}[{{ message.role }}]{{ message.content }}{% endfor %}\
    {%- if add_generation_prompt %}{{ start or 'a' }}{% endif %}";
