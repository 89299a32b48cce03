//! The processes that render chat templates: what they hold, and when they end.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::server::{RealServer, model_file, signal};

/// Ids of the processes that render for the process `server`.
fn workers_of(server: u32) -> Vec<String> {
    let processes = fs::read_dir("/proc").expect("a list of processes");
    let ids = processes.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    ids.filter(|id| {
        // Behind the name in brackets: state, parent.
        let parent = fs::read_to_string(format!("/proc/{id}/stat"))
            .ok()
            .and_then(|stat| {
                let (_, fields) = stat.rsplit_once(") ")?;
                fields.split(' ').nth(1)?.parse::<u32>().ok()
            });
        let command = fs::read_to_string(format!("/proc/{id}/cmdline")).unwrap_or_default();
        parent == Some(server) && command.contains("chat-template-worker")
    })
    .collect()
}

fn open_files(id: &str) -> Vec<PathBuf> {
    let files = fs::read_dir(format!("/proc/{id}/fd")).expect("its files");
    files
        .filter_map(|file| fs::read_link(file.ok()?.path()).ok())
        .collect()
}

fn await_end(id: &str) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while is_running(id) {
        assert!(Instant::now() < deadline, "process {id} does not end");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Not even as one that nobody has waited for: its parent may be gone.
fn is_running(id: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    stat.rsplit_once(") ")
        .is_some_and(|(_, fields)| !fields.starts_with('Z'))
}

fn start() -> RealServer {
    let model = model_file("smollm2-135m", "SmolLM2-135M-Instruct.Q4_1.gguf");
    RealServer::start(&[("MODEL", model.to_str().expect("a path in UTF-8"))])
}

fn chat(server: &RealServer) -> u16 {
    let body = json!({"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 1});
    server.call("/v1/chat/completions", &body).0
}

#[test]
fn a_process_that_renders_holds_no_socket_and_ends_with_its_server() {
    let mut server = start();
    assert_eq!(chat(&server), 200);
    let [first] = &workers_of(server.id())[..] else {
        panic!("{:?}", workers_of(server.id()));
    };
    for file in open_files(first) {
        let name = file.to_string_lossy().into_owned();
        assert!(!name.starts_with("socket:"), "it holds {name}");
    }

    // Whatever ends it while it is idle, the next chat does not notice.
    signal(first, "TERM");
    await_end(first);
    assert_eq!(chat(&server), 200);
    let second = workers_of(server.id()).concat();
    assert_ne!(*first, second);

    // A server that cannot say goodbye.
    server.signal("KILL");
    server.exit_code();
    await_end(&second);
}

#[test]
fn a_server_that_stops_takes_its_processes_along() {
    let mut server = start();
    assert_eq!(chat(&server), 200);
    let worker = workers_of(server.id()).concat();
    server.signal("TERM");
    assert_eq!(server.exit_code(), Some(0));
    await_end(&worker);
}
