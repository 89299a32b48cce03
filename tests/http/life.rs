//! Leaving clients, full queues, late requests, failing engines, stopping servers.

use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::client::{Connection, post};
use crate::model::CountingRunner;
use crate::observe::sample;
use crate::server::{TestServer, config, wait_for};

/// Waits until the engine has the request in a step, where a gated runner holds it.
pub fn await_in_step(server: &TestServer, num_submitted: u64) {
    server.await_stats("the request in a step", |stats| {
        stats["requests"]["num_submitted"] == num_submitted
            && stats["queue"]["num_waiting_requests"] == 0
    });
}

#[test]
fn a_client_that_leaves_mid_stream_frees_its_blocks() {
    let (runner, step) = CountingRunner::gated();
    let server = TestServer::with(runner, &config());
    let body = json!({"prompt": "a".repeat(100), "max_tokens": 3000, "stream": true});
    step.send(()).expect("the engine waits");
    let mut connection = Connection::open(server.address, &post("/generate", body));
    assert_eq!(
        connection.next_chunk().as_deref(),
        Some("data: {\"token\":98,\"text\":\"b\"}\n\n")
    );
    assert_ne!(server.stats()["kv_cache"]["used_blocks"], 0);
    drop(connection);

    // One step at a time: had the server not noticed, 3000 of them would be needed.
    let mut num_steps = 0;
    let stats = wait_for("the cancellation", || {
        num_steps += 1;
        step.send(()).expect("the engine runs");
        let stats = server.stats();
        (stats["requests"]["num_cancelled"] == 1).then_some(stats)
    });
    assert!(
        num_steps < 2000,
        "the request went on for {num_steps} steps"
    );
    assert_eq!(stats["kv_cache"]["used_blocks"], 0);
    assert_eq!(stats["batch"]["num_running_requests"], 0);
    let metrics = server.get("/metrics").body;
    let aborted = sample(
        &metrics,
        "vllm:request_success_total",
        "finished_reason=\"abort\"",
    );
    assert_eq!(aborted, 1.0);
}

#[test]
fn a_client_that_leaves_before_the_first_token_is_cancelled_too() {
    let (runner, step) = CountingRunner::gated();
    let server = TestServer::with(runner, &config());
    let mut stream = TcpStream::connect(server.address).expect("the server listens");
    let body = json!({"prompt": "abc", "max_tokens": 3000});
    std::io::Write::write_all(&mut stream, &post("/generate", body)).expect("the server reads");
    await_in_step(&server, 1);
    drop(stream);
    let stats = wait_for("the cancellation", || {
        step.send(()).expect("the engine runs");
        let stats = server.stats();
        (stats["requests"]["num_cancelled"] == 1).then_some(stats)
    });
    assert_eq!(stats["kv_cache"]["used_blocks"], 0);
}

#[test]
fn a_client_that_leaves_frees_the_blocks_of_all_its_choices_and_each_is_counted() {
    let (runner, step) = CountingRunner::gated();
    let server = TestServer::with(runner, &config());
    let body = json!({
        "messages": [{"role": "user", "content": "a".repeat(100)}], "max_tokens": 3000, "n": 3,
        "stream": true,
    });
    let address = server.address;
    let opened = thread::spawn(move || {
        let mut connection = Connection::open(address, &post("/v1/chat/completions", body));
        assert!(connection.next_chunk().is_some());
        connection
    });
    let stats = wait_for("three choices in a step", || {
        step.send(()).expect("the engine runs");
        let stats = server.stats();
        (stats["batch"]["num_running_requests"] == 3).then_some(stats)
    });
    assert_ne!(stats["kv_cache"]["used_blocks"], 0);
    step.send(()).expect("the engine runs");
    drop(opened.join().expect("an answer"));

    let stats = wait_for("the cancellations", || {
        step.send(()).expect("the engine runs");
        let stats = server.stats();
        (stats["requests"]["num_cancelled"] == 3).then_some(stats)
    });
    assert_eq!(stats["kv_cache"]["used_blocks"], 0);
    assert_eq!(stats["batch"]["num_running_requests"], 0);
    let metrics = server.get("/metrics").body;
    let reason = "finished_reason=\"abort\"";
    let aborted = sample(&metrics, "vllm:request_success_total", reason);
    assert_eq!(aborted, 3.0);
}

#[test]
fn a_full_queue_is_429_at_once_and_the_others_are_served() {
    let (runner, gate) = CountingRunner::gated();
    let config = candlepower::config::EngineConfig {
        max_batch_size: 1,
        queue_max_size: 1,
        ..config()
    };
    let server = TestServer::with(runner, &config);
    let ask = |prompt: &str| {
        let (address, body) = (server.address, json!({"prompt": prompt, "max_tokens": 2}));
        thread::spawn(move || Connection::open(address, &post("/generate", body)).finish())
    };
    let running = ask("a");
    await_in_step(&server, 1);
    let waiting = ask("m");
    server.await_stats("the second in the queue", |stats| {
        stats["queue"]["num_waiting_requests"] == 1
    });

    let refused = server.post("/v1/completions", json!({"prompt": "x"}));
    assert_eq!(refused.status, 429);
    let wait: u64 = refused
        .header("retry-after")
        .expect("a header")
        .parse()
        .expect("seconds");
    assert!(wait >= 1);
    let error = &refused.json()["error"];
    assert_eq!(
        (&error["code"], &error["type"]),
        (&json!("queue_full"), &json!("overloaded_error"))
    );
    // Of several prompts the first finds no place, or takes it and gives it back.
    assert_eq!(
        server
            .post("/v1/completions", json!({"prompt": ["x", "y"]}))
            .status,
        429
    );

    drop(gate);
    assert_eq!(running.join().expect("an answer").json()["text"], "bc");
    assert_eq!(waiting.join().expect("an answer").json()["text"], "no");
    let metrics = server.get("/metrics").body;
    let reason = "reason=\"queue_full\"";
    assert_eq!(
        sample(&metrics, "vllm:admission_rejections_total", reason),
        2.0
    );
    assert_eq!(server.stats()["queue"]["num_rejected_requests"], 2);
}

#[test]
fn a_request_whose_time_is_over_is_408_and_tells_where_it_went() {
    let config = candlepower::config::EngineConfig {
        request_timeout: Duration::ZERO,
        ..config()
    };
    let server = TestServer::with(CountingRunner::new(), &config);
    for body in [
        json!({"prompt": "a"}),
        json!({"prompt": "a", "stream": true}),
    ] {
        let response = server.post("/generate", body);
        assert_eq!(response.status, 408);
        assert_eq!(response.header("x-should-retry"), Some("false"));
        let error = &response.json()["error"];
        assert_eq!(error["code"], "request_timeout");
        assert_eq!(error["spent"]["generated_tokens"], 0);
        assert!(error["spent"]["queue_ms"].as_f64() >= Some(0.0), "{error}");
        assert!(
            error["message"]
                .as_str()
                .is_some_and(|text| text.contains("ms waiting"))
        );
    }
}

#[test]
fn a_timeout_inside_a_stream_is_an_error_event_without_done() {
    const TIMEOUT: Duration = Duration::from_secs(3);
    let (runner, gate) = CountingRunner::gated();
    let config = candlepower::config::EngineConfig {
        request_timeout: TIMEOUT,
        ..config()
    };
    let server = TestServer::with(runner, &config);
    gate.send(()).expect("the engine waits");
    let body = json!({"prompt": "a", "max_tokens": 50, "stream": true});
    let connection = Connection::open(server.address, &post("/v1/completions", body));
    assert_eq!(connection.status, 200);
    // The first token is here and the second held back until the time is certainly over.
    thread::sleep(TIMEOUT);
    drop(gate);
    let response = connection.finish();
    let last = *response.events().last().expect("an event");
    let last: Value = serde_json::from_str(last).expect("JSON, not [DONE]");
    assert_eq!(last["error"]["code"], "request_timeout");
    assert!(last["error"]["spent"]["generated_tokens"].as_u64() >= Some(1));
}

#[test]
fn a_stop_finishes_what_is_in_flight_and_takes_nothing_new() {
    let (runner, gate) = CountingRunner::gated();
    let mut server = TestServer::with(runner, &config());
    let address = server.address;
    let body = json!({"prompt": "a", "max_tokens": 5, "stream": true});
    let running =
        thread::spawn(move || Connection::open(address, &post("/generate", body)).finish());
    await_in_step(&server, 1);
    server.begin_stop();
    wait_for("a closed door", || TcpStream::connect(address).err());
    drop(gate);
    let response = running.join().expect("an answer");
    assert_eq!(response.events().last(), Some(&"[DONE]"));
    assert_eq!(response.events().len(), 7);
    server.outcome().expect("a clean stop");
}
