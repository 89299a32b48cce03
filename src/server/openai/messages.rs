//! The messages of a chat, checked and brought into the form that chat templates expect.

use serde_json::{Value, json};

use super::tool_calls;
use super::tools::cannot_call;
use crate::server::error::ApiError;
use crate::server::fields::{Field, Fields, Off};
use crate::server::openapi::schema::{array, one_of, properties, request, string};

/// Most messages in one chat.
const MAX_MESSAGES: usize = 4096;

const ROLES: [&str; 5] = ["system", "developer", "user", "assistant", "tool"];

/// Clients send a former answer back as they got it, with these fields null or empty.
const UNSUPPORTED: &[(&str, &[Off])] = &[
    ("tool_calls", &[Off::Empty]),
    ("tool_call_id", &[]),
    ("function_call", &[]),
    ("refusal", &[]),
    ("annotations", &[Off::Empty]),
    ("audio", &[]),
    ("reasoning_content", &[Off::Empty]),
];

/// Reads the field `messages`: a list of `{"role", "content"}`, content as one string. Calls of tools
/// and their results are only for a model that `can_call`.
///
/// # Errors
/// No list, an empty one, or a message of another form.
pub fn read(field: Field, can_call: bool) -> Result<Value, ApiError> {
    let Field { path, value } = field;
    match value {
        Value::Array(list) if (1..=MAX_MESSAGES).contains(&list.len()) => {
            let list = list.into_iter().enumerate().map(|(index, value)| {
                let path = format!("{path}[{index}]");
                read_message(Field { path, value }, can_call)
            });
            list.collect::<Result<_, _>>().map(Value::Array)
        }
        value => Err(Field { path, value }.invalid("a list of 1 to 4096 messages")),
    }
}

/// What [`read`] takes.
pub fn schema(can_call: bool) -> Value {
    let part = json!({
        "type": "object",
        "required": ["type", "text"],
        "properties": {"type": {"const": "text"}, "text": string()},
        "additionalProperties": false,
    });
    let content = json!({"anyOf": [string(), array(part)]});
    let message = |roles: &[&str], required: &[&str], more: Vec<(&str, Value)>| {
        let mut fields = properties([
            ("role", one_of(roles)),
            ("content", content.clone()),
            ("name", string()),
        ]);
        fields.extend(
            more.into_iter()
                .map(|(name, field)| (name.to_owned(), field)),
        );
        request(required, fields)
    };
    let plain = message(&ROLES[..4], &["role", "content"], Vec::new());
    let items = match can_call {
        false => plain,
        true => {
            let calls = ("tool_calls", array(tool_calls::schema()));
            let of_call = ("tool_call_id", string());
            json!({"anyOf": [
                plain,
                message(&["assistant"], &["role", "tool_calls"], vec![calls]),
                message(&["tool"], &["role", "content", "tool_call_id"], vec![of_call]),
            ]})
        }
    };
    json!({"type": "array", "items": items, "minItems": 1, "maxItems": MAX_MESSAGES})
}

fn read_message(field: Field, can_call: bool) -> Result<Value, ApiError> {
    let path = field.path.clone();
    let mut fields = Fields::of_object(field)?;
    let missing = |name: &str| {
        let path = format!("{path}.{name}");
        ApiError::invalid(&path, format!("`{path}` is missing"))
    };
    let role = fields.take(
        "role",
        "system, developer, user, assistant or tool",
        |role: &String| ROLES.contains(&role.as_str()),
    )?;
    let role = role.ok_or_else(|| missing("role"))?;
    let of_call = match role.as_str() {
        "tool" if !can_call => return Err(cannot_call(format!("{path}.role"))),
        "tool" => {
            let id = fields.take("tool_call_id", "a string", |_: &String| true)?;
            Some(id.ok_or_else(|| missing("tool_call_id"))?)
        }
        _ => None,
    };
    let calls = match role.as_str() {
        "assistant" => fields.take_value("tool_calls"),
        _ => None,
    };
    let calls = calls.map(|calls| tool_calls::read(calls, can_call));
    let calls = calls.transpose()?.flatten();
    let content = fields.take_value("content").map(read_content).transpose()?;
    if content.is_none() && calls.is_none() {
        return Err(missing("content"));
    }
    let name = fields.take("name", "a string", |_: &String| true)?;
    fields.finish(UNSUPPORTED)?;

    // OpenAI's new name for the same thing; templates know only the old one.
    let role = if role == "developer" { "system" } else { &role };
    let mut message = json!({"role": role, "content": content});
    let more = [
        ("name", name.map(Value::from)),
        ("tool_calls", calls),
        ("tool_call_id", of_call.map(Value::from)),
    ];
    for (name, value) in more {
        if let Some(value) = value {
            message[name] = value;
        }
    }
    Ok(message)
}

/// A string, or a list of text parts, which become one string with line breaks in between.
fn read_content(field: Field) -> Result<String, ApiError> {
    let Field { path, value } = field;
    match value {
        Value::String(text) => Ok(text),
        Value::Array(parts) => {
            let texts = parts.into_iter().enumerate().map(|(index, part)| {
                read_part(Field {
                    path: format!("{path}[{index}]"),
                    value: part,
                })
            });
            Ok(texts.collect::<Result<Vec<_>, _>>()?.join("\n"))
        }
        value => Err(Field { path, value }.invalid("a string or a list of text parts")),
    }
}

fn read_part(field: Field) -> Result<String, ApiError> {
    let path = field.path.clone();
    let mut fields = Fields::of_object(field)?;
    let kind = fields.take("type", "text", |kind: &String| kind == "text")?;
    let text = fields.take("text", "a string", |_: &String| true)?;
    fields.finish(&[])?;
    match (kind, text) {
        (Some(_), Some(text)) => Ok(text),
        _ => Err(ApiError::invalid(
            &path,
            format!("`{path}` must have a type and a text"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_json(value: Value) -> Result<Value, ApiError> {
        let path = "messages".to_owned();
        read(Field { path, value }, false)
    }

    #[test]
    fn every_form_of_content_becomes_one_string() {
        let read = read_json(json!([
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "name": "me", "content": [
                {"type": "text", "text": "a"}, {"type": "text", "text": "b"}
            ]},
            {"role": "assistant", "content": "c", "refusal": null, "tool_calls": null},
        ]));
        let list = json!([
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "a\nb", "name": "me"},
            {"role": "assistant", "content": "c"},
        ]);
        assert_eq!(read.expect("valid"), list);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        let user = |content: Value| json!([{"role": "user", "content": content}]);
        for (value, name) in [
            (json!([]), "messages"),
            (json!("hi"), "messages"),
            (json!(["hi"]), "messages[0]"),
            (json!([{"content": "x"}]), "messages[0].role"),
            (
                json!([{"role": "tool", "content": "x"}]),
                "messages[0].role",
            ),
            (json!([{"role": "user"}]), "messages[0].content"),
            (user(json!(7)), "messages[0].content"),
            (user(json!(["x"])), "messages[0].content[0]"),
            (
                user(json!([{"type": "image_url", "image_url": {}}])),
                "messages[0].content[0].type",
            ),
            (user(json!([{"type": "text"}])), "messages[0].content[0]"),
            (
                json!([{"role": "assistant", "content": "", "tool_calls": [{}]}]),
                "messages[0].tool_calls",
            ),
        ] {
            match read_json(value.clone()).expect_err(&value.to_string()) {
                ApiError::Invalid { param, .. } => {
                    assert_eq!(param.as_deref(), Some(name), "{value}");
                }
                other => panic!("{value}: {other}"),
            }
        }
    }
}
