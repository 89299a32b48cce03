//! A server as a child process, so that `bench` measures it from outside. The child ends with its
//! [`ServerProcess`], on every way out: SIGTERM first, and SIGKILL if it has not gone in time.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail, ensure};
use sysinfo::{Pid, ProcessesToUpdate, Signal, System};

/// Time for loading the model, which may be a download.
const START_TIMEOUT: Duration = Duration::from_secs(600);

/// Time between SIGTERM and SIGKILL.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// Lines of the log that an error quotes.
const QUOTED_LINES: usize = 8;

/// A running child, and the file that it logs to.
pub struct ServerProcess {
    child: Child,
    log: PathBuf,
}

impl ServerProcess {
    /// Starts `command`. What it writes to stderr is added to the file `log`; stdout is piped.
    ///
    /// # Errors
    /// The log cannot be written, or the program not started.
    pub fn start(mut command: Command, log: &Path) -> anyhow::Result<(Self, ChildStdout)> {
        let stderr = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("cannot write {}", log.display()))?;
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()
            .with_context(|| format!("cannot start {}", command.get_program().display()))?;
        let stdout = child.stdout.take().expect("bug: stdout is piped");
        let process = Self {
            child,
            log: log.to_owned(),
        };
        Ok((process, stdout))
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn has_ended(&mut self) -> bool {
        self.has_ended_within(Duration::ZERO)
    }

    /// Waits for `ready`.
    ///
    /// # Errors
    /// It failed, or did not come in time; the last lines of the server's log are quoted.
    pub async fn until<T>(
        &mut self,
        ready: impl AsyncFnOnce(&mut Self) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let limit = START_TIMEOUT.as_secs();
        let outcome = tokio::time::timeout(START_TIMEOUT, ready(self)).await;
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

impl Drop for ServerProcess {
    fn drop(&mut self) {
        if self.has_ended() {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_ends_with_its_owner() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let log = folder.path().join("server.log");
        let mut command = Command::new("sh");
        command.args(["-c", "exec sleep 1000"]);
        let (server, _) = ServerProcess::start(command, &log).expect("sh starts");
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
