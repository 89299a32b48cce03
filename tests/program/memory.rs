//! The weights are in memory once, and were never there twice.

use std::fs;

use serde_json::Value;

use crate::server::{RealServer, model_file};

/// Whatever is neither weights nor cache: the program, the tokenizer, buffers.
const OTHER_BYTES: f64 = 60e6;

/// A line of the process's status, in bytes.
fn status_bytes(server: &RealServer, name: &str) -> f64 {
    let path = format!("/proc/{}/status", server.pid());
    let status = fs::read_to_string(path).expect("Linux tells of its processes");
    let line = status.lines().find(|line| line.starts_with(name));
    let kib = line.and_then(|line| line.split_whitespace().nth(1));
    1024.0 * kib.and_then(|kib| kib.parse().ok()).unwrap_or(f64::NAN)
}

fn is_loaded_once(name: &str, file: &str) {
    let path = model_file(name, file);
    let server = RealServer::start(&[("MODEL", path.to_str().expect("UTF-8"))]);
    let (_, stats) = server.call("/stats", &Value::Null);
    let weights = stats["model"]["loaded_weight_bytes"].as_f64();
    let weights = weights.expect("a number");
    let resident = status_bytes(&server, "VmRSS");
    let peak = status_bytes(&server, "VmHWM");
    let [mb, resident_mb, peak_mb] = [weights, resident, peak].map(|bytes| bytes / 1e6);
    println!("{name}: {mb:.0} MB of weights, {resident_mb:.0} MB resident, {peak_mb:.0} at most");
    // The KV cache takes none before the first request.
    assert!(resident >= weights, "{name}: not loaded yet");
    assert!(
        resident <= 1.15 * weights + OTHER_BYTES,
        "{name}: {resident_mb} MB"
    );
    assert!(peak <= 1.25 * weights + OTHER_BYTES, "{name}: {peak_mb} MB");
}

#[test]
fn smollm2_is_in_memory_once() {
    is_loaded_once("smollm2-135m", "SmolLM2-135M-Instruct.Q4_1.gguf");
}

#[test]
fn qwen_is_in_memory_once() {
    is_loaded_once(
        "qwen2.5-coder-0.5b",
        "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
    );
}
