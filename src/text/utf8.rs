//! Bytes in, whole characters out: the part of a character that has not arrived yet waits.

/// How bytes that are no UTF-8 are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Invalid {
    /// One U+FFFD for each broken sequence, as `String::from_utf8_lossy` and byte-level decoders.
    PerSequence,
    /// One U+FFFD for each byte, as SentencePiece.
    PerByte,
}

/// Decodes a stream of bytes; the output does not depend on how the stream is cut.
#[derive(Clone, Debug)]
pub(super) struct Utf8Stream {
    /// At most 3 bytes: a character that may still become whole.
    pending: Vec<u8>,
    invalid: Invalid,
}

impl Utf8Stream {
    pub(super) fn new(invalid: Invalid) -> Self {
        Self {
            pending: Vec::new(),
            invalid,
        }
    }

    /// Appends to `out` what `bytes` completes.
    pub(super) fn push(&mut self, bytes: &[u8], out: &mut String) {
        if self.pending.is_empty() {
            self.decode(bytes, out);
        } else {
            let mut joined = std::mem::take(&mut self.pending);
            joined.extend_from_slice(bytes);
            self.decode(&joined, out);
        }
    }

    /// Appends to `out` what stands for a character that never became whole.
    pub(super) fn finish(&mut self, out: &mut String) {
        let num_bytes = std::mem::take(&mut self.pending).len();
        self.replace(num_bytes, out);
    }

    fn decode(&mut self, mut bytes: &[u8], out: &mut String) {
        loop {
            let error = match std::str::from_utf8(bytes) {
                Ok(text) => return out.push_str(text),
                Err(error) => error,
            };
            let (valid, rest) = bytes.split_at(error.valid_up_to());
            out.push_str(&String::from_utf8_lossy(valid));
            let Some(num_invalid) = error.error_len() else {
                self.pending = rest.to_vec();
                return;
            };
            self.replace(num_invalid, out);
            bytes = &rest[num_invalid..];
        }
    }

    fn replace(&self, num_bytes: usize, out: &mut String) {
        let count = match self.invalid {
            Invalid::PerSequence => num_bytes.min(1),
            Invalid::PerByte => num_bytes,
        };
        out.extend(std::iter::repeat_n(char::REPLACEMENT_CHARACTER, count));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decode_in_pieces(bytes: &[u8], piece: usize, invalid: Invalid) -> String {
        let mut stream = Utf8Stream::new(invalid);
        let mut out = String::new();
        for chunk in bytes.chunks(piece) {
            stream.push(chunk, &mut out);
        }
        stream.finish(&mut out);
        out
    }

    #[test]
    fn broken_bytes_are_replaced_one_for_each_sequence_or_each_byte() {
        let bytes = [b'a', 0xe5, 0x8f, b'b', 0xff, 0xe5];
        assert_eq!(
            decode_in_pieces(&bytes, 1, Invalid::PerSequence),
            "a\u{fffd}b\u{fffd}\u{fffd}"
        );
        assert_eq!(
            decode_in_pieces(&bytes, 1, Invalid::PerByte),
            "a\u{fffd}\u{fffd}b\u{fffd}\u{fffd}"
        );
    }

    proptest! {
        #[test]
        fn pieces_of_any_size_give_what_the_standard_library_gives(
            bytes in proptest::collection::vec(any::<u8>(), 0..40),
            text in any::<String>(),
            piece in 1usize..6,
        ) {
            let mixed = [text.as_bytes(), &bytes, text.as_bytes()].concat();
            let expected = String::from_utf8_lossy(&mixed);
            prop_assert_eq!(decode_in_pieces(&mixed, piece, Invalid::PerSequence), expected);
        }
    }
}
