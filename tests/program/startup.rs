//! What can be wrong before the first request: one line that says what and what to do, and an
//! exit code that is not 0.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::Stdio;

use candlepower::runner::cuda::Gpu;

use crate::server::{model_file, serve_command};

fn smollm2() -> String {
    let path = model_file("smollm2-135m", "SmolLM2-135M-Instruct.Q4_1.gguf");
    path.to_str().expect("a path in UTF-8").to_owned()
}

/// Exit code and standard error of a `serve` that does not start.
fn refusal(settings: &[(&str, &str)]) -> (Option<i32>, String) {
    let mut child = serve_command(settings)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut ready = String::new();
    let stdout = child.stdout.take().expect("it is piped");
    BufReader::new(stdout).read_line(&mut ready).expect("UTF-8");
    if !ready.is_empty() {
        child.kill().expect("it runs");
    }
    let output = child.wait_with_output().expect("it ends");
    let stderr = String::from_utf8(output.stderr).expect("UTF-8");
    assert!(ready.is_empty(), "{settings:?}: it serves: {stderr}");
    (output.status.code(), stderr)
}

/// The error line of a `serve` that fails to start.
fn failure(settings: &[(&str, &str)]) -> String {
    let (code, stderr) = refusal(settings);
    assert_eq!(code, Some(1), "{settings:?}: {stderr}");
    assert!(!stderr.contains("panicked"), "{settings:?}: {stderr}");
    let errors: Vec<&str> = stderr
        .lines()
        .filter(|line| line.starts_with("error: "))
        .collect();
    assert_eq!(errors.len(), 1, "{settings:?}: {stderr}");
    assert!(
        stderr.trim_end().ends_with(errors[0]),
        "{settings:?}: {stderr}"
    );
    errors[0].to_owned()
}

fn assert_names(error: &str, words: &[&str]) {
    for word in words {
        assert!(error.contains(word), "{word:?} is not in {error:?}");
    }
}

#[test]
fn a_model_that_is_not_there_is_named() {
    assert_names(
        &failure(&[("MODEL", "smollm2-13m")]),
        &["smollm2-13m", "smollm2-135m"],
    );
    assert_names(&failure(&[("MODEL", "./missing.gguf")]), &["missing.gguf"]);
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().to_str().expect("UTF-8");
    assert_names(&failure(&[("MODEL", path)]), &["config.json"]);
}

#[test]
fn damaged_model_files_are_refused_by_name() {
    let whole = fs::read(smollm2()).expect("the model can be read");
    let folder = tempfile::tempdir().expect("a folder");
    let attempt = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, bytes).expect("the disk has room");
        let error = failure(&[("MODEL", path.to_str().expect("UTF-8"))]);
        fs::remove_file(&path).expect("it was written");
        assert_names(&error, &[name]);
        error
    };
    attempt("empty.gguf", &[]);
    attempt("text.gguf", b"this is no model");
    attempt("header-cut.gguf", &whole[..1000]);
    attempt("metadata-cut.gguf", &whole[..1 << 20]);
    attempt("tensors-cut.gguf", &whole[..whole.len() / 2]);

    let mut other = whole;
    let architecture = b"general.architecture";
    let key = other
        .windows(architecture.len())
        .position(|window| window == architecture)
        .expect("the key is there");
    // The key, the value's type and length, and then the value: "llama".
    let value = key + architecture.len() + 4 + 8;
    assert_eq!(&other[value..value + 5], b"llama");
    other[value..value + 5].copy_from_slice(b"lhasa");
    assert_names(&attempt("other.gguf", &other), &["lhasa"]);
}

#[test]
fn a_port_in_use_is_named_before_the_model_is_loaded() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = taken.local_addr().expect("bound").port().to_string();
    let (code, stderr) = refusal(&[("MODEL", &smollm2()), ("PORT", &port)]);
    assert_eq!(code, Some(1), "{stderr}");
    assert_names(&stderr, &["error: ", &port, "PORT"]);
    assert!(!stderr.contains("loaded"), "{stderr}");
}

#[test]
fn settings_that_cannot_hold_are_named() {
    let model = smollm2();
    for (name, value) in [
        ("KV_CACHE_SIZE", "900000GiB"),
        ("KV_CACHE_SIZE", "1KiB"),
        ("MAX_MODEL_LEN", "1000000"),
        ("MAX_MODEL_LEN", "1"),
        ("MAX_BATCH_TOKENS", "3"),
        ("MAX_BATCH_SIZE", "0"),
        ("QUEUE_MAX_SIZE", "0"),
        ("NUM_THREADS", "0"),
        ("QUANTIZE", "q4_0"),
        ("API_KEYS_FILE", "missing.txt"),
    ] {
        assert_names(&failure(&[("MODEL", &model), (name, value)]), &[name]);
    }
}

#[test]
fn settings_that_cannot_be_read_are_refused_with_what_was_expected() {
    for (name, value, expected) in [
        ("PORT", "http", "--port"),
        ("HOST", "nowhere", "--host"),
        ("DEVICE", "tpu", "cuda:N"),
        ("QUANTIZE", "int8", "q8_0"),
        ("ENABLE_BATCHING", "perhaps", "--enable-batching"),
        ("REQUEST_TIMEOUT", "soon", "50ms"),
        ("KV_CACHE_SIZE", "lots", "2GiB"),
        ("MAX_BODY_SIZE", "50%", "4MiB"),
        ("MAX_CONNECTIONS", "0", "--max-connections"),
        ("OPEN_ENDPOINTS", "stats", "health,metrics"),
        ("CORS_ALLOW_ORIGINS", "example.org", "https://"),
    ] {
        let output = serve_command(&[(name, value)])
            .output()
            .expect("the program starts");
        let stderr = String::from_utf8(output.stderr).expect("UTF-8");
        assert_eq!(output.status.code(), Some(2), "{name}={value}: {stderr}");
        assert_names(&stderr, &[value, expected]);
    }
}

#[test]
fn a_gpu_that_is_not_there_is_a_clear_error() {
    let missing = match Gpu::has_driver() {
        true => ("cuda:99", "no such GPU"),
        false => ("cuda", "the driver (libcuda)"),
    };
    let error = failure(&[("MODEL", &smollm2()), ("DEVICE", missing.0)]);
    assert_names(&error, &[missing.0, missing.1, "DEVICE=cpu"]);
}

#[test]
fn the_help_lists_every_setting_with_its_variable_and_default() {
    let help = std::process::Command::new(env!("CARGO_BIN_EXE_candlepower"))
        .args(["serve", "--help"])
        .env_clear()
        .output()
        .expect("the program starts");
    let help = String::from_utf8(help.stdout).expect("UTF-8");
    let source = [
        "src/config.rs",
        "src/config/http.rs",
        "src/config/observe.rs",
        "src/cli.rs",
    ]
    .map(|file| {
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file))
            .expect("the source is there")
    });
    let source = source.concat();
    let variables: Vec<&str> = source
        .split("env = \"")
        .skip(1)
        .filter_map(|rest| rest.split('"').next())
        .collect();
    assert!(variables.len() >= 25, "{variables:?}");
    let entries = help.split_whitespace().collect::<Vec<_>>().join(" ");
    for variable in variables {
        let entry = entries
            .split(" --")
            .find(|entry| {
                entry.contains(&format!("[env: {variable}=]"))
                    || entry.contains(&format!("[env: {variable}]"))
            })
            .unwrap_or_else(|| panic!("{variable} is not in the help"));
        assert!(
            entry.contains("[default: "),
            "{variable} has no default: {entry}"
        );
    }
}
