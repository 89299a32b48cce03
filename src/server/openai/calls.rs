//! The tool calls in an answer, as OpenAI writes them.

use serde::Serialize;
use uuid::Uuid;

use crate::text::{ToolCall, ToolCallParser};

/// Reads one choice of a chat with tools.
#[derive(Clone, Debug)]
pub struct CallReader {
    parser: ToolCallParser,
    one_call: bool,
    num_calls: usize,
}

/// What a piece of an answer adds.
#[derive(Debug, Default)]
pub struct Heard {
    pub text: String,
    pub calls: Vec<Call>,
}

/// One entry of `tool_calls`.
#[derive(Debug, Serialize)]
pub struct Call {
    /// Its place among those of the choice; only chunks tell it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub index: Option<usize>,
    id: String,
    r#type: &'static str,
    function: Function,
}

#[derive(Debug, Serialize)]
struct Function {
    name: String,
    /// A JSON object, as text.
    arguments: String,
}

impl CallReader {
    /// With `one_call`, calls after the first are left out.
    pub fn new(one_call: bool) -> Self {
        Self {
            parser: ToolCallParser::default(),
            one_call,
            num_calls: 0,
        }
    }

    pub fn has_calls(&self) -> bool {
        self.num_calls > 0
    }

    /// The next piece of the answer.
    pub fn read(&mut self, text: &str, is_last: bool) -> Heard {
        let mut heard = Heard::default();
        let mut parts = vec![self.parser.push(text)];
        if is_last {
            parts.push(self.parser.finish());
        }
        for part in parts {
            heard.text += &part.text;
            for call in part.calls {
                if !(self.one_call && self.has_calls()) {
                    heard.calls.push(Call::new(self.num_calls, call));
                    self.num_calls += 1;
                }
            }
        }
        heard
    }
}

impl Call {
    fn new(index: usize, call: ToolCall) -> Self {
        Self {
            index: Some(index),
            id: format!("call_{}", Uuid::new_v4().simple()),
            r#type: "function",
            function: Function {
                name: call.name,
                arguments: call.arguments,
            },
        }
    }
}
