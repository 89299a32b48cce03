//! Another server: one that already runs, or a command that starts one.

use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context as _, bail};
use hyper::StatusCode;
use serde::{Deserialize, Serialize};

use crate::bench::client::Client;
use crate::bench::endpoint::Endpoint;
use crate::bench::server_process::ServerProcess;

/// `NAME=URL` or `NAME=COMMAND`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    pub name: String,
    /// The base address of a server that runs, or a shell command that runs one on `$PORT`.
    pub server: String,
}

impl Peer {
    /// `None` of a command.
    pub fn endpoint(&self) -> Option<Endpoint> {
        let is_url = self.server.starts_with("http://");
        is_url.then(|| self.server.parse().ok()).flatten()
    }
}

impl FromStr for Peer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, server) = text
            .split_once('=')
            .ok_or("expected NAME=URL, or NAME='COMMAND … --port $PORT'")?;
        let (name, server) = (name.trim(), server.trim());
        if name.is_empty() || name.contains(['\n', '|', '`']) {
            return Err("the name is one line of words".to_owned());
        }
        if server.contains("://") && !server.contains(' ') {
            server.parse::<Endpoint>()?;
        } else if !server.contains("PORT") {
            return Err(format!(
                "{name}: the command does not say where $PORT goes, so it could not be found"
            ));
        }
        Ok(Self {
            name: name.to_owned(),
            server: server.to_owned(),
        })
    }
}

/// Runs `command` in a shell with a free port of this machine as PORT, and waits until the server
/// answers there. What it writes is added to the file `log`.
///
/// # Errors
/// The log cannot be written, the shell not started, or the server ended or was not ready in time.
pub async fn start(command: &str, log: &Path) -> anyhow::Result<(ServerProcess, Endpoint)> {
    let port = free_port()?;
    let mut shell = Command::new("sh");
    shell
        .args(["-c", &format!("exec 1>&2; exec {command}")])
        .env("PORT", port.to_string());
    let (mut server, _) = ServerProcess::start(shell, log)?;
    let endpoint = Endpoint::own(&format!("http://127.0.0.1:{port}"));
    let client = Client::new(endpoint.clone(), None);
    server
        .until(async |server| {
            loop {
                // Servers answer other paths while they load, and some have no /health.
                match client.get("/health").await {
                    Ok((StatusCode::OK | StatusCode::NOT_FOUND, _)) => return Ok(()),
                    _ if server.has_ended() => bail!("the server ended before it was ready"),
                    _ => tokio::time::sleep(Duration::from_millis(50)).await,
                }
            }
        })
        .await?;
    Ok((server, endpoint))
}

/// A port that was free a moment ago.
fn free_port() -> anyhow::Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no port is free")?;
    Ok(listener.local_addr()?.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_are_addresses_or_commands_that_take_a_port() {
        let peer: Peer = "vLLM 0.9=http://h:1/v1".parse().expect("an address");
        assert_eq!(peer.name, "vLLM 0.9");
        assert!(peer.endpoint().is_some());
        let peer: Peer = "x=serve --a=b --port $PORT".parse().expect("a command");
        assert_eq!(peer.server, "serve --a=b --port $PORT");
        assert_eq!(peer.endpoint(), None);
        for (text, word) in [
            ("x", "NAME=URL"),
            ("=serve $PORT", "name"),
            ("x=serve", "PORT"),
            ("x=https://h", "https"),
        ] {
            let message = text.parse::<Peer>().expect_err(text);
            assert!(message.contains(word), "{text}: {message}");
        }
    }

    #[tokio::test]
    async fn a_command_that_fails_is_an_error_that_quotes_its_output() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let log = folder.path().join("server.log");
        let outcome = start("echo no model", &log).await;
        let message = format!("{:#}", outcome.err().expect("it ended"));
        assert!(message.contains("no model"), "{message}");
    }
}
