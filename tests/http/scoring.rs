//! Log-probabilities and echo. After every token, the runner's successor has the logit 0 and all
//! other tokens -10000: log-probabilities of 0, and of less than JSON is given.

use serde_json::{Value, json};

use crate::server::TestServer;

const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

/// Stands for every log-probability below it.
const LEAST: f64 = -9999.0;

/// The first choice of an answer to `body`.
fn choice(server: &TestServer, path: &str, body: &Value) -> Value {
    let response = server.post(path, body);
    assert_eq!(response.status, 200, "{body}: {response:?}");
    response.json()["choices"][0].take()
}

/// The first choices of all chunks of the same answer as a stream.
fn streamed(server: &TestServer, path: &str, body: &Value) -> Vec<Value> {
    let mut body = body.clone();
    body["stream"] = json!(true);
    let response = server.post(path, &body);
    let events = response.events();
    let (done, chunks) = events.split_last().expect("events");
    assert_eq!(*done, "[DONE]", "{body}");
    chunks
        .iter()
        .map(|event| {
            let mut chunk: Value = serde_json::from_str(event).expect("JSON");
            chunk["choices"][0].take()
        })
        .collect()
}

/// Appends the texts and lists of `next` to those of `whole`.
fn join(whole: &mut Value, next: &Value) {
    match (whole, next) {
        (Value::Object(whole), Value::Object(next)) => {
            for (key, value) in next {
                join(whole.entry(key).or_insert(Value::Null), value);
            }
        }
        (Value::Array(whole), Value::Array(next)) => whole.extend_from_slice(next),
        (Value::String(whole), Value::String(next)) => whole.push_str(next),
        (_, Value::Null) => {}
        (whole, next) => *whole = next.clone(),
    }
}

#[test]
fn a_prompt_is_scored_without_generating() {
    let server = TestServer::start();
    let body = json!({"prompt": "abd", "max_tokens": 0, "echo": true, "logprobs": 2});
    let answer = server.post(COMPLETIONS, &body).json();
    assert_eq!(
        answer["choices"],
        json!([{
            "index": 0, "text": "abd", "finish_reason": "length",
            "logprobs": {
                "tokens": ["a", "b", "d"],
                "token_logprobs": [null, 0.0, LEAST],
                // Of equals the lower id comes first, and the token itself is always there.
                "top_logprobs": [
                    null,
                    {"b": 0.0, "\u{0}": LEAST},
                    {"c": 0.0, "\u{0}": LEAST, "d": LEAST},
                ],
                "text_offset": [0, 1, 2],
            },
        }])
    );
    assert_eq!(answer["usage"]["prompt_tokens"], 3);
    assert_eq!(answer["usage"]["completion_tokens"], 0);
    assert_eq!(server.stats()["batch"]["num_generated_tokens"], 0);
}

#[test]
fn what_a_harness_asks_covers_prompt_and_continuation() {
    let server = TestServer::start();
    let body = json!({
        "prompt": [[97, 98, 100], [120, 33]], "max_tokens": 1, "echo": true, "logprobs": 1,
        "temperature": 0, "seed": 1234,
    });
    let answer = server.post(COMPLETIONS, &body).json();
    let lists = |index: usize| {
        let logprobs = &answer["choices"][index]["logprobs"];
        ["tokens", "token_logprobs", "top_logprobs", "text_offset"].map(|list| &logprobs[list])
    };
    assert_eq!(answer["choices"][0]["text"], "abde");
    assert_eq!(
        lists(0),
        [
            &json!(["a", "b", "d", "e"]),
            &json!([null, 0.0, LEAST, 0.0]),
            &json!([null, {"b": 0.0}, {"c": 0.0, "d": LEAST}, {"e": 0.0}]),
            &json!([0, 1, 2, 3]),
        ]
    );
    // A harness takes the last entry for the generated token, so a stop token has one too.
    assert_eq!(answer["choices"][1]["text"], "x!");
    assert_eq!(
        lists(1),
        [
            &json!(["x", "!", "<|end|>"]),
            &json!([null, LEAST, 0.0]),
            &json!([null, {"y": 0.0, "!": LEAST}, {"<|end|>": 0.0}]),
            &json!([0, 1, 2]),
        ]
    );
}

#[test]
fn without_echo_only_the_output_is_scored() {
    let server = TestServer::start();
    let body = json!({"prompt": "ab", "max_tokens": 2, "logprobs": 0});
    assert_eq!(
        choice(&server, COMPLETIONS, &body)["logprobs"],
        json!({
            "tokens": ["c", "d"],
            "token_logprobs": [0.0, 0.0],
            "top_logprobs": [{"c": 0.0}, {"d": 0.0}],
            "text_offset": [0, 1],
        })
    );
}

#[test]
fn a_prompt_of_one_token_has_nothing_to_score() {
    let server = TestServer::start();
    let body = json!({"prompt": "a", "max_tokens": 0, "echo": true, "logprobs": 5});
    assert_eq!(
        choice(&server, COMPLETIONS, &body)["logprobs"],
        json!({
            "tokens": ["a"], "token_logprobs": [null], "top_logprobs": [null], "text_offset": [0],
        })
    );
}

#[test]
fn echo_gives_the_prompt_back_as_it_was_sent() {
    let server = TestServer::start();
    for (prompt, max_tokens, text) in [
        (json!("ab"), 2, "abcd"),
        (json!("ab"), 0, "ab"),
        (json!("<|end|> a"), 1, "<|end|> ab"),
        (json!([97, 256, 0xC3, 0xA9]), 1, "a<|end|>éa"),
        (json!([97, 0xC3]), 0, "a\u{fffd}"),
    ] {
        let body = json!({"prompt": prompt, "max_tokens": max_tokens, "echo": true});
        let choice = choice(&server, COMPLETIONS, &body);
        assert_eq!(choice["text"], text, "{body}");
        assert_eq!(choice["finish_reason"], "length", "{body}");
        assert_eq!(choice["logprobs"], Value::Null, "{body}");
    }
}

#[test]
fn a_prompt_may_fill_the_window_if_nothing_is_generated() {
    let server = TestServer::start();
    let score = |num_tokens: usize| {
        let body = json!({
            "prompt": "x".repeat(num_tokens), "max_tokens": 0, "echo": true, "logprobs": 0,
        });
        server.post(COMPLETIONS, &body)
    };
    let answer = score(4096).json();
    let scored = &answer["choices"][0]["logprobs"]["token_logprobs"];
    assert_eq!(scored.as_array().map(Vec::len), Some(4096));
    let refused = score(4097);
    assert_eq!(
        (refused.status, &refused.json()["error"]["param"]),
        (400, &json!("prompt"))
    );
}

#[test]
fn half_a_character_is_a_token_of_bytes_at_the_place_of_the_character() {
    let server = TestServer::start();
    let body = json!({"prompt": "é0", "max_tokens": 3, "echo": true, "logprobs": 1});
    let answer = choice(&server, COMPLETIONS, &body);
    assert_eq!(answer["text"], "é0éa");
    let logprobs = &answer["logprobs"];
    let (first, second) = (r"bytes:\xc3", r"bytes:\xa9");
    assert_eq!(
        logprobs["tokens"],
        json!([first, second, "0", first, second, "a"])
    );
    assert_eq!(logprobs["text_offset"], json!([0, 0, 1, 2, 2, 3]));
    assert_eq!(logprobs["top_logprobs"][3], json!({first: 0.0}));
}

#[test]
fn tokens_of_a_stop_string_are_not_reported() {
    let server = TestServer::start();
    for (prompt, stop, text, tokens) in [
        ("a", "de", "bc", json!(["b", "c"])),
        ("a", "b", "", json!([])),
        // Held back for a moment, then passed on.
        ("a", "dx", "bcdef", json!(["b", "c", "d", "e", "f"])),
        // The first half of the character that the stop string begins with.
        ("/", "é", "0", json!(["0"])),
    ] {
        let body = json!({"prompt": prompt, "max_tokens": 5, "logprobs": 0, "stop": stop});
        let choice = choice(&server, COMPLETIONS, &body);
        assert_eq!(choice["text"], text, "{body}");
        assert_eq!(choice["logprobs"]["tokens"], tokens, "{body}");
    }
}

#[test]
fn a_special_token_has_its_text_and_takes_no_place() {
    let server = TestServer::start();
    let body = json!({
        "prompt": " ", "max_tokens": 3, "logprobs": 0, "ignore_eos": true, "stop": "!x",
    });
    let answer = choice(&server, COMPLETIONS, &body);
    assert_eq!(answer["text"], "!");
    let end = "<|end|>";
    assert_eq!(answer["logprobs"]["tokens"], json!(["!", end, end]));
    assert_eq!(answer["logprobs"]["text_offset"], json!([0, 1, 1]));
}

#[test]
fn token_ids_are_told_on_request() {
    let server = TestServer::start();
    let body = json!({"prompt": " ", "max_tokens": 4, "echo": true, "return_token_ids": true});
    let answer = choice(&server, COMPLETIONS, &body);
    assert_eq!(answer["prompt_token_ids"], json!([32]));
    assert_eq!(answer["token_ids"], json!([33, 256]));
}

#[test]
fn a_chat_tells_each_token_with_its_bytes() {
    let server = TestServer::start();
    let message = json!([{"role": "user", "content": "hi"}]);
    let kwargs = json!({"start": "/"});
    let mut body = json!({
        "messages": message, "max_tokens": 2, "chat_template_kwargs": kwargs, "logprobs": true,
    });
    let token = |token: &str, logprob: f64, bytes: &[u8]| json!({"token": token, "logprob": logprob, "bytes": bytes});
    let with_top = |mut token: Value, top: Value| {
        token["top_logprobs"] = top;
        token
    };
    let (zero, half) = (token("0", 0.0, b"0"), token(r"bytes:\xc3", 0.0, &[0xC3]));
    assert_eq!(
        choice(&server, CHAT, &body)["logprobs"],
        json!({
            "content": [with_top(zero.clone(), json!([])), with_top(half.clone(), json!([]))],
            "refusal": null,
        })
    );
    body["top_logprobs"] = json!(2);
    let nul = token("\u{0}", LEAST, &[0]);
    assert_eq!(
        choice(&server, CHAT, &body)["logprobs"]["content"],
        json!([
            with_top(zero.clone(), json!([zero, nul])),
            with_top(half.clone(), json!([half, nul])),
        ])
    );
    body["logprobs"] = json!(false);
    body["top_logprobs"] = json!(0);
    assert_eq!(choice(&server, CHAT, &body)["logprobs"], Value::Null);
}

#[test]
fn the_pieces_of_a_stream_join_to_the_whole_answer() {
    let server = TestServer::start();
    for body in [
        json!({"prompt": "ab", "max_tokens": 0, "echo": true, "logprobs": 3}),
        json!({"prompt": "ab", "max_tokens": 0, "echo": true}),
        json!({"prompt": "abd", "max_tokens": 4, "echo": true, "logprobs": 1}),
        json!({"prompt": "/", "max_tokens": 5, "echo": true, "return_token_ids": true}),
        json!({"prompt": "/", "max_tokens": 2, "logprobs": 1, "return_token_ids": true}),
        json!({"prompt": "x".repeat(1000), "max_tokens": 1, "echo": true, "logprobs": 1}),
        json!({"prompt": "ax", "max_tokens": 9, "echo": true, "logprobs": 1, "stop": ["bc", "zx"]}),
        json!({"prompt": "/", "max_tokens": 9, "logprobs": 0, "stop": "éb"}),
        json!({"prompt": " ", "max_tokens": 9, "logprobs": 2}),
        json!({"prompt": " ", "max_tokens": 3, "logprobs": 2, "ignore_eos": true}),
    ] {
        let chunks = streamed(&server, COMPLETIONS, &body);
        if body["echo"] == true {
            let prompt = &chunks[0];
            assert_eq!(prompt["text"], body["prompt"], "{body}");
            assert_eq!(prompt["finish_reason"], Value::Null, "{body}");
        }
        let mut joined = json!({"logprobs": null, "finish_reason": null});
        chunks.iter().for_each(|chunk| join(&mut joined, chunk));
        assert_eq!(joined, choice(&server, COMPLETIONS, &body), "{body}");
    }
    let body = json!({
        "messages": [{"role": "user", "content": "hi"}], "max_tokens": 6, "stop": "fg",
        "logprobs": true, "top_logprobs": 2,
    });
    let mut joined = json!({"logprobs": null, "finish_reason": null});
    let chunks = streamed(&server, CHAT, &body);
    chunks.iter().for_each(|chunk| join(&mut joined, chunk));
    let whole = choice(&server, CHAT, &body);
    assert_eq!(joined["delta"]["content"], whole["message"]["content"]);
    assert_eq!(joined["logprobs"], whole["logprobs"]);
    assert_eq!(joined["finish_reason"], whole["finish_reason"]);
}

#[test]
fn a_chunk_carries_the_tokens_of_its_text() {
    let server = TestServer::start();
    let body = json!({"prompt": "ab", "max_tokens": 4, "logprobs": 0, "echo": true, "stop": "dx"});
    let chunks = streamed(&server, COMPLETIONS, &body);
    let shown: Vec<_> = chunks
        .iter()
        .map(|chunk| (&chunk["text"], &chunk["logprobs"]["tokens"]))
        .collect();
    assert_eq!(
        shown,
        [
            (&json!("ab"), &json!(["a", "b"])),
            (&json!("c"), &json!(["c"])),
            (&json!(""), &json!([])),
            (&json!("de"), &json!(["d", "e"])),
            (&json!("f"), &json!(["f"])),
        ]
    );
}

#[test]
fn a_prompt_in_the_cache_is_scored_as_before() {
    let server = TestServer::start();
    let prompt = "the quick brown fox ".repeat(30);
    let score = json!({"prompt": prompt, "max_tokens": 0, "echo": true, "logprobs": 2});
    let cold = choice(&server, COMPLETIONS, &score);
    let body = json!({"prompt": prompt, "max_tokens": 1});
    let cached = &server.post(COMPLETIONS, &body).json()["usage"]["prompt_tokens_details"];
    assert_eq!(cached["cached_tokens"], prompt.len() - 1);
    assert_eq!(choice(&server, COMPLETIONS, &score), cold);
}

#[test]
fn a_failure_before_the_first_token_has_a_status_code_though_the_prompt_is_known() {
    let server = TestServer::start();
    let body = json!({"prompt": "a#", "max_tokens": 3, "echo": true, "stream": true});
    assert_eq!(server.post(COMPLETIONS, &body).status, 500);
}
