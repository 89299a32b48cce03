//! Calls of tools in a model's answer, in the form that Hermes began and Qwen's templates teach:
//!
//! ```text
//! <tool_call>
//! {"name": "get_weather", "arguments": {"place": "Zürich"}}
//! </tool_call>
//! ```

use serde::Deserialize;
use serde_json::value::RawValue;

/// A template that teaches this form holds it.
pub const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";

/// What the model wants to be called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToolCall {
    pub name: String,
    /// A JSON object, as the model wrote it.
    pub arguments: String,
}

/// What an answer says, and what it calls.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spoken {
    pub text: String,
    pub calls: Vec<ToolCall>,
}

/// Takes an answer piece by piece, and parts its text from its calls. What is no call stays text, to
/// the character; whitespace beside a call is the form's and goes with it.
#[derive(Clone, Debug, Default)]
pub struct ToolCallParser {
    /// Whitespace, a beginning of a call, or what may become one.
    held: String,
    /// A call was the last that came.
    is_after_call: bool,
}

#[derive(Deserialize)]
struct Call<'a> {
    name: String,
    #[serde(borrow)]
    arguments: &'a RawValue,
}

impl ToolCallParser {
    /// What is certain with another piece of the answer.
    pub fn push(&mut self, text: &str) -> Spoken {
        self.held += text;
        let mut spoken = Spoken::default();
        while self.advance(&mut spoken, false) {}
        spoken
    }

    /// The rest, when the answer is complete. A last call that was not closed is one if it is whole.
    pub fn finish(&mut self) -> Spoken {
        let mut spoken = Spoken::default();
        while self.advance(&mut spoken, true) {}
        spoken
    }

    /// Passes on the text up to a call, and that call; whether there may be more.
    fn advance(&mut self, spoken: &mut Spoken, is_last: bool) -> bool {
        let mut held = std::mem::take(&mut self.held);
        let Some(start) = held.find(OPEN) else {
            let end = if is_last { held.len() } else { certain(&held) };
            let is_beside_call = self.is_after_call && held[..end].trim().is_empty();
            if !(is_last && is_beside_call) {
                self.say(spoken, &held[..end]);
            }
            held.drain(..end);
            self.held = held;
            return false;
        };
        let before = held[..start].trim_end().len();
        let body = start + OPEN.len();
        let (body_end, end) = match held[body..].find(CLOSE) {
            Some(length) => (body + length, body + length + CLOSE.len()),
            None if is_last => (held.len(), held.len()),
            None => {
                self.say(spoken, &held[..before]);
                held.drain(..before);
                self.held = held;
                return false;
            }
        };
        match parse(&held[body..body_end]) {
            Some(call) => {
                self.say(spoken, &held[..before]);
                spoken.calls.push(call);
                self.is_after_call = true;
            }
            None => self.say(spoken, &held[..end]),
        }
        held.drain(..end);
        self.held = held;
        true
    }

    fn say(&mut self, spoken: &mut Spoken, text: &str) {
        if !text.is_empty() {
            spoken.text += text;
            self.is_after_call = false;
        }
    }
}

/// The length of what can be no part of a call: all but the beginning of a tag at the end, and the
/// whitespace before it.
fn certain(text: &str) -> usize {
    let starts = (1..OPEN.len()).rev().map(|length| &OPEN[..length]);
    let tag = starts.into_iter().find(|start| text.ends_with(start));
    let end = text.len() - tag.map_or(0, str::len);
    text[..end].trim_end().len()
}

fn parse(body: &str) -> Option<ToolCall> {
    let call: Call = serde_json::from_str(body.trim()).ok()?;
    let arguments = call.arguments.get();
    (arguments.starts_with('{') && !call.name.is_empty()).then(|| ToolCall {
        name: call.name,
        arguments: arguments.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn spoken(pieces: &[&str]) -> Spoken {
        let mut parser = ToolCallParser::default();
        let mut whole = Spoken::default();
        let mut add = |part: Spoken| {
            whole.text += &part.text;
            whole.calls.extend(part.calls);
        };
        for piece in pieces {
            add(parser.push(piece));
        }
        add(parser.finish());
        whole
    }

    fn call(name: &str, arguments: &str) -> ToolCall {
        ToolCall {
            name: name.to_owned(),
            arguments: arguments.to_owned(),
        }
    }

    #[test]
    fn text_and_calls_are_parted_and_the_whitespace_between_is_nobodys() {
        let answer = "I look.\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\":  1.0}}\n</tool_call>\n\
                      <tool_call>{\"arguments\": {}, \"name\": \"g\"}</tool_call>\n";
        let spoken = spoken(&[answer]);
        assert_eq!(spoken.text, "I look.");
        assert_eq!(spoken.calls, [call("f", "{\"a\":  1.0}"), call("g", "{}")]);
    }

    #[test]
    fn text_comes_as_soon_as_it_is_certain_and_a_call_when_it_is_closed() {
        let mut parser = ToolCallParser::default();
        assert_eq!(parser.push("Hi ").text, "Hi");
        assert_eq!(parser.push("you <b> <").text, " you <b>");
        assert_eq!(parser.push("tool").text, "");
        assert_eq!(parser.push("box> ").text, " <toolbox>");
        assert_eq!(
            parser.push("<tool_call>{\"name\": \"f\", \"arg"),
            Spoken::default()
        );
        assert_eq!(
            parser.push("uments\": {}}</tool_call>").calls,
            [call("f", "{}")]
        );
        assert_eq!(parser.push("\n").text, "");
        assert_eq!(parser.push("Done. ").text, "\nDone.");
        assert_eq!(parser.finish().text, " ");
    }

    #[test]
    fn what_is_no_call_stays_text_to_the_character() {
        for text in [
            " <tool_call>\n{\"name\": \"f\"}\n</tool_call> ",
            "<tool_call>{\"name\": \"f\", \"arguments\": [1]}</tool_call>",
            "<tool_call>{\"name\": \"\", \"arguments\": {}}</tool_call>",
            "<tool_call>f(1)</tool_call> and so on",
            "a </tool_call> without a beginning",
            "<tool_call> \n {\"name\": \"f\", \"argum",
            "1 < 2 <tool_call",
            " \n ",
        ] {
            let spoken = spoken(&[text]);
            assert_eq!((spoken.text.as_str(), &spoken.calls[..]), (text, &[][..]));
        }
    }

    #[test]
    fn a_last_call_need_not_be_closed() {
        let spoken = spoken(&["<tool_call>\n{\"name\": \"f\", \"arguments\": {}}\n"]);
        assert_eq!((spoken.text.as_str(), spoken.calls.len()), ("", 1));
    }

    fn fragment() -> impl Strategy<Value = &'static str> {
        prop::sample::select(vec![
            "<tool_call>",
            "</tool_call>",
            "{\"name\": \"f\", \"arguments\": {\"a\": \"é\"}}",
            "{\"name\": 1}",
            "\n",
            " ",
            "é",
            "<",
            "tool_call>",
            "text",
        ])
    }

    proptest! {
        #[test]
        fn the_pieces_that_an_answer_comes_in_make_no_difference(
            fragments in prop::collection::vec(fragment(), 0..16),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
        ) {
            let answer = fragments.concat();
            let mut cuts: Vec<usize> = cuts
                .iter()
                .map(|cut| answer.floor_char_boundary(cut.index(answer.len() + 1)))
                .collect();
            cuts.extend([0, answer.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&str> = cuts.windows(2).map(|cut| &answer[cut[0]..cut[1]]).collect();
            prop_assert_eq!(spoken(&pieces), spoken(&[&answer]));
        }
    }
}
