//! Merges of a SentencePiece BPE model, which stores a score for each piece and no merges.
//!
//! The reference encoder joins the two neighbours whose joint piece has the best score; as
//! transformers' converter does, that becomes a list of merges: each way to cut a piece into two
//! pieces, best score first.

use tokenizers::models::bpe::{Merges, Vocab};

use super::TextError;

/// A space, as pieces spell it.
pub(super) const SPACE: char = '▁';

/// Longer pieces are refused: each byte of a piece is a place to cut it.
const MAX_PIECE_BYTES: usize = 1024;

/// The merges of ordinary pieces, given as (piece, id, score) in the order of their ids.
pub(super) fn merges_from_scores(
    pieces: &[(&str, u32, f32)],
    vocab: &Vocab,
) -> Result<Merges, TextError> {
    let mut scored = Vec::new();
    for &(piece, id, score) in pieces {
        if piece.len() > MAX_PIECE_BYTES {
            return Err(TextError::BadVocabulary(format!(
                "piece {id} has {} bytes, and {MAX_PIECE_BYTES} is the most that is taken",
                piece.len()
            )));
        }
        scored.extend(cuts(piece, vocab).into_iter().map(|cut| (score, cut)));
    }
    // Stable, so that cuts alike in all three stay in the order of ids.
    scored.sort_by(
        |(score_a, (left_a, right_a)), (score_b, (left_b, right_b))| {
            let lengths = |left: &str, right: &str| (left.chars().count(), right.chars().count());
            score_b
                .total_cmp(score_a)
                .then(lengths(left_b, right_b).cmp(&lengths(left_a, right_a)))
        },
    );
    Ok(scored
        .into_iter()
        .map(|(_, (l, r))| (l.to_string(), r.to_string()))
        .collect())
}

/// Every way to cut `piece` into two pieces of the vocabulary, in the order of their ids.
fn cuts<'p>(piece: &'p str, vocab: &Vocab) -> Vec<(&'p str, &'p str)> {
    let inner_borders = piece.char_indices().map(|(index, _)| index).skip(1);
    let mut found: Vec<_> = inner_borders
        .filter_map(|index| {
            let (left, right) = piece.split_at(index);
            Some(((*vocab.get(left)?, *vocab.get(right)?), (left, right)))
        })
        .collect();
    found.sort_by_key(|(ids, _)| *ids);
    found.into_iter().map(|(_, cut)| cut).collect()
}

/// The byte that a piece such as `<0x0A>` stands for.
pub(super) fn byte_of_piece(piece: &str) -> Option<u8> {
    let digits = piece.strip_prefix("<0x")?.strip_suffix('>')?;
    let is_hex = digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    if is_hex {
        u8::from_str_radix(digits, 16).ok()
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merges(pieces: &[(&str, u32, f32)]) -> Result<Vec<String>, TextError> {
        let vocab = pieces
            .iter()
            .map(|&(piece, id, _)| (piece.to_string(), id))
            .collect();
        let merges = merges_from_scores(pieces, &vocab)?;
        Ok(merges
            .into_iter()
            .map(|(left, right)| format!("{left}+{right}"))
            .collect())
    }

    #[test]
    fn the_best_score_comes_first_and_each_cut_of_a_piece_is_a_merge() {
        let pieces = [
            ("a", 0, -9.0),
            ("b", 1, -9.0),
            ("ab", 2, -2.0),
            ("ba", 3, -1.0),
            ("aba", 4, -3.0),
        ];
        assert_eq!(
            merges(&pieces).expect("merges"),
            ["b+a", "a+b", "ab+a", "a+ba"]
        );
    }

    #[test]
    fn a_huge_piece_is_refused() {
        let huge = "a".repeat(MAX_PIECE_BYTES + 1);
        let error = merges(&[(&huge, 7, 0.0)])
            .expect_err("too long")
            .to_string();
        assert!(error.contains("piece 7 has 1025 bytes"), "{error}");
    }

    #[test]
    fn byte_pieces_are_two_hexadecimal_digits() {
        assert_eq!(byte_of_piece("<0x0A>"), Some(10));
        assert_eq!(byte_of_piece("<0xff>"), Some(255));
        for piece in ["<0x+1>", "<0x1>", "<0x100>", "0x10", "<0xé>"] {
            assert_eq!(byte_of_piece(piece), None, "{piece}");
        }
    }
}
