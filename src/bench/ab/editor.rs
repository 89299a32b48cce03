//! Words for an A/B record from an editor, as for a commit: a file with a heading for each part.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, ensure};

use super::args::parse_prose_text;
use super::record::Prose;

const HEADINGS: [&str; 3] = ["changes", "tradeoff", "next"];

/// What the three parts are, as the file begins.
const HINTS: [&str; 3] = [
    "what was changed",
    "what the gains cost, and whether they are worth it",
    "what is to be done next",
];

/// Has the parts edited with `$VISUAL`, or else `$EDITOR`, from what the flags gave.
///
/// # Errors
/// There is no editor, it fails, or what it left is no such file.
pub fn edit(given: &Prose) -> anyhow::Result<Prose> {
    let editor = ["VISUAL", "EDITOR"]
        .into_iter()
        .find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
        .context("--edit needs an editor: set VISUAL or EDITOR")?;
    let file = std::env::temp_dir().join(format!("candlepower-ab-{}.md", std::process::id()));
    let edited = edit_file(&editor, &file, given);
    // Best effort: a file in the temporary folder does no harm.
    let _ = std::fs::remove_file(&file);
    edited
}

fn edit_file(editor: &str, file: &Path, given: &Prose) -> anyhow::Result<Prose> {
    std::fs::write(file, template(given))
        .with_context(|| format!("cannot write {}", file.display()))?;
    // An editor may be named with flags of its own, so the shell takes it apart.
    let status = Command::new("sh")
        .args(["-c", &format!("{editor} \"$1\""), "sh"])
        .arg(file)
        .status()
        .with_context(|| format!("cannot start the editor {editor}"))?;
    ensure!(status.success(), "the editor {editor} ended with {status}");
    let text =
        std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    parse(&text)
}

fn template(given: &Prose) -> String {
    let parts = [&given.changes, &given.tradeoff, &given.next];
    let mut text = String::from(
        "; Lines that begin with a semicolon are left out, and a part without text as well.\n",
    );
    for ((heading, hint), part) in HEADINGS.iter().zip(HINTS).zip(parts) {
        let part = part.as_deref().unwrap_or_default();
        text.push_str(&format!("\n[{heading}]\n; {hint}\n{part}\n"));
    }
    text
}

fn parse(text: &str) -> anyhow::Result<Prose> {
    let mut parts: [Vec<&str>; 3] = Default::default();
    let mut current = None;
    for line in text.lines().filter(|line| !line.starts_with(';')) {
        let heading = line
            .trim()
            .strip_prefix('[')
            .and_then(|l| l.strip_suffix(']'));
        let named = heading.and_then(|name| HEADINGS.iter().position(|known| *known == name));
        match (named, current) {
            (Some(index), _) => current = Some(index),
            (None, Some(index)) => parts[index].push(line),
            (None, None) => {
                ensure!(
                    line.trim().is_empty(),
                    "text before the first [heading]: {line}"
                );
            }
        }
    }
    let [changes, tradeoff, next] = parts.map(|lines| {
        let text = lines.join("\n");
        (!text.trim().is_empty())
            .then(|| parse_prose_text(&text))
            .transpose()
    });
    Ok(Prose {
        changes: changes.map_err(anyhow::Error::msg)?,
        tradeoff: tradeoff.map_err(anyhow::Error::msg)?,
        next: next.map_err(anyhow::Error::msg)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_given_stands_in_the_file_and_comes_back() {
        let given = Prose {
            changes: Some("- One step for all.\n- Another.".to_owned()),
            tradeoff: None,
            next: Some("1. More.".to_owned()),
        };
        assert_eq!(parse(&template(&given)).expect("sound"), given);
        assert_eq!(
            parse(&template(&Prose::default())).expect("empty"),
            Prose::default()
        );
    }

    #[test]
    fn an_editor_changes_the_file_and_a_failing_one_is_an_error() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("prose.md");
        let given = Prose::default();
        let editor = "sed -i 's/^; what was changed/- Faster./'";
        let edited = edit_file(editor, &file, &given).expect("sed edits");
        assert_eq!(edited.changes.as_deref(), Some("- Faster."));
        assert_eq!(edited.next, None);
        let error = edit_file("false", &file, &given).expect_err("false fails");
        assert!(error.to_string().contains("ended with"), "{error}");
    }

    #[test]
    fn stray_text_and_headings_of_the_page_are_refused() {
        for (text, word) in [
            ("stray\n[changes]\n", "before"),
            ("[next]\n## X\n", "headings"),
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.to_string().contains(word), "{error}");
        }
    }
}
