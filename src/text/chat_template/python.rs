//! Methods of Python's `str` that templates call.

use minijinja::value::from_args;
use minijinja::{Error, State, Value};
use minijinja_contrib::pycompat::unknown_method_callback;

/// Methods on strings whose results differ from Rust's; the rest is minijinja's own set.
pub(super) fn call_method(
    state: &mut State,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    let Some(text) = value.as_str() else {
        return unknown_method_callback(state, value, method, args);
    };
    let stripped = |left, right| {
        let (chars,): (Option<&str>,) = from_args(args)?;
        Ok(Value::from(strip(text, chars, left, right)))
    };
    match method {
        "strip" => stripped(true, true),
        "lstrip" => stripped(true, false),
        "rstrip" => stripped(false, true),
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            Ok(Value::from(text.strip_prefix(prefix).unwrap_or(text)))
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            Ok(Value::from(text.strip_suffix(suffix).unwrap_or(text)))
        }
        _ => unknown_method_callback(state, value, method, args),
    }
}

/// The filter `trim`: `str.strip` of whatever the value prints as.
pub(super) fn trim(value: &Value, chars: Option<&str>) -> String {
    strip(&value.to_string(), chars, true, true).to_string()
}

fn strip<'t>(text: &'t str, chars: Option<&str>, left: bool, right: bool) -> &'t str {
    let is_stripped = |character: char| match chars {
        Some(chars) => chars.contains(character),
        // Python's idea of whitespace has four separators more than Unicode's.
        None => character.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&character),
    };
    let text = if left {
        text.trim_start_matches(is_stripped)
    } else {
        text
    };
    if right {
        text.trim_end_matches(is_stripped)
    } else {
        text
    }
}
