//! Reads a JSON object field by field, so that nothing a client sends is silently ignored: a field
//! is taken by the endpoint, or known and switched off, or refused by its name.

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::error::ApiError;

/// Most fields of one object: they are searched one by one.
const MAX_FIELDS: usize = 128;

/// The fields of a body that are not taken yet.
#[derive(Debug)]
pub struct Fields {
    entries: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    name: String,
    /// Where the field stands in the body, such as `parameters.top_p`.
    path: String,
    value: Value,
}

/// A field that was sent, with its place in the body.
#[derive(Debug)]
pub struct Field {
    pub path: String,
    pub value: Value,
}

/// A value that asks for nothing, so that a field we do not support may carry it.
#[derive(Clone, Copy, Debug)]
pub enum Off {
    /// `false`.
    False,
    /// `true`, for a field that switches something off by `false`.
    True,
    Number(i64),
    /// An empty string, list or object.
    Empty,
    Text(&'static str),
    /// An object whose `type` is `text`.
    TypeText,
    /// The list `["text"]`.
    TextOnly,
    /// The field is a note for logs and bills and changes no answer.
    Anything,
}

impl Off {
    fn covers(self, value: &Value) -> bool {
        match self {
            Self::False => value == &Value::Bool(false),
            Self::True => value == &Value::Bool(true),
            Self::Number(number) => value.as_f64() == Some(number as f64),
            Self::Empty => match value {
                Value::String(text) => text.is_empty(),
                Value::Array(list) => list.is_empty(),
                Value::Object(map) => map.is_empty(),
                _ => false,
            },
            Self::Text(text) => value.as_str() == Some(text),
            Self::TypeText => value.get("type").and_then(Value::as_str) == Some("text"),
            Self::TextOnly => {
                matches!(value.as_array().map(Vec::as_slice), Some([one]) if one == "text")
            }
            Self::Anything => true,
        }
    }
}

impl Fields {
    /// Reads the body of a request.
    ///
    /// # Errors
    /// The body is no JSON, or no object.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let value = serde_json::from_slice(body)
            .map_err(|error| of_body(format!("the body is not valid JSON: {error}")))?;
        Self::of_object(Field {
            path: String::new(),
            value,
        })
    }

    /// The fields of an object.
    ///
    /// # Errors
    /// It is no object, or has more fields than any endpoint.
    pub fn of_object(field: Field) -> Result<Self, ApiError> {
        let Field { path, value } = field;
        match value {
            Value::Object(map) if map.len() <= MAX_FIELDS => {
                let entries = map.into_iter().map(|(name, value)| Entry {
                    path: match path.as_str() {
                        "" => brief_name(&name),
                        _ => format!("{path}.{}", brief_name(&name)),
                    },
                    name,
                    value,
                });
                Ok(Self {
                    entries: entries.collect(),
                })
            }
            value if path.is_empty() => Err(of_body(format!(
                "the body must be a JSON object of at most {MAX_FIELDS} fields, not {}",
                brief(&value)
            ))),
            value => {
                let expected = format!("an object of at most {MAX_FIELDS} fields");
                Err(Field { path, value }.invalid(&expected))
            }
        }
    }

    /// The value of a field as it was sent; `null` is as good as absent.
    pub fn take_value(&mut self, name: &str) -> Option<Field> {
        let index = self.entries.iter().position(|entry| entry.name == name)?;
        let Entry { path, value, .. } = self.entries.remove(index);
        (!value.is_null()).then_some(Field { path, value })
    }

    /// The value of a field that goes by several names.
    ///
    /// # Errors
    /// More than one of the names was sent.
    pub fn take_alias(&mut self, names: &[&str]) -> Result<Option<Field>, ApiError> {
        let mut found: Option<Field> = None;
        for name in names {
            let Some(field) = self.take_value(name) else {
                continue;
            };
            if let Some(first) = &found {
                let message = format!("send `{}` or `{}`, not both", first.path, field.path);
                return Err(ApiError::invalid(field.path, message));
            }
            found = Some(field);
        }
        Ok(found)
    }

    /// A field of type `T` that `accept` likes. `expected` says in words what that is.
    ///
    /// # Errors
    /// The field has another type or value.
    pub fn take<T: DeserializeOwned>(
        &mut self,
        name: &str,
        expected: &str,
        accept: impl Fn(&T) -> bool,
    ) -> Result<Option<T>, ApiError> {
        self.take_value(name)
            .map(|field| field.read(expected, accept))
            .transpose()
    }

    /// A field that is true or false; false if it is absent.
    ///
    /// # Errors
    /// The field has another type.
    pub fn take_flag(&mut self, name: &str) -> Result<bool, ApiError> {
        let flag = self.take(name, "true or false", |_: &bool| true)?;
        Ok(flag.unwrap_or(false))
    }

    /// A field that is an object, as fields of its own.
    ///
    /// # Errors
    /// The field has another type.
    pub fn take_object(&mut self, name: &str) -> Result<Option<Self>, ApiError> {
        self.take_value(name).map(Self::of_object).transpose()
    }

    /// Takes over the fields of another object as if they stood in this one.
    ///
    /// # Errors
    /// A field stands in both.
    pub fn absorb(&mut self, other: Self) -> Result<(), ApiError> {
        for entry in other.entries {
            if let Some(ours) = self.entries.iter().find(|ours| ours.name == entry.name) {
                let message = format!("send `{}` or `{}`, not both", ours.path, entry.path);
                return Err(ApiError::invalid(entry.path, message));
            }
            self.entries.push(entry);
        }
        Ok(())
    }

    /// Ends the reading: every field left must be one of `unsupported`, with a value that is off.
    ///
    /// # Errors
    /// A field is unknown, or asks for something that this server does not do.
    pub fn finish(self, unsupported: &[(&str, &[Off])]) -> Result<(), ApiError> {
        for Entry { name, path, value } in self.entries {
            let Some((_, off)) = unsupported.iter().find(|(known, _)| *known == name) else {
                return Err(ApiError::Invalid {
                    message: format!("unknown field `{path}`"),
                    param: Some(path),
                    code: Some("unknown_field"),
                });
            };
            if !value.is_null() && !off.iter().any(|off| off.covers(&value)) {
                return Err(ApiError::Invalid {
                    message: format!("`{path}`: {} is not supported here", brief(&value)),
                    param: Some(path),
                    code: Some("unsupported_value"),
                });
            }
        }
        Ok(())
    }
}

impl Field {
    /// The value as a `T` that `accept` likes.
    ///
    /// # Errors
    /// It has another type or value.
    pub fn read<T: DeserializeOwned>(
        self,
        expected: &str,
        accept: impl Fn(&T) -> bool,
    ) -> Result<T, ApiError> {
        T::deserialize(whole(&self.value))
            .ok()
            .filter(accept)
            .ok_or_else(|| self.invalid(expected))
    }

    /// The error for a value that is not what was expected.
    pub fn invalid(&self, expected: &str) -> ApiError {
        let message = format!(
            "`{}` must be {expected}, not {}",
            self.path,
            brief(&self.value)
        );
        ApiError::invalid(&self.path, message)
    }
}

/// A number as a whole one, if it is: to JSON, `2.0` and `2` are the same, and some clients know
/// only the first.
pub fn whole(value: &Value) -> Value {
    const MAX_EXACT: f64 = (1u64 << 53) as f64;
    match value.as_f64() {
        Some(number) if value.is_f64() && number.fract() == 0.0 && number.abs() < MAX_EXACT => {
            Value::from(number as i64)
        }
        _ => value.clone(),
    }
}

/// An error of the body as a whole.
fn of_body(message: String) -> ApiError {
    ApiError::Invalid {
        param: None,
        message,
        code: None,
    }
}

/// The name of a field for an error message, cut short: it may be anything.
fn brief_name(name: &str) -> String {
    const MAX_CHARS: usize = 64;
    match name.char_indices().nth(MAX_CHARS) {
        Some((end, _)) => format!("{}…", &name[..end]),
        None => name.to_owned(),
    }
}

/// A value for an error message, cut short: it may be a whole prompt.
fn brief(value: &Value) -> String {
    const MAX_CHARS: usize = 40;
    match value {
        Value::Array(list) => format!("a list of {}", list.len()),
        Value::Object(_) => "an object".to_owned(),
        Value::String(text) if text.chars().count() > MAX_CHARS => "a longer string".to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(body: &str) -> Fields {
        Fields::parse(body.as_bytes()).expect("an object")
    }

    fn param(error: ApiError) -> Option<String> {
        match error {
            ApiError::Invalid { param, .. } => param,
            other => panic!("{other:?} is no 400"),
        }
    }

    #[test]
    fn a_field_is_taken_or_off_or_refused_by_name() {
        let table: &[(&str, &[Off])] = &[
            ("n", &[Off::Number(1)]),
            ("user", &[Off::Anything]),
            ("logprobs", &[Off::False]),
        ];
        for body in [
            "{}",
            r#"{"n": 1, "user": "me"}"#,
            r#"{"n": null, "logprobs": false}"#,
        ] {
            assert!(fields(body).finish(table).is_ok(), "{body}");
        }
        for (body, name) in [
            (r#"{"n": 2}"#, "n"),
            (r#"{"logprobs": 0}"#, "logprobs"),
            (r#"{"other": null}"#, "other"),
        ] {
            let error = fields(body).finish(table).expect_err(body);
            assert_eq!(param(error).as_deref(), Some(name));
        }
    }

    #[test]
    fn an_absorbed_field_keeps_its_path_and_may_not_be_given_twice() {
        let mut body = fields(r#"{"top_k": 3, "parameters": {"top_p": "x"}}"#);
        let nested = body.take_object("parameters").expect("an object");
        body.absorb(nested.expect("sent")).expect("no clash");
        let error = body.take("top_p", "a number", |_: &f32| true);
        assert_eq!(
            param(error.expect_err("a string")).as_deref(),
            Some("parameters.top_p")
        );
        let twice = fields(r#"{"top_k": 4}"#);
        assert_eq!(
            param(body.absorb(twice).expect_err("twice")).as_deref(),
            Some("top_k")
        );
    }

    #[test]
    fn a_whole_number_may_be_written_as_a_fraction() {
        let mut body = fields(r#"{"a": 2.0, "b": -0.0, "c": 2.5, "d": 1e300}"#);
        let mut take = |name: &str| body.take(name, "a whole number", |_: &usize| true);
        assert_eq!(take("a").expect("whole"), Some(2));
        assert_eq!(take("b").expect("whole"), Some(0));
        assert_eq!(param(take("c").expect_err("2.5")).as_deref(), Some("c"));
        assert_eq!(param(take("d").expect_err("1e300")).as_deref(), Some("d"));
    }

    #[test]
    fn a_long_name_is_cut_where_a_character_ends() {
        let body = format!("{{\"{}\": 1}}", "é".repeat(100));
        let error = fields(&body).finish(&[]).expect_err("unknown");
        assert_eq!(param(error), Some(format!("{}…", "é".repeat(64))));
    }

    #[test]
    fn a_wrong_body_is_refused_without_a_field() {
        let many: Vec<String> = (0..=MAX_FIELDS).map(|n| format!("\"{n}\": 0")).collect();
        let many = format!("{{{}}}", many.join(","));
        for body in ["", "{", "[1]", "\"text\"", "{\"a\": nan}", &many] {
            let error = Fields::parse(body.as_bytes()).expect_err(body);
            assert_eq!(param(error), None, "{body}");
        }
    }
}
