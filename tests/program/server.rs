//! This crate's own program, serving a real model on a free port, and a plain client for it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::Value;

/// `candlepower serve` as a child process; dropping it ends it.
pub struct RealServer {
    child: Child,
    address: String,
}

/// `candlepower serve`, with settings from nowhere but `settings`; on a free port if they name none.
pub fn serve_command(settings: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_candlepower"));
    command
        .arg("serve")
        .env_clear()
        .env("PORT", "0")
        .env("RUST_LOG", "warn")
        .envs(settings.iter().copied())
        .stdin(Stdio::null());
    command
}

/// A catalogue model's file, which the tests do not fetch themselves.
pub fn model_file(name: &str, file: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("models")
        .join(file);
    assert!(
        path.is_file(),
        "{} is missing; run scripts/fetch-model {name}",
        path.display()
    );
    path
}

impl RealServer {
    pub fn start(settings: &[(&str, &str)]) -> Self {
        Self::start_logging_to(settings, Stdio::inherit())
    }

    pub fn start_logging_to(settings: &[(&str, &str)], log: impl Into<Stdio>) -> Self {
        let mut command = serve_command(settings);
        command.stderr(log);
        Self::spawn(command)
    }

    /// Starts a command that becomes a server, and waits until it serves.
    pub fn spawn(mut command: Command) -> Self {
        let mut child = command
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let stdout = child.stdout.take().expect("it is piped");
        let mut line = String::new();
        BufReader::new(stdout)
            .read_line(&mut line)
            .expect("a line on standard output");
        let address = line
            .trim()
            .strip_prefix("listening on http://")
            .unwrap_or_else(|| panic!("not the ready line: {line:?}"))
            .to_owned();
        Self { child, address }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn address(&self) -> &str {
        &self.address
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal, such as `TERM`.
    pub fn signal(&self, name: &str) {
        signal(&self.child.id().to_string(), name);
    }

    /// Waits for the end; the exit code.
    pub fn exit_code(&mut self) -> Option<i32> {
        self.child.wait().expect("it can be waited for").code()
    }

    /// Sends a request and returns the connection, to read as much of the answer as one likes.
    pub fn open(&self, path: &str, body: &Value) -> TcpStream {
        self.open_with_key(path, body, "")
    }

    fn open_with_key(&self, path: &str, body: &Value, key: &str) -> TcpStream {
        let method = if body.is_null() { "GET" } else { "POST" };
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let mut connection = TcpStream::connect(&self.address).expect("the server listens");
        write!(
            connection,
            "{method} {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\
             authorization: Bearer {key}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
        .expect("the server reads");
        connection
    }

    /// Status and JSON body of a whole answer.
    pub fn call(&self, path: &str, body: &Value) -> (u16, Value) {
        self.call_with_key(path, body, "")
    }

    pub fn call_with_key(&self, path: &str, body: &Value, key: &str) -> (u16, Value) {
        let mut answer = String::new();
        self.open_with_key(path, body, key)
            .read_to_string(&mut answer)
            .expect("a whole answer");
        let (head, body) = answer.split_once("\r\n\r\n").expect("headers end");
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
        let body = serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {body}"));
        (status.expect("a status line"), body)
    }
}

/// Sends a signal to a process that is there.
pub fn signal(pid: &str, name: &str) {
    let status = Command::new("kill").args(["-s", name, pid]).status();
    let status = status.expect("kill is there");
    assert!(status.success(), "process {pid} has ended before");
}

impl Drop for RealServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
