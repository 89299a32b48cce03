//! A server that is replaced by another on its port while it serves, as an operator would do it: the
//! new one takes the port when its model is loaded, then the old one is told to stop.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

use super::endpoint::Endpoint;
use super::own_server::OwnServer;

/// More than the longest DRAIN_TIMEOUT that these servers get.
const STOP_LIMIT: Duration = Duration::from_secs(90);

/// The server that has the port.
pub struct Relay {
    server: OwnServer,
    port: u16,
    pub endpoint: Endpoint,
}

/// How long a replacement took.
#[derive(Clone, Copy, Debug)]
pub struct Replacement {
    /// From the command to a loaded model that has the port.
    pub start_up: Duration,
    /// From SIGTERM to the old server's exit.
    pub drain: Duration,
}

impl Relay {
    /// Starts the first server, on a free port.
    ///
    /// # Errors
    /// It does not get ready.
    pub async fn start(settings: &BTreeMap<String, String>, log: &Path) -> anyhow::Result<Self> {
        let mut server = start(settings, log, 0)?;
        let endpoint = server.ready().await?;
        let address = endpoint.to_string();
        let port = address
            .rsplit_once(':')
            .and_then(|(_, port)| port.parse().ok())
            .with_context(|| format!("{address} has no port"))?;
        Ok(Self {
            server,
            port,
            endpoint,
        })
    }

    pub fn pid(&self) -> u32 {
        self.server.pid()
    }

    /// Puts a new server in the place of this one. `ready` is told its process id once it has the port.
    ///
    /// # Errors
    /// The new one does not get ready, or the old one does not end well.
    pub async fn replace(
        &mut self,
        settings: &BTreeMap<String, String>,
        log: &Path,
        ready: impl FnOnce(u32),
    ) -> anyhow::Result<Replacement> {
        let began = Instant::now();
        let mut successor = start(settings, log, self.port)?;
        successor.ready().await?;
        ready(successor.pid());
        let start_up = began.elapsed();
        let mut old = std::mem::replace(&mut self.server, successor);
        let drain = stop(&mut old).await.context("the replaced server")?;
        Ok(Replacement { start_up, drain })
    }

    /// Stops the server as its supervisor would.
    ///
    /// # Errors
    /// It does not end in time, or not with exit code 0.
    pub async fn stop(mut self) -> anyhow::Result<Duration> {
        stop(&mut self.server).await.context("the last server")
    }
}

fn start(settings: &BTreeMap<String, String>, log: &Path, port: u16) -> anyhow::Result<OwnServer> {
    let program = std::env::current_exe().context("cannot tell this program's file")?;
    let mut command = Command::new(program);
    command.envs(settings).env("REUSE_PORT", "true");
    OwnServer::start_on(port, command, log)
}

async fn stop(server: &mut OwnServer) -> anyhow::Result<Duration> {
    let began = Instant::now();
    let status = server.stop(STOP_LIMIT).await?;
    ensure!(status.success(), "it ended with {status}");
    Ok(began.elapsed())
}
