//! Keys, other web sites, and clients that are too many, too slow or too big.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use candlepower::config::HttpConfig;
use serde_json::{Value, json};

use crate::client::{Connection, Response, get, post, request};
use crate::model::CountingRunner;
use crate::observe::sample;
use crate::server::{Setup, TestServer, config, http, wait_for};

/// Long enough for a request over loopback, and short enough to wait for.
const SHORT: Duration = Duration::from_millis(500);

/// Only a hang takes this long.
const PATIENCE: Duration = Duration::from_secs(60);

fn connect(server: &TestServer) -> TcpStream {
    let stream = TcpStream::connect(server.address).expect("the server listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream
}

/// All that the server sends until it closes the connection.
fn read_until_closed(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        Err(error) => panic!("the server keeps the connection open: {error}"),
    }
    String::from_utf8(bytes).expect("text")
}

fn get_with(server: &TestServer, path: &str, headers: &[(&str, &str)]) -> Response {
    server.send(&request("GET", path, headers, ""))
}

#[test]
fn a_key_opens_the_server_and_nothing_else_does() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), "# team a\nsk-a\n# team b\nsk-b\n").expect("written");
    let server = TestServer::with_http(HttpConfig {
        api_key: Some("sk-main".parse().expect("a key")),
        api_keys_file: Some(file.path().to_owned()),
        open_endpoints: "health".parse().expect("health"),
        ..http()
    });
    for key in ["sk-main", "sk-a", "sk-b"] {
        let header = format!("Bearer {key}");
        let models = get_with(&server, "/v1/models", &[("authorization", &header)]);
        assert_eq!(models.status, 200, "{key}");
    }
    for headers in [
        &[][..],
        &[("authorization", "Bearer sk-mai")],
        &[("authorization", "Bearer sk-main2")],
        &[("authorization", "Basic sk-main")],
        &[("authorization", "sk-main")],
        &[("authorization", "Bearer ")],
        &[("x-api-key", "sk-main")],
    ] {
        let refused = get_with(&server, "/v1/models", headers);
        assert_eq!(refused.status, 401, "{headers:?}");
        assert_eq!(refused.header("www-authenticate"), Some("Bearer"));
        assert_eq!(refused.json()["error"]["code"], "invalid_api_key");
    }
    // The body of a request without a key is not even read as JSON.
    assert_eq!(server.post("/generate", "{").status, 401);
    for (path, status) in [
        ("/health", 200),
        ("/health/live", 200),
        ("/health/ready", 200),
        ("/metrics", 401),
        ("/stats", 401),
        ("/nothing", 401),
    ] {
        assert_eq!(server.get(path).status, status, "{path}");
    }
    let metrics = get_with(&server, "/metrics", &[("authorization", "bearer sk-a")]);
    let reason = "reason=\"unauthorized\"";
    let refused = sample(&metrics.body, "vllm:admission_rejections_total", reason);
    assert_eq!(refused, 11.0);
}

#[test]
fn pages_of_the_allowed_origins_may_call_and_no_others() {
    let server = TestServer::with_http(HttpConfig {
        api_key: Some("sk-main".parse().expect("a key")),
        cors_allow_origins: Some("https://chat.example".parse().expect("an origin")),
        ..http()
    });
    let preflight = |origin: &str| {
        server.send(&request(
            "OPTIONS",
            "/v1/chat/completions",
            &[
                ("origin", origin),
                ("access-control-request-method", "POST"),
                (
                    "access-control-request-headers",
                    "authorization,content-type",
                ),
            ],
            "",
        ))
    };
    let asked = preflight("https://chat.example");
    assert_eq!(asked.status, 200);
    assert_eq!(
        asked.header("access-control-allow-origin"),
        Some("https://chat.example")
    );
    assert_eq!(
        asked.header("access-control-allow-headers"),
        Some("authorization,content-type")
    );
    let other = preflight("https://evil.example");
    assert_eq!(other.header("access-control-allow-origin"), None);

    // A refusal must be readable by the page too.
    let refused = get_with(&server, "/v1/models", &[("origin", "https://chat.example")]);
    assert_eq!(refused.status, 401);
    assert_eq!(
        refused.header("access-control-allow-origin"),
        Some("https://chat.example")
    );

    let closed = TestServer::start();
    let plain = get_with(&closed, "/health", &[("origin", "https://chat.example")]);
    assert_eq!(plain.header("access-control-allow-origin"), None);
}

#[test]
fn a_body_above_the_setting_is_refused() {
    let server = TestServer::with_http(HttpConfig {
        max_body_size: 100,
        ..http()
    });
    let body = json!({"prompt": "x".repeat(100)});
    let response = server.post("/generate", body);
    assert_eq!(response.status, 413);
    let error = &response.json()["error"];
    assert_eq!(error["code"], "body_too_large");
    assert!(
        error["message"]
            .as_str()
            .is_some_and(|text| text.contains("100 bytes")),
        "{error}"
    );
}

#[test]
fn the_setting_for_output_tokens_bounds_what_is_asked_for_and_the_defaults() {
    let server = TestServer::with_http(HttpConfig {
        max_output_tokens: Some(5),
        ..http()
    });
    let refused = server.post("/generate", json!({"prompt": "a", "max_new_tokens": 6}));
    let error = &refused.json()["error"];
    assert_eq!(
        (refused.status, &error["param"]),
        (400, &json!("max_new_tokens"))
    );
    let message = error["message"].as_str().expect("a message");
    assert!(message.contains("at most 5"), "{message}");
    let chat = json!({"messages": [{"role": "user", "content": "hi"}]});
    for (path, body) in [
        ("/generate", json!({"prompt": "a"})),
        ("/v1/completions", json!({"prompt": "a", "max_tokens": 5})),
        ("/v1/chat/completions", chat),
    ] {
        let usage = &server.post(path, body).json()["usage"];
        assert_eq!(usage["completion_tokens"], 5, "{path}");
    }
}

#[test]
fn a_head_that_does_not_come_closes_the_connection() {
    let server = TestServer::with_http(HttpConfig {
        read_timeout: SHORT,
        ..http()
    });
    for start in ["G", "GET /health HTTP/1.1\r\nhost: te"] {
        let mut slow = connect(&server);
        slow.write_all(start.as_bytes()).expect("the server reads");
        assert_eq!(read_until_closed(&mut slow), "", "{start}");
    }
    // One byte at a time does not win time.
    let mut drip = connect(&server);
    let closed = wait_for("the end of a drip", || {
        std::thread::sleep(SHORT / 10);
        drip.write_all(b"x").err()
    });
    assert!(
        matches!(
            closed.kind(),
            ErrorKind::BrokenPipe | ErrorKind::ConnectionReset
        ),
        "{closed}"
    );
}

#[test]
fn a_body_that_does_not_come_is_408() {
    let server = TestServer::with_http(HttpConfig {
        read_timeout: SHORT,
        ..http()
    });
    let mut slow = connect(&server);
    let head = "POST /generate HTTP/1.1\r\nhost: test\r\ncontent-length: 100\r\n\r\n{\"prompt\"";
    slow.write_all(head.as_bytes()).expect("the server reads");
    let answer = read_until_closed(&mut slow);
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert!(answer.contains("body_too_slow"), "{answer}");
}

#[test]
fn an_idle_connection_is_closed_and_a_working_one_is_not() {
    let (runner, gate) = CountingRunner::gated();
    let http = HttpConfig {
        read_timeout: SHORT,
        idle_timeout: SHORT,
        ..http()
    };
    let server = TestServer::of(Setup {
        runner: Box::new(runner),
        http,
        ..Setup::default()
    });
    let mut silent = connect(&server);
    assert_eq!(read_until_closed(&mut silent), "");

    let mut kept = connect(&server);
    let body = json!({"prompt": "a", "max_tokens": 2}).to_string();
    let keep_alive = format!(
        "POST /generate HTTP/1.1\r\nhost: test\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    kept.write_all(keep_alive.as_bytes())
        .expect("the server reads");
    // The engine is slower than every limit, which is not the client's fault.
    std::thread::sleep(SHORT * 3);
    drop(gate);
    let answer = read_until_closed(&mut kept);
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert!(answer.contains("\"text\":\"bc\""), "{answer}");
}

#[test]
fn a_client_that_never_reads_is_cut_off() {
    let server = TestServer::with_http(HttpConfig {
        idle_timeout: SHORT,
        ..http()
    });
    let mut deaf = connect(&server);
    // Some 30 MB, more than the sockets' buffers take.
    let body = json!({
        "prompt": vec!["a"; 16], "max_tokens": 4000, "stream": true, "logprobs": 20, "ignore_eos": true,
    });
    deaf.write_all(&post("/v1/completions", body))
        .expect("the server reads");
    wait_for("the end of the request", || {
        let metrics = server.get("/metrics").body;
        let reason = "finished_reason=\"abort\"";
        (sample(&metrics, "vllm:request_success_total", reason) > 0.0).then_some(())
    });
    server.await_stats("free blocks", |stats| stats["kv_cache"]["used_blocks"] == 0);
}

#[test]
fn one_connection_too_many_is_429_until_another_ends() {
    let server = TestServer::with_http(HttpConfig {
        max_connections: 2,
        ..http()
    });
    let held: Vec<Connection> = (0..2)
        .map(|_| {
            let keep_alive = "GET /health/live HTTP/1.1\r\nhost: test\r\n\r\n";
            Connection::open(server.address, keep_alive.as_bytes())
        })
        .collect();
    let refused = server.get("/health/live");
    assert_eq!(refused.status, 429);
    assert_eq!(refused.header("retry-after"), Some("1"));
    let error = &refused.json()["error"];
    assert_eq!(error["code"], "too_many_connections");
    drop(held);
    let metrics = wait_for("room for a connection", || {
        let response = server.get("/metrics");
        (response.status == 200).then_some(response.body)
    });
    let reason = "reason=\"too_many_connections\"";
    assert!(sample(&metrics, "vllm:admission_rejections_total", reason) >= 1.0);
}

#[test]
fn a_request_that_comes_when_the_server_stops_is_answered_on_each_kind_of_connection() {
    let (runner, gate) = CountingRunner::gated();
    let mut server = TestServer::with(runner, &config());
    let health = b"GET /health/live HTTP/1.1\r\nhost: test\r\n\r\n";
    let mut fresh = connect(&server);
    let kept = Connection::open(server.address, health);
    let body = json!({"prompt": "a", "max_tokens": 2, "stream": true}).to_string();
    let generate = format!(
        "POST /generate HTTP/1.1\r\nhost: test\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    gate.send(()).expect("the engine waits");
    let streaming = Connection::open(server.address, generate.as_bytes());

    server.begin_stop();
    wait_for("a closed door", || TcpStream::connect(server.address).err());
    fresh.write_all(health).expect("it is open");
    let answer = read_until_closed(&mut fresh);
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let kept = kept.ask_again(health);
    drop(gate);
    // The head of this stream had promised that the connection is kept.
    assert_eq!(streaming.header("connection"), None);
    let streaming = streaming.ask_again(health);
    for answer in [kept, streaming] {
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("connection"), Some("close"));
    }
    server.outcome().expect("a clean stop");
}

#[test]
fn a_stop_soon_ends_connections_without_a_request() {
    let mut server = TestServer::start();
    let silent = connect(&server);
    let kept = Connection::open(
        server.address,
        b"GET /health HTTP/1.1\r\nhost: test\r\n\r\n",
    );
    assert_eq!(kept.status, 200);
    server.begin_stop();
    server.outcome().expect("a clean stop");
    drop((silent, kept));
}

#[test]
fn heads_that_are_no_http_get_a_400_or_a_closed_connection() {
    let server = TestServer::start();
    for head in [
        "\r\n\r\n\r\n",
        "GET\r\n\r\n",
        "GET / HTTP/9.9\r\n\r\n",
        "GET / HTTP/1.1\r\nno colon\r\n\r\n",
        "POST /generate HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
        "POST /generate HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n{}",
        "POST /generate HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    ] {
        let mut stream = connect(&server);
        stream.write_all(head.as_bytes()).expect("the server reads");
        stream
            .shutdown(std::net::Shutdown::Write)
            .expect("half closed");
        let answer = read_until_closed(&mut stream);
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 400 "),
            "{head:?}: {answer}"
        );
    }
    let huge = format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(1 << 20));
    let mut stream = connect(&server);
    // The server may close before all is sent.
    let _ = stream.write_all(huge.as_bytes());
    let answer = read_until_closed(&mut stream);
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 431 "),
        "{answer}"
    );
    assert_eq!(server.get("/health").status, 200);
    let answer: Value = server.send(&get("/v1/models")).json();
    assert_eq!(answer["data"][0]["id"], "counting");
}
