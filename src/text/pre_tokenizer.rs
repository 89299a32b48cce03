//! How text is cut into words before byte-pair encoding, by the name that a GGUF file gives it.
//!
//! The rules are those of the models' own tokenizer.json. `default` is what files from before the
//! names were introduced get, and what a file without a name gets: llama.cpp's general rule.

use tokenizers::normalizers::{NFC, NormalizerWrapper};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::SplitDelimiterBehavior;

use super::TextError;

/// What to do with text before byte-pair encoding.
#[derive(Clone, Debug)]
pub(super) struct WordRules {
    pub(super) normalizer: Option<NormalizerWrapper>,
    pub(super) pre_tokenizer: PreTokenizerWrapper,
    /// A word that is a token is that token, whatever the merges say.
    pub(super) ignore_merges: bool,
    /// Whether the family's prompts begin with BOS where the file does not say.
    pub(super) adds_bos: bool,
}

/// How a family cuts words.
enum Words {
    /// GPT-2's regular expression.
    Gpt2,
    /// Each digit by itself, then GPT-2's.
    DigitsThenGpt2,
    /// Regular expressions of its own, one after the other.
    Split(&'static [&'static str]),
}

struct Family {
    names: &'static [&'static str],
    words: Words,
    nfc: bool,
    ignore_merges: bool,
    adds_bos: bool,
}

const FAMILIES: &[Family] = &[
    Family {
        names: &["gpt-2"],
        words: Words::Gpt2,
        nfc: false,
        ignore_merges: false,
        adds_bos: false,
    },
    Family {
        names: &["smollm"],
        words: Words::DigitsThenGpt2,
        nfc: false,
        ignore_merges: false,
        adds_bos: false,
    },
    Family {
        names: &["qwen2", "deepseek-r1-qwen"],
        words: Words::Split(&[
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ]),
        nfc: true,
        ignore_merges: false,
        adds_bos: false,
    },
    Family {
        names: &["llama-bpe", "llama3", "llama-v3"],
        words: Words::Split(&[
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ]),
        nfc: false,
        ignore_merges: true,
        adds_bos: true,
    },
    Family {
        names: &["default"],
        words: Words::Split(&[
            r"[\p{P}\$\+<=>\^~\|]+",
            r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
            r"\p{N}+",
            r"[0-9][0-9][0-9]",
        ]),
        nfc: false,
        ignore_merges: false,
        adds_bos: false,
    },
];

/// The rules that a GGUF file calls `pre`; a name we do not know is refused.
pub(super) fn word_rules(pre: Option<&str>) -> Result<WordRules, TextError> {
    let pre = pre.unwrap_or("default");
    let family = FAMILIES
        .iter()
        .find(|family| family.names.contains(&pre))
        .ok_or_else(|| {
            let known: Vec<&str> = FAMILIES
                .iter()
                .flat_map(|family| family.names)
                .copied()
                .collect();
            TextError::UnknownPreTokenizer {
                pre: pre.to_string(),
                known: known.join(", "),
            }
        })?;
    Ok(WordRules {
        normalizer: family.nfc.then_some(NormalizerWrapper::NFC(NFC)),
        pre_tokenizer: pre_tokenizer(&family.words),
        ignore_merges: family.ignore_merges,
        adds_bos: family.adds_bos,
    })
}

fn pre_tokenizer(words: &Words) -> PreTokenizerWrapper {
    let byte_level = |use_regex| ByteLevel::new(false, true, use_regex).into();
    match words {
        Words::Gpt2 => byte_level(true),
        Words::DigitsThenGpt2 => {
            Sequence::new(vec![Digits::new(true).into(), byte_level(true)]).into()
        }
        Words::Split(patterns) => {
            let mut steps: Vec<PreTokenizerWrapper> = patterns
                .iter()
                .map(|pattern| {
                    let pattern = SplitPattern::Regex((*pattern).to_string());
                    Split::new(pattern, SplitDelimiterBehavior::Isolated, false)
                        .expect("bug: a pattern of this file does not compile")
                        .into()
                })
                .collect();
            steps.push(byte_level(false));
            Sequence::new(steps).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};

    fn words(pre: &str, text: &str) -> Vec<String> {
        let rules = word_rules(Some(pre)).expect("known");
        let mut pieces = PreTokenizedString::from(text);
        rules
            .pre_tokenizer
            .pre_tokenize(&mut pieces)
            .expect("splits");
        let splits = pieces.get_splits(OffsetReferential::Original, OffsetType::Byte);
        splits
            .into_iter()
            .map(|(_, (start, end), _)| text[start..end].to_string())
            .collect()
    }

    #[test]
    fn families_differ_in_digits_newlines_and_contractions() {
        let text = "I'LL pay 12345  \n now";
        assert_eq!(
            words("gpt-2", text),
            ["I", "'", "LL", " pay", " 12345", "  \n", " now"]
        );
        assert_eq!(
            words("smollm", text),
            [
                "I", "'", "LL", " pay", " ", "1", "2", "3", "4", "5", "  \n", " now"
            ]
        );
        assert_eq!(
            words("qwen2", text),
            [
                "I", "'LL", " pay", " ", "1", "2", "3", "4", "5", "  \n", " now"
            ]
        );
        assert_eq!(
            words("llama-bpe", text),
            ["I", "'LL", " pay", " ", "123", "45", "  \n", " now"]
        );
        assert_eq!(
            words("default", text),
            ["I", "'", "LL", " pay", " ", "123", "45", "  \n", " now"]
        );
    }

    #[test]
    fn an_unknown_name_is_refused_with_the_names_that_are_known() {
        let error = word_rules(Some("klingon"))
            .expect_err("unknown")
            .to_string();
        assert!(
            error.contains("'klingon'") && error.contains("smollm, qwen2"),
            "{error}"
        );
    }

    #[test]
    fn a_file_without_a_name_is_cut_by_the_default_rule() {
        let unnamed = format!("{:?}", word_rules(None).expect("known").pre_tokenizer);
        let default = format!(
            "{:?}",
            word_rules(Some("default")).expect("known").pre_tokenizer
        );
        assert_eq!(unnamed, default);
    }
}
