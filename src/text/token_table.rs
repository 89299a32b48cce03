//! What each token id stands for: the bytes of its text, and whether it is special.

use super::TextError;
use super::utf8::Invalid;

/// More ids than any vocabulary has; a larger one is a damaged file, not a reason to allocate.
const MAX_TOKENS: usize = 1 << 23;

/// Token id to bytes, all in one allocation.
#[derive(Debug)]
pub(super) struct TokenTable {
    bytes: Vec<u8>,
    /// `ends[id]`: where the bytes of token `id` end; they begin where those of `id - 1` end.
    ends: Vec<u32>,
    special: Vec<bool>,
    pub(super) style: TextStyle,
}

/// How the bytes of tokens become text.
#[derive(Clone, Copy, Debug)]
pub(super) struct TextStyle {
    pub(super) invalid: Invalid,
    /// The encoder puts a space before a text, and decoding a whole text takes it away.
    pub(super) strips_first_space: bool,
}

/// One entry of a [`TokenTable`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct TokenEntry {
    /// Empty for an id that no token has.
    pub(super) bytes: Vec<u8>,
    pub(super) special: bool,
}

impl TokenTable {
    /// A table of `entries` in the order of their ids.
    pub(super) fn new(entries: &[TokenEntry], style: TextStyle) -> Result<Self, TextError> {
        check_num_tokens(entries.len())?;
        let mut table = Self {
            bytes: Vec::with_capacity(entries.iter().map(|entry| entry.bytes.len()).sum()),
            ends: Vec::with_capacity(entries.len()),
            special: Vec::with_capacity(entries.len()),
            style,
        };
        for entry in entries {
            table.bytes.extend_from_slice(&entry.bytes);
            let end = u32::try_from(table.bytes.len());
            table.ends.push(end.map_err(|_| {
                TextError::BadVocabulary("its tokens have more than 4 GiB of text".to_string())
            })?);
            table.special.push(entry.special);
        }
        Ok(table)
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The bytes that token `id` stands for.
    pub(super) fn bytes(&self, id: u32) -> Result<&[u8], TextError> {
        let unknown = TextError::UnknownToken {
            id,
            num_tokens: self.len(),
        };
        let index = id as usize;
        let end = *self.ends.get(index).ok_or(unknown)? as usize;
        let start = index
            .checked_sub(1)
            .map_or(0, |previous| self.ends[previous] as usize);
        Ok(&self.bytes[start..end])
    }

    pub(super) fn is_special(&self, id: u32) -> bool {
        self.special.get(id as usize).copied().unwrap_or(false)
    }
}

/// Refuses a number of tokens that no vocabulary has, before anything is allocated for it.
pub(super) fn check_num_tokens(num_tokens: usize) -> Result<(), TextError> {
    match num_tokens {
        0 => Err(TextError::BadVocabulary("it has no tokens".to_string())),
        1..=MAX_TOKENS => Ok(()),
        _ => Err(TextError::BadVocabulary(format!(
            "it has token ids up to {}, and {MAX_TOKENS} is the most that is taken",
            num_tokens - 1
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_id_has_its_own_bytes_and_an_unknown_id_is_an_error() {
        let entry = |text: &str, special| TokenEntry {
            bytes: text.as_bytes().to_vec(),
            special,
        };
        let style = TextStyle {
            invalid: Invalid::PerSequence,
            strips_first_space: false,
        };
        let entries = [entry("a", false), entry("", false), entry("<end>", true)];
        let table = TokenTable::new(&entries, style).expect("a table");
        assert_eq!(table.bytes(0).expect("known"), b"a");
        assert_eq!(table.bytes(1).expect("known"), b"");
        assert_eq!(table.bytes(2).expect("known"), b"<end>");
        assert!(table.is_special(2) && !table.is_special(0) && !table.is_special(3));
        let error = table.bytes(3).expect_err("unknown").to_string();
        assert_eq!(error, "token id 3 is outside of the vocabulary of 3 tokens");
    }
}
