//! This program's own server as a child process.
//!
//! Contract with `serve`: it logs to stderr, and prints one line on stdout when it accepts
//! connections: `listening on http://ADDRESS`.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{ChildStdout, Command, ExitStatus};
use std::time::Duration;

use anyhow::anyhow;
use hyper::StatusCode;
use tokio::sync::oneshot;

use super::client::Client;
use super::endpoint::Endpoint;
use super::server_process::ServerProcess;

/// A running `serve`.
pub struct OwnServer {
    process: ServerProcess,
    listening: Option<oneshot::Receiver<String>>,
}

impl OwnServer {
    /// Starts `program serve` on a free port of this machine. The environment passes through, but
    /// for HOST and PORT, and for keys: nobody else gets to know this server. What it logs is added
    /// to the file `log`.
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
        program
            .args(["serve", "--host", "127.0.0.1", "--port", &port.to_string()])
            .env_remove("HOST")
            .env_remove("PORT")
            .env_remove("API_KEY")
            .env_remove("API_KEYS_FILE");
        let (process, stdout) = ServerProcess::start(program, log)?;
        Ok(Self {
            process,
            listening: Some(listening_address(stdout)),
        })
    }

    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Waits until the server accepts connections and calls itself ready; returns its address.
    ///
    /// # Errors
    /// It ended, or was not ready in time; the last lines of its log are quoted.
    pub async fn ready(&mut self) -> anyhow::Result<Endpoint> {
        let listening = self.listening.take().expect("bug: ready is called once");
        let ready = async |_: &mut ServerProcess| {
            let address = listening
                .await
                .map_err(|_| anyhow!("the server ended before it was ready"))?;
            let endpoint = Endpoint::own(&address);
            let client = Client::new(endpoint.clone(), None);
            while client.get("/health/ready").await?.0 != StatusCode::OK {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Ok(endpoint)
        };
        self.process.until(ready).await
    }

    /// Asks the server to end, and waits for it.
    ///
    /// # Errors
    /// It cannot be asked, or has not ended within `limit`.
    pub async fn stop(&mut self, limit: Duration) -> anyhow::Result<ExitStatus> {
        self.process.stop(limit).await
    }

    pub fn into_process(self) -> ServerProcess {
        self.process
    }
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
}
