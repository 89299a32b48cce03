//! `tool_calls` of a former answer that a client sends back, as templates expect them.

use serde_json::{Map, Value, json};

use super::tools::cannot_call;
use crate::server::error::ApiError;
use crate::server::fields::{Field, Fields};
use crate::server::openapi::schema::{described, one_of, properties, request, string};

/// The calls, with their arguments as an object; `None` if there are none.
///
/// # Errors
/// A call has another form, or the model's template knows none.
pub fn read(field: Field, can_call: bool) -> Result<Option<Value>, ApiError> {
    let Field { path, value } = field;
    match value {
        Value::Array(calls) if calls.is_empty() => Ok(None),
        Value::Array(_) if !can_call => Err(cannot_call(path)),
        Value::Array(calls) => {
            let calls = calls.into_iter().enumerate().map(|(index, value)| {
                let path = format!("{path}[{index}]");
                read_call(Field { path, value })
            });
            let calls = calls.collect::<Result<_, _>>()?;
            Ok(Some(Value::Array(calls)))
        }
        value => Err(Field { path, value }.invalid("a list of calls")),
    }
}

/// What [`read`] takes of each.
pub fn schema() -> Value {
    let arguments = described(string(), "A JSON object, as text");
    let function = request(
        &["name", "arguments"],
        properties([("name", string()), ("arguments", arguments)]),
    );
    request(
        &["function"],
        properties([
            ("id", string()),
            ("type", one_of(&["function"])),
            ("function", function),
        ]),
    )
}

fn read_call(field: Field) -> Result<Value, ApiError> {
    let path = field.path.clone();
    let missing = |name: &str| {
        let path = format!("{path}.{name}");
        ApiError::invalid(&path, format!("`{path}` is missing"))
    };
    let mut call = Fields::of_object(field)?;
    let id = call.take("id", "a string", |_: &String| true)?;
    call.take("type", "function", |kind: &String| kind == "function")?;
    let mut function = call
        .take_object("function")?
        .ok_or_else(|| missing("function"))?;
    // A stream's chunks tell it, and clients keep it.
    call.take("index", "a whole number", |_: &usize| true)?;
    call.finish(&[])?;
    let name = function.take("name", "a string", |_: &String| true)?;
    let name = name.ok_or_else(|| missing("function.name"))?;
    let arguments = function.take_value("arguments");
    let arguments = read_arguments(arguments.ok_or_else(|| missing("function.arguments"))?)?;
    function.finish(&[])?;
    let mut call = json!({"type": "function", "function": {"name": name, "arguments": arguments}});
    if let Some(id) = id {
        call["id"] = Value::from(id);
    }
    Ok(call)
}

/// Clients send it as the text that they got; templates print the object.
fn read_arguments(field: Field) -> Result<Map<String, Value>, ApiError> {
    let arguments = match field.value.as_str() {
        Some("") => Some(Map::new()),
        Some(text) => serde_json::from_str(text).ok(),
        None => None,
    };
    arguments.ok_or_else(|| field.invalid("a JSON object as a string"))
}
