//! Server-sent events from the pieces of one or more generations.

use std::convert::Infallible;
use std::pin::Pin;

use axum::body::{Body, Bytes};
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream::{self, SelectAll, Stream, StreamExt};
use serde::Serialize;

use super::error::ApiError;
use super::generation::Generation;
use super::piece::Piece;
use super::request_id::RequestId;

/// Writes pieces as the events of one endpoint.
pub trait Format: Send + 'static {
    /// The events of one piece of generation `index`.
    fn piece(&mut self, events: &mut Events, index: usize, piece: &Piece);

    /// The events between the last piece and `[DONE]`.
    fn end(&mut self, events: &mut Events);
}

/// Events that are ready to be sent.
#[derive(Debug, Default)]
pub struct Events(Vec<u8>);

impl Events {
    /// Appends an event that carries `data` as JSON.
    pub fn push(&mut self, data: &impl Serialize) {
        self.0.extend_from_slice(b"data: ");
        serde_json::to_writer(&mut self.0, data).expect("bug: an event cannot be JSON");
        self.0.extend_from_slice(b"\n\n");
    }

    fn push_done(&mut self) {
        self.0.extend_from_slice(b"data: [DONE]\n\n");
    }
}

type Pieces = SelectAll<Pin<Box<dyn Stream<Item = (usize, Result<Piece, ApiError>)> + Send>>>;

/// Answers with the pieces of all generations as they come.
///
/// The response begins with the first token, so that whatever goes wrong before has a status code
/// of its own. What goes wrong later is an `error` event, and no `[DONE]` follows it.
///
/// # Errors
/// A generation failed before the first token.
pub async fn respond(
    generations: Vec<Generation>,
    format: impl Format,
    id: RequestId,
) -> Result<Response, ApiError> {
    let mut pieces: Pieces = generations
        .into_iter()
        .enumerate()
        .map(|(index, generation)| {
            let pieces = generation.into_pieces();
            pieces.map(move |piece| (index, piece)).boxed()
        })
        .collect();
    let (index, first) = pieces
        .next()
        .await
        .expect("bug: a response of no generations");
    let writer = Writer {
        first: Some((index, first?)),
        pieces,
        format,
        id,
        ended: false,
    };
    let events = stream::unfold(writer, async |mut writer| {
        Some((Ok::<_, Infallible>(writer.next().await?), writer))
    });
    let headers = [
        (
            header::CONTENT_TYPE,
            HeaderValue::from_static("text/event-stream; charset=utf-8"),
        ),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        // Asks a proxy in between to pass each event on at once.
        (
            HeaderName::from_static("x-accel-buffering"),
            HeaderValue::from_static("no"),
        ),
    ];
    Ok((headers, Body::from_stream(events)).into_response())
}

/// The body of a response in the making.
struct Writer<F> {
    first: Option<(usize, Piece)>,
    pieces: Pieces,
    format: F,
    id: RequestId,
    ended: bool,
}

impl<F: Format> Writer<F> {
    /// The next events; `None` after the last.
    async fn next(&mut self) -> Option<Bytes> {
        if self.ended {
            return None;
        }
        let next = match self.first.take() {
            Some((index, piece)) => Some((index, Ok(piece))),
            None => self.pieces.next().await,
        };
        let mut events = Events::default();
        match next {
            Some((index, Ok(piece))) => self.format.piece(&mut events, index, &piece),
            Some((_, Err(error))) => {
                self.ended = true;
                // The other generations of this response have no reader any more.
                self.pieces.clear();
                events.push(&error.body(&self.id));
            }
            None => {
                self.ended = true;
                self.format.end(&mut events);
                events.push_done();
            }
        }
        Some(Bytes::from(events.0))
    }
}
