//! What a client may send as a prompt, and how it becomes token ids.

use serde_json::{Value, json};

use super::error::ApiError;
use super::fields::{Field, whole};
use super::openapi::schema::integer;
use crate::engine::TokenId;

/// Most prompts in one request; more belong into requests of their own.
const MAX_PROMPTS: usize = 128;

/// One prompt, as text or as token ids.
#[derive(Clone, Debug, PartialEq)]
pub enum Prompt {
    Text(String),
    Tokens(Vec<TokenId>),
}

impl Prompt {
    /// Reads a string, a list of token ids, or a list of either.
    ///
    /// # Errors
    /// It is something else, empty, or names a token outside the vocabulary.
    pub fn read(field: Field, vocab_size: usize) -> Result<Vec<Self>, ApiError> {
        const EXPECTED: &str =
            "a string, a list of token ids, or a list of at most 128 of either, none empty";
        match &field.value {
            Value::String(text) if !text.is_empty() => Ok(vec![Self::Text(text.clone())]),
            Value::Array(list) if list.first().is_some_and(Value::is_number) => {
                Ok(vec![Self::Tokens(read_token_ids(field, vocab_size)?)])
            }
            Value::Array(list) if (1..=MAX_PROMPTS).contains(&list.len()) => {
                let Value::Array(list) = field.value else {
                    unreachable!("bug: a list is no list");
                };
                list.into_iter()
                    .enumerate()
                    .map(|(index, value)| {
                        let path = format!("{}[{index}]", field.path);
                        Self::read_one(Field { path, value }, vocab_size)
                    })
                    .collect()
            }
            _ => Err(field.invalid(EXPECTED)),
        }
    }

    /// What [`Prompt::read`] takes.
    pub fn schema(vocab_size: usize) -> Value {
        Self::schema_of_at_most(MAX_PROMPTS, vocab_size)
    }

    /// One prompt, by itself or in a list.
    pub fn schema_of_one(vocab_size: usize) -> Value {
        Self::schema_of_at_most(1, vocab_size)
    }

    fn schema_of_at_most(max: usize, vocab_size: usize) -> Value {
        let mut token_ids = token_ids_schema(vocab_size);
        token_ids["minItems"] = json!(1);
        let one = json!({"anyOf": [{"type": "string", "minLength": 1}, token_ids]});
        // A list that begins with a number is one prompt of token ids.
        let several = json!({
            "type": "array", "items": one, "minItems": 1, "maxItems": max,
        });
        json!({"anyOf": [one, several]})
    }

    fn read_one(field: Field, vocab_size: usize) -> Result<Self, ApiError> {
        match field.value {
            Value::String(text) if !text.is_empty() => Ok(Self::Text(text)),
            Value::Array(ref list) if !list.is_empty() => {
                read_token_ids(field, vocab_size).map(Self::Tokens)
            }
            _ => Err(field.invalid("a string or a list of token ids, not empty")),
        }
    }

    /// Bytes of text that a tokenizer must read.
    pub fn text_bytes(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Tokens(_) => 0,
        }
    }
}

/// What [`read_token_ids`] takes.
pub fn token_ids_schema(vocab_size: usize) -> Value {
    json!({"type": "array", "items": integer(0, vocab_size - 1)})
}

/// Reads a list of token ids of the vocabulary.
///
/// # Errors
/// It is no such list.
pub fn read_token_ids(field: Field, vocab_size: usize) -> Result<Vec<TokenId>, ApiError> {
    let expected = || format!("a list of token ids from 0 to {}", vocab_size - 1);
    let Value::Array(list) = &field.value else {
        return Err(field.invalid(&expected()));
    };
    let id_of = |value: &Value| {
        let id = TokenId::try_from(whole(value).as_u64()?).ok()?;
        ((id as usize) < vocab_size).then_some(id)
    };
    list.iter()
        .map(|value| {
            id_of(value).ok_or_else(|| {
                let message = format!("`{}` must be {}; it holds {value}", field.path, expected());
                ApiError::invalid(&field.path, message)
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(value: Value) -> Result<Vec<Prompt>, ApiError> {
        let path = "prompt".to_owned();
        Prompt::read(Field { path, value }, 100)
    }

    #[test]
    fn all_four_shapes_are_read() {
        let text = |text: &str| Prompt::Text(text.to_owned());
        for (value, expected) in [
            (json!("a"), vec![text("a")]),
            (json!(["a", "b"]), vec![text("a"), text("b")]),
            (json!([1, 99]), vec![Prompt::Tokens(vec![1, 99])]),
            (
                json!([[1], [2, 3]]),
                vec![Prompt::Tokens(vec![1]), Prompt::Tokens(vec![2, 3])],
            ),
        ] {
            assert_eq!(read(value.clone()).expect("valid"), expected, "{value}");
        }
    }

    #[test]
    fn other_shapes_are_refused_where_they_are_wrong() {
        for (value, name) in [
            (json!(""), "prompt"),
            (json!([]), "prompt"),
            (json!(7), "prompt"),
            (json!({"text": "a"}), "prompt"),
            (json!([1, "a"]), "prompt"),
            (json!([100]), "prompt"),
            (json!([-1]), "prompt"),
            (json!([1.5]), "prompt"),
            (json!(vec!["a"; MAX_PROMPTS + 1]), "prompt"),
            (json!(["a", ""]), "prompt[1]"),
            (json!(["a", []]), "prompt[1]"),
            (json!([["b"]]), "prompt[0]"),
        ] {
            match read(value.clone()).expect_err(&value.to_string()) {
                ApiError::Invalid { param, .. } => {
                    assert_eq!(param.as_deref(), Some(name), "{value}");
                }
                other => panic!("{value}: {other}"),
            }
        }
    }
}
