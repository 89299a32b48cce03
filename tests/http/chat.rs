//! `POST /v1/chat/completions`.

use serde_json::{Value, json};

use crate::client::request;
use crate::server::{MODEL, Setup, TestServer};

const PATH: &str = "/v1/chat/completions";

#[test]
fn a_chat_has_n_choices() {
    let server = TestServer::start();
    let body = json!({
        "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2, "n": 2,
    });
    let answer = server.post(PATH, body).json();
    for index in 0..2 {
        let choice = &answer["choices"][index];
        assert_eq!(choice["index"], index);
        assert_eq!(choice["message"]["content"], "bc");
    }
    assert_eq!(answer["choices"].as_array().map(Vec::len), Some(2));
}

#[test]
fn an_answer_has_the_fields_of_openai() {
    let server = TestServer::start();
    let body = json!({
        "model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3,
    });
    let body = body.to_string();
    let response = server.send(&request("POST", PATH, &[("x-request-id", "r")], &body));
    let mut answer = response.json();
    answer["created"] = json!(0);
    answer["timings"] = json!(null);
    assert_eq!(
        answer,
        json!({
            "id": "chatcmpl-r", "object": "chat.completion", "created": 0, "model": MODEL,
            "system_fingerprint": "candlepower-0.1.0-0123456789ab-none",
            "choices": [{
                "index": 0,
                "message": {"role": "assistant", "content": "bcd", "refusal": null},
                "logprobs": null,
                "finish_reason": "length",
            }],
            // "[user]hi" and "a".
            "usage": {
                "prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12,
                "prompt_tokens_details": {"cached_tokens": 0},
            },
            "timings": null,
        })
    );
}

#[test]
fn a_stream_tells_the_role_once_and_the_reason_last() {
    let server = TestServer::start();
    let body = json!({
        "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
        "max_completion_tokens": 2, "stream": true, "stream_options": {"include_usage": true},
    });
    let response = server.post(PATH, body);
    let events = response.events();
    assert_eq!((events.len(), events[3]), (4, "[DONE]"));
    let chunks: Vec<Value> = events[..3]
        .iter()
        .map(|event| serde_json::from_str(event).expect("JSON"))
        .collect();
    let choice = |delta: Value, reason: Value| json!([{"index": 0, "delta": delta, "logprobs": null, "finish_reason": reason}]);
    assert_eq!(
        chunks[0]["choices"],
        choice(json!({"role": "assistant", "content": "b"}), Value::Null)
    );
    assert_eq!(
        chunks[1]["choices"],
        choice(json!({"content": "c"}), json!("length"))
    );
    assert_eq!(chunks[2]["choices"], json!([]));
    assert_eq!(chunks[2]["usage"]["total_tokens"], 11);
    for chunk in &chunks {
        assert_eq!(chunk["object"], "chat.completion.chunk");
        assert_eq!(chunk["id"], chunks[0]["id"]);
    }
}

#[test]
fn without_a_length_the_rest_of_the_window_is_used() {
    let server = TestServer::start();
    let answer = server.post(PATH, r#"{"messages": [{"role": "user", "content": "hi"}]}"#);
    assert_eq!(answer.json()["usage"]["total_tokens"], 4096);
}

#[test]
fn variables_reach_the_template() {
    let server = TestServer::start();
    let body = json!({
        "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2,
        "chat_template_kwargs": {"start": "m"},
    });
    assert_eq!(
        server.post(PATH, body).json()["choices"][0]["message"]["content"],
        "no"
    );
    let body = json!({
        "messages": [{"role": "user", "content": "hp"}], "max_tokens": 2,
        "add_generation_prompt": false,
    });
    assert_eq!(
        server.post(PATH, body).json()["choices"][0]["message"]["content"],
        "qr"
    );
}

#[test]
fn what_the_template_refuses_is_the_clients_to_change() {
    let server = TestServer::start();
    let body = json!({"messages": [{"role": "assistant", "content": "hi"}]});
    let response = server.post(PATH, body);
    let error = &response.json()["error"];
    assert_eq!(
        (response.status, &error["param"]),
        (400, &json!("messages"))
    );
    assert!(
        error["message"]
            .as_str()
            .is_some_and(|text| text.contains("the user begins"))
    );
}

#[test]
fn a_model_without_a_template_cannot_chat() {
    let server = TestServer::of(Setup {
        chat_template: None,
        ..Setup::default()
    });
    let response = server.post(PATH, r#"{"messages": [{"role": "user", "content": "hi"}]}"#);
    assert_eq!(
        (response.status, &response.json()["error"]["param"]),
        (400, &json!("messages"))
    );
}
