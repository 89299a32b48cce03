//! This program's own server as a child process, so that `bench` measures it from outside.
//!
//! Contract with `serve`: it logs to stderr, and prints one line on stdout when it accepts
//! connections: `listening on http://ADDRESS`. The child ends with its [`OwnServer`], on every way
//! out: SIGTERM first, and SIGKILL if it has not gone in time.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail, ensure};
use hyper::StatusCode;
use sysinfo::{Pid, ProcessesToUpdate, Signal, System};
use tokio::sync::oneshot;

use super::client::Client;
use super::endpoint::Endpoint;

/// Time for loading the model, which may be a download.
const START_TIMEOUT: Duration = Duration::from_secs(600);

/// Time between SIGTERM and SIGKILL.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// Lines of the log that an error quotes.
const QUOTED_LINES: usize = 8;

/// A running `serve`.
pub struct OwnServer {
    child: Child,
    log: PathBuf,
    listening: Option<oneshot::Receiver<String>>,
}

impl OwnServer {
    /// Starts `program serve` on a free port of this machine. The environment passes through, but
    /// for HOST and PORT, and for keys: nobody else gets to know this server. What it logs is added to the file `log`.
    ///
    /// # Errors
    /// The log cannot be written, or the program not started.
    pub fn start(program: Command, log: &Path) -> anyhow::Result<Self> {
        Self::start_on(0, program, log)
    }

    /// As [`start`](Self::start), on a port that may have a server already.
    ///
    /// # Errors
    /// The log cannot be written, or the program not started.
    pub fn start_on(port: u16, mut program: Command, log: &Path) -> anyhow::Result<Self> {
        let stderr = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("cannot write {}", log.display()))?;
        let mut child = program
            .args(["serve", "--host", "127.0.0.1", "--port", &port.to_string()])
            .env_remove("HOST")
            .env_remove("PORT")
            .env_remove("API_KEY")
            .env_remove("API_KEYS_FILE")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()
            .with_context(|| format!("cannot start {}", program.get_program().display()))?;
        let stdout = child.stdout.take().expect("bug: stdout is piped");
        Ok(Self {
            child,
            log: log.to_owned(),
            listening: Some(listening_address(stdout)),
        })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until the server accepts connections and calls itself ready; returns its address.
    ///
    /// # Errors
    /// It ended, or was not ready in time; the last lines of its log are quoted.
    pub async fn ready(&mut self) -> anyhow::Result<Endpoint> {
        let listening = self.listening.take().expect("bug: ready is called once");
        let ready = async {
            let Ok(address) = listening.await else {
                bail!("the server ended before it was ready");
            };
            let endpoint = Endpoint::own(&address);
            let client = Client::new(endpoint.clone(), None);
            while client.get("/health/ready").await?.0 != StatusCode::OK {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Ok(endpoint)
        };
        let limit = START_TIMEOUT.as_secs();
        let outcome = tokio::time::timeout(START_TIMEOUT, ready).await;
        let outcome =
            outcome.unwrap_or_else(|_| bail!("the server was not ready within {limit} s"));
        outcome.map_err(|error| anyhow!("{error:#}; {}", self.log_end()))
    }

    /// Asks the server to end, and waits for it.
    ///
    /// # Errors
    /// It cannot be asked, or has not ended within `limit`.
    pub async fn stop(&mut self, limit: Duration) -> anyhow::Result<ExitStatus> {
        ensure!(ask_to_end(self.child.id()), "it cannot be told to end");
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            let waited = limit.as_secs();
            ensure!(
                Instant::now() < deadline,
                "it has not ended within {waited} s of SIGTERM; {}",
                self.log_end()
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Where the log is and how it ends.
    fn log_end(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let last = &lines[lines.len().saturating_sub(QUOTED_LINES)..];
        format!("{} ends with:\n{}", self.log.display(), last.join("\n"))
    }

    fn has_ended_within(&mut self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        loop {
            match self.child.try_wait() {
                Ok(None) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(10))
                }
                Ok(None) => return false,
                Ok(Some(_)) | Err(_) => return true,
            }
        }
    }
}

impl Drop for OwnServer {
    fn drop(&mut self) {
        if self.has_ended_within(Duration::ZERO) {
            return;
        }
        let asked = ask_to_end(self.child.id());
        if !(asked && self.has_ended_within(STOP_TIMEOUT)) {
            // Nothing is left to do about an error here: the process is gone or cannot be killed.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Sends SIGTERM; false where that does not exist.
fn ask_to_end(pid: u32) -> bool {
    let Ok(mut system) = System::new() else {
        return false;
    };
    let pid = Pid::from_u32(pid);
    system.refresh_processes(ProcessesToUpdate::Some(&[pid]), false);
    system
        .process(pid)
        .and_then(|process| process.kill_with(Signal::Term))
        .unwrap_or(false)
}

/// Reads the child's stdout to its end on a thread of its own, so that the child never blocks on
/// a full pipe, and passes on the address. The receiver fails if the child ends without one.
fn listening_address(stdout: ChildStdout) -> oneshot::Receiver<String> {
    let (sender, receiver) = oneshot::channel();
    std::thread::spawn(move || {
        let mut sender = Some(sender);
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if let Some(address) = line.strip_prefix("listening on ")
                && let Some(sender) = sender.take()
            {
                // The receiver is gone only when the run is being torn down.
                let _ = sender.send(address.trim().to_owned());
            }
        }
    });
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[tokio::test]
    async fn a_server_that_ends_early_is_an_error_that_quotes_its_log() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let log = folder.path().join("server.log");
        let script = "echo one >&2; echo 'error: no such model' >&2; exit 1";
        let mut server = OwnServer::start(shell(script), &log).expect("sh starts");
        let message = format!("{:#}", server.ready().await.expect_err("it ended"));
        for part in [
            "error: no such model",
            "server.log",
            "ended before it was ready",
        ] {
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn a_server_ends_with_its_owner() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let log = folder.path().join("server.log");
        let server = OwnServer::start(shell("exec sleep 1000"), &log).expect("sh starts");
        let pid = Pid::from_u32(server.pid());
        let is_running = || {
            let mut system = System::new().expect("a known system");
            system.refresh_processes(ProcessesToUpdate::Some(&[pid]), true);
            system.process(pid).is_some()
        };
        assert!(is_running());
        drop(server);
        assert!(!is_running());
    }
}
