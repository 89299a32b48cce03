//! Speculative decoding, as a client and an operator see it.

use candlepower::config::{EngineConfig, SpeculationConfig, Speculative};
use serde_json::{Value, json};

use crate::model::CountingRunner;
use crate::observe::sample;
use crate::server::{TestServer, config};

fn with_drafts() -> TestServer {
    let speculation = SpeculationConfig {
        speculative: Speculative::Ngram,
        speculative_tokens: 5,
        ..SpeculationConfig::OFF
    };
    let config = EngineConfig {
        speculation,
        ..config()
    };
    TestServer::with(CountingRunner::new(), &config)
}

/// What a client gets but times and cache hits.
fn answer(server: &TestServer, body: &Value) -> Value {
    let answer = server.post("/v1/completions", body).json();
    assert!(answer["choices"].is_array(), "{answer}");
    let usage = &answer["usage"];
    json!([
        answer["choices"],
        usage["prompt_tokens"],
        usage["completion_tokens"]
    ])
}

#[test]
fn answers_are_the_same_and_the_counts_say_what_was_saved() {
    let (plain, drafting) = (TestServer::start(), with_drafts());
    // Behind c, the draft is def, as abc agrees. Then it is hij and more: the model says hijk.
    const PROMPT: &str = "abcdefghijab";
    for body in [
        json!({"prompt": PROMPT, "max_tokens": 9}),
        json!({"prompt": PROMPT, "max_tokens": 20, "stop": "fg"}),
        json!({"prompt": PROMPT, "max_tokens": 4, "logprobs": 2}),
        json!({"prompt": PROMPT, "max_tokens": 30, "temperature": 0.7, "seed": 1}),
    ] {
        assert_eq!(answer(&drafting, &body), answer(&plain, &body), "{body}");
    }
    assert_eq!(plain.stats()["speculative"], Value::Null);
    let plain_metrics = plain.get("/metrics").body;
    assert!(!plain_metrics.contains("spec_decode"), "{plain_metrics}");

    let drafting = with_drafts();
    answer(&drafting, &json!({"prompt": PROMPT, "max_tokens": 9}));
    let stats = drafting.stats();
    let speculative = json!({
        "num_drafts": 2,
        "num_draft_tokens": 6,
        "num_accepted_tokens": 6,
        "accept_ratio": 1.0,
        "num_accepted_tokens_per_position": [2, 2, 2, 0, 0],
    });
    assert_eq!(stats["speculative"], speculative);
    assert_eq!(stats["batch"]["num_steps"], 3);
    let metrics = drafting.get("/metrics").body;
    for (name, label, value) in [
        ("vllm:spec_decode_num_drafts_total", "", 2.0),
        ("vllm:spec_decode_num_draft_tokens_total", "", 6.0),
        ("vllm:spec_decode_num_accepted_tokens_total", "", 6.0),
        (
            "vllm:spec_decode_num_accepted_tokens_per_pos_total",
            "position=\"2\"",
            2.0,
        ),
        (
            "vllm:spec_decode_num_accepted_tokens_per_pos_total",
            "position=\"3\"",
            0.0,
        ),
    ] {
        assert_eq!(sample(&metrics, name, label), value, "{name} {label}");
    }
}
