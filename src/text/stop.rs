//! Stop strings, found across the borders of tokens.
//!
//! One Knuth-Morris-Pratt automaton a stop string runs over the bytes of the text, so a push costs
//! its own length however long the stop strings are, and how the text was cut into pieces cannot
//! change where it ends. The first stop string to be complete wins; of two that end together, the
//! longer. Text is held back only while it may still be the start of a stop string.

/// Watches a text that arrives in pieces for the first of several stop strings.
#[derive(Clone, Debug)]
pub struct StopMatcher {
    automata: Vec<Automaton>,
    /// The text that may be the start of a stop string.
    held: String,
    stopped: bool,
}

/// What a piece of text led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StopOutcome {
    /// Text to pass on; perhaps empty.
    Text(String),
    /// A stop string is complete: the last text before it. Later pieces give an empty `Stopped`.
    Stopped(String),
}

impl StopMatcher {
    /// Empty stop strings are ignored.
    pub fn new(stops: Vec<String>) -> Self {
        let automata = stops
            .into_iter()
            .filter(|stop| !stop.is_empty())
            .map(Automaton::new);
        Self {
            automata: automata.collect(),
            held: String::new(),
            stopped: false,
        }
    }

    /// Takes the next piece of the text.
    pub fn push(&mut self, piece: &str) -> StopOutcome {
        if self.stopped {
            return StopOutcome::Stopped(String::new());
        }
        let num_held = self.held.len();
        self.held.push_str(piece);
        for (index, byte) in piece.bytes().enumerate() {
            if let Some(num_stop) = self.advance(byte) {
                self.stopped = true;
                self.held.truncate(num_held + index + 1 - num_stop);
                return StopOutcome::Stopped(std::mem::take(&mut self.held));
            }
        }
        let num_kept = self
            .automata
            .iter()
            .map(|automaton| automaton.num_matched)
            .max();
        let kept = self.held.split_off(self.held.len() - num_kept.unwrap_or(0));
        StopOutcome::Text(std::mem::replace(&mut self.held, kept))
    }

    /// The text has ended: what was held back is text after all.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Feeds every automaton; the length in bytes of the longest stop string that `byte` completes.
    fn advance(&mut self, byte: u8) -> Option<usize> {
        let complete = self
            .automata
            .iter_mut()
            .filter_map(|automaton| automaton.advance(byte));
        complete.max()
    }
}

#[derive(Clone, Debug)]
struct Automaton {
    stop: Box<[u8]>,
    /// `fallback[n]`: after `n + 1` matched bytes, how many of them are also the start of `stop`.
    fallback: Box<[usize]>,
    /// How many bytes of `stop` the text ends with.
    num_matched: usize,
}

impl Automaton {
    fn new(stop: String) -> Self {
        let stop = stop.into_bytes().into_boxed_slice();
        let mut fallback = vec![0; stop.len()];
        let mut num_matched = 0;
        for index in 1..stop.len() {
            while num_matched > 0 && stop[index] != stop[num_matched] {
                num_matched = fallback[num_matched - 1];
            }
            num_matched += usize::from(stop[index] == stop[num_matched]);
            fallback[index] = num_matched;
        }
        Self {
            stop,
            fallback: fallback.into_boxed_slice(),
            num_matched: 0,
        }
    }

    /// The stop string's length in bytes if `byte` completes it.
    fn advance(&mut self, byte: u8) -> Option<usize> {
        while self.num_matched > 0 && byte != self.stop[self.num_matched] {
            self.num_matched = self.fallback[self.num_matched - 1];
        }
        self.num_matched += usize::from(byte == self.stop[self.num_matched]);
        (self.num_matched == self.stop.len()).then_some(self.num_matched)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn matcher(stops: &[&str]) -> StopMatcher {
        StopMatcher::new(stops.iter().map(|stop| (*stop).to_string()).collect())
    }

    fn text(piece: &str) -> StopOutcome {
        StopOutcome::Text(piece.to_string())
    }

    /// The whole output for a text in pieces, and whether it was stopped.
    fn run(stops: &[String], pieces: &[String]) -> (String, bool) {
        let mut matcher = StopMatcher::new(stops.to_vec());
        let mut out = String::new();
        for piece in pieces {
            match matcher.push(piece) {
                StopOutcome::Text(text) => out.push_str(&text),
                StopOutcome::Stopped(text) => {
                    out.push_str(&text);
                    return (out, true);
                }
            }
        }
        out.push_str(&matcher.finish());
        (out, false)
    }

    /// The same by trying every end and every stop string on the joined text.
    fn run_naively(stops: &[String], joined: &str) -> (String, bool) {
        for end in joined.char_indices().map(|(start, c)| start + c.len_utf8()) {
            let found = stops
                .iter()
                .filter(|stop| joined[..end].ends_with(stop.as_str()));
            if let Some(longest) = found.map(|stop| stop.len()).max() {
                return (joined[..end - longest].to_string(), true);
            }
        }
        (joined.to_string(), false)
    }

    #[test]
    fn a_stop_string_across_pieces_is_never_emitted() {
        let mut matcher = matcher(&["\n\nUser:"]);
        assert_eq!(matcher.push("Fine.\n"), text("Fine."));
        assert_eq!(matcher.push("\nUs"), text(""));
        assert_eq!(
            matcher.push("er: next"),
            StopOutcome::Stopped(String::new())
        );
        assert_eq!(matcher.push("more"), StopOutcome::Stopped(String::new()));
        assert_eq!(matcher.finish(), "");
    }

    #[test]
    fn text_that_only_began_like_a_stop_string_is_let_go() {
        let mut matcher = matcher(&["aab"]);
        assert_eq!(matcher.push("xaa"), text("x"));
        assert_eq!(matcher.push("a"), text("a"));
        assert_eq!(matcher.push("c"), text("aac"));
        assert_eq!(matcher.push("aa"), text(""));
        assert_eq!(matcher.finish(), "aa");
    }

    #[test]
    fn the_first_complete_stop_string_wins_and_the_longer_of_two_that_end_together() {
        assert_eq!(
            matcher(&["abcd", "bc"]).push("zabcd"),
            StopOutcome::Stopped("za".to_string())
        );
        assert_eq!(
            matcher(&["c", "abc"]).push("zabc"),
            StopOutcome::Stopped("z".to_string())
        );
    }

    #[test]
    fn characters_that_share_their_first_byte_are_not_cut() {
        let mut matcher = matcher(&["è!"]);
        assert_eq!(matcher.push("é"), text("é"));
        assert_eq!(matcher.push("è"), text(""));
        assert_eq!(matcher.push("é"), text("èé"));
    }

    #[test]
    fn without_stop_strings_everything_passes_at_once() {
        assert_eq!(matcher(&[]).push("abc"), text("abc"));
        assert_eq!(matcher(&[""]).push("abc"), text("abc"));
    }

    proptest! {
        #[test]
        fn any_cut_gives_what_a_naive_search_on_the_joined_text_gives(
            stops in proptest::collection::vec("[abé]{1,5}", 0..4),
            pieces in proptest::collection::vec("[abcéè]{0,4}", 0..12),
        ) {
            prop_assert_eq!(run(&stops, &pieces), run_naively(&stops, &pieces.concat()));
        }

        #[test]
        fn no_more_is_held_back_than_may_become_a_stop_string(
            stops in proptest::collection::vec("[ab]{1,5}", 1..4),
            joined in "[abc]{0,20}",
        ) {
            let mut matcher = StopMatcher::new(stops.clone());
            if let StopOutcome::Text(out) = matcher.push(&joined) {
                let held = &joined[out.len()..];
                prop_assert!(held.is_empty() || stops.iter().any(|stop| stop.starts_with(held)));
            }
        }
    }
}
