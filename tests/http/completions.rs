//! `POST /v1/completions`, and the endpoints that load generators use beside it.

use serde_json::{Value, json};

use crate::client::request;
use crate::server::{MODEL, TestServer};

const PATH: &str = "/v1/completions";

fn parsed(events: &[&str]) -> Vec<Value> {
    let events = events
        .iter()
        .map(|event| serde_json::from_str(event).expect("JSON"));
    events.collect()
}

#[test]
fn an_answer_has_the_fields_of_openai() {
    let server = TestServer::start();
    let body = json!({"model": MODEL, "prompt": "abc", "max_tokens": 3});
    let body = body.to_string();
    let response = server.send(&request("POST", PATH, &[("x-request-id", "run-1")], &body));
    assert_eq!(response.header("x-request-id"), Some("run-1"));
    let mut answer = response.json();
    assert!(answer["created"].as_i64() > Some(1_700_000_000));
    assert!(answer["timings"]["total_ms"].is_number());
    answer["created"] = json!(0);
    answer["timings"] = json!(null);
    assert_eq!(
        answer,
        json!({
            "id": "cmpl-run-1", "object": "text_completion", "created": 0, "model": MODEL,
            "system_fingerprint": "candlepower-0.1.0-0123456789ab-none",
            "choices": [{"index": 0, "text": "def", "logprobs": null, "finish_reason": "length"}],
            "usage": {
                "prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6,
                "prompt_tokens_details": {"cached_tokens": 0},
            },
            "timings": null,
        })
    );
}

#[test]
fn the_default_length_is_16() {
    let server = TestServer::start();
    let answer = server.post(PATH, r#"{"prompt": "a"}"#).json();
    assert_eq!(answer["usage"]["completion_tokens"], 16);
}

#[test]
fn a_stream_is_one_chunk_a_token_and_the_last_one_has_the_reason() {
    let server = TestServer::start();
    let body = json!({"prompt": "/", "max_tokens": 9, "stop_token_ids": [169], "stream": true});
    let body = body.to_string();
    let response = server.send(&request("POST", PATH, &[("x-request-id", "r")], &body));
    let events = response.events();
    assert_eq!(events.last(), Some(&"[DONE]"));
    let chunks = parsed(&events[..events.len() - 1]);
    let created = &chunks[0]["created"];
    let chunk = |text: &str, reason: Value| {
        json!({
            "id": "cmpl-r", "object": "text_completion", "created": created, "model": MODEL,
            "system_fingerprint": "candlepower-0.1.0-0123456789ab-none",
            "choices": [{"index": 0, "text": text, "logprobs": null, "finish_reason": reason}],
        })
    };
    // Token 195 is the first half of a character: it shows only when the text has ended.
    assert_eq!(
        chunks,
        [
            chunk("0", Value::Null),
            chunk("", Value::Null),
            chunk("\u{fffd}", json!("stop")),
        ]
    );
}

#[test]
fn the_usage_chunk_has_no_choices_and_comes_before_done() {
    let server = TestServer::start();
    let body = json!({
        "prompt": "a", "max_tokens": 2, "stream": true, "stream_options": {"include_usage": true},
    });
    let response = server.post(PATH, body);
    let events = response.events();
    assert_eq!((events.len(), events[3]), (4, "[DONE]"));
    let chunks = parsed(&events[..3]);
    for chunk in &chunks[..2] {
        assert_eq!(chunk.get("usage"), Some(&Value::Null));
        assert_eq!(chunk["choices"].as_array().map(Vec::len), Some(1));
    }
    assert_eq!(chunks[2]["choices"], json!([]));
    assert_eq!(chunks[2]["usage"]["prompt_tokens"], 1);
    assert_eq!(chunks[2]["usage"]["completion_tokens"], 2);
    assert_eq!(
        chunks[2]["usage"]["prompt_tokens_details"]["cached_tokens"],
        0
    );
}

#[test]
fn continuous_usage_counts_up_in_every_chunk() {
    let server = TestServer::start();
    let options = json!({"include_usage": true, "continuous_usage_stats": true});
    let body = json!({"prompt": "a", "max_tokens": 3, "stream": true, "stream_options": options});
    let response = server.post(PATH, body);
    let events = response.events();
    let chunks = parsed(&events[..events.len() - 1]);
    let counts: Vec<(Option<u64>, Option<u64>)> = chunks
        .iter()
        .map(|chunk| &chunk["usage"])
        .map(|usage| {
            let count = |name: &str| usage[name].as_u64();
            (count("prompt_tokens"), count("completion_tokens"))
        })
        .collect();
    let so_far = |tokens| (Some(1), Some(tokens));
    assert_eq!(counts, [so_far(1), so_far(2), so_far(3), so_far(3)]);
    assert_eq!(chunks[3]["choices"], json!([]));
}

#[test]
fn several_prompts_are_several_choices() {
    let server = TestServer::start();
    let body = json!({"prompt": ["a", "x!"], "max_tokens": 2});
    let answer = server.post(PATH, body).json();
    let choice = |index: usize| {
        let choice = &answer["choices"][index];
        (&choice["index"], &choice["text"], &choice["finish_reason"])
    };
    assert_eq!(choice(0), (&json!(0), &json!("bc"), &json!("length")));
    assert_eq!(choice(1), (&json!(1), &json!(""), &json!("stop")));
    assert_eq!(answer["usage"]["prompt_tokens"], 3);
    assert_eq!(answer["usage"]["completion_tokens"], 3);

    let body = json!({"prompt": [[97], [109]], "max_tokens": 3, "stream": true});
    let response = server.post(PATH, body);
    let events = response.events();
    let mut texts = [String::new(), String::new()];
    for chunk in parsed(&events[..events.len() - 1]) {
        let choice = &chunk["choices"][0];
        let index = choice["index"].as_u64().expect("an index") as usize;
        texts[index] += choice["text"].as_str().expect("a text");
    }
    assert_eq!(texts, ["bcd", "nop"]);
    assert_eq!(events.last(), Some(&"[DONE]"));
}

#[test]
fn n_choices_share_one_computed_prompt() {
    let server = TestServer::start();
    let body =
        json!({"prompt": ["abc", "0123m"], "n": 3, "max_tokens": 2, "return_token_ids": true});
    let answer = server.post(PATH, body).json();
    let choices = answer["choices"].as_array().expect("choices");
    let texts: Vec<_> = choices.iter().map(|choice| &choice["text"]).collect();
    assert_eq!(texts, ["de", "de", "de", "no", "no", "no"]);
    for (index, choice) in choices.iter().enumerate() {
        assert_eq!(choice["index"], index);
        let prompt = choice["prompt_token_ids"].as_array().map(Vec::len);
        assert_eq!(prompt, Some(if index < 3 { 3 } else { 5 }));
    }
    let usage = &answer["usage"];
    assert_eq!(
        (&usage["prompt_tokens"], &usage["completion_tokens"]),
        (&json!(8), &json!(12))
    );
    assert_eq!(usage["prompt_tokens_details"]["cached_tokens"], 0);
    let stats = server.stats();
    // Of each choice but the first, only the last token of the prompt was computed.
    assert_eq!(stats["batch"]["num_prefill_tokens"], 8 + 4);
    assert_eq!(stats["prefix"]["hit_tokens"], 2 * 2 + 2 * 4);
}

#[test]
fn n_choices_are_streamed_side_by_side() {
    let server = TestServer::start();
    let body = json!({
        "prompt": "a", "n": 2, "max_tokens": 3, "stream": true, "echo": true,
        "stream_options": {"include_usage": true},
    });
    let response = server.post(PATH, body);
    let events = response.events();
    let chunks = parsed(&events[..events.len() - 1]);
    let (usage, chunks) = chunks.split_last().expect("chunks");
    let mut texts = [String::new(), String::new()];
    for chunk in chunks {
        let choice = &chunk["choices"][0];
        let index = choice["index"].as_u64().expect("an index") as usize;
        texts[index] += choice["text"].as_str().expect("a text");
    }
    assert_eq!(texts, ["abcd", "abcd"]);
    assert_eq!(usage["usage"]["prompt_tokens"], 1);
    assert_eq!(usage["usage"]["completion_tokens"], 6);
}

#[test]
fn values_that_ask_for_nothing_are_fine() {
    let server = TestServer::start();
    let body = json!({
        "prompt": "a", "max_tokens": 1, "n": 1, "best_of": 1, "echo": false, "logprobs": null,
        "suffix": null, "logit_bias": {}, "user": "me", "stream": false, "stream_options": null,
        "response_format": {"type": "text"}, "min_tokens": 0, "top_k": -1, "seed": 5,
    });
    assert_eq!(server.post(PATH, body).status, 200);
}

#[test]
fn the_model_is_listed_and_found_by_its_name() {
    let server = TestServer::start();
    let model = json!({
        "id": MODEL, "object": "model", "created": 1_700_000_000, "owned_by": "candlepower",
        "root": MODEL, "parent": null, "max_model_len": 4096,
    });
    let list = server.get("/v1/models").json();
    assert_eq!(list, json!({"object": "list", "data": [&model]}));
    assert_eq!(server.get("/v1/models/counting").json(), model);
    let other = server.get("/v1/models/org/other");
    assert_eq!(
        (other.status, &other.json()["error"]["code"]),
        (404, &json!("model_not_found"))
    );
}

#[test]
fn tokenize_and_detokenize_are_inverse() {
    let server = TestServer::start();
    let body = json!({"model": MODEL, "prompt": "a é", "add_special_tokens": false});
    let tokens = server.post("/tokenize", body).json();
    assert_eq!(
        tokens,
        json!({"count": 4, "max_model_len": 4096, "tokens": [97, 32, 195, 169]})
    );
    let body = json!({"model": MODEL, "tokens": tokens["tokens"]});
    assert_eq!(
        server.post("/detokenize", body).json(),
        json!({"prompt": "a é"})
    );
}

#[test]
fn a_prompt_too_long_to_tokenize_in_passing_gives_the_same_tokens() {
    let server = TestServer::start();
    let prompt = "ab ".repeat(5000);
    let tokens = server.post("/tokenize", json!({"prompt": prompt})).json();
    assert_eq!(tokens["count"], 15_000);
    let refused = server.post(PATH, json!({"prompt": prompt}));
    let error = &refused.json()["error"];
    assert_eq!((refused.status, &error["param"]), (400, &json!("prompt")));
    assert_eq!(error["code"], "context_length_exceeded");
    let message = error["message"].as_str().expect("a message");
    assert!(
        message.contains("15000") && message.contains("4096"),
        "{message}"
    );
}
