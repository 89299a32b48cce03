//! The fields that say how to generate, the same for every generating endpoint, checked.

use std::time::Duration;

use serde_json::{Number, Value, json};

use super::error::ApiError;
use super::fields::{Field, Fields};
use super::openapi::schema::{
    Properties, boolean, decimal_pattern, described, integer, number, number_above, properties,
};
use super::prompt::{read_token_ids, token_ids_schema};
use super::state::AppState;
use crate::engine::{EngineError, Limits, SamplingParams, TokenId};

const MAX_STOP_STRINGS: usize = 16;
const MAX_STOP_CHARS: usize = 1024;
const MAX_BIASED_TOKENS: usize = 1024;

/// Where the generating endpoints differ.
#[derive(Clone, Copy, Debug)]
pub struct Dialect {
    /// The names of the field that bounds the output.
    pub max_tokens: &'static [&'static str],
    /// Output bound where none is asked for; `None` is the rest of the window.
    pub default_max_tokens: Option<usize>,
    /// Least output bound that may be asked for: 0 where the prompt itself is an answer.
    pub min_max_tokens: usize,
    pub default_temperature: f32,
}

/// How to generate.
#[derive(Clone, Debug)]
pub struct Options {
    pub max_tokens: MaxTokens,
    pub sampling: SamplingParams,
    /// Texts that end the generation and are not part of it.
    pub stop: Vec<String>,
    /// Tokens that end the generation, beside the model's own.
    pub stop_token_ids: Vec<TokenId>,
    pub ignore_eos: bool,
    /// Most time for waiting and generating, if not the server's own limit.
    pub timeout: Option<Duration>,
    /// Lower goes first.
    pub priority: i32,
}

/// The bound of the output.
#[derive(Clone, Debug, PartialEq)]
pub enum MaxTokens {
    /// By the field at this path.
    Asked(usize, String),
    /// Clipped to what the window leaves.
    AtMost(usize),
    RestOfWindow,
}

impl Options {
    /// Takes the sampling and length fields out of a body.
    ///
    /// # Errors
    /// A field has a wrong type or lies out of range.
    pub fn take(fields: &mut Fields, dialect: &Dialect, limits: &Limits) -> Result<Self, ApiError> {
        let max_tokens = match fields.take_alias(dialect.max_tokens)? {
            Some(field) => {
                let path = field.path.clone();
                let min = dialect.min_max_tokens;
                let expected = format!("a whole number, at least {min}");
                let tokens = field.read(&expected, |n: &usize| *n >= min)?;
                MaxTokens::Asked(tokens, path)
            }
            None => dialect
                .default_max_tokens
                .map_or(MaxTokens::RestOfWindow, MaxTokens::AtMost),
        };
        let logit_bias = fields.take_value("logit_bias");
        let logit_bias = logit_bias.map(|field| read_logit_bias(field, limits.vocab_size));
        let stop_token_ids = fields
            .take_value("stop_token_ids")
            .map(|field| read_token_ids(field, limits.vocab_size))
            .transpose()?
            .unwrap_or_default();
        Ok(Self {
            max_tokens,
            sampling: SamplingParams {
                logit_bias: logit_bias.transpose()?.unwrap_or_default(),
                ..take_sampling(fields, dialect.default_temperature)?
            },
            stop: fields
                .take_value("stop")
                .map_or(Ok(Vec::new()), read_stop_strings)?,
            stop_token_ids,
            ignore_eos: fields.take_flag("ignore_eos")?,
            timeout: take_timeout(fields, limits.request_timeout)?,
            priority: fields
                .take(
                    "priority",
                    "a whole number of 32 bits; lower goes first",
                    |_: &i32| true,
                )?
                .unwrap_or(0),
        })
    }
}

/// What [`Options::take`] takes. The bound of the output goes by the first of its names.
pub fn schema(dialect: &Dialect, state: &AppState) -> Properties {
    let vocab_size = state.limits.vocab_size;
    let most_tokens = state.limits.max_model_len - 1;
    let cap = state.served.http.max_output_tokens;
    let min_tokens = dialect.min_max_tokens as i64;
    let max_tokens = integer(min_tokens, cap.unwrap_or(most_tokens).min(most_tokens));
    let others = &dialect.max_tokens[1..];
    let also = match others {
        [] => String::new(),
        _ => format!("; it may be called {}", others.join(" or ")),
    };
    let penalty = || number(-2.0, 2.0);
    let stop = json!({"type": "string", "minLength": 1, "maxLength": MAX_STOP_CHARS});
    let stops = json!({"type": "array", "items": stop, "maxItems": MAX_STOP_STRINGS});
    let mut schema = properties([
        ("temperature", number(0.0, 2.0)),
        ("top_p", number_above(0.0, 1.0)),
        (
            "top_k",
            described(integer(-1, i64::MAX), "-1 and 0 keep all tokens"),
        ),
        ("min_p", number(0.0, 1.0)),
        (
            "seed",
            described(
                integer(i64::MIN, u64::MAX),
                "The same seed and the same request give the same tokens",
            ),
        ),
        ("repetition_penalty", number(0.01, 10.0)),
        ("presence_penalty", penalty()),
        ("frequency_penalty", penalty()),
        (
            "logit_bias",
            json!({
                "description": "Added to the logits of tokens, which are named by their ids",
                "type": "object",
                "propertyNames": {"pattern": decimal_pattern(vocab_size - 1)},
                "additionalProperties": number(-100.0, 100.0),
                "maxProperties": MAX_BIASED_TOKENS,
            }),
        ),
        (
            "stop",
            described(
                json!({"anyOf": [stop, stops]}),
                "Texts that end the generation and are not part of it",
            ),
        ),
        ("stop_token_ids", token_ids_schema(vocab_size)),
        ("ignore_eos", boolean()),
        (
            "timeout_ms",
            described(
                integer(1, state.limits.request_timeout.as_millis() as u64),
                "Most time for waiting and generating, if less than the server allows",
            ),
        ),
        (
            "priority",
            described(
                integer(i64::from(i32::MIN), i32::MAX),
                "The lower goes first",
            ),
        ),
    ]);
    let description = format!("Most tokens to generate{also}");
    let name = dialect.max_tokens[0].to_owned();
    schema.insert(name, described(max_tokens, &description));
    schema.insert(
        "model".to_owned(),
        json!({"const": state.served.model.name}),
    );
    schema
}

impl MaxTokens {
    /// The most tokens to generate after a prompt that came in the field `prompt_field`.
    ///
    /// # Errors
    /// Prompt, or prompt and output, do not fit into the window, or the output is longer than `cap`.
    pub fn resolve(
        &self,
        prompt_tokens: usize,
        prompt_field: &str,
        limits: &Limits,
        cap: Option<usize>,
    ) -> Result<usize, ApiError> {
        let cap = cap.unwrap_or(usize::MAX);
        let max_model_len = limits.max_model_len;
        let too_long = |field: &str, max_tokens| ApiError::Invalid {
            param: Some(field.to_owned()),
            message: EngineError::TooLong {
                prompt_tokens,
                max_tokens,
                max_model_len,
            }
            .to_string(),
            code: Some("context_length_exceeded"),
        };
        let room = max_model_len.saturating_sub(prompt_tokens);
        match self {
            Self::Asked(0, _) if prompt_tokens <= max_model_len => Ok(0),
            Self::Asked(tokens, _) if room == 0 => Err(too_long(prompt_field, *tokens)),
            _ if room == 0 => Err(too_long(prompt_field, 1)),
            Self::Asked(tokens, field) if *tokens > room => Err(too_long(field, *tokens)),
            Self::Asked(tokens, field) if *tokens > cap => {
                let message = format!("`{field}` must be at most {cap} on this server");
                Err(ApiError::invalid(field, message))
            }
            Self::Asked(tokens, _) => Ok(*tokens),
            Self::AtMost(tokens) => Ok(room.min(cap).min(*tokens)),
            Self::RestOfWindow => Ok(room.min(cap)),
        }
    }
}

/// A longer time than the server allows would be an empty promise.
fn take_timeout(fields: &mut Fields, longest: Duration) -> Result<Option<Duration>, ApiError> {
    let longest_ms = longest.as_millis();
    let expected = format!("a whole number from 1 to {longest_ms}, the server's REQUEST_TIMEOUT");
    let is_allowed = |ms: &u64| (1..=longest_ms).contains(&u128::from(*ms));
    let timeout_ms = fields.take("timeout_ms", &expected, is_allowed)?;
    Ok(timeout_ms.map(Duration::from_millis))
}

fn take_sampling(fields: &mut Fields, temperature: f32) -> Result<SamplingParams, ApiError> {
    let off = SamplingParams::default();
    let mut number = |name: &str, expected: &str, accept: fn(&f64) -> bool, default: f32| {
        let taken: Option<f64> = fields.take(name, expected, accept)?;
        Ok::<f32, ApiError>(taken.map_or(default, |number| number as f32))
    };
    const PENALTY: (&str, fn(&f64) -> bool) =
        ("a number from -2 to 2", |p| (-2.0..=2.0).contains(p));
    let params = SamplingParams {
        temperature: number(
            "temperature",
            "a number from 0 to 2",
            |t| (0.0..=2.0).contains(t),
            temperature,
        )?,
        top_p: number(
            "top_p",
            "a number above 0, at most 1",
            |p| *p > 0.0 && *p <= 1.0,
            off.top_p,
        )?,
        min_p: number(
            "min_p",
            "a number from 0 to 1",
            |p| (0.0..=1.0).contains(p),
            off.min_p,
        )?,
        repetition_penalty: number(
            "repetition_penalty",
            "a number from 0.01 to 10",
            |p| (0.01..=10.0).contains(p),
            off.repetition_penalty,
        )?,
        presence_penalty: number("presence_penalty", PENALTY.0, PENALTY.1, 0.0)?,
        frequency_penalty: number("frequency_penalty", PENALTY.0, PENALTY.1, 0.0)?,
        ..off
    };
    let top_k = fields.take(
        "top_k",
        "a whole number, or -1 for all tokens",
        |k: &i64| *k >= -1,
    )?;
    let seed = fields.take("seed", "a whole number", |seed: &Number| {
        seed.is_u64() || seed.is_i64()
    })?;
    Ok(SamplingParams {
        top_k: top_k.map_or(0, |k| usize::try_from(k).unwrap_or(0)),
        seed: seed.and_then(|seed| seed.as_u64().or(seed.as_i64().map(i64::cast_unsigned))),
        ..params
    })
}

/// An object of token ids, which JSON writes as strings, and what is added to their logits.
fn read_logit_bias(field: Field, vocab_size: usize) -> Result<Vec<(TokenId, f32)>, ApiError> {
    let Value::Object(entries) = &field.value else {
        return Err(field.invalid("an object of token ids and biases"));
    };
    if entries.len() > MAX_BIASED_TOKENS {
        return Err(field.invalid(&format!("an object of at most {MAX_BIASED_TOKENS} tokens")));
    }
    let mut biases: Vec<(TokenId, f32)> = Vec::with_capacity(entries.len());
    for (key, value) in entries {
        // As it is written without a sign or a zero in front, so that no two keys name one token.
        let id = key
            .parse()
            .ok()
            .filter(|id: &TokenId| (*id as usize) < vocab_size && id.to_string() == *key);
        let Some(id) = id else {
            let expected = format!("token ids from 0 to {}", vocab_size - 1);
            let message = format!("the keys of `{}` must be {expected}", field.path);
            return Err(ApiError::invalid(&field.path, message));
        };
        let entry = Field {
            path: format!("{}.{id}", field.path),
            value: value.clone(),
        };
        let bias = entry.read("a number from -100 to 100", |bias: &f32| {
            (-100.0..=100.0).contains(bias)
        })?;
        biases.push((id, bias));
    }
    Ok(biases)
}

fn read_stop_strings(field: Field) -> Result<Vec<String>, ApiError> {
    const EXPECTED: &str =
        "a string or a list of at most 16 strings, none empty or longer than 1024 characters";
    let strings = match &field.value {
        Value::String(one) => Some(vec![one.clone()]),
        Value::Array(many) => many
            .iter()
            .map(|entry| entry.as_str().map(str::to_owned))
            .collect(),
        _ => None,
    };
    strings
        .filter(|strings: &Vec<String>| {
            strings.len() <= MAX_STOP_STRINGS
                && strings
                    .iter()
                    .all(|stop| (1..=MAX_STOP_CHARS).contains(&stop.chars().count()))
        })
        .ok_or_else(|| field.invalid(EXPECTED))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIALECT: Dialect = Dialect {
        max_tokens: &["max_tokens", "max_new_tokens"],
        default_max_tokens: Some(16),
        min_max_tokens: 1,
        default_temperature: 1.0,
    };

    const LIMITS: Limits = Limits {
        max_model_len: 1000,
        vocab_size: 100,
        max_batch_size: 1,
        queue_max_size: 1,
        request_timeout: Duration::from_secs(30),
        stall_timeout: Duration::from_secs(30),
    };

    fn options(body: &str) -> Result<Options, ApiError> {
        let mut fields = Fields::parse(body.as_bytes()).expect("an object");
        let options = Options::take(&mut fields, &DIALECT, &LIMITS)?;
        fields.finish(&[])?;
        Ok(options)
    }

    #[test]
    fn every_field_acts() {
        let read = options(
            r#"{"max_new_tokens": 7, "temperature": 0.5, "top_k": 4, "top_p": 0.9, "min_p": 0.1,
                "seed": -1, "repetition_penalty": 1.1, "presence_penalty": 1, "stop": ["a", "b"],
                "frequency_penalty": -1, "stop_token_ids": [3], "ignore_eos": true,
                "logit_bias": {"5": -100, "99": 0.5}, "timeout_ms": 30000, "priority": -2}"#,
        )
        .expect("valid");
        assert_eq!(
            read.max_tokens,
            MaxTokens::Asked(7, "max_new_tokens".to_owned())
        );
        assert_eq!(
            read.sampling,
            SamplingParams {
                temperature: 0.5,
                top_k: 4,
                top_p: 0.9,
                min_p: 0.1,
                seed: Some(u64::MAX),
                repetition_penalty: 1.1,
                presence_penalty: 1.0,
                frequency_penalty: -1.0,
                logit_bias: vec![(5, -100.0), (99, 0.5)],
            }
        );
        assert_eq!(
            (read.stop, read.stop_token_ids, read.ignore_eos),
            (vec!["a".to_owned(), "b".to_owned()], vec![3], true)
        );
        assert_eq!(
            (read.timeout, read.priority),
            (Some(Duration::from_secs(30)), -2)
        );
    }

    #[test]
    fn defaults_are_the_dialects() {
        let read = options(r#"{"top_k": -1, "seed": null}"#).expect("valid");
        assert_eq!(read.max_tokens, MaxTokens::AtMost(16));
        let expected = SamplingParams {
            temperature: 1.0,
            ..SamplingParams::default()
        };
        assert_eq!(read.sampling, expected);
    }

    #[test]
    fn values_out_of_range_are_refused_by_name() {
        for (body, name) in [
            (r#"{"max_tokens": 0}"#, "max_tokens"),
            (r#"{"max_tokens": -5}"#, "max_tokens"),
            (r#"{"max_tokens": 1.5}"#, "max_tokens"),
            (
                r#"{"max_tokens": 1, "max_new_tokens": 1}"#,
                "max_new_tokens",
            ),
            (r#"{"temperature": 2.1}"#, "temperature"),
            (r#"{"temperature": "hot"}"#, "temperature"),
            (r#"{"top_p": 0}"#, "top_p"),
            (r#"{"top_k": -2}"#, "top_k"),
            (r#"{"min_p": 1.5}"#, "min_p"),
            (r#"{"seed": 1.5}"#, "seed"),
            (r#"{"repetition_penalty": 0}"#, "repetition_penalty"),
            (r#"{"presence_penalty": 3}"#, "presence_penalty"),
            (r#"{"frequency_penalty": 1e300}"#, "frequency_penalty"),
            (r#"{"logit_bias": [5]}"#, "logit_bias"),
            (r#"{"logit_bias": {"x": 1}}"#, "logit_bias"),
            (r#"{"logit_bias": {"100": 1}}"#, "logit_bias"),
            (r#"{"logit_bias": {"05": 1}}"#, "logit_bias"),
            (r#"{"logit_bias": {"5": 101}}"#, "logit_bias.5"),
            (r#"{"logit_bias": {"5": "1"}}"#, "logit_bias.5"),
            (r#"{"stop": ""}"#, "stop"),
            (r#"{"stop": ["a", 1]}"#, "stop"),
            (r#"{"stop_token_ids": [100]}"#, "stop_token_ids"),
            (r#"{"ignore_eos": 1}"#, "ignore_eos"),
            (r#"{"timeout_ms": 0}"#, "timeout_ms"),
            (r#"{"timeout_ms": 30001}"#, "timeout_ms"),
            (r#"{"timeout_ms": "1s"}"#, "timeout_ms"),
            (r#"{"priority": 0.5}"#, "priority"),
            (r#"{"priority": 2147483648}"#, "priority"),
        ] {
            match options(body).expect_err(body) {
                ApiError::Invalid { param, .. } => {
                    assert_eq!(param.as_deref(), Some(name), "{body}");
                }
                other => panic!("{body}: {other}"),
            }
        }
    }
}
