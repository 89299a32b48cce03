//! GPT-2's spelling of bytes as printable characters, in which byte-level BPE vocabularies are
//! written: `Ġ` is a space, `Ċ` a line feed.

/// The byte that `character` spells, if it spells one.
pub(super) fn byte_of_char(character: char) -> Option<u8> {
    let code = u32::from(character);
    match code {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => u8::try_from(code).ok(),
        // The 68 bytes without a printable character of their own, in order, from U+0100 on.
        0x100..=0x120 => u8::try_from(code - 0x100).ok(),
        0x121..=0x142 => u8::try_from(code - 0x121 + 0x7f).ok(),
        0x143 => Some(0xad),
        _ => None,
    }
}

/// The bytes that `token` spells; a token with any other character stands for itself.
pub(super) fn decode_token(token: &str) -> Vec<u8> {
    let spelled: Option<Vec<u8>> = token.chars().map(byte_of_char).collect();
    spelled.unwrap_or_else(|| token.as_bytes().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokenizers::pre_tokenizers::byte_level::ByteLevel;

    #[test]
    fn every_byte_is_spelled_by_exactly_one_character_of_the_reference_alphabet() {
        let mut bytes: Vec<u8> = ByteLevel::alphabet()
            .into_iter()
            .map(|character| byte_of_char(character).expect("in the alphabet"))
            .collect();
        bytes.sort_unstable();
        assert_eq!(bytes, (0..=255).collect::<Vec<u8>>());
    }

    #[test]
    fn known_spellings() {
        assert_eq!(decode_token("Ġworld"), b" world");
        assert_eq!(decode_token("Ċ"), b"\n");
        assert_eq!(decode_token("Ã©"), "é".as_bytes());
        assert_eq!(
            decode_token("<｜end▁of▁sentence｜>"),
            "<｜end▁of▁sentence｜>".as_bytes()
        );
    }
}
