//! The log: one line for the end of each request, in JSON if asked, and no prompt unless asked.

use std::fs::File;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::NamedTempFile;

use crate::server::{RealServer, model_file};

const PROMPT: &str = "Water boils at";

struct LoggingServer {
    server: RealServer,
    log: NamedTempFile,
}

impl LoggingServer {
    fn start(settings: &[(&str, &str)]) -> Self {
        let model = model_file("smollm2-135m", "SmolLM2-135M-Instruct.Q4_1.gguf");
        let model = model.to_str().expect("a path in UTF-8");
        let own = [
            ("MODEL", model),
            ("RUST_LOG", "info"),
            ("LOG_FORMAT", "json"),
        ];
        let log = NamedTempFile::new().expect("a file");
        let stderr = File::options()
            .append(true)
            .open(log.path())
            .expect("it was made");
        let settings = [&own[..], settings].concat();
        let server = RealServer::start_logging_to(&settings, stderr);
        Self { server, log }
    }

    fn lines(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.log.path()).expect("the log can be read");
        // A line that is being written has no end yet.
        let (whole, _) = text.rsplit_once('\n').unwrap_or_default();
        let lines = whole.lines();
        let parse = |line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"));
        lines.map(parse).collect()
    }

    /// The line with this message; waits for it.
    fn line(&self, message: &str) -> Value {
        for _ in 0..600 {
            let lines = self.lines();
            let mut found = lines.into_iter().filter(|line| line["message"] == message);
            if let Some(line) = found.next() {
                return line;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("no line {message:?} in {:?}", self.lines());
    }
}

#[test]
fn the_end_of_a_request_is_one_line_and_shows_no_prompt() {
    let server = LoggingServer::start(&[("API_KEY", "sk-secret"), ("OPEN_ENDPOINTS", "none")]);
    let body = json!({"prompt": PROMPT, "max_tokens": 4});
    let (status, answer) = server.server.call("/generate", &body);
    assert_eq!(status, 401, "{answer}");
    let refused = server.line("request refused");
    assert_eq!(
        (&refused["status"], &refused["path"]),
        (&json!(401), &json!("/generate"))
    );
    assert_eq!(refused["code"], "invalid_api_key");

    let (status, answer) = server.server.call_with_key("/generate", &body, "sk-secret");
    assert_eq!(status, 200, "{answer}");
    let ended = server.line("generation ended");
    assert_eq!(ended["level"], "INFO");
    assert_eq!(ended["endpoint"], "/generate");
    assert_eq!(ended["outcome"], "length");
    assert_eq!(
        (&ended["generated_tokens"], &ended["choice"]),
        (&json!(4), &json!(0))
    );
    assert_eq!(ended["prompt_tokens"], answer["usage"]["prompt_tokens"]);
    assert_eq!(ended["request_id"].as_str().map(str::len), Some(32));
    for phase in ["queue_ms", "prefill_ms", "decode_ms", "total_ms"] {
        assert!(ended[phase].as_f64() >= Some(0.0), "{phase}: {ended}");
    }
    let log = std::fs::read_to_string(server.log.path()).expect("the log can be read");
    let text = answer["text"].as_str().expect("a text");
    for secret in [PROMPT, text, "sk-secret"] {
        assert!(!log.contains(secret), "{secret:?} is in {log}");
    }
}

#[test]
fn prompts_and_answers_are_logged_if_asked_for() {
    let server = LoggingServer::start(&[("LOG_PROMPTS", "true")]);
    let body = json!({"prompt": PROMPT, "max_tokens": 4});
    let (_, answer) = server.server.call("/generate", &body);
    let ended = server.line("generation ended");
    assert_eq!(ended["prompt"], PROMPT);
    assert_eq!(ended["answer"], answer["text"]);
}
