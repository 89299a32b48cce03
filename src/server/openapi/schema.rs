//! JSON Schema in a few words, for what the endpoints take and give.

use serde_json::{Map, Value, json};

/// Fields by name, in the order of their documentation.
pub type Properties = Map<String, Value>;

/// The fields of `pairs`.
pub fn properties<const N: usize>(pairs: [(&str, Value); N]) -> Properties {
    pairs
        .map(|(name, schema)| (name.to_owned(), schema))
        .into_iter()
        .collect()
}

/// An object of these fields and no others. All but the required ones may also be `null`, which is
/// as good as absent.
pub fn request(required: &[&str], properties: Properties) -> Value {
    let properties = properties.into_iter().map(|(name, schema)| {
        let schema = match required.contains(&name.as_str()) {
            true => schema,
            false => nullable(schema),
        };
        (name, schema)
    });
    json!({
        "type": "object",
        "required": required,
        "properties": properties.collect::<Properties>(),
        "additionalProperties": false,
    })
}

/// An object with at least these fields.
pub fn response<const N: usize>(properties: [(&str, Value); N]) -> Value {
    let required = properties.each_ref().map(|(name, _)| *name);
    json!({
        "type": "object",
        "required": required.to_vec(),
        "properties": self::properties(properties),
    })
}

pub fn nullable(schema: Value) -> Value {
    json!({"anyOf": [schema, {"type": "null"}]})
}

pub fn array(items: Value) -> Value {
    json!({"type": "array", "items": items})
}

pub fn string() -> Value {
    json!({"type": "string"})
}

/// One of these strings.
pub fn one_of(values: &[&str]) -> Value {
    json!({"type": "string", "enum": values})
}

pub fn boolean() -> Value {
    json!({"type": "boolean"})
}

pub fn number(minimum: f64, maximum: f64) -> Value {
    json!({"type": "number", "minimum": minimum, "maximum": maximum})
}

/// A number above `minimum`, which it may not be itself.
pub fn number_above(minimum: f64, maximum: f64) -> Value {
    json!({"type": "number", "exclusiveMinimum": minimum, "maximum": maximum})
}

pub fn integer(minimum: i64, maximum: impl Into<Value>) -> Value {
    json!({"type": "integer", "minimum": minimum, "maximum": maximum.into()})
}

pub fn count() -> Value {
    json!({"type": "integer", "minimum": 0})
}

/// Adds what a reader should know.
pub fn described(mut schema: Value, description: &str) -> Value {
    schema["description"] = json!(description);
    schema
}

/// Matches the decimal numbers from 0 to `max`, and nothing else.
pub fn decimal_pattern(max: usize) -> String {
    let digits = max.to_string();
    let mut patterns = vec!["0".to_owned()];
    for length in 1..digits.len() {
        patterns.push(format!("[1-9][0-9]{{{}}}", length - 1));
    }
    for (place, digit) in digits.bytes().enumerate() {
        let lowest = if place == 0 { b'1' } else { b'0' };
        if digit > lowest {
            let (head, rest) = (&digits[..place], digits.len() - place - 1);
            let (from, to) = (char::from(lowest), char::from(digit - 1));
            patterns.push(format!("{head}[{from}-{to}][0-9]{{{rest}}}"));
        }
    }
    patterns.push(digits);
    format!("^({})$", patterns.join("|"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_of_numbers_covers_each_length_and_digit() {
        assert_eq!(decimal_pattern(5), "^(0|[1-4][0-9]{0}|5)$");
        assert_eq!(
            decimal_pattern(257),
            "^(0|[1-9][0-9]{0}|[1-9][0-9]{1}|[1-1][0-9]{2}|2[0-4][0-9]{1}|25[0-6][0-9]{0}|257)$"
        );
    }

    #[test]
    fn only_required_fields_may_not_be_null() {
        let schema = request(&["a"], properties([("a", string()), ("b", string())]));
        assert_eq!(schema["properties"]["a"], string());
        assert_eq!(schema["properties"]["b"], nullable(string()));
    }
}
