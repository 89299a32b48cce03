//! Every wrong request: its status, the field that is named, and an unharmed server.

use serde_json::{Value, json};

use crate::client::request;
use crate::server::TestServer;

const GENERATE: &str = "/generate";
const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

/// Posts each body, and reports all rows that are answered otherwise.
fn check(path: &str, rows: &[(Value, u16, Option<&str>)]) {
    let server = TestServer::start();
    let mut wrong = Vec::new();
    for (body, status, param) in rows {
        let response = server.post(path, body);
        let error = &response.json()["error"];
        let is_complete = error["message"].is_string() && error["type"].is_string();
        if (response.status, error["param"].as_str()) != (*status, *param) || !is_complete {
            wrong.push(format!("{body}: {} {error}", response.status));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(server.stats()["requests"]["num_submitted"], 0);
}

/// `fields` beside a valid prompt.
fn with(mut fields: Value) -> Value {
    if fields.get("prompt").is_none() {
        fields["prompt"] = json!("abc");
    }
    fields
}

#[test]
fn bodies_of_generate() {
    check(
        GENERATE,
        &[
            (json!({}), 400, Some("prompt")),
            (json!({"prompt": null}), 400, Some("prompt")),
            (json!({"prompt": ""}), 400, Some("prompt")),
            (json!({"prompt": 5}), 400, Some("prompt")),
            (json!({"prompt": []}), 400, Some("prompt")),
            (json!({"prompt": ["a", "b"]}), 400, Some("prompt")),
            (json!({"prompt": [257]}), 400, Some("prompt")),
            (json!({"prompt": "a", "text": "b"}), 400, Some("text")),
            (
                with(json!({"prompt": "x".repeat(4096)})),
                400,
                Some("prompt"),
            ),
            (with(json!({"max_tokens": 4094})), 400, Some("max_tokens")),
            (
                with(json!({"max_tokens": usize::MAX})),
                400,
                Some("max_tokens"),
            ),
            (with(json!({"max_tokens": 0})), 400, Some("max_tokens")),
            (with(json!({"max_tokens": "5"})), 400, Some("max_tokens")),
            (with(json!({"temperature": -0.1})), 400, Some("temperature")),
            (with(json!({"stream": "yes"})), 400, Some("stream")),
            (with(json!({"parameters": 5})), 400, Some("parameters")),
            (
                with(json!({"parameters": {"top_p": 2}})),
                400,
                Some("parameters.top_p"),
            ),
            (
                with(json!({"parameters": {"foo": 2}})),
                400,
                Some("parameters.foo"),
            ),
            (
                with(json!({"max_tokens": 1, "parameters": {"max_tokens": 2}})),
                400,
                Some("parameters.max_tokens"),
            ),
            (
                with(json!({"return_logprob": true})),
                400,
                Some("return_logprob"),
            ),
            (with(json!({"logprobs": 1})), 400, Some("logprobs")),
            (with(json!({"echo": true})), 400, Some("echo")),
            (with(json!({"typo": 1})), 400, Some("typo")),
            (with(json!({"model": "other"})), 404, Some("model")),
        ],
    );
}

#[test]
fn bodies_of_completions() {
    check(
        COMPLETIONS,
        &[
            (json!({"model": "counting"}), 400, Some("prompt")),
            (json!({"model": "gpt-4", "prompt": "a"}), 404, Some("model")),
            (json!({"model": 4, "prompt": "a"}), 400, Some("model")),
            (json!({"prompt": ["a", ""]}), 400, Some("prompt[1]")),
            (json!({"prompt": ["a", 1]}), 400, Some("prompt[1]")),
            (with(json!({"n": 0})), 400, Some("n")),
            (with(json!({"n": 129})), 400, Some("n")),
            (with(json!({"best_of": 3})), 400, Some("best_of")),
            (with(json!({"logprobs": 21})), 400, Some("logprobs")),
            (with(json!({"logprobs": -1})), 400, Some("logprobs")),
            (with(json!({"logprobs": true})), 400, Some("logprobs")),
            (with(json!({"top_logprobs": 1})), 400, Some("top_logprobs")),
            (
                with(json!({"prompt_logprobs": 1})),
                400,
                Some("prompt_logprobs"),
            ),
            (with(json!({"echo": 1})), 400, Some("echo")),
            (with(json!({"max_tokens": 0})), 400, Some("max_tokens")),
            (
                with(json!({"max_tokens": 0, "logprobs": 1})),
                400,
                Some("max_tokens"),
            ),
            (
                with(json!({"return_token_ids": "yes"})),
                400,
                Some("return_token_ids"),
            ),
            (with(json!({"suffix": "x"})), 400, Some("suffix")),
            (
                with(json!({"logit_bias": {"5": 101}})),
                400,
                Some("logit_bias.5"),
            ),
            (
                with(json!({"logit_bias": {"257": 1}})),
                400,
                Some("logit_bias"),
            ),
            (with(json!({"min_tokens": 1})), 400, Some("min_tokens")),
            (
                with(json!({"response_format": {"type": "json_object"}})),
                400,
                Some("response_format"),
            ),
            (
                with(json!({"stream_options": {"include_usage": true}})),
                400,
                Some("stream_options"),
            ),
            (
                with(json!({"stream": true, "stream_options": {"continuous_usage_stats": true}})),
                400,
                Some("stream_options.continuous_usage_stats"),
            ),
            (
                with(json!({"stream": true, "stream_options": {"typo": true}})),
                400,
                Some("stream_options.typo"),
            ),
            (with(json!({"stop": [""]})), 400, Some("stop")),
            (
                with(json!({"max_completion_tokens": 5})),
                400,
                Some("max_completion_tokens"),
            ),
        ],
    );
}

#[test]
fn bodies_of_chat() {
    let chat = |fields: Value| {
        let mut body = json!({"messages": [{"role": "user", "content": "hi"}]});
        for (name, value) in fields.as_object().expect("fields") {
            body[name] = value.clone();
        }
        body
    };
    check(
        CHAT,
        &[
            (json!({}), 400, Some("messages")),
            (json!({"messages": []}), 400, Some("messages")),
            (
                json!({"messages": [{"role": "tool", "content": ""}]}),
                400,
                Some("messages[0].role"),
            ),
            (
                chat(json!({"messages": [{"role": "user", "content": "x".repeat(5000)}]})),
                400,
                Some("messages"),
            ),
            (
                chat(json!({"max_tokens": 5, "max_completion_tokens": 5})),
                400,
                Some("max_tokens"),
            ),
            (
                chat(json!({"max_completion_tokens": 5000})),
                400,
                Some("max_completion_tokens"),
            ),
            (
                chat(json!({"tools": [{"type": "function"}]})),
                400,
                Some("tools"),
            ),
            (
                chat(json!({"tool_choice": "required"})),
                400,
                Some("tool_choice"),
            ),
            (chat(json!({"logprobs": 5})), 400, Some("logprobs")),
            (chat(json!({"top_logprobs": 2})), 400, Some("top_logprobs")),
            (
                chat(json!({"logprobs": true, "top_logprobs": 21})),
                400,
                Some("top_logprobs"),
            ),
            (
                chat(json!({"logprobs": true, "top_logprobs": true})),
                400,
                Some("top_logprobs"),
            ),
            (chat(json!({"echo": true})), 400, Some("echo")),
            (chat(json!({"max_tokens": 0})), 400, Some("max_tokens")),
            (chat(json!({"n": 1.5})), 400, Some("n")),
            (
                chat(json!({"chat_template_kwargs": []})),
                400,
                Some("chat_template_kwargs"),
            ),
            (
                chat(json!({"chat_template_kwargs": {"messages": []}})),
                400,
                Some("chat_template_kwargs.messages"),
            ),
            (chat(json!({"prompt": "a"})), 400, Some("prompt")),
        ],
    );
}

#[test]
fn bodies_of_tokenize_and_detokenize() {
    check(
        "/tokenize",
        &[
            (json!({}), 400, Some("prompt")),
            (json!({"prompt": ["a"]}), 400, Some("prompt")),
            (json!({"prompt": "a", "typo": 1}), 400, Some("typo")),
            (json!({"prompt": "a", "model": "other"}), 404, Some("model")),
        ],
    );
    check(
        "/detokenize",
        &[
            (json!({}), 400, Some("tokens")),
            (json!({"tokens": "a"}), 400, Some("tokens")),
            (json!({"tokens": [-1]}), 400, Some("tokens")),
        ],
    );
}

#[test]
fn too_long_requests_are_told_the_numbers() {
    let server = TestServer::start();
    let response = server.post(GENERATE, json!({"prompt": "abc", "max_tokens": 5000}));
    let error = &response.json()["error"];
    let message = error["message"].as_str().expect("a message");
    for number in ["3 tokens", "5000", "5003", "4096"] {
        assert!(message.contains(number), "{number}: {message}");
    }
    assert_eq!(error["code"], "context_length_exceeded");
}

#[test]
fn bodies_that_are_no_json_object() {
    let server = TestServer::start();
    for body in [
        "",
        "{",
        "[]",
        "\"text\"",
        "{\"prompt\": \"a\",}",
        "\u{0}",
        "{\"a\": NaN}",
    ] {
        let response = server.post(GENERATE, body);
        let error = &response.json()["error"];
        assert_eq!(
            (response.status, &error["type"]),
            (400, &json!("invalid_request_error"))
        );
        assert_eq!(error["param"], Value::Null, "{body}");
    }
    let nested = "[".repeat(100_000);
    assert_eq!(server.post(GENERATE, nested).status, 400);
}

#[test]
fn a_body_above_the_limit_is_refused_with_413() {
    let server = TestServer::start();
    let response = server.post(GENERATE, json!({"prompt": "x".repeat(5 << 20)}));
    assert_eq!(response.status, 413);
    assert_eq!(response.json()["error"]["code"], "body_too_large");

    // A promise of a gigabyte is refused before it comes.
    let head = String::from_utf8(request("POST", GENERATE, &[], "")).expect("text");
    let head = head.replace("content-length: 0", "content-length: 1000000000");
    assert_eq!(server.send(head.as_bytes()).status, 413);
}

#[test]
fn unknown_paths_and_methods_are_json_too() {
    let server = TestServer::start();
    let missing = server.get("/v2/nothing");
    assert_eq!(
        (missing.status, &missing.json()["error"]["code"]),
        (404, &json!("path_not_found"))
    );
    let wrong = server.get(GENERATE);
    assert_eq!(
        (wrong.status, &wrong.json()["error"]["code"]),
        (405, &json!("method_not_allowed"))
    );
    assert_eq!(wrong.header("allow"), Some("POST"));
}

#[test]
fn a_request_id_is_returned_or_made() {
    let server = TestServer::start();
    let send = |id: &str| server.send(&request("GET", "/health", &[("x-request-id", id)], ""));
    assert_eq!(send("mine-1").header("x-request-id"), Some("mine-1"));
    let made = send("not a sane id!");
    assert_eq!(made.header("x-request-id").map(str::len), Some(32));
    let refused = server.send(&request(
        "GET",
        "/nothing",
        &[("x-request-id", "mine-2")],
        "",
    ));
    assert_eq!(refused.header("x-request-id"), Some("mine-2"));
}
