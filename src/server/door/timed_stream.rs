//! A socket whose client must not keep the server waiting.
//!
//! Time runs while the head of a request is on its way, while a connection lies idle, and while the
//! client does not read what is written to it. It does not run while a request is served: that
//! time is the server's own.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep_until};

/// What a connection is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Phase {
    /// Between requests, or before the first.
    Idle,
    /// The head of a request is coming.
    Head,
    /// A request is read, served or answered.
    Busy,
}

/// The phase of a connection, known to its socket and to what serves its requests.
#[derive(Clone, Debug, Default)]
pub struct SharedPhase(Arc<State>);

#[derive(Debug, Default)]
struct State {
    phase: AtomicU8,
    /// The server stops.
    is_last_call: AtomicBool,
}

/// A request under way; dropped when its answer is complete.
#[derive(Debug)]
pub struct InRequest(SharedPhase);

impl SharedPhase {
    fn get(&self) -> Phase {
        match self.0.phase.load(Ordering::Relaxed) {
            phase if phase == Phase::Idle as u8 => Phase::Idle,
            phase if phase == Phase::Head as u8 => Phase::Head,
            _ => Phase::Busy,
        }
    }

    fn set(&self, phase: Phase) {
        self.0.phase.store(phase as u8, Ordering::Relaxed);
    }

    /// The head of a request is here.
    pub fn begin_request(&self) -> InRequest {
        self.set(Phase::Busy);
        InRequest(self.clone())
    }

    /// From now on the connection ends soon when it is idle. To be polled after this.
    pub fn call_last(&self) {
        self.0.is_last_call.store(true, Ordering::Relaxed);
    }

    fn is_last_call(&self) -> bool {
        self.0.is_last_call.load(Ordering::Relaxed)
    }
}

impl Drop for InRequest {
    fn drop(&mut self) {
        self.0.set(Phase::Idle);
    }
}

/// How long a client may take.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    pub head: Duration,
    pub idle: Duration,
    /// The same when the server stops.
    pub last_call: Duration,
}

/// A socket that fails with `TimedOut` when the patience is over.
#[derive(Debug)]
pub struct TimedStream {
    stream: TcpStream,
    patience: Patience,
    phase: SharedPhase,
    read_timer: Timer<(Phase, Duration)>,
    write_timer: Timer<()>,
}

impl TimedStream {
    pub fn new(stream: TcpStream, patience: Patience) -> Self {
        Self {
            stream,
            patience,
            phase: SharedPhase::default(),
            read_timer: Timer::default(),
            write_timer: Timer::default(),
        }
    }

    pub fn phase(&self) -> SharedPhase {
        self.phase.clone()
    }

    fn poll_write_with(
        &mut self,
        cx: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut TcpStream>, &mut Context<'_>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        match write(Pin::new(&mut self.stream), cx) {
            Poll::Ready(written) => {
                self.write_timer.stop();
                Poll::Ready(written)
            }
            Poll::Pending => {
                ready!(self.write_timer.poll((), self.patience.idle, cx));
                Poll::Ready(Err(timed_out("the client does not read")))
            }
        }
    }
}

impl AsyncRead for TimedStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        if let Poll::Ready(read) = Pin::new(&mut this.stream).poll_read(cx, buffer) {
            if buffer.filled().len() > before && this.phase.get() == Phase::Idle {
                this.phase.set(Phase::Head);
            }
            return Poll::Ready(read);
        }
        let phase = this.phase.get();
        let (limit, complaint) = match phase {
            Phase::Busy => {
                this.read_timer.stop();
                return Poll::Pending;
            }
            Phase::Idle if this.phase.is_last_call() => {
                (this.patience.last_call, "the server stops")
            }
            Phase::Idle => (this.patience.idle, "the connection lies idle"),
            Phase::Head => (this.patience.head, "the head of a request does not come"),
        };
        ready!(this.read_timer.poll((phase, limit), limit, cx));
        Poll::Ready(Err(timed_out(complaint)))
    }
}

impl AsyncWrite for TimedStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.get_mut()
            .poll_write_with(cx, |stream, cx| stream.poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut()
            .poll_write_with(cx, |stream, cx| stream.poll_write_vectored(cx, slices))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

/// Runs for one occasion, and starts anew for another.
#[derive(Debug)]
struct Timer<T> {
    running: Option<(T, Pin<Box<Sleep>>)>,
}

impl<T> Default for Timer<T> {
    fn default() -> Self {
        Self { running: None }
    }
}

impl<T: PartialEq> Timer<T> {
    fn stop(&mut self) {
        self.running = None;
    }

    /// Ready when `limit` has passed since this was first asked for this `occasion`.
    fn poll(&mut self, occasion: T, limit: Duration, cx: &mut Context<'_>) -> Poll<()> {
        let running = self.running.take().filter(|(since, _)| *since == occasion);
        let (_, sleep) = self.running.insert(
            running.unwrap_or_else(|| (occasion, Box::pin(sleep_until(Instant::now() + limit)))),
        );
        sleep.as_mut().poll(cx)
    }
}

fn timed_out(complaint: &str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, complaint)
}
