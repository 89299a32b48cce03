//! A server with keys, and `bench` as a client that has one.

use std::process::Command;

use serde_json::{Value, json};

use crate::server::{RealServer, model_file};

#[test]
fn bench_sends_its_key_and_writes_it_down_nowhere() {
    const KEY: &str = "sk-secret-1";
    let model = model_file("smollm2-135m", "SmolLM2-135M-Instruct.Q4_1.gguf");
    let model = model.to_str().expect("a path in UTF-8");
    let server = RealServer::start(&[
        ("MODEL", model),
        ("API_KEY", KEY),
        ("OPEN_ENDPOINTS", "none"),
    ]);
    assert_eq!(server.call("/health", &Value::Null).0, 401);
    let (_, stats) = server.call_with_key("/stats", &Value::Null, KEY);
    assert_eq!(stats["settings"]["api_key"], json!("(hidden)"));

    let folder = tempfile::tempdir().expect("a folder");
    let bench = |key: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_candlepower"));
        command
            .args([
                "bench",
                "--endpoint",
                &server.url(),
                "--api-key",
                key,
                "--requests",
                "2",
            ])
            .args([
                "--max-tokens",
                "2",
                "--warmup",
                "0",
                "--no-append",
                "--output",
                "run.json",
            ])
            .env_clear()
            .current_dir(folder.path());
        command.output().expect("the program runs")
    };
    let output = bench(KEY);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    let record = std::fs::read_to_string(folder.path().join("run.json")).expect("a record");
    for shown in [&record, &*stderr, &*String::from_utf8_lossy(&output.stdout)] {
        assert!(!shown.contains(KEY), "{shown}");
    }
    assert!(!bench("sk-other").status.success());
}
