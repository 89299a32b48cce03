//! JSON into template values, and out again as Python's `json.dumps` writes it.

use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{Error, ErrorKind, Value};
use serde_json::Value as Json;

/// JSON nested deeper than this is refused; requests nest at most 128 levels.
const MAX_JSON_DEPTH: usize = 256;

/// The value that a template sees for `json`.
pub(super) fn to_value(json: &Json) -> Value {
    match json {
        Json::Null => Value::from(()),
        Json::Bool(flag) => Value::from(*flag),
        Json::Number(number) => match (number.as_u64(), number.as_i64()) {
            (Some(number), _) => Value::from(number),
            (_, Some(number)) => Value::from(number),
            _ => Value::from(number.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(text) => Value::from(text.as_str()),
        Json::Array(items) => items.iter().map(to_value).collect(),
        Json::Object(fields) => Value::from_pairs(
            fields
                .iter()
                .map(|(name, field)| (name.as_str(), to_value(field))),
        ),
    }
}

/// The filter `tojson` as transformers defines it:
/// `json.dumps(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
pub(super) fn tojson(
    value: &Value,
    positional: Rest<Value>,
    kwargs: Kwargs,
) -> Result<String, Error> {
    let style = JsonStyle::from_arguments(&positional, &kwargs)?;
    kwargs.assert_all_used()?;
    let mut out = String::new();
    style.write(value, 0, &mut out)?;
    Ok(out)
}

struct JsonStyle {
    ensure_ascii: bool,
    /// What one level is indented by; without it all is on one line.
    indent: Option<String>,
    item_separator: String,
    key_separator: String,
    sort_keys: bool,
}

impl JsonStyle {
    fn from_arguments(positional: &[Value], kwargs: &Kwargs) -> Result<Self, Error> {
        let argument = |index: usize, name| {
            let named: Option<Value> = kwargs.get(name)?;
            let argument = positional.get(index).cloned().or(named);
            Ok::<_, Error>(argument.filter(|argument| !argument.is_none()))
        };
        let ensure_ascii = argument(0, "ensure_ascii")?.is_some_and(|flag| flag.is_true());
        let indent = argument(1, "indent")?
            .as_ref()
            .map(indentation)
            .transpose()?;
        let (item_separator, key_separator) = match argument(2, "separators")? {
            Some(pair) => (part_of(&pair, 0)?, part_of(&pair, 1)?),
            None if indent.is_some() => (",".to_string(), ": ".to_string()),
            None => (", ".to_string(), ": ".to_string()),
        };
        let sort_keys = argument(3, "sort_keys")?.is_some_and(|flag| flag.is_true());
        if positional.len() > 4 {
            return Err(invalid("tojson: too many arguments"));
        }
        Ok(Self {
            ensure_ascii,
            indent,
            item_separator,
            key_separator,
            sort_keys,
        })
    }

    fn write(&self, value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
        if depth > MAX_JSON_DEPTH {
            return Err(invalid("tojson: the value is nested too deeply"));
        }
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => out.push_str(&number(value)?),
            ValueKind::String => self.write_string(value.as_str().unwrap_or_default(), out),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.write_items(&items, ['[', ']'], depth, out, |item, out| {
                    self.write(item, depth + 1, out)
                })?;
            }
            ValueKind::Map => {
                let entries = self.entries(value)?;
                self.write_items(&entries, ['{', '}'], depth, out, |(key, item), out| {
                    self.write_string(key, out);
                    out.push_str(&self.key_separator);
                    self.write(item, depth + 1, out)
                })?;
            }
            kind => {
                return Err(invalid(&format!(
                    "tojson: a value of type {kind} is not JSON"
                )));
            }
        }
        Ok(())
    }

    fn entries(&self, map: &Value) -> Result<Vec<(String, Value)>, Error> {
        let mut entries = Vec::new();
        for key in map.try_iter()? {
            let item = map.get_item(&key)?;
            let key = match key.kind() {
                ValueKind::String => key.to_string(),
                ValueKind::None => "null".to_string(),
                ValueKind::Bool => key.to_string().to_lowercase(),
                ValueKind::Number => number(&key)?,
                kind => {
                    return Err(invalid(&format!(
                        "tojson: a key of type {kind} is not JSON"
                    )));
                }
            };
            entries.push((key, item));
        }
        if self.sort_keys {
            entries.sort_by(|(a, _), (b, _)| a.cmp(b));
        }
        Ok(entries)
    }

    fn write_items<T>(
        &self,
        items: &[T],
        brackets: [char; 2],
        depth: usize,
        out: &mut String,
        mut write_item: impl FnMut(&T, &mut String) -> Result<(), Error>,
    ) -> Result<(), Error> {
        out.push(brackets[0]);
        for (index, item) in items.iter().enumerate() {
            if index > 0 {
                out.push_str(&self.item_separator);
            }
            self.start_line(depth + 1, out);
            write_item(item, out)?;
        }
        if !items.is_empty() {
            self.start_line(depth, out);
        }
        out.push(brackets[1]);
        Ok(())
    }

    fn start_line(&self, depth: usize, out: &mut String) {
        if let Some(indent) = &self.indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(indent.as_str(), depth));
        }
    }

    fn write_string(&self, text: &str, out: &mut String) {
        out.push('"');
        for character in text.chars() {
            match character {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                '\0'..='\u{1f}' => push_escape(character, out),
                '\u{7f}'.. if self.ensure_ascii => push_escape(character, out),
                _ => out.push(character),
            }
        }
        out.push('"');
    }
}

fn push_escape(character: char, out: &mut String) {
    for unit in character.encode_utf16(&mut [0; 2]) {
        out.push_str(&format!("\\u{unit:04x}"));
    }
}

fn part_of(pair: &Value, index: usize) -> Result<String, Error> {
    let part = pair.get_item(&Value::from(index))?;
    let part = part.as_str().map(str::to_string);
    part.ok_or_else(|| invalid("tojson: separators must be two strings"))
}

/// `json.dumps` takes the number of spaces, or the string itself.
fn indentation(indent: &Value) -> Result<String, Error> {
    if let Some(text) = indent.as_str() {
        return Ok(text.to_string());
    }
    let num_spaces = i64::try_from(indent.clone())?.clamp(0, 100);
    Ok(" ".repeat(usize::try_from(num_spaces).unwrap_or(0)))
}

/// A number as Python prints it: a float keeps its point, and takes an exponent from 1e16 on.
fn number(value: &Value) -> Result<String, Error> {
    if value.is_integer() {
        return Ok(value.to_string());
    }
    let float = f64::try_from(value.clone())?;
    if float.is_nan() {
        return Ok("NaN".to_string());
    }
    if float.is_infinite() {
        return Ok(if float > 0.0 { "Infinity" } else { "-Infinity" }.to_string());
    }
    let shortest = format!("{float:e}");
    let (digits, exponent) = shortest.split_once('e').unwrap_or((&shortest, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if float != 0.0 && !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return Ok(format!("{digits}e{sign}{:02}", exponent.abs()));
    }
    let plain = float.to_string();
    Ok(if plain.contains('.') {
        plain
    } else {
        plain + ".0"
    })
}

fn invalid(message: &str) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.to_string())
}
