//! Chat messages to the prompt that a model was trained on, by the Jinja template it brings.
//!
//! Renders byte for byte as transformers' `apply_chat_template`. The template comes with the model
//! and is untrusted: its steps, its calls' nesting and its output are limited here. Its memory, its
//! time and the depth of its values cannot be, since minijinja has no hook in joining two strings:
//! a [`worker`] is a process that renders for a server and can be lost.

mod folder;
mod json;
mod python;
#[cfg(test)]
mod tests;
pub mod worker;

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;

use jiff::Zoned;
use jiff::tz::TimeZone;
use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, Value};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

use super::TextError;
use json::to_value;

const MAX_SOURCE_BYTES: usize = 1 << 20;
/// More than any window holds.
const MAX_OUTPUT_BYTES: usize = 16 << 20;
/// Of what a template says of its failure.
const MAX_MESSAGE_BYTES: usize = 1000;
/// Instructions of one rendering; a long chat with tools takes some tens of thousands.
const MAX_STEPS: u64 = 500_000;
const NAME: &str = "chat_template";

/// A model's chat template, ready to render.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    special: SpecialTokens,
}

/// The special tokens that templates print, by their content.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpecialTokens {
    pub bos_token: Option<String>,
    pub eos_token: Option<String>,
    pub unk_token: Option<String>,
    pub pad_token: Option<String>,
}

impl ChatTemplate {
    /// Parses `source`; a syntax error names the line.
    pub fn new(source: &str, special: SpecialTokens) -> Result<Self, TextError> {
        Self::with_clock(source, special, || {
            Zoned::now().with_time_zone(TimeZone::UTC)
        })
    }

    /// The chat template of a Hugging Face folder: chat_template.jinja, or else `chat_template` in
    /// tokenizer_config.json or chat_template.json. `None` if it has none.
    pub fn find_in_folder(dir: &Path) -> Result<Option<String>, TextError> {
        folder::find_template(dir)
    }

    /// The prompt for `messages`, an array of message objects. `extra` are further variables of the
    /// template (`chat_template_kwargs`).
    pub fn render(
        &self,
        messages: &Json,
        tools: Option<&Json>,
        add_generation_prompt: bool,
        extra: &Map<String, Json>,
    ) -> Result<String, TextError> {
        let mut variables = self.special.variables();
        variables.extend(
            extra
                .iter()
                .map(|(name, value)| (name.as_str(), to_value(value))),
        );
        variables.insert("messages", to_value(&with_reasoning_aliases(messages)));
        variables.insert("tools", tools.map_or(Value::from(()), to_value));
        variables.insert("documents", Value::from(()));
        variables.insert("add_generation_prompt", Value::from(add_generation_prompt));
        render(&self.environment, Value::from_pairs(variables))
    }

    /// Whether it looks at the tools that a request brings.
    pub fn knows_tools(&self) -> bool {
        let template = self.environment.get_template(NAME);
        template.is_ok_and(|template| template.undeclared_variables(false).contains("tools"))
    }

    /// As [`Self::new`], with the time that `strftime_now` tells.
    fn with_clock(
        source: &str,
        special: SpecialTokens,
        clock: fn() -> Zoned,
    ) -> Result<Self, TextError> {
        if source.len() > MAX_SOURCE_BYTES {
            return Err(TextError::TemplateSyntax(format!(
                "it has {} bytes, and {MAX_SOURCE_BYTES} is the most that is taken",
                source.len()
            )));
        }
        let mut environment = Environment::new();
        environment.set_syntax(syntax()?);
        environment.set_fuel(Some(MAX_STEPS));
        environment.set_debug(false);
        environment.set_unknown_method_callback(python::call_method);
        environment.add_filter("tojson", json::tojson);
        environment.add_filter("trim", python::trim);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", move |format: &str| {
            strftime(format, &clock())
        });
        environment
            .add_template_owned(NAME, with_known_tags(source))
            .map_err(syntax_error)?;
        Ok(Self {
            environment,
            special,
        })
    }
}

fn render(environment: &Environment<'_>, variables: Value) -> Result<String, TextError> {
    let template = environment.get_template(NAME).map_err(failure)?;
    let mut output = LimitedOutput {
        bytes: Vec::new(),
        is_full: false,
    };
    let rendered = template
        .render_captured_to(variables, &mut output)
        .map(drop);
    if output.is_full {
        return Err(TextError::TemplateFailed(format!(
            "its output is longer than {MAX_OUTPUT_BYTES} bytes"
        )));
    }
    rendered.map_err(failure)?;
    String::from_utf8(output.bytes)
        .map_err(|_| TextError::TemplateFailed("its output is not UTF-8".to_string()))
}

impl SpecialTokens {
    /// Those that the model has; the others are undefined, as in transformers.
    fn variables(&self) -> BTreeMap<&str, Value> {
        let tokens = [
            ("bos_token", &self.bos_token),
            ("eos_token", &self.eos_token),
            ("unk_token", &self.unk_token),
            ("pad_token", &self.pad_token),
        ];
        let known = tokens
            .into_iter()
            .filter_map(|(name, token)| Some((name, token.as_ref()?)));
        known
            .map(|(name, token)| (name, Value::from(token.as_str())))
            .collect()
    }
}

/// The settings of transformers: a block tag on a line of its own leaves no trace of that line.
fn syntax() -> Result<SyntaxConfig, TextError> {
    SyntaxConfig::builder()
        .trim_blocks(true)
        .lstrip_blocks(true)
        .build()
        .map_err(syntax_error)
}

fn syntax_error(error: Error) -> TextError {
    TextError::TemplateSyntax(error.to_string())
}

/// A message's reasoning has several names in the wild; templates read the first or the second.
fn with_reasoning_aliases(messages: &Json) -> Json {
    let mut messages = messages.clone();
    for message in messages.as_array_mut().into_iter().flatten() {
        let Json::Object(fields) = message else {
            continue;
        };
        let names = ["reasoning_content", "thinking", "reasoning"];
        let reasoning = names
            .iter()
            .find_map(|name| fields.get(*name).filter(|v| !v.is_null()));
        if let Some(reasoning) = reasoning.cloned() {
            let mut aliased = Map::new();
            aliased.insert("thinking".to_string(), reasoning.clone());
            aliased.append(fields);
            aliased.insert("reasoning_content".to_string(), reasoning);
            *fields = aliased;
        }
    }
    messages
}

/// `{% generation %}` marks the assistant's words for training and prints its body; to us it is a
/// block with a scope of its own, which is what `{% with %}` is.
fn with_known_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start + 2);
        out.push_str(before);
        let word_start = tag.len() - tag.trim_start_matches(['-', '+']).trim_start().len();
        let (lead, word) = tag.split_at(word_start);
        out.push_str(lead);
        rest = word;
        for (from, to) in [("generation", "with"), ("endgeneration", "endwith")] {
            let Some(after) = word.strip_prefix(from) else {
                continue;
            };
            if after
                .trim_start()
                .trim_start_matches(['-', '+'])
                .starts_with("%}")
            {
                out.push_str(to);
                rest = after;
            }
        }
    }
    out.push_str(rest);
    out
}

/// Marks an error as the template's own verdict on the messages.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refusal(String);

fn raise_exception(message: String) -> Result<Value, Error> {
    let error = Error::new(ErrorKind::InvalidOperation, message.clone());
    Err(error.with_source(Refusal(message)))
}

fn strftime(format: &str, now: &Zoned) -> Result<String, Error> {
    jiff::fmt::strtime::format(format, now).map_err(|error| {
        Error::new(
            ErrorKind::InvalidOperation,
            format!("strftime_now: {error}"),
        )
    })
}

fn failure(error: Error) -> TextError {
    if error.kind() == ErrorKind::OutOfFuel {
        return TextError::TemplateFailed(format!("it took more than {MAX_STEPS} steps"));
    }
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(inner) = cause {
        if let Some(Refusal(message)) = inner.downcast_ref() {
            return TextError::TemplateRefused(cut(message));
        }
        cause = inner.source();
    }
    TextError::TemplateFailed(cut(&error.to_string()))
}

/// Its beginning, for a message may hold a value of any size.
fn cut(message: &str) -> String {
    let end = message.floor_char_boundary(MAX_MESSAGE_BYTES);
    message[..end].to_string()
}

struct LimitedOutput {
    bytes: Vec<u8>,
    is_full: bool,
}

impl Write for LimitedOutput {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        self.is_full |= self.bytes.len() + piece.len() > MAX_OUTPUT_BYTES;
        if self.is_full {
            return Err(io::Error::other("the limit is reached"));
        }
        self.bytes.extend_from_slice(piece);
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
