//! How a server that stops leaves its port to the process that replaces it.

use std::time::Duration;

use socket2::{SockRef, Socket};
use tokio::net::TcpListener;

/// For this long a server that is replaced goes on accepting, and tells its clients to close the
/// connections that they keep: the next request belongs to the other process.
const NOTICE_TIME: Duration = Duration::from_millis(400);

/// For this long it then accepts what was under way to it, and nothing that begins.
const HANDSHAKE_TIME: Duration = Duration::from_millis(100);

/// Who has the port when this process has closed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handover {
    /// Nobody.
    None,
    /// A process with a socket of its own on the same port (SO_REUSEPORT).
    SharedPort,
    /// Whoever passed the socket to us; connections wait in it for the next process.
    HeldSocket,
}

/// A stop that nobody notices.
pub struct Leave {
    handover: Handover,
    socket: Option<Socket>,
}

impl Handover {
    /// Prepares to leave `listener`.
    pub fn prepare(self, listener: &TcpListener) -> Leave {
        let is_shared = self == Self::SharedPort;
        let socket = is_shared.then(|| SockRef::from(listener).try_clone().ok());
        Leave {
            handover: self,
            socket: socket.flatten(),
        }
    }
}

impl Leave {
    /// Completes when the listener can be closed. Until then it accepts.
    pub async fn run(self) {
        if self.handover == Handover::None {
            return;
        }
        tokio::time::sleep(NOTICE_TIME).await;
        if let Some(socket) = self.socket {
            accept_no_more(&socket);
            tokio::time::sleep(HANDSHAKE_TIME).await;
        }
    }
}

/// Lets the kernel drop the first packet of each new connection. Its client sends it again after a
/// second, to the other process, as this one has closed by then. Without that, connections
/// that begin while this process closes its socket would be reset.
#[cfg(target_os = "linux")]
fn accept_no_more(socket: &Socket) {
    use socket2::SockFilter;

    // The codes of classic BPF (linux/bpf_common.h). A listener's filter sees the TCP header.
    const LOAD_BYTE: u16 = 0x30;
    const AND: u16 = 0x54;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    const FLAGS: u32 = 13;
    const SYN: u32 = 0x02;
    const ACK: u32 = 0x10;
    let program = [
        SockFilter::new(LOAD_BYTE, 0, 0, FLAGS),
        SockFilter::new(AND, 0, 0, SYN | ACK),
        SockFilter::new(JUMP_IF_EQUAL, 0, 1, SYN),
        SockFilter::new(RETURN, 0, 0, 0),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
    ];
    if let Err(error) = socket.attach_filter(&program) {
        tracing::warn!(%error, "connections that begin just now may be reset");
    }
}

#[cfg(not(target_os = "linux"))]
fn accept_no_more(_socket: &Socket) {}
