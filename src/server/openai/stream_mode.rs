//! `stream` and `stream_options`.

use serde_json::{Value, json};

use crate::server::error::ApiError;
use crate::server::fields::{Fields, Off};
use crate::server::openapi::schema::{Properties, boolean, properties, request};

/// How the answer is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamMode {
    Whole,
    Stream { include_usage: bool },
}

/// What [`StreamMode::take`] takes, and what must hold between the two.
pub fn schema() -> (Properties, Value) {
    let options = request(&[], properties([("include_usage", boolean())]));
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
                true => Self::Stream {
                    include_usage: false,
                },
                false => Self::Whole,
            });
        };
        let include_usage = options.take_flag("include_usage")?;
        options.finish(&[
            ("include_obfuscation", &[Off::False]),
            ("continuous_usage_stats", &[Off::False]),
        ])?;
        if !stream {
            let message = "`stream_options` is only for `stream: true`";
            return Err(ApiError::invalid("stream_options", message));
        }
        Ok(Self::Stream { include_usage })
    }
}
