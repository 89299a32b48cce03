//! `/debug/requests`: what happened to each of the last requests.

use std::thread;

use candlepower::config::{EngineConfig, ObserveConfig};
use serde_json::{Value, json};

use crate::client::{Connection, post};
use crate::model::CountingRunner;
use crate::server::{Setup, TestServer, config, observe};

fn remembering(debug_requests: usize) -> Setup {
    Setup {
        observe: ObserveConfig {
            debug_requests,
            ..observe()
        },
        ..Setup::default()
    }
}

fn events(request: &Value) -> Vec<&str> {
    let timeline = request["timeline"].as_array().expect("a timeline");
    let events = timeline.iter().map(|event| event["event"].as_str());
    events.map(|event| event.expect("an event")).collect()
}

#[test]
fn it_is_off_unless_set() {
    let server = TestServer::start();
    let response = server.get("/debug/requests");
    assert_eq!(response.status, 404);
    assert_eq!(response.json()["error"]["code"], "path_not_found");
}

#[test]
fn the_last_requests_are_told_with_each_chunk_and_how_they_ended() {
    let config = EngineConfig {
        max_batch_tokens: 8,
        ..config()
    };
    let server = TestServer::of(Setup {
        engine: config,
        ..remembering(2)
    });
    for prompt in ["forgotten", "0123456789abcdefghij", "0123456789abcdefghij"] {
        server.post("/generate", json!({"prompt": prompt, "max_tokens": 4}));
    }
    let told = server.get("/debug/requests").json();
    let requests = told["requests"].as_array().expect("a list");
    let [cached, computed] = &requests[..] else {
        panic!("not the last two: {told}");
    };
    assert_eq!(
        events(computed),
        [
            "queued", "admitted", "prefill", "prefill", "prefill", "decode", "ended"
        ]
    );
    assert_eq!(computed["state"], "length");
    assert_eq!(
        (&computed["prompt_tokens"], &computed["max_tokens"]),
        (&json!(20), &json!(4))
    );
    let timeline = &computed["timeline"];
    assert_eq!(timeline[2]["num_tokens"], 8);
    assert_eq!(timeline[4]["num_tokens"], 4);
    assert_eq!(timeline[4]["step"]["num_prefill_tokens"], 4);
    // The last part of the prompt gives the first token.
    assert_eq!(timeline[5]["num_steps"], 3);
    assert_eq!(timeline[6]["generated_tokens"], 4);
    assert!(computed["longest_stall"]["cause"].is_string(), "{computed}");
    let times: Vec<_> = timeline
        .as_array()
        .expect("a list")
        .iter()
        .map(|event| event["at_ms"].as_f64().expect("a time"))
        .collect();
    assert!(times.is_sorted(), "{times:?}");

    assert_eq!(cached["timeline"][1]["cached_tokens"], 19);
    assert_eq!(
        events(cached),
        ["queued", "admitted", "prefill", "decode", "ended"]
    );
}

#[test]
fn a_request_that_waits_is_told_why_while_it_does() {
    let (runner, step) = CountingRunner::gated();
    let config = EngineConfig {
        max_batch_size: 1,
        ..config()
    };
    let server = TestServer::of(Setup {
        runner: Box::new(runner),
        engine: config,
        ..remembering(10)
    });
    let ask = |prompt: &str| {
        let (address, body) = (server.address, json!({"prompt": prompt, "max_tokens": 6}));
        thread::spawn(move || Connection::open(address, &post("/generate", body)).finish())
    };
    let first = ask("a");
    server.await_stats("the first in a step", |stats| {
        stats["requests"]["num_submitted"] == 1 && stats["queue"]["num_waiting_requests"] == 0
    });
    let second = ask("m");
    server.await_stats("the second in the queue", |stats| {
        stats["queue"]["num_waiting_requests"] == 1
    });
    for num_steps in 1..=3 {
        step.send(()).expect("the engine runs");
        server.await_stats("a step", |stats| stats["batch"]["num_steps"] == num_steps);
    }
    let told = server.get("/debug/requests").json();
    let waiting = &told["requests"][0];
    assert_eq!(waiting["state"], "running");
    let waited = &waiting["timeline"][1];
    assert_eq!(
        (&waited["event"], &waited["cause"]),
        (&json!("waited"), &json!("batch_full"))
    );
    assert!(waited["num_steps"].as_u64() >= Some(2), "{waited}");

    drop(step);
    first.join().expect("an answer");
    assert_eq!(second.join().expect("an answer").status, 200);
    let told = server.get("/debug/requests").json();
    let waited = &told["requests"][0];
    assert_eq!(
        events(waited),
        ["queued", "waited", "admitted", "prefill", "decode", "ended"]
    );
    assert_eq!(waited["longest_stall"]["cause"], "batch_full");
}

#[test]
fn a_preemption_is_told() {
    let config = EngineConfig {
        max_batch_size: 2,
        ..config()
    };
    let (runner, gate) = CountingRunner::gated();
    // Room for one long sequence and a bit of another.
    let server = TestServer::of(Setup {
        runner: Box::new(runner),
        engine: config,
        num_blocks: 8,
        ..remembering(10)
    });
    let ask = |prompt: &str| {
        let body = json!({"prompt": prompt, "max_tokens": 180, "ignore_eos": true});
        let address = server.address;
        thread::spawn(move || Connection::open(address, &post("/generate", body)).finish())
    };
    let both = [ask("a"), ask("m")];
    server.await_stats("both", |stats| stats["requests"]["num_submitted"] == 2);
    drop(gate);
    for answer in both {
        assert_eq!(answer.join().expect("an answer").status, 200);
    }
    let told = server.get("/debug/requests").json();
    let preemptions = server.stats()["num_preemptions"].as_u64();
    let requests = told["requests"].as_array().expect("a list");
    let told_preemptions = requests
        .iter()
        .flat_map(events)
        .filter(|event| *event == "preempted")
        .count() as u64;
    assert!(preemptions > Some(0), "the pool was large enough");
    assert_eq!(Some(told_preemptions), preemptions, "{told}");
}
