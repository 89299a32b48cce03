//! Accepts connections, no more than there may be, and serves HTTP on each.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{ConnectInfo, Request};
use axum::response::Response;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tower::ServiceExt;

use super::timed_stream::{InRequest, Patience, TimedStream};
use crate::config::HttpConfig;
use crate::server::error::ApiError;
use crate::server::metrics::Metrics;
use crate::server::request_id::RequestId;

/// Connections that are told at a time that there are too many; more are closed without a word.
const MAX_REFUSALS: usize = 64;

/// How long a refused client may take to send its request and read the answer.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(1);

/// When the server stops, a connection without a request has this long to send one: it may be on its
/// way, and closing the connection would fail it.
const LAST_CALL: Duration = Duration::from_secs(1);

/// Pause after the system could not accept a connection: it has no more file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves `app` until `stop` completes, then until every request under way has its answer. Connections
/// end when they have lain idle for a moment; `app` closes the others with their answers.
pub async fn serve(
    listener: TcpListener,
    app: Router,
    config: &HttpConfig,
    metrics: &Metrics,
    stop: impl Future<Output = ()>,
) {
    let door = Door {
        app,
        places: Arc::new(Semaphore::new(config.max_connections)),
        refusals: Arc::new(Semaphore::new(MAX_REFUSALS)),
        max_connections: config.max_connections,
        patience: Patience {
            head: config.read_timeout,
            idle: config.idle_timeout,
            last_call: LAST_CALL,
        },
        closing: watch::Sender::new(()),
    };
    let mut stop = pin!(stop);
    loop {
        let (stream, peer) = tokio::select! {
            // Those that wait when the listener closes would be reset.
            biased;
            accepted = accept(&listener) => accepted,
            () = &mut stop => break,
        };
        match door.places.clone().try_acquire_owned() {
            Ok(place) => door.open(stream, peer, place),
            Err(_) => {
                metrics.count_too_many_connections();
                door.refuse(stream);
            }
        }
    }
    drop(listener);
    door.closing.send_replace(());
    door.closing.closed().await;
}

async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                // A token is a small packet that must not wait for the next.
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%error, "cannot set TCP_NODELAY");
                }
                return (stream, peer);
            }
            // The client has left already.
            Err(error) if is_of_the_client(&error) => {}
            Err(error) => {
                tracing::error!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn is_of_the_client(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset
    )
}

struct Door {
    app: Router,
    places: Arc<Semaphore>,
    refusals: Arc<Semaphore>,
    max_connections: usize,
    patience: Patience,
    /// Tells the connections that the server stops, and knows when the last has ended.
    closing: watch::Sender<()>,
}

impl Door {
    fn open(&self, stream: TcpStream, peer: SocketAddr, place: OwnedSemaphorePermit) {
        let stream = TimedStream::new(stream, self.patience);
        let phase = stream.phase();
        let closes = phase.clone();
        let app = self.app.clone();
        let service = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(ConnectInfo(peer));
            let in_request = phase.begin_request();
            let answer = app.clone().oneshot(request.map(Body::new));
            async move {
                let answer: Response = answer.await?;
                Ok::<_, Infallible>(answer.map(|body| Answer {
                    body,
                    _in_request: in_request,
                }))
            }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            // The stream keeps the time, and tells idle from slow. But hyper looks at it again after
            // an answer only if it keeps a time itself, which therefore ends later.
            .header_read_timeout(self.patience.idle + self.patience.head)
            .serve_connection(TokioIo::new(stream), service);
        let mut closing = self.closing.subscribe();
        tokio::spawn(async move {
            let mut connection = pin!(connection);
            let ended = tokio::select! {
                ended = &mut connection => ended,
                _ = closing.changed() => {
                    closes.call_last();
                    connection.await
                }
            };
            if let Err(error) = ended {
                tracing::debug!(%error, "a connection ended");
            }
            drop((place, closing));
        });
    }

    /// Says that there are too many connections, and closes this one.
    fn refuse(&self, stream: TcpStream) {
        let Ok(permit) = self.refusals.clone().try_acquire_owned() else {
            return;
        };
        let answer = refusal(self.max_connections);
        tokio::spawn(async move {
            // The client may have left; then nobody needs the answer.
            let _ = tokio::time::timeout(REFUSAL_TIMEOUT, say_and_close(stream, &answer)).await;
            drop(permit);
        });
    }
}

/// Closing while the client still sends would reset the connection before it has read the answer.
async fn say_and_close(mut stream: TcpStream, answer: &str) -> io::Result<()> {
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await?;
    let mut request = [0; 1024];
    while stream.read(&mut request).await? > 0 {}
    Ok(())
}

fn refusal(max_connections: usize) -> String {
    let error = ApiError::TooManyConnections { max_connections };
    let id = RequestId::fresh();
    let body = error.body(&id);
    let body = body.to_string();
    format!(
        "HTTP/1.1 {}\r\ncontent-type: application/json\r\nretry-after: 1\r\nx-request-id: {id}\r\n\
         connection: close\r\ncontent-length: {}\r\n\r\n{body}",
        error.status(),
        body.len()
    )
}

/// The body of an answer, which ends the request when it is complete.
struct Answer {
    body: Body,
    _in_request: InRequest,
}

impl hyper::body::Body for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
