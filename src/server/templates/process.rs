//! One process that renders, and the pipes to it.

use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

use crate::text::template_worker::{MAX_REPLY_BYTES, Reply, SUBCOMMAND};

/// What a Rust program gets when it finds no memory, or no more stack.
const SIGABRT: i32 = 6;
const SIGSEGV: i32 = 11;

/// Dropping it ends the process.
pub struct Process {
    child: Child,
    input: ChildStdin,
    output: ChildStdout,
}

/// Why a process gave no reply. It is of no use any more.
#[derive(Debug)]
pub enum Lost {
    TooSlow,
    OutOfMemory,
    /// For another reason.
    Ended(ExitStatus),
    Broken(io::Error),
}

impl Process {
    pub fn spawn(program: &Path) -> io::Result<Self> {
        let mut child = Command::new(program)
            .arg(SUBCOMMAND)
            .env_clear()
            // An arena for each thread would take of the address space that its limit counts.
            .env("MALLOC_ARENA_MAX", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            // Ctrl-C at a terminal is for the server, which then finishes what is in flight.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let pipes = child.stdin.take().zip(child.stdout.take());
        let (input, output) = pipes.expect("bug: both ends are piped");
        Ok(Self {
            child,
            input,
            output,
        })
    }

    /// Sends a frame and waits for the reply.
    pub async fn ask(&mut self, frame: &[u8], max_time: Duration) -> Result<Reply, Lost> {
        let Ok(exchanged) = timeout(max_time, self.exchange(frame)).await else {
            return Err(Lost::TooSlow);
        };
        match exchanged {
            Ok(reply) => Reply::decode(reply).map_err(Lost::Broken),
            Err(error) => Err(self.end(error).await),
        }
    }

    async fn exchange(&mut self, frame: &[u8]) -> io::Result<Vec<u8>> {
        let length = u32::try_from(frame.len()).map_err(io::Error::other)?;
        self.input.write_all(&length.to_le_bytes()).await?;
        self.input.write_all(frame).await?;
        self.input.flush().await?;
        let length = self.output.read_u32_le().await? as usize;
        if length > MAX_REPLY_BYTES {
            return Err(io::Error::other(format!("a reply of {length} bytes")));
        }
        let mut reply = vec![0; length];
        self.output.read_exact(&mut reply).await?;
        Ok(reply)
    }

    /// Why its pipes are broken.
    async fn end(&mut self, error: io::Error) -> Lost {
        // Without effect on one that has ended by itself.
        if let Err(error) = self.child.start_kill() {
            return Lost::Broken(error);
        }
        match self.child.wait().await {
            Ok(status) if matches!(status.signal(), Some(SIGABRT | SIGSEGV)) => Lost::OutOfMemory,
            Ok(status) => Lost::Ended(status),
            Err(_) => Lost::Broken(error),
        }
    }
}
