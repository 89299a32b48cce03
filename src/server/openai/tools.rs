//! `tools`, `tool_choice` and `parallel_tool_calls`: what a model may call.

use serde_json::{Value, json};

use crate::server::error::ApiError;
use crate::server::fields::{Field, Fields, Off};
use crate::server::openapi::schema::{
    Properties, boolean, described, one_of, properties, request, string,
};
use crate::server::state::Served;

/// As OpenAI.
const MAX_TOOLS: usize = 128;

/// The tools of one chat.
#[derive(Debug)]
pub struct Tools {
    /// As they were sent, for the template.
    pub list: Value,
    /// Calls after the first are left out.
    pub one_call: bool,
}

impl Tools {
    /// Takes the three fields. `None`: the model is told of no tools.
    ///
    /// # Errors
    /// The model's template knows no tools, a tool has another form, or a call is demanded.
    pub fn take(fields: &mut Fields, served: &Served) -> Result<Option<Self>, ApiError> {
        let tools = fields.take_value("tools");
        let choice = fields.take_value("tool_choice");
        let parallel = fields.take("parallel_tool_calls", "true or false", |_: &bool| true)?;
        let is_wanted = choice.map_or(Ok(true), read_choice)?;
        let tools = tools.filter(|tools| tools.value != json!([]));
        let Some(tools) = tools else {
            return Ok(None);
        };
        if !can_call(served) {
            return Err(cannot_call(tools.path));
        }
        let list = read_tools(tools)?;
        Ok(is_wanted.then_some(Self {
            list,
            one_call: parallel == Some(false),
        }))
    }
}

/// Whether the model's template teaches it to call tools in the form that is read here.
pub fn can_call(served: &Served) -> bool {
    served
        .chat_template
        .as_ref()
        .is_some_and(|templates| templates.teaches_tool_calls())
}

/// The error for a field that only such a model understands.
pub fn cannot_call(path: String) -> ApiError {
    let message = format!(
        "`{path}`: this model's chat template does not teach it to call tools as <tool_call>"
    );
    ApiError::invalid(path, message)
}

/// What [`Tools::take`] takes for a model that can call tools.
pub fn schema() -> Properties {
    let function = json!({
        "type": "object",
        "required": ["name"],
        "properties": {
            "name": {"type": "string", "minLength": 1},
            "description": string(),
            "parameters": {"type": "object"},
            "strict": {"const": false},
        },
        "additionalProperties": false,
    });
    let tool = request(
        &["type", "function"],
        properties([("type", one_of(&["function"])), ("function", function)]),
    );
    let choice = "`none`: the model is not told of the tools";
    let parallel = "`false`: calls after the first are left out";
    properties([
        (
            "tools",
            json!({"type": "array", "items": tool, "maxItems": MAX_TOOLS}),
        ),
        ("tool_choice", described(one_of(&["auto", "none"]), choice)),
        ("parallel_tool_calls", described(boolean(), parallel)),
    ])
}

fn read_choice(choice: Field) -> Result<bool, ApiError> {
    match choice.value.as_str() {
        Some("auto") => Ok(true),
        Some("none") => Ok(false),
        _ => Err(choice.invalid("auto or none (a call cannot be forced here)")),
    }
}

fn read_tools(field: Field) -> Result<Value, ApiError> {
    match &field.value {
        Value::Array(list) if list.len() <= MAX_TOOLS => {
            for (index, tool) in list.iter().enumerate() {
                check_tool(Field {
                    path: format!("{}[{index}]", field.path),
                    value: tool.clone(),
                })?;
            }
            Ok(field.value)
        }
        _ => Err(field.invalid("a list of at most 128 tools")),
    }
}

fn check_tool(field: Field) -> Result<(), ApiError> {
    let path = field.path.clone();
    let mut tool = Fields::of_object(field)?;
    tool.take("type", "function", |kind: &String| kind == "function")?
        .ok_or_else(|| missing(format!("{path}.type")))?;
    let path = format!("{path}.function");
    let mut function = tool
        .take_object("function")?
        .ok_or_else(|| missing(path.clone()))?;
    tool.finish(&[])?;
    function
        .take("name", "a name", |name: &String| !name.is_empty())?
        .ok_or_else(|| missing(format!("{path}.name")))?;
    function.take("description", "a string", |_: &String| true)?;
    function.take_object("parameters")?;
    function.finish(&[("strict", &[Off::False])])
}

fn missing(path: String) -> ApiError {
    let message = format!("`{path}` is missing");
    ApiError::invalid(path, message)
}
