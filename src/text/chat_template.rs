//! Chat messages to the prompt that a model was trained on, by the Jinja template it brings.
//!
//! Renders byte for byte as transformers' `apply_chat_template`. The template comes with the model
//! and is untrusted: its time, steps, nesting and output are limited, and it runs on a thread of its
//! own whose stack holds the deepest value that its steps can build. One thing stays unlimited, since
//! minijinja has no hook for it: the memory of a single operation, such as joining two long strings.

mod folder;
mod json;
mod python;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use jiff::Zoned;
use jiff::tz::TimeZone;
use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, Value};
use serde_json::{Map, Value as Json};

use super::TextError;
use json::to_value;

const MAX_SOURCE_BYTES: usize = 1 << 20;
const MAX_OUTPUT_BYTES: usize = 64 << 20;
/// Instructions of one rendering; a long chat with tools takes some tens of thousands.
const MAX_STEPS: u64 = 500_000;
/// Time of one rendering: a chat as long as a body may be takes some milliseconds.
const MAX_TIME: Duration = Duration::from_secs(5);
/// Values nest by at most one level every few steps, and minijinja drops, compares and prints them
/// recursively. Only the pages that are touched cost memory.
const STACK_BYTES: usize = 512 << 20;
const NAME: &str = "chat_template";

/// A model's chat template, ready to render. Shared by all requests.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Arc<Environment<'static>>,
    special: SpecialTokens,
    max_time: Duration,
}

/// The special tokens that templates print, by their content.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
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
        self.render_on_own_stack(Value::from_pairs(variables))
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
            environment: Arc::new(environment),
            special,
            max_time: MAX_TIME,
        })
    }

    /// Gives up a rendering that takes too long. Its thread then ends when it next writes, or has no
    /// steps left.
    fn render_on_own_stack(&self, variables: Value) -> Result<String, TextError> {
        let (sender, rendered) = mpsc::sync_channel(1);
        let environment = self.environment.clone();
        let deadline = Instant::now() + self.max_time;
        thread::Builder::new()
            .name("chat-template".to_string())
            .stack_size(STACK_BYTES)
            .spawn(move || {
                // Nobody listens any more if it took too long.
                let _ = sender.send(render(&environment, variables, deadline));
            })
            .map_err(|error| TextError::TemplateFailed(format!("no thread for it: {error}")))?;
        match rendered.recv_timeout(self.max_time) {
            Ok(rendered) => rendered,
            Err(RecvTimeoutError::Timeout) => Err(too_slow()),
            Err(RecvTimeoutError::Disconnected) => Err(TextError::TemplateFailed(
                "its rendering panicked".to_string(),
            )),
        }
    }
}

fn render(
    environment: &Environment<'_>,
    variables: Value,
    deadline: Instant,
) -> Result<String, TextError> {
    let template = environment.get_template(NAME).map_err(failure)?;
    let mut output = LimitedOutput {
        bytes: Vec::new(),
        deadline,
        stopped_by: None,
    };
    let rendered = template
        .render_captured_to(variables, &mut output)
        .map(drop);
    match output.stopped_by {
        Some(Limit::Time) => return Err(too_slow()),
        Some(Limit::Output) => {
            return Err(TextError::TemplateFailed(format!(
                "its output is longer than {MAX_OUTPUT_BYTES} bytes"
            )));
        }
        None => rendered.map_err(failure)?,
    }
    String::from_utf8(output.bytes)
        .map_err(|_| TextError::TemplateFailed("its output is not UTF-8".to_string()))
}

fn too_slow() -> TextError {
    TextError::TemplateFailed("it took too long".to_string())
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
            return TextError::TemplateRefused(message.clone());
        }
        cause = inner.source();
    }
    TextError::TemplateFailed(error.to_string())
}

#[derive(Clone, Copy, Debug)]
enum Limit {
    Time,
    Output,
}

struct LimitedOutput {
    bytes: Vec<u8>,
    deadline: Instant,
    stopped_by: Option<Limit>,
}

impl Write for LimitedOutput {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + piece.len() > MAX_OUTPUT_BYTES {
            self.stopped_by.get_or_insert(Limit::Output);
        }
        if Instant::now() > self.deadline {
            self.stopped_by.get_or_insert(Limit::Time);
        }
        if self.stopped_by.is_some() {
            return Err(io::Error::other("a limit is reached"));
        }
        self.bytes.extend_from_slice(piece);
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
