//! How a run can be repeated: the settings its server took from the environment, and its command.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// The settings that came through the environment: a setting's variable is its name in capitals,
/// without the unit that its value is reported in.
pub fn settings_from_environment(settings: &Map<String, Value>) -> BTreeMap<String, String> {
    let variable = |name: &String| {
        let name = name.strip_suffix("_s").unwrap_or(name).to_uppercase();
        let value = std::env::var(&name).ok()?;
        Some((name, value))
    };
    let of_this_run = |name: &&String| !["host", "port"].contains(&name.as_str());
    settings
        .keys()
        .filter(of_this_run)
        .filter_map(variable)
        .collect()
}

/// The command that repeats this run.
pub fn command_line(environment: &BTreeMap<String, String>) -> String {
    let variables = environment
        .iter()
        .map(|(name, value)| format!("{name}={}", quoted(value)));
    let flags = std::env::args().skip(1).map(|flag| quoted(&flag));
    let words: Vec<String> = variables
        .chain(["candlepower".to_owned()])
        .chain(flags)
        .collect();
    words.join(" ")
}

fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_=./:,%@+".contains(c);
    match !word.is_empty() && word.chars().all(is_plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_for_the_shell_are_quoted_where_they_must_be() {
        for (word, expected) in [
            ("--seed=3", "--seed=3"),
            ("", "''"),
            ("it's", r"'it'\''s'"),
            ("a b", "'a b'"),
        ] {
            assert_eq!(quoted(word), expected);
        }
    }
}
