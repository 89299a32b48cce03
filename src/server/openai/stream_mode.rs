//! `stream` and `stream_options`.

use serde_json::{Value, json};

use crate::server::error::ApiError;
use crate::server::fields::{Fields, Off};
use crate::server::openapi::schema::{Properties, boolean, properties, request};

/// How the answer is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamMode {
    Whole,
    Stream(StreamUsage),
}

/// Where a stream tells what it costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamUsage {
    No,
    /// In a chunk of its own at the end.
    Last,
    /// In every chunk, what it has cost so far, and at the end. Not OpenAI's, but vLLM's: load
    /// generators count tokens by it as they come.
    Continuous,
}

/// What [`StreamMode::take`] takes, and what must hold between the two.
pub fn schema() -> (Properties, Value) {
    let flags = ["include_usage", "continuous_usage_stats"];
    let mut options = request(&[], properties(flags.map(|flag| (flag, boolean()))));
    options["anyOf"] = json!([
        {"required": ["include_usage"], "properties": {"include_usage": {"const": true}}},
        {"properties": {"continuous_usage_stats": {"enum": [false, null]}}},
    ]);
    let fields = properties([("stream", boolean()), ("stream_options", options)]);
    let rule = json!({"anyOf": [
        {"required": ["stream"], "properties": {"stream": {"const": true}}},
        {"properties": {"stream_options": {"type": "null"}}},
    ]});
    (fields, rule)
}

impl StreamMode {
    /// Takes both fields.
    ///
    /// # Errors
    /// A wrong type, an option that is not supported, or options without a stream.
    pub fn take(fields: &mut Fields) -> Result<Self, ApiError> {
        let stream = fields.take_flag("stream")?;
        let Some(mut options) = fields.take_object("stream_options")? else {
            return Ok(match stream {
                true => Self::Stream(StreamUsage::No),
                false => Self::Whole,
            });
        };
        let include_usage = options.take_flag("include_usage")?;
        let continuous = options.take_flag("continuous_usage_stats")?;
        options.finish(&[("include_obfuscation", &[Off::False])])?;
        if !stream {
            let message = "`stream_options` is only for `stream: true`";
            return Err(ApiError::invalid("stream_options", message));
        }
        match (include_usage, continuous) {
            (false, false) => Ok(Self::Stream(StreamUsage::No)),
            (true, false) => Ok(Self::Stream(StreamUsage::Last)),
            (true, true) => Ok(Self::Stream(StreamUsage::Continuous)),
            (false, true) => {
                let field = "stream_options.continuous_usage_stats";
                let message = format!("`{field}` is only for `include_usage: true`");
                Err(ApiError::invalid(field, message))
            }
        }
    }
}
