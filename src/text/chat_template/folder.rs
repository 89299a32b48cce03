//! Where a Hugging Face folder keeps its chat template.

use std::path::Path;

use serde_json::Value as Json;

use crate::text::TextError;

pub(super) fn find_template(dir: &Path) -> Result<Option<String>, TextError> {
    let jinja = dir.join("chat_template.jinja");
    if jinja.is_file() {
        let text = std::fs::read_to_string(&jinja);
        return text.map(Some).map_err(|source| TextError::ReadFile {
            path: jinja,
            source,
        });
    }
    for name in ["tokenizer_config.json", "chat_template.json"] {
        let path = dir.join(name);
        if path.is_file()
            && let Some(template) = template_in_json(&path)?
        {
            return Ok(Some(template));
        }
    }
    Ok(None)
}

/// `chat_template` is one template, or a list of `{name, template}` with one named `default`.
fn template_in_json(path: &Path) -> Result<Option<String>, TextError> {
    let bad = |reason: String| TextError::BadFile {
        path: path.to_path_buf(),
        reason,
    };
    let bytes = std::fs::read(path).map_err(|source| TextError::ReadFile {
        path: path.to_path_buf(),
        source,
    })?;
    let json: Json = serde_json::from_slice(&bytes).map_err(|error| bad(error.to_string()))?;
    match json.get("chat_template") {
        None | Some(Json::Null) => Ok(None),
        Some(Json::String(template)) => Ok(Some(template.clone())),
        Some(Json::Array(templates)) => {
            let default = templates.iter().find(|entry| entry["name"] == "default");
            let template = default.and_then(|entry| entry["template"].as_str());
            let template = template.map(|template| Some(template.to_string()));
            template.ok_or_else(|| bad("chat_template has no template 'default'".to_string()))
        }
        Some(_) => Err(bad(
            "chat_template is neither a string nor a list".to_string()
        )),
    }
}
