//! The socket that connections come through, so that a process can be replaced without one of
//! them failing.
//!
//! * By default a port of our own.
//! * With REUSE_PORT, a port that the predecessor still serves. Ours begins to listen when the model
//!   is loaded, and gets its share of the new connections; all of them when the predecessor, told to
//!   stop, has left (see `server::Handover`).
//! * With LISTEN_FDS, a socket that systemd holds: connections wait there while no process does.

use std::net::{SocketAddr, TcpListener as StdTcpListener};

use anyhow::{Context, ensure};
use listenfd::ListenFd;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;

use crate::config::ServerConfig;
use crate::server::Handover;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 1024;

/// A socket that does not take connections yet, unless systemd holds it.
pub enum ServerSocket {
    Own { socket: Socket, reuse_port: bool },
    Systemd(StdTcpListener),
}

impl ServerSocket {
    /// Takes the address, or the socket that was passed on.
    ///
    /// # Errors
    /// The address cannot be had, or what was passed on is not one TCP socket.
    pub fn find(config: &ServerConfig) -> anyhow::Result<Self> {
        let mut passed = ListenFd::from_env();
        if passed.len() > 0 {
            let num_sockets = passed.len();
            ensure!(
                num_sockets == 1,
                "LISTEN_FDS passes {num_sockets} sockets; the server takes one"
            );
            let listener = passed
                .take_tcp_listener(0)
                .context("the socket passed by LISTEN_FDS cannot be used")?
                .context("the socket passed by LISTEN_FDS is gone")?;
            let address = listener.local_addr()?;
            tracing::info!(%address, "HOST, PORT and REUSE_PORT do not count: LISTEN_FDS passes a socket");
            return Ok(Self::Systemd(listener));
        }
        let address = SocketAddr::new(config.host, config.port);
        let socket = bind(address, config.reuse_port).with_context(|| {
            format!("cannot listen on {address}; stop what uses the port, or set PORT to another")
        })?;
        Ok(Self::Own {
            socket,
            reuse_port: config.reuse_port,
        })
    }

    /// Who has the address when this process has closed it.
    pub fn handover(&self) -> Handover {
        match self {
            Self::Own {
                reuse_port: true, ..
            } => Handover::SharedPort,
            Self::Own { .. } => Handover::None,
            Self::Systemd(_) => Handover::HeldSocket,
        }
    }

    /// Takes connections from now on.
    ///
    /// # Errors
    /// Somebody else listens there since the address was taken.
    pub fn open(self) -> anyhow::Result<TcpListener> {
        let listener: StdTcpListener = match self {
            Self::Systemd(listener) => listener,
            Self::Own { socket, .. } => {
                socket
                    .listen(BACKLOG)
                    .context("cannot listen on the port any more; set PORT to another")?;
                socket.into()
            }
        };
        listener.set_nonblocking(true)?;
        TcpListener::from_std(listener).context("cannot wait for connections")
    }
}

fn bind(address: SocketAddr, reuse_port: bool) -> std::io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    // Connections of an earlier process, long closed, do not block its port.
    socket.set_reuse_address(true)?;
    if reuse_port {
        socket.set_reuse_port(true)?;
    }
    socket.bind(&address.into())?;
    Ok(socket)
}
