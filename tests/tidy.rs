//! The rules that the compiler does not hold: who may import whom, and that nothing is left undone.

use std::fs;
use std::path::{Path, PathBuf};

/// A folder of src/, the modules of this crate that it may use beside itself, and the foreign
/// crates that it must not.
struct Rule {
    folder: &'static str,
    may_use: &'static [&'static str],
    never_crates: &'static [&'static str],
}

const TENSORS: &[&str] = &["candle_core", "candle_nn", "candle_transformers"];

const RULES: [Rule; 9] = [
    Rule {
        folder: "config",
        may_use: &[],
        never_crates: &[
            "axum",
            "tokio",
            "candle_core",
            "candle_nn",
            "candle_transformers",
        ],
    },
    Rule {
        folder: "server",
        may_use: &["engine", "text", "config"],
        never_crates: TENSORS,
    },
    Rule {
        folder: "text",
        may_use: &[],
        never_crates: &[
            "axum",
            "tokio",
            "candle_core",
            "candle_nn",
            "candle_transformers",
        ],
    },
    Rule {
        folder: "engine",
        may_use: &["kv_cache", "runner", "config"],
        never_crates: &["axum", "candle_core", "candle_nn", "candle_transformers"],
    },
    Rule {
        folder: "kv_cache",
        may_use: &[],
        never_crates: &[
            "axum",
            "tokio",
            "candle_core",
            "candle_nn",
            "candle_transformers",
        ],
    },
    Rule {
        folder: "model",
        may_use: &["text"],
        never_crates: &["axum"],
    },
    Rule {
        folder: "kernels",
        may_use: &[],
        never_crates: &[
            "axum",
            "tokio",
            "candle_core",
            "candle_nn",
            "candle_transformers",
        ],
    },
    Rule {
        folder: "runner",
        may_use: &["model", "kernels"],
        never_crates: &["axum", "tokio"],
    },
    Rule {
        folder: "bench",
        may_use: &["text"],
        never_crates: &["axum", "candle_core", "candle_nn", "candle_transformers"],
    },
];

/// Folders that put the parts together, and so may use all of them.
const ASSEMBLY: [&str; 1] = ["serve"];

/// Markers of work that was not finished. Spelt in two halves, so that this file holds none.
const LEFTOVERS: [(&str, &str); 6] = [
    ("todo", "!("),
    ("unimplemented", "!("),
    ("dbg", "!("),
    ("TO", "DO"),
    ("FIX", "ME"),
    ("#[ig", "nore"),
];

#[test]
fn every_folder_imports_only_what_it_may() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let modules = modules_of(&source);
    let mut violations = Vec::new();
    for rule in &RULES {
        for file in rust_files(&source.join(rule.folder)) {
            for (number, line) in code_lines(&file) {
                let wrong = modules_named(&line, &modules)
                    .into_iter()
                    .filter(|module| {
                        module != rule.folder && !rule.may_use.contains(&module.as_str())
                    })
                    .map(|module| format!("crate::{module}"))
                    .chain(
                        rule.never_crates
                            .iter()
                            .filter(|name| names_crate(&line, name))
                            .map(ToString::to_string),
                    );
                for name in wrong {
                    let file = file.strip_prefix(&source).unwrap_or(&file).display();
                    violations.push(format!(
                        "src/{file}:{number} uses {name}; {} may use {:?}",
                        rule.folder, rule.may_use
                    ));
                }
            }
        }
    }
    assert!(violations.is_empty(), "{}", violations.join("\n"));
}

#[test]
fn every_folder_of_the_source_has_a_rule() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for module in modules_of(&source) {
        if source.join(&module).is_dir() {
            let mut folders = RULES.iter().map(|rule| rule.folder).chain(ASSEMBLY);
            let has_rule = folders.any(|folder| folder == module);
            assert!(
                has_rule,
                "src/{module}/ is not in the table of tests/tidy.rs"
            );
        }
    }
}

#[test]
fn nothing_is_left_undone() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    for folder in ["src", "tests", "benches"] {
        for file in rust_files(&root.join(folder)) {
            let text = fs::read_to_string(&file).expect("a readable source file");
            for (number, line) in text.lines().enumerate() {
                for (start, end) in LEFTOVERS {
                    let marker = format!("{start}{end}");
                    if line.contains(&marker) {
                        let file = file.strip_prefix(root).unwrap_or(&file).display();
                        found.push(format!("{file}:{}: {marker}", number + 1));
                    }
                }
            }
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn the_scan_sees_what_it_must_see() {
    let modules = ["bench", "engine", "text", "config"].map(String::from);
    for (line, expected) in [
        ("use crate::engine::Request;", &["engine"][..]),
        (
            "use crate::{engine::Event, text, config::{A, B}};",
            &["engine", "text", "config"],
        ),
        ("    let x = crate::text::decode(y);", &["text"]),
        ("pub(in crate::engine) fn f() {}", &["engine"]),
        ("use super::engine::Request;", &[]),
        ("use crate::textual;", &[]),
        ("let engine = text;", &[]),
    ] {
        assert_eq!(modules_named(line, &modules), expected, "{line}");
    }
    assert!(names_crate("use candle_core::Tensor;", "candle_core"));
    assert!(!names_crate("use candle_core_like::Tensor;", "candle_core"));
}

/// The modules at the top of the crate, by file or folder.
fn modules_of(source: &Path) -> Vec<String> {
    let entries = fs::read_dir(source).expect("src/");
    entries
        .map(|entry| entry.expect("an entry").path())
        .filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned()))
        .filter(|name| name != "main" && name != "lib")
        .collect()
}

/// All Rust files under a folder; none where there is no such folder.
fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let paths = entries.map(|entry| entry.expect("an entry").path());
    let mut files = Vec::new();
    for path in paths {
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}

/// The statements of a file, each as one line with the number of its first: rustfmt breaks long
/// `use` trees. Comments are left out; they may speak of anything.
fn code_lines(file: &Path) -> Vec<(usize, String)> {
    let text = fs::read_to_string(file).expect("a readable source file");
    let mut lines: Vec<(usize, String)> = Vec::new();
    let mut in_use_tree = false;
    for (index, line) in text.lines().enumerate() {
        let code = line.split("//").next().unwrap_or_default().trim();
        match lines.last_mut() {
            Some((_, use_tree)) if in_use_tree => use_tree.push_str(code),
            _ => lines.push((index + 1, code.to_owned())),
        }
        let starts_use = code.starts_with("use ") || code.starts_with("pub use ");
        in_use_tree = (in_use_tree || starts_use) && !code.ends_with(';');
    }
    lines
}

/// The modules of this crate that a line names, in a path or in a `use crate::{…}` tree.
fn modules_named(line: &str, modules: &[String]) -> Vec<String> {
    let mut named = Vec::new();
    for (at, _) in line.match_indices("crate::") {
        let rest = &line[at + "crate::".len()..];
        let candidates = match rest.strip_prefix('{') {
            Some(tree) => top_level_names(tree),
            None => vec![leading_word(rest)],
        };
        named.extend(candidates.into_iter().filter(|name| modules.contains(name)));
    }
    named
}

/// The first word of each branch of a `use` tree, whose opening brace was taken off.
fn top_level_names(tree: &str) -> Vec<String> {
    let mut depth = 0;
    let mut branches = vec![String::new()];
    for c in tree.chars() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => branches.push(String::new()),
            _ => {}
        }
        if let Some(branch) = branches.last_mut() {
            branch.push(c);
        }
    }
    let first_word = |branch: &String| leading_word(branch.trim_start_matches([',', ' ']));
    branches.iter().map(first_word).collect()
}

fn leading_word(text: &str) -> String {
    let is_word = |c: &char| c.is_ascii_alphanumeric() || *c == '_';
    text.chars().take_while(is_word).collect()
}

fn names_crate(line: &str, name: &str) -> bool {
    line.match_indices(name).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let is_start = !before.is_some_and(|c| c.is_ascii_alphanumeric() || c == '_');
        is_start && line[at + name.len()..].starts_with("::")
    })
}
