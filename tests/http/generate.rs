//! `POST /generate`.

use serde_json::json;

use crate::model::CountingRunner;
use crate::server::{TestServer, config};

#[test]
fn an_answer_has_text_reason_usage_and_timings_that_add_up() {
    let server = TestServer::start();
    let body = json!({"prompt": "abc", "max_tokens": 4, "temperature": 0.0});
    let answer = server.post("/generate", body).json();
    assert_eq!(answer["text"], "defg");
    assert_eq!(answer["cached"], false);
    assert_eq!(answer["finish_reason"], "length");
    assert_eq!(
        answer["usage"],
        json!({
            "prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7,
            "prompt_tokens_details": {"cached_tokens": 0},
        })
    );
    let ms = |name: &str| answer["timings"][name].as_f64().expect(name);
    let sum = ms("queue_ms") + ms("prefill_ms") + ms("decode_ms");
    assert!((sum - ms("total_ms")).abs() < 0.01, "{answer}");
    assert!(
        (ms("queue_ms") + ms("prefill_ms") - ms("ttft_ms")).abs() < 0.01,
        "{answer}"
    );
}

#[test]
fn defaults_are_100_greedy_tokens() {
    let server = TestServer::start();
    let answer = server.post("/generate", r#"{"prompt": "a"}"#).json();
    assert_eq!(answer["usage"]["completion_tokens"], 100);
    assert_eq!(
        answer["text"].as_str().map(|text| &text[..5]),
        Some("bcdef")
    );
}

#[test]
fn a_default_length_is_clipped_to_the_window_where_an_explicit_one_is_refused() {
    let server = TestServer::start();
    let prompt = "x".repeat(4090);
    let answer = server.post("/generate", json!({"prompt": prompt})).json();
    assert_eq!(answer["usage"]["completion_tokens"], 6);
    let refused = server.post("/generate", json!({"prompt": prompt, "max_tokens": 7}));
    assert_eq!(refused.status, 400);
    assert_eq!(refused.json()["error"]["param"], "max_tokens");
}

#[test]
fn a_repeated_prompt_is_cached_but_for_its_last_token() {
    let server = TestServer::start();
    let body = json!({"prompt": "a prompt of ten tokens or so", "max_tokens": 2});
    assert_eq!(server.post("/generate", &body).json()["cached"], false);
    let again = server.post("/generate", &body).json();
    assert_eq!(again["cached"], true);
    assert_eq!(again["usage"]["prompt_tokens_details"]["cached_tokens"], 27);
    assert_eq!(again["usage"]["prompt_tokens"], 28);
}

#[test]
fn a_stream_is_one_event_a_token_then_the_report_then_done() {
    let server = TestServer::start();
    let body = json!({"prompt": "ab", "max_tokens": 2, "stream": true});
    let response = server.post("/generate", body);
    assert_eq!(response.status, 200);
    assert_eq!(
        response.header("content-type"),
        Some("text/event-stream; charset=utf-8")
    );
    assert_eq!(response.header("cache-control"), Some("no-cache"));
    let events = response.events();
    assert_eq!(events.len(), 4, "{events:?}");
    assert_eq!(
        events[..2],
        [r#"{"token":99,"text":"c"}"#, r#"{"token":100,"text":"d"}"#]
    );
    let report: serde_json::Value = serde_json::from_str(events[2]).expect("JSON");
    assert_eq!(report["finish_reason"], "length");
    assert_eq!(report["usage"]["completion_tokens"], 2);
    assert_eq!(report["cached"], false);
    assert!(report["timings"]["total_ms"].is_number());
    assert_eq!(report.get("text"), None);
    assert_eq!(events[3], "[DONE]");
}

#[test]
fn the_end_token_ends_a_generation_without_text_unless_it_is_ignored() {
    let server = TestServer::start();
    let answer = server
        .post("/generate", json!({"prompt": "~ !", "max_tokens": 3}))
        .json();
    assert_eq!(answer["text"], "");
    assert_eq!(answer["finish_reason"], "stop");
    assert_eq!(answer["usage"]["completion_tokens"], 1);
    let body = json!({"prompt": "~ !", "max_tokens": 3, "ignore_eos": true});
    let answer = server.post("/generate", body).json();
    assert_eq!(answer["finish_reason"], "length");
    assert_eq!(answer["usage"]["completion_tokens"], 3);
}

#[test]
fn stop_tokens_of_the_request_work_like_the_models_own() {
    let server = TestServer::start();
    let body = json!({"prompt": "a", "max_tokens": 9, "stop_token_ids": [101], "ignore_eos": true});
    let answer = server.post("/generate", body).json();
    assert_eq!(
        (&answer["text"], &answer["finish_reason"]),
        (&json!("bcd"), &json!("stop"))
    );
}

#[test]
fn a_stop_string_across_token_borders_ends_the_text_before_it_and_the_engines_work() {
    let (runner, step) = CountingRunner::gated();
    let server = TestServer::with(runner, &config());
    let body = json!({"prompt": "a", "max_tokens": 4000, "stop": ["xx", "efg"], "stream": true});
    for _ in 0..6 {
        step.send(()).expect("the engine waits");
    }
    let response = server.post("/generate", body);
    let texts: String = response
        .events()
        .iter()
        .filter_map(|event| serde_json::from_str::<serde_json::Value>(event).ok())
        .filter_map(|event| event["text"].as_str().map(str::to_owned))
        .collect();
    assert_eq!(texts, "bcd");
    let report: serde_json::Value =
        serde_json::from_str(response.events()[6]).expect("the report after six tokens");
    assert_eq!(report["finish_reason"], "stop");
    assert_eq!(report["usage"]["completion_tokens"], 6);
    drop(step);
    let stats = server.await_stats("the end of the sequence", |stats| {
        stats["requests"]["num_cancelled"] == 1
    });
    assert_eq!(stats["kv_cache"]["used_blocks"], 0);
}

#[test]
fn text_held_back_for_a_stop_string_is_sent_when_it_does_not_come() {
    let server = TestServer::start();
    let body = json!({"prompt": "a", "max_tokens": 3, "stop": "cdx"});
    let answer = server.post("/generate", body).json();
    assert_eq!(
        (&answer["text"], &answer["finish_reason"]),
        (&json!("bcd"), &json!("length"))
    );
}

#[test]
fn a_character_of_two_tokens_comes_whole() {
    let server = TestServer::start();
    let body = json!({"prompt": "0", "max_tokens": 3, "stream": true});
    let response = server.post("/generate", body);
    assert_eq!(
        response.events()[..3],
        [
            r#"{"token":195,"text":""}"#,
            r#"{"token":169,"text":"é"}"#,
            r#"{"token":97,"text":"a"}"#
        ]
    );
    let cut = server
        .post("/generate", json!({"prompt": "0", "max_tokens": 1}))
        .json();
    assert_eq!(cut["text"], "\u{fffd}");
}

#[test]
fn fields_may_come_in_the_objects_that_routers_send() {
    let server = TestServer::start();
    for body in [
        json!({"text": "a", "sampling_params": {"max_new_tokens": 2, "temperature": 0}}),
        json!({"prompt": "a", "parameters": {"max_new_tokens": 2}, "stream": false,
               "return_logprob": false, "return_hidden_states": false, "lora_path": null}),
        json!({"input_ids": [97], "max_new_tokens": 2}),
        json!({"prompt": [[97]], "max_tokens": 2}),
    ] {
        let answer = server.post("/generate", &body);
        assert_eq!(answer.json()["text"], "bc", "{body}");
    }
}
