//! How a run can be repeated: the settings its server took from the environment, and its command.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// The environment variable of a setting that the server reports: its name in capitals, without
/// the unit that its value is reported in.
pub fn variable_of(setting: &str) -> String {
    let name = ["_s", "_bytes"]
        .iter()
        .find_map(|unit| setting.strip_suffix(unit));
    name.unwrap_or(setting).to_uppercase()
}

/// The settings that came through the environment of this program.
pub fn settings_from_environment(settings: &Map<String, Value>) -> BTreeMap<String, String> {
    let variable = |name: &String| {
        let name = variable_of(name);
        let value = std::env::var(&name).ok()?;
        Some((name, value))
    };
    // A server of our own has neither an address that matters nor keys, and these are secret.
    const NOT_TAKEN: [&str; 4] = ["host", "port", "api_key", "api_keys_file"];
    let of_this_run = |name: &&String| !NOT_TAKEN.contains(&name.as_str());
    settings
        .keys()
        .filter(of_this_run)
        .filter_map(variable)
        .collect()
}

/// Flags whose text is kept in the record itself, or in none, and has no part in what is measured.
const LEFT_OUT_FLAGS: [&str; 4] = ["--changes", "--tradeoff", "--next", "--api-key"];

/// The command that repeats this run.
pub fn command_line(environment: &BTreeMap<String, String>) -> String {
    let variables = environment
        .iter()
        .map(|(name, value)| format!("{name}={}", quoted(value)));
    let flags = without_left_out(std::env::args().skip(1));
    let flags = flags.iter().map(|flag| quoted(flag));
    let words: Vec<String> = variables
        .chain(["candlepower".to_owned()])
        .chain(flags)
        .collect();
    words.join(" ")
}

fn without_left_out(flags: impl Iterator<Item = String>) -> Vec<String> {
    let mut kept = Vec::new();
    let mut flags = flags.into_iter();
    while let Some(flag) = flags.next() {
        if flag == "--edit" {
            continue;
        }
        let name = flag.split('=').next().unwrap_or_default();
        if !LEFT_OUT_FLAGS.contains(&name) {
            kept.push(flag);
        } else if name == flag {
            // The text is the next word.
            flags.next();
        }
    }
    kept
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
    fn prose_is_left_out_of_the_command() {
        let flags = [
            "bench",
            "ab",
            "--next",
            "- more",
            "--changes=all",
            "--edit",
            "--name",
            "--next",
        ];
        let kept = without_left_out(flags.into_iter().map(str::to_owned));
        assert_eq!(kept, ["bench", "ab", "--name"]);
    }

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
