//! Time limits, broken and stuck steps, clients that do not read, stops that are cut short.

use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use candlepower::config::EngineConfig;
use serde_json::{Value, json};

use crate::client::{Connection, Response, get, post, request};
use crate::life::await_in_step;
use crate::model::{CountingRunner, POISON};
use crate::observe::sample;
use crate::server::{Setup, TestServer, config, wait_for};

fn generate(server: &TestServer, headers: &[(&str, &str)], body: &Value) -> Response {
    server.send(&request("POST", "/generate", headers, &body.to_string()))
}

fn poison() -> Value {
    json!({"prompt": char::from(POISON).to_string()})
}

#[test]
fn a_failed_step_is_500_with_an_id_and_the_server_goes_on() {
    let server = TestServer::start();
    for round in 1..=4 {
        let response = generate(&server, &[("x-request-id", "bad-1")], &poison());
        assert_eq!(response.status, 500);
        let error = &response.json()["error"];
        assert_eq!(
            (&error["code"], &error["request_id"]),
            (&json!("internal_error"), &json!("bad-1"))
        );
        assert!(!response.body.contains("secret"), "{}", response.body);
        let good = server.post("/generate", json!({"prompt": "a", "max_tokens": 2}));
        assert_eq!((good.status, &good.json()["text"]), (200, &json!("bc")));
        let stats = server.stats();
        assert_eq!(stats["batch"]["num_failed_steps"], round);
        assert_eq!(stats["kv_cache"]["used_blocks"], 0);
        let metrics = server.get("/metrics").body;
        let name = "candlepower:engine_failed_steps_total";
        assert_eq!(sample(&metrics, name, ""), f64::from(round));
    }
    assert_eq!(server.get("/health/ready").status, 200);
}

#[test]
fn a_stream_whose_step_fails_ends_with_an_error_event() {
    // '"' is followed by the poison.
    let server = TestServer::start();
    let body = json!({"prompt": "\"", "max_tokens": 5, "stream": true});
    let response = generate(&server, &[("x-request-id", "bad-2")], &body);
    let last = *response.events().last().expect("an event");
    let last: Value = serde_json::from_str(last).expect("JSON, not [DONE]");
    assert_eq!(last["error"]["request_id"], "bad-2");
}

#[test]
fn steps_that_always_fail_end_the_server_with_an_error() {
    let mut server = TestServer::start();
    for _ in 0..3 {
        assert_eq!(generate(&server, &[], &poison()).status, 500);
    }
    let error = server.outcome().expect_err("the engine failed");
    assert!(error.to_string().contains("the engine failed"), "{error}");
}

#[test]
fn a_stuck_step_is_unready_by_name_and_then_ends_its_requests_and_the_server() {
    let (runner, gate) = CountingRunner::gated();
    let config = EngineConfig {
        stall_timeout: Duration::from_millis(300),
        ..config()
    };
    let mut server = TestServer::with(runner, &config);
    assert_eq!(server.get("/health/ready").status, 200);
    let address = server.address;
    let body = json!({"prompt": "a", "max_tokens": 2});
    let stuck = thread::spawn(move || Connection::open(address, &post("/generate", body)).finish());
    let not_ready = wait_for("unready", || {
        let response = server.get("/health/ready");
        (response.status != 200).then_some(response)
    });
    assert_eq!(not_ready.status, 503);
    assert_eq!(not_ready.json()["error"]["code"], "stalled");
    assert_eq!(server.get("/health/live").status, 200);
    // The gate stays shut: nobody but the watch over the engine can end this.
    let answer = stuck.join().expect("an answer");
    assert_eq!(
        (answer.status, &answer.json()["error"]["code"]),
        (503, &json!("unavailable"))
    );
    let error = server.outcome().expect_err("the engine is stuck");
    assert!(error.to_string().contains("has not ended for"), "{error}");
    drop(gate);
}

#[test]
fn what_the_queue_makes_too_late_is_429_with_the_time_to_come_back() {
    let (runner, gate) = CountingRunner::gated();
    let config = EngineConfig {
        max_batch_size: 1,
        ..config()
    };
    let server = TestServer::with(runner, &config);
    let address = server.address;
    let ask = move |prompt: &str| {
        let body = json!({"prompt": prompt, "max_tokens": 10});
        thread::spawn(move || Connection::open(address, &post("/generate", body)).finish())
    };
    let first = ask("a");
    for _ in 0..10 {
        thread::sleep(Duration::from_millis(2));
        gate.send(()).expect("the engine runs");
    }
    assert_eq!(first.join().expect("an answer").status, 200);

    let running = ask("b");
    await_in_step(&server, 2);
    let late = [
        (vec![], json!({"prompt": "c", "timeout_ms": 1})),
        (
            vec![("x-llm-d-slo-ttft-ms", "1")],
            json!({"prompt": "d", "stream": true}),
        ),
    ];
    for (headers, body) in &late {
        let refused = generate(&server, headers, body);
        assert_eq!(refused.status, 429, "{body}");
        let wait: u64 = refused
            .header("retry-after")
            .and_then(|value| value.parse().ok())
            .expect("seconds");
        assert!(wait >= 1);
        assert_eq!(refused.json()["error"]["code"], "deadline_unmet");
    }
    let patient = server.post("/generate", json!({"prompt": "a", "timeout_ms": 700_000}));
    assert_eq!(
        (patient.status, &patient.json()["error"]["param"]),
        (400, &json!("timeout_ms"))
    );
    let odd = generate(
        &server,
        &[("x-llm-d-slo-ttft-ms", "soon")],
        &json!({"prompt": "a"}),
    );
    assert_eq!(
        (odd.status, &odd.json()["error"]["param"]),
        (400, &json!("x-llm-d-slo-ttft-ms"))
    );

    drop(gate);
    assert_eq!(running.join().expect("an answer").status, 200);
    let metrics = server.get("/metrics").body;
    let reason = "reason=\"deadline_unmet\"";
    assert_eq!(
        sample(&metrics, "vllm:admission_rejections_total", reason),
        2.0
    );
    let stats = server.stats();
    assert_eq!(stats["queue"]["num_hopeless_requests"], 2);
    assert_eq!(stats["queue"]["predicted_wait_ms"], 0.0);
    // With nobody ahead a short time is tried, and may be over.
    let alone = server.post(
        "/generate",
        json!({"prompt": "c", "timeout_ms": 1, "max_tokens": 3000}),
    );
    assert!([200, 408].contains(&alone.status), "{alone:?}");
}

#[test]
fn the_lower_priority_value_is_served_first_over_http() {
    let (runner, gate) = CountingRunner::gated();
    let config = EngineConfig {
        max_batch_size: 1,
        ..config()
    };
    let server = TestServer::with(runner, &config);
    let address = server.address;
    let ask = |path: &'static str, priority: i32, prompt: &str| {
        let body = json!({"prompt": prompt, "max_tokens": 2, "priority": priority});
        thread::spawn(move || Connection::open(address, &post(path, body)).finish())
    };
    let running = ask("/generate", 0, "a");
    await_in_step(&server, 1);
    let lax = ask("/generate", 7, "b");
    server.await_stats("one waits", |stats| {
        stats["queue"]["num_waiting_requests"] == 1
    });
    let urgent = ask("/generate", -7, "c");
    server.await_stats("two wait", |stats| {
        stats["queue"]["num_waiting_requests"] == 2
    });
    drop(gate);
    assert_eq!(running.join().expect("an answer").status, 200);
    let queue_ms = |answer: thread::JoinHandle<Response>| {
        let answer = answer.join().expect("an answer").json();
        answer["timings"]["queue_ms"].as_f64().expect("a time")
    };
    // The urgent one came later and was admitted earlier, so it waited less.
    assert!(queue_ms(urgent) < queue_ms(lax));
}

#[test]
fn a_client_that_does_not_read_holds_up_nobody() {
    let server = TestServer::start();
    let body = json!({"prompt": "a", "max_tokens": 4000, "stream": true});
    let unread: Vec<TcpStream> = (0..4)
        .map(|_| {
            let mut stream = TcpStream::connect(server.address).expect("the server listens");
            std::io::Write::write_all(&mut stream, &post("/generate", &body)).expect("it reads");
            stream
        })
        .collect();
    let other = server.post("/generate", json!({"prompt": "a", "max_tokens": 3}));
    assert_eq!(other.json()["text"], "bcd");
    // The engine ends them all the same, and their blocks are free.
    let stats = server.await_stats("the end of the unread ones", |stats| {
        stats["requests"]["num_finished_length"] == 5
    });
    assert_eq!(stats["kv_cache"]["used_blocks"], 0);
    assert_eq!(stats["batch"]["num_generated_tokens"], 4 * 4000 + 3);
    drop(unread);
}

#[test]
fn a_stop_is_unready_at_once_and_ends_what_takes_longer_than_the_drain_timeout() {
    let (runner, gate) = CountingRunner::gated();
    let mut server = TestServer::of(Setup {
        runner: Box::new(runner),
        drain_timeout: Duration::from_millis(500),
        ..Setup::default()
    });
    let address = server.address;
    gate.send(()).expect("the engine waits");
    let body = json!({"prompt": "a", "max_tokens": 3000, "stream": true});
    let mut stream = Connection::open(address, &post("/generate", body));
    assert!(stream.next_chunk().is_some());
    // Its head is read already when the stop comes, and it is answered after.
    let mut probe = TcpStream::connect(address).expect("the server listens");
    let ask = String::from_utf8(get("/health/ready")).expect("ASCII");
    let (head, end) = ask.split_at(ask.len() - 2);
    std::io::Write::write_all(&mut probe, head.as_bytes()).expect("it reads");
    thread::sleep(Duration::from_millis(50));
    server.begin_stop();
    wait_for("a closed door", || TcpStream::connect(address).err());
    std::io::Write::write_all(&mut probe, end.as_bytes()).expect("it reads");
    let mut answer = String::new();
    std::io::Read::read_to_string(&mut probe, &mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert!(answer.contains("\"draining\""), "{answer}");

    let releaser = thread::spawn(move || {
        // The step in which the stop found the engine ends some time.
        thread::sleep(Duration::from_millis(600));
        drop(gate);
    });
    let rest = stream.finish();
    let last = *rest.events().last().expect("an event");
    let last: Value = serde_json::from_str(last).expect("JSON, not [DONE]");
    assert_eq!(last["error"]["code"], "unavailable");
    server
        .outcome()
        .expect("asked to stop, it stops without an error");
    releaser.join().expect("it only waits");
}
