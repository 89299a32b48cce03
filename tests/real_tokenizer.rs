//! The tokenizer and the chat template of the real default model, and the vocabulary of Mistral 7B,
//! against the reference's goldens.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use candle_core::quantized::gguf_file::{Content, Value};
use candlepower::text::{ChatTemplate, GgufVocab, Tokenizer};
use serde_json::{Map, Value as Json, json};

fn metadata() -> Content {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/SmolLM2-135M-Instruct.Q4_1.gguf");
    let file = File::open(&path).unwrap_or_else(|error| {
        panic!(
            "{}: {error}; run scripts/fetch-model smollm2-135m",
            path.display()
        )
    });
    Content::read(&mut BufReader::new(file)).expect("a GGUF file")
}

fn goldens(file: &str) -> Json {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/text");
    let path = folder.join(file);
    let text = std::fs::read_to_string(path).expect("a golden file");
    serde_json::from_str(&text).expect("JSON")
}

fn vocab(content: &Content) -> GgufVocab {
    let key = |name: &str| content.metadata.get(&format!("tokenizer.ggml.{name}"));
    let string = |value: &Value| value.to_string().expect("a string").clone();
    let array = |name: &str| {
        key(name)
            .expect("present")
            .to_vec()
            .expect("an array")
            .clone()
    };
    let id = |name: &str| key(name).map(|value| value.to_u32().expect("an id"));
    let flag = |name: &str| key(name).map(|value| value.to_bool().expect("a flag"));
    GgufVocab {
        model: string(key("model").expect("present")),
        pre: key("pre").map(string),
        tokens: array("tokens").iter().map(string).collect(),
        scores: Vec::new(),
        token_types: array("token_type")
            .iter()
            .map(|t| t.to_i32().expect("a type"))
            .collect(),
        merges: array("merges").iter().map(string).collect(),
        bos_id: id("bos_token_id"),
        eos_id: id("eos_token_id"),
        unk_id: id("unknown_token_id"),
        pad_id: id("padding_token_id"),
        add_bos_token: flag("add_bos_token"),
        add_space_prefix: flag("add_space_prefix"),
    }
}

fn ids(json: &Json) -> Vec<u32> {
    serde_json::from_value(json.clone()).expect("token ids")
}

fn assert_equals_the_reference(tokenizer: &Tokenizer, golden: &Json) {
    let texts = golden["texts"].as_array().expect("texts");
    assert!(texts.len() > 30);
    for (index, text) in texts.iter().enumerate() {
        let text = text.as_str().expect("a text");
        let as_text = ids(&golden["text"][index]);
        let chat = &golden["chat"][index];
        let as_chat = if chat.is_null() {
            as_text.clone()
        } else {
            ids(chat)
        };
        let encoded = tokenizer.encode_text(text).expect("encodes");
        assert_eq!(encoded, as_text, "{text:?}");
        let encoded = tokenizer.encode_chat(text).expect("encodes");
        assert_eq!(encoded, as_chat, "{text:?}");
        let decoded = tokenizer.decode(&as_text, true).expect("decodes");
        assert_eq!(golden["decoded"][index], decoded);
    }
}

#[test]
fn ids_and_text_of_the_real_model_equal_the_reference() {
    let tokenizer = Tokenizer::from_gguf(vocab(&metadata())).expect("a tokenizer");
    assert_eq!(tokenizer.vocab_size(), 49152);
    let eos = tokenizer.eos_id().expect("EOS");
    assert_eq!(tokenizer.token_text(eos).as_deref(), Some("<|im_end|>"));
    assert_equals_the_reference(&tokenizer, &goldens("smollm2-135m.json"));
}

/// The metadata of Mistral 7B's GGUF files: a real SentencePiece vocabulary.
fn mistral_vocab(golden: &Json) -> GgufVocab {
    let tokens: Vec<String> = serde_json::from_value(golden["tokens"].clone()).expect("tokens");
    let token_type = |token: &String| match token.as_str() {
        "<unk>" => 2,
        "<s>" | "</s>" => 3,
        byte if byte.starts_with("<0x") => 6,
        _ => 1,
    };
    let token_types: Vec<i32> = tokens.iter().map(token_type).collect();
    let first = token_types.iter().position(|&kind| kind == 1);
    let first = first.expect("pieces");
    let count_down = |index: usize| -(index.saturating_sub(first) as f32);
    let mut scores: Vec<f32> = (0..tokens.len()).map(count_down).collect();
    let lowest = golden["lowest_scores"]["score"].as_f64().expect("a score");
    for index in ids(&golden["lowest_scores"]["ids"]) {
        scores[index as usize] = lowest as f32;
    }
    GgufVocab {
        model: "llama".to_owned(),
        tokens,
        scores,
        token_types,
        bos_id: Some(1),
        eos_id: Some(2),
        unk_id: Some(0),
        add_bos_token: Some(true),
        ..GgufVocab::default()
    }
}

#[test]
fn ids_and_text_of_mistral_s_vocabulary_equal_the_reference() {
    let golden = goldens("mistral-7b.json");
    let tokenizer = Tokenizer::from_gguf(mistral_vocab(&golden)).expect("a tokenizer");
    assert_eq!(tokenizer.vocab_size(), 32000);
    assert_equals_the_reference(&tokenizer, &golden);
}

#[test]
fn the_real_chat_template_renders_to_tokens_of_the_real_vocabulary() {
    let content = metadata();
    let tokenizer = Tokenizer::from_gguf(vocab(&content)).expect("a tokenizer");
    let source = content.metadata["tokenizer.chat_template"]
        .to_string()
        .expect("a template");
    assert_eq!(goldens("smollm2-135m.json")["template"], source.as_str());
    let template = ChatTemplate::new(source, tokenizer.special_tokens()).expect("parses");
    let messages = json!([{"role": "user", "content": "Hi"}]);
    let rendered = template
        .render(&messages, None, true, &Map::new())
        .expect("renders");
    assert_eq!(
        rendered,
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging \
         Face<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    );
    let ids = tokenizer.encode_chat(&rendered).expect("encodes");
    let count = |token: &str| {
        let id = tokenizer.token_id(token).expect("known");
        ids.iter().filter(|&&other| other == id).count()
    };
    assert_eq!((count("<|im_start|>"), count("<|im_end|>")), (3, 2));
    assert_eq!(tokenizer.decode(&ids, false).expect("decodes"), rendered);
}
