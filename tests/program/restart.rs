//! Stops, replacements under load, and a terminal that is gone.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::server::{RealServer, model_file, serve_command, signal};

fn model() -> String {
    let path = model_file("smollm2-135m", "SmolLM2-135M-Instruct.Q4_1.gguf");
    path.to_str().expect("a path in UTF-8").to_owned()
}

fn body(max_tokens: usize, stream: bool) -> Value {
    json!({"prompt": "Once upon a time", "max_tokens": max_tokens, "ignore_eos": true, "stream": stream})
}

/// Clients that ask until they are told to stop, some over connections that they keep.
struct Clients {
    stops: Arc<AtomicBool>,
    num_answers: Arc<AtomicUsize>,
    /// Each panics when a request fails.
    threads: Vec<JoinHandle<()>>,
}

impl Clients {
    fn start(address: &str) -> Self {
        let stops = Arc::new(AtomicBool::new(false));
        let num_answers = Arc::new(AtomicUsize::new(0));
        let threads = (0..6)
            .map(|number| {
                let (stops, num_answers) = (stops.clone(), num_answers.clone());
                let address = address.to_owned();
                thread::spawn(move || {
                    let mut connection = None;
                    while !stops.load(Ordering::Relaxed) {
                        let keeps = number % 2 == 0;
                        connection = ask(connection, &address, keeps)
                            .unwrap_or_else(|error| panic!("client {number}: {error}"));
                        num_answers.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        Self {
            stops,
            num_answers,
            threads,
        }
    }

    /// Waits until so many more requests have been answered.
    fn await_answers(&self, count: usize) {
        let goal = self.num_answers.load(Ordering::Relaxed) + count;
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.num_answers.load(Ordering::Relaxed) < goal {
            assert!(Instant::now() < deadline, "no answers any more");
            assert!(
                !self.threads.iter().any(JoinHandle::is_finished),
                "a request failed"
            );
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Stops them; panics if a request failed.
    fn finish(self) {
        self.stops.store(true, Ordering::Relaxed);
        for client in self.threads {
            client.join().expect("no request fails");
        }
    }
}

/// One request, on the connection that was kept if there is one. Gives it back if the server keeps it too.
fn ask(
    connection: Option<BufReader<TcpStream>>,
    address: &str,
    keeps: bool,
) -> std::io::Result<Option<BufReader<TcpStream>>> {
    let mut connection = match connection {
        Some(connection) => connection,
        None => BufReader::new(TcpStream::connect(address)?),
    };
    let body = body(4, false).to_string();
    let close = if keeps { "" } else { "connection: close\r\n" };
    let request = format!(
        "POST /generate HTTP/1.1\r\nhost: test\r\n{close}content-length: {}\r\n\r\n{body}",
        body.len()
    );
    connection.get_mut().write_all(request.as_bytes())?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if connection.read_until(b'\n', &mut head)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
    let head = String::from_utf8_lossy(&head).to_lowercase();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "))
        .and_then(|length| length.parse().ok())
        .unwrap_or(0);
    let mut answer = vec![0; length];
    connection.read_exact(&mut answer)?;
    if !head.starts_with("http/1.1 200") {
        return Err(std::io::Error::other(String::from_utf8_lossy(&answer)));
    }
    Ok((keeps && !head.contains("connection: close")).then_some(connection))
}

#[test]
fn a_new_process_takes_the_port_under_load_and_no_request_fails() {
    let model = model();
    let mut old = RealServer::start(&[("MODEL", &model), ("REUSE_PORT", "true")]);
    let address = old.address().to_owned();
    let (_, port) = address.rsplit_once(':').expect("a port");
    let settings = [
        ("MODEL", model.as_str()),
        ("REUSE_PORT", "true"),
        ("PORT", port),
    ];
    let clients = Clients::start(&address);
    for _ in 0..2 {
        clients.await_answers(30);
        let new = RealServer::start(&settings);
        clients.await_answers(10);
        old.signal("TERM");
        assert_eq!(old.exit_code(), Some(0));
        old = new;
    }
    clients.await_answers(30);
    clients.finish();
    let (status, stats) = old.call("/stats", &Value::Null);
    assert_eq!(status, 200);
    assert!(
        stats["requests"]["num_finished_length"].as_u64() >= Some(30),
        "{stats}"
    );
    assert_eq!(stats["requests"]["num_failed"], 0);
}

/// `scripts/hand-over PID` as an operator runs it, for the server at `port`.
fn hand_over(old: &RealServer, model: &str, port: &str) -> Command {
    let mut command = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/hand-over"));
    command
        .args([&old.id().to_string(), "--port", port])
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("CANDLEPOWER", env!("CARGO_BIN_EXE_candlepower"))
        .env("MODEL", model)
        .env("RUST_LOG", "warn");
    command
}

#[test]
fn the_hand_over_script_replaces_a_server_under_load_and_stops_as_a_server_does() {
    let model = model();
    let mut old = RealServer::start(&[("MODEL", &model), ("REUSE_PORT", "true")]);
    let address = old.address().to_owned();
    let (_, port) = address.rsplit_once(':').expect("a port");
    let clients = Clients::start(&address);
    clients.await_answers(30);
    let mut new = RealServer::spawn(hand_over(&old, &model, port));
    assert_eq!(new.address(), address);
    assert_eq!(old.exit_code(), Some(0));
    clients.await_answers(30);
    clients.finish();
    new.signal("TERM");
    assert_eq!(new.exit_code(), Some(0));
    assert!(
        TcpStream::connect(&address).is_err(),
        "somebody still listens"
    );
}

#[test]
fn a_hand_over_to_a_server_that_does_not_start_leaves_the_old_one_alone() {
    let model = model();
    let old = RealServer::start(&[("MODEL", &model), ("REUSE_PORT", "true")]);
    let (_, port) = old.address().rsplit_once(':').expect("a port");
    let output = hand_over(&old, "no-such-model", port)
        .output()
        .expect("the script starts");
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
    ask(None, old.address(), false).expect("an answer of the old one");
}

#[test]
fn without_reuse_port_the_port_is_not_shared() {
    let model = model();
    let server = RealServer::start(&[("MODEL", &model), ("REUSE_PORT", "true")]);
    let (_, port) = server.address().rsplit_once(':').expect("a port");
    let output = serve_command(&[("MODEL", &model), ("PORT", port)])
        .output()
        .expect("the program starts");
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("PORT"), "{stderr}");
}

/// A server that gets its socket as systemd would pass it: as file descriptor 3.
fn activated(socket: &TcpListener, model: &str) -> RealServer {
    const PASS_ON: &str = "exec 3<&0 </dev/null; LISTEN_FDS=1 LISTEN_PID=$$ exec \"$0\" serve";
    let socket = socket.try_clone().expect("a copy of the socket");
    let mut command = Command::new("sh");
    command
        .args(["-c", PASS_ON, env!("CARGO_BIN_EXE_candlepower")])
        .env_clear()
        .env("RUST_LOG", "warn")
        .env("MODEL", model)
        .stdin(Stdio::from(OwnedFd::from(socket)));
    RealServer::spawn(command)
}

#[test]
fn a_socket_that_systemd_holds_outlives_the_process_and_no_request_fails() {
    let model = model();
    let socket = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = socket.local_addr().expect("bound").to_string();
    let mut server = activated(&socket, &model);
    assert_eq!(server.address(), address);
    let clients = Clients::start(&address);
    clients.await_answers(30);
    // As `systemctl restart` does: the old one ends first, and connections wait meanwhile.
    server.signal("TERM");
    assert_eq!(server.exit_code(), Some(0));
    let server = activated(&socket, &model);
    clients.await_answers(30);
    clients.finish();
    drop(server);
}

#[test]
fn a_stop_finishes_what_is_in_flight_and_a_second_signal_does_not_wait() {
    let mut server = RealServer::start(&[("MODEL", &model())]);
    let mut answer = server.open("/generate", &body(60, true));
    let mut first = [0; 1];
    answer.read_exact(&mut first).expect("it has begun");
    server.signal("TERM");
    let mut rest = String::new();
    answer.read_to_string(&mut rest).expect("all of it");
    assert!(rest.contains("data: [DONE]"), "{rest}");
    assert_eq!(server.exit_code(), Some(0));

    let mut server = RealServer::start(&[("MODEL", &model()), ("REQUEST_TIMEOUT", "600")]);
    let mut answer = server.open("/generate", &body(8000, true));
    answer.read_exact(&mut first).expect("it has begun");
    server.signal("TERM");
    // The first signal has been taken when the door is shut.
    while TcpStream::connect(server.address()).is_ok() {
        thread::sleep(Duration::from_millis(5));
    }
    server.signal("TERM");
    assert_eq!(server.exit_code(), Some(130));
}

#[test]
fn the_drain_timeout_ends_what_is_in_flight_with_an_error() {
    let settings = [
        ("MODEL", &*model()),
        ("DRAIN_TIMEOUT", "200ms"),
        ("REQUEST_TIMEOUT", "600"),
    ];
    let mut server = RealServer::start(&settings);
    let mut answer = server.open("/generate", &body(8000, true));
    let mut first = [0; 1];
    answer.read_exact(&mut first).expect("it has begun");
    server.signal("INT");
    let mut rest = String::new();
    answer.read_to_string(&mut rest).expect("all of it");
    assert!(
        rest.contains("\"unavailable\"") && !rest.contains("[DONE]"),
        "{rest}"
    );
    assert_eq!(server.exit_code(), Some(0));
}

#[test]
fn a_lost_standard_output_and_a_lost_log_stop_nothing() {
    // `true` reads neither, and its end of the pipes is closed when it has ended.
    const SCRIPT: &str = "exec 3>&1; { \"$0\" serve & echo $! >&3; } 2>&1 >/dev/full | true";
    let port = TcpListener::bind("127.0.0.1:0")
        .and_then(|socket| socket.local_addr())
        .expect("a free port")
        .port()
        .to_string();
    let mut shell = Command::new("sh")
        .args(["-c", SCRIPT, env!("CARGO_BIN_EXE_candlepower")])
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("MODEL", model())
        .env("PORT", &port)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("a shell");
    let mut pid = String::new();
    BufReader::new(shell.stdout.take().expect("it is piped"))
        .read_line(&mut pid)
        .expect("a process id");
    let address = format!("127.0.0.1:{port}");
    let deadline = Instant::now() + Duration::from_secs(60);
    while TcpStream::connect(&address).is_err() {
        assert!(Instant::now() < deadline, "it never listens");
        thread::sleep(Duration::from_millis(20));
    }
    for _ in 0..3 {
        ask(None, &address, false).expect("an answer");
    }
    // It is there still, and a stop is no panic over the log either.
    signal(pid.trim(), "TERM");
    while TcpStream::connect(&address).is_ok() {
        assert!(Instant::now() < deadline, "it never stops");
        thread::sleep(Duration::from_millis(20));
    }
    shell.wait().expect("the shell ends");
}
