//! Hugging Face's `tokenizer.json`, with the `tokenizer_config.json` and `config.json` beside it.
//!
//! Only what decoders of our families use is taken: BPE with a byte-level or a SentencePiece-like
//! decoder, and a post-processor that at most puts tokens before the text. The rest is refused by
//! name. The file is read into checked parts instead of the crate's own tokenizer, which panics on
//! some damaged files.

use std::collections::HashMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;
use tokenizers::AddedToken;
use tokenizers::models::bpe::{Merges, Vocab};
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;

use super::TextError;
use super::bpe::BpeParts;
use super::byte_level;
use super::sentencepiece::{SPACE, byte_of_piece};
use super::token_table::{TextStyle, TokenEntry, check_num_tokens};
use super::tokenizer::{SpecialIds, TokenizerParts};
use super::utf8::Invalid;

#[derive(Deserialize)]
struct TokenizerJson {
    #[serde(default)]
    added_tokens: Vec<AddedJson>,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
    #[serde(default)]
    decoder: Value,
    model: Value,
}

#[derive(Deserialize)]
struct AddedJson {
    id: u32,
    #[serde(flatten)]
    token: AddedToken,
}

#[derive(Deserialize)]
struct BpeJson {
    vocab: HashMap<String, u32>,
    merges: Vec<MergeJson>,
    unk_token: Option<String>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    #[serde(default)]
    fuse_unk: bool,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    ignore_merges: bool,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum MergeJson {
    Line(String),
    Pair(String, String),
}

/// What `tokenizer_config.json` adds.
#[derive(Default, Deserialize)]
struct TokenizerConfigJson {
    add_bos_token: Option<bool>,
    bos_token: Option<TokenJson>,
    eos_token: Option<TokenJson>,
    unk_token: Option<TokenJson>,
    pad_token: Option<TokenJson>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum TokenJson {
    Text(String),
    Full { content: String },
}

/// What `config.json` adds: the model's embedding may have more rows than there are tokens.
#[derive(Default, Deserialize)]
struct ConfigJson {
    vocab_size: Option<usize>,
}

/// Reads `path` and, if they are there, the two files beside it.
pub(super) fn read_parts(path: &Path) -> Result<TokenizerParts, TextError> {
    let file = |reason| TextError::BadFile {
        path: path.to_path_buf(),
        reason,
    };
    let json: TokenizerJson = read_json(path)?;
    let config: TokenizerConfigJson = read_json_beside(path, "tokenizer_config.json")?;
    let model_config: ConfigJson = read_json_beside(path, "config.json")?;
    let mut parts = parts(json, &config).map_err(|error| match error {
        TextError::Unsupported(_) => error,
        error => file(error.to_string()),
    })?;
    if let Some(vocab_size) = model_config.vocab_size
        && vocab_size > parts.entries.len()
        && check_num_tokens(vocab_size).is_ok()
    {
        parts.entries.resize(vocab_size, TokenEntry::default());
    }
    Ok(parts)
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, TextError> {
    let bytes = std::fs::read(path).map_err(|source| TextError::ReadFile {
        path: path.to_path_buf(),
        source,
    })?;
    serde_json::from_slice(&bytes).map_err(|error| TextError::BadFile {
        path: path.to_path_buf(),
        reason: error.to_string(),
    })
}

fn read_json_beside<T: serde::de::DeserializeOwned + Default>(
    path: &Path,
    name: &str,
) -> Result<T, TextError> {
    let beside = path.with_file_name(name);
    if beside.is_file() {
        read_json(&beside)
    } else {
        Ok(T::default())
    }
}

fn parts(json: TokenizerJson, config: &TokenizerConfigJson) -> Result<TokenizerParts, TextError> {
    let bpe_json = bpe_json(json.model)?;
    let decoder = Decoder::new(&json.decoder)?;
    let entries = entries(&bpe_json.vocab, &json.added_tokens, decoder)?;
    let added: Vec<_> = json
        .added_tokens
        .into_iter()
        .map(|added| (added.id, added.token))
        .collect();
    let pre_tokenizer: Option<PreTokenizerWrapper> = part(
        "pre-tokenizer",
        json.pre_tokenizer,
        PRE_TOKENIZERS,
        "pretokenizers",
    )?;
    let normalizer: Option<NormalizerWrapper> =
        part("normalizer", json.normalizer, NORMALIZERS, "normalizers")?;

    let id_of = |content: &str| {
        let of_added = added.iter().find(|(_, token)| token.content == content);
        of_added
            .map(|(id, _)| *id)
            .or_else(|| bpe_json.vocab.get(content).copied())
    };
    let id_in_config = |token: &Option<TokenJson>| {
        token.as_ref().and_then(|token| match token {
            TokenJson::Text(content) | TokenJson::Full { content } => id_of(content),
        })
    };
    let special_ids = SpecialIds {
        bos: id_in_config(&config.bos_token),
        eos: id_in_config(&config.eos_token),
        unk: id_in_config(&config.unk_token),
        pad: id_in_config(&config.pad_token),
    };
    let prefix = match (config.add_bos_token, special_ids.bos) {
        (Some(true), Some(bos)) => vec![bos],
        (Some(false), _) => Vec::new(),
        _ => prefix(&json.post_processor)?,
    };
    Ok(TokenizerParts {
        bpe: bpe_parts(bpe_json, decoder.is_byte_level())?,
        added,
        normalizer,
        pre_tokenizer,
        entries,
        style: decoder.style(),
        prefix,
        special_ids,
    })
}

/// The crate has more steps than these; some of them panic on bad parameters.
const NORMALIZERS: &[&str] = &[
    "Sequence",
    "NFC",
    "NFD",
    "NFKC",
    "NFKD",
    "Lowercase",
    "Prepend",
    "Replace",
];
const PRE_TOKENIZERS: &[&str] = &["Sequence", "ByteLevel", "Digits", "Metaspace", "Split"];

/// A part of the pipeline, `None` if the file has none; `steps` names the field of a sequence.
fn part<T: serde::de::DeserializeOwned>(
    name: &str,
    json: Value,
    known: &[&str],
    steps: &str,
) -> Result<Option<T>, TextError> {
    if json.is_null() {
        return Ok(None);
    }
    check_kinds(name, &json, known, steps)?;
    serde_json::from_value(json).map_err(|error| {
        TextError::Unsupported(format!(
            "the {name} of tokenizer.json is not understood: {error}"
        ))
    })
}

fn check_kinds(name: &str, json: &Value, known: &[&str], steps: &str) -> Result<(), TextError> {
    if !known.contains(&kind(json)) {
        return Err(TextError::Unsupported(format!(
            "{name} '{}' of tokenizer.json is not one of {}",
            kind(json),
            known.join(", ")
        )));
    }
    let inner = json.get(steps).and_then(Value::as_array);
    inner
        .into_iter()
        .flatten()
        .try_for_each(|step| check_kinds(name, step, known, steps))
}

fn kind(json: &Value) -> &str {
    json.get("type").and_then(Value::as_str).unwrap_or("none")
}

fn bpe_json(json: Value) -> Result<BpeJson, TextError> {
    // Files from before the type was written down have the merges that only BPE has.
    if kind(&json) != "BPE" && !(kind(&json) == "none" && json.get("merges").is_some()) {
        return Err(TextError::Unsupported(format!(
            "model '{}' of tokenizer.json; only BPE is supported",
            kind(&json)
        )));
    }
    let bpe: BpeJson = serde_json::from_value(json)
        .map_err(|error| TextError::BadVocabulary(format!("model: {error}")))?;
    let is_set = |affix: &Option<String>| affix.as_ref().is_some_and(|affix| !affix.is_empty());
    if is_set(&bpe.continuing_subword_prefix) || is_set(&bpe.end_of_word_suffix) {
        return Err(TextError::Unsupported(
            "BPE with continuing_subword_prefix or end_of_word_suffix".to_string(),
        ));
    }
    Ok(bpe)
}

fn bpe_parts(json: BpeJson, splits_words: bool) -> Result<BpeParts, TextError> {
    let merges: Result<Merges, TextError> = json
        .merges
        .into_iter()
        .enumerate()
        .map(|(index, merge)| match merge {
            MergeJson::Pair(left, right) => Ok((left, right)),
            MergeJson::Line(line) => line
                .split_once(' ')
                .map(|(left, right)| (left.to_string(), right.to_string()))
                .ok_or_else(|| {
                    TextError::BadVocabulary(format!("merge {index} is {line:?}, not two tokens"))
                }),
        })
        .collect();
    Ok(BpeParts {
        vocab: json.vocab.into_iter().collect::<Vocab>(),
        merges: merges?,
        unk_token: json.unk_token.filter(|token| !token.is_empty()),
        fuse_unk: json.fuse_unk,
        byte_fallback: json.byte_fallback,
        ignore_merges: json.ignore_merges,
        splits_words,
    })
}

/// The table of what each id decodes to.
fn entries(
    vocab: &HashMap<String, u32>,
    added: &[AddedJson],
    decoder: Decoder,
) -> Result<Vec<TokenEntry>, TextError> {
    let ids = vocab
        .values()
        .copied()
        .chain(added.iter().map(|added| added.id));
    let num_tokens = ids.max().map_or(0, |id| id as usize + 1);
    check_num_tokens(num_tokens)?;
    let mut names: Vec<Option<&str>> = vec![None; num_tokens];
    let mut entries = vec![TokenEntry::default(); num_tokens];
    for (token, &id) in vocab {
        if let Some(other) = names[id as usize].replace(token) {
            return Err(both_have(id, token, other));
        }
        entries[id as usize] = TokenEntry {
            bytes: decoder.bytes(token),
            special: false,
        };
    }
    for AddedJson { id, token } in added {
        match names[*id as usize].replace(&token.content) {
            Some(other) if other != token.content => {
                return Err(both_have(*id, &token.content, other));
            }
            _ => {}
        }
        if vocab.get(&token.content).is_some_and(|other| other != id) {
            return Err(TextError::BadVocabulary(format!(
                "added token {:?} has id {id} there and another one in the model",
                token.content
            )));
        }
        entries[*id as usize] = TokenEntry {
            bytes: decoder.added_bytes(&token.content),
            special: token.special,
        };
    }
    Ok(entries)
}

fn both_have(id: u32, token: &str, other: &str) -> TextError {
    TextError::BadVocabulary(format!("tokens {other:?} and {token:?} both have id {id}"))
}

/// How the file's decoder turns tokens into text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Decoder {
    ByteLevel,
    Pieces {
        byte_fallback: bool,
        strips_first_space: bool,
    },
}

impl Decoder {
    fn new(json: &Value) -> Result<Self, TextError> {
        match kind(json) {
            "ByteLevel" => Ok(Self::ByteLevel),
            "Metaspace" => Ok(Self::Pieces {
                byte_fallback: false,
                strips_first_space: metaspace_adds_space(json),
            }),
            "Sequence" => Self::from_steps(json),
            kind => Err(unsupported_decoder(kind)),
        }
    }

    /// Llama's decoder: `▁` to spaces, bytes, all in one string, less the first space.
    fn from_steps(json: &Value) -> Result<Self, TextError> {
        let steps = json
            .get("decoders")
            .and_then(Value::as_array)
            .map_or(&[][..], Vec::as_slice);
        let kinds: Vec<&str> = steps.iter().map(kind).collect();
        if kinds == ["ByteLevel"] {
            return Ok(Self::ByteLevel);
        }
        let ["Replace", "ByteFallback", "Fuse", rest @ ..] = kinds.as_slice() else {
            return Err(unsupported_decoder(&kinds.join(" + ")));
        };
        let replaces_space =
            steps[0]["pattern"]["String"] == SPACE.to_string() && steps[0]["content"] == " ";
        let strips_one_space =
            |step: &Value| step["content"] == " " && step["start"] == 1 && step["stop"] == 0;
        let strips_first_space = match rest {
            [] => false,
            ["Strip"] if strips_one_space(&steps[3]) => true,
            _ => return Err(unsupported_decoder(&kinds.join(" + "))),
        };
        if !replaces_space {
            return Err(unsupported_decoder(&kinds.join(" + ")));
        }
        Ok(Self::Pieces {
            byte_fallback: true,
            strips_first_space,
        })
    }

    fn is_byte_level(self) -> bool {
        self == Self::ByteLevel
    }

    fn style(self) -> TextStyle {
        match self {
            Self::ByteLevel => TextStyle {
                invalid: Invalid::PerSequence,
                strips_first_space: false,
            },
            Self::Pieces {
                strips_first_space, ..
            } => TextStyle {
                invalid: Invalid::PerByte,
                strips_first_space,
            },
        }
    }

    fn bytes(self, token: &str) -> Vec<u8> {
        match self {
            Self::ByteLevel => byte_level::decode_token(token),
            Self::Pieces {
                byte_fallback: true,
                ..
            } => match byte_of_piece(token) {
                Some(byte) => vec![byte],
                None => self.added_bytes(token),
            },
            Self::Pieces { .. } => self.added_bytes(token),
        }
    }

    fn added_bytes(self, content: &str) -> Vec<u8> {
        match self {
            Self::ByteLevel => content.as_bytes().to_vec(),
            Self::Pieces { .. } => content.replace(SPACE, " ").into_bytes(),
        }
    }
}

fn unsupported_decoder(kind: &str) -> TextError {
    TextError::Unsupported(format!(
        "decoder '{kind}' of tokenizer.json is neither byte-level nor like SentencePiece's"
    ))
}

fn metaspace_adds_space(json: &Value) -> bool {
    match json.get("prepend_scheme").and_then(Value::as_str) {
        Some(scheme) => scheme != "never",
        None => json
            .get("add_prefix_space")
            .and_then(Value::as_bool)
            .unwrap_or(true),
    }
}

/// The tokens that the post-processor puts before a text; any after it are refused.
fn prefix(json: &Value) -> Result<Vec<u32>, TextError> {
    match kind(json) {
        "none" | "ByteLevel" => Ok(Vec::new()),
        "Sequence" => {
            let steps = json["processors"].as_array().map_or(&[][..], Vec::as_slice);
            let prefixes: Result<Vec<_>, _> = steps.iter().map(prefix).collect();
            Ok(prefixes?.concat())
        }
        "TemplateProcessing" => template_prefix(json),
        kind => Err(TextError::Unsupported(format!(
            "post-processor '{kind}' of tokenizer.json"
        ))),
    }
}

fn template_prefix(json: &Value) -> Result<Vec<u32>, TextError> {
    let steps = json["single"].as_array().map_or(&[][..], Vec::as_slice);
    let num_before = steps
        .iter()
        .take_while(|step| step.get("Sequence").is_none())
        .count();
    if num_before + 1 != steps.len() {
        return Err(TextError::Unsupported(
            "post-processor of tokenizer.json that puts tokens after the text".to_string(),
        ));
    }
    let mut prefix = Vec::new();
    for step in &steps[..num_before] {
        let name = step["SpecialToken"]["id"].as_str().unwrap_or_default();
        let ids = json["special_tokens"][name]["ids"].as_array();
        let ids = ids.and_then(|ids| ids.iter().map(token_id).collect::<Option<Vec<_>>>());
        prefix.extend(ids.ok_or_else(|| {
            TextError::BadVocabulary(format!("the post-processor's token {name:?} has no ids"))
        })?);
    }
    Ok(prefix)
}

fn token_id(json: &Value) -> Option<u32> {
    json.as_u64().and_then(|id| u32::try_from(id).ok())
}
