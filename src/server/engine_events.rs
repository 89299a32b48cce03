//! What the engine tells of one request, as long as it can.

use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::error::ApiError;
use super::state::AppState;
use crate::engine::{EngineError, EngineHandle, Event, FinishReason, Request};

/// Dropping it cancels the request.
pub struct EngineEvents {
    events: UnboundedReceiver<Event>,
    engine: EngineHandle,
}

impl EngineEvents {
    /// Hands a request to the engine, unless there is nothing to compute.
    ///
    /// # Errors
    /// The engine refuses it.
    pub fn of(state: &AppState, request: Request) -> Result<Self, ApiError> {
        let engine = state.served.engine.clone();
        if request.max_tokens == 0 && request.prompt_logprobs.is_none() {
            let (sender, events) = unbounded_channel();
            let sent = sender.send(Event::Finished(FinishReason::Length));
            sent.expect("bug: a new channel is closed");
            return Ok(Self { events, engine });
        }
        let events = engine.submit(request).map_err(|error| {
            state.metrics.count_rejection(&error);
            ApiError::Refused(error)
        })?;
        Ok(Self { events, engine })
    }

    /// The next one; the last is how it ended.
    ///
    /// # Errors
    /// The engine has stopped before the end.
    pub async fn next(&mut self) -> Result<Event, ApiError> {
        let reason = tokio::select! {
            biased;
            event = self.events.recv() => match event {
                Some(event) => return Ok(event),
                None => "it stopped before the end of this request".to_owned(),
            },
            // An engine that is stuck sends nothing any more.
            reason = self.engine.failed() => reason,
        };
        Err(ApiError::Failed(EngineError::Unavailable(reason)))
    }

    /// The engine need not go on.
    pub fn close(&mut self) {
        self.events.close();
    }
}
