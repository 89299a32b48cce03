//! The model's chat template, rendered at arm's length.
//!
//! A template comes with the model file, and nothing in its language bounds the memory that it takes.
//! So the server only talks to processes of this program that render (see `text::template_worker`):
//! one that asks for too much memory ends, one that takes too long is ended, and the next chat gets
//! another. They see no socket, no environment and none of the server's memory.

mod process;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::thread::available_parallelism;
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};

use self::process::{Lost, Process};
use crate::text::template_worker::{MAX_MEMORY_BYTES, Rendering, Reply, Setup};
use crate::text::{SpecialTokens, TOOL_CALL_OPEN, TextError};

/// Time of one rendering: a chat as long as a body may be takes some milliseconds.
const MAX_TIME: Duration = Duration::from_secs(5);

/// Renders chats. Shared by all requests.
pub struct ChatTemplates {
    program: PathBuf,
    /// What a new process is told first.
    setup: Vec<u8>,
    idle: Mutex<Vec<Process>>,
    /// Bounds the processes, and so what a template can take of the machine.
    permits: Semaphore,
    max_time: Duration,
    teaches_tool_calls: bool,
}

/// A prompt.
#[derive(Debug)]
pub struct Rendered<'a> {
    pub text: String,
    /// Its place among those that are made at a time. Held until there are tokens, so that prompts do
    /// not pile up before the tokenizer.
    pub permit: SemaphorePermit<'a>,
}

/// Why there is no prompt.
#[derive(Debug, thiserror::Error)]
pub enum RenderError {
    /// The template does not suit the messages, or does not suit us.
    #[error(transparent)]
    Template(#[from] TextError),
    /// A fault of the machine or ours.
    #[error("no process renders chat templates: {0}")]
    Process(std::io::Error),
}

impl ChatTemplates {
    /// Starts the first process, of the program at `program`, with which the template must parse.
    ///
    /// # Errors
    /// It does not, or there is no such process.
    pub async fn start(
        program: &Path,
        source: &str,
        special: SpecialTokens,
    ) -> Result<Self, RenderError> {
        Self::with_max_time(program, source, special, MAX_TIME).await
    }

    /// As [`Self::start`], with another limit for the time of one rendering.
    ///
    /// # Errors
    /// As there.
    pub async fn with_max_time(
        program: &Path,
        source: &str,
        special: SpecialTokens,
        max_time: Duration,
    ) -> Result<Self, RenderError> {
        let is_of_hermes = source.contains(TOOL_CALL_OPEN);
        let source = source.to_owned();
        let setup = serde_json::to_vec(&Setup { source, special });
        let mut templates = Self {
            program: program.to_owned(),
            setup: setup.map_err(|error| RenderError::Process(error.into()))?,
            idle: Mutex::default(),
            permits: Semaphore::new(available_parallelism().map_or(1, |n| n.get())),
            max_time,
            teaches_tool_calls: false,
        };
        let (process, knows_tools) = templates.new_process().await?;
        templates.keep(process);
        templates.teaches_tool_calls = knows_tools && is_of_hermes;
        Ok(templates)
    }

    /// Whether the template looks at a request's tools, and teaches the model to call them as
    /// `text::ToolCallParser` reads it.
    pub fn teaches_tool_calls(&self) -> bool {
        self.teaches_tool_calls
    }

    /// The prompt of a chat.
    ///
    /// # Errors
    /// The template refuses the messages, fails, or reaches a limit; or there is no process.
    pub async fn render(&self, rendering: &Rendering) -> Result<Rendered<'_>, RenderError> {
        let frame =
            serde_json::to_vec(rendering).map_err(|error| RenderError::Process(error.into()))?;
        let permit = self.permits.acquire().await;
        let permit = permit.expect("bug: the semaphore of templates was closed");
        if let Some(process) = self.take_idle() {
            match self.ask(process, &frame).await {
                // It may have ended long before, by a signal that was not for it.
                Err(Lost::Ended(status)) => {
                    tracing::warn!(%status, "a process that renders chat templates was gone");
                }
                reply => return rendered(reply, permit),
            }
        }
        let (process, _) = self.new_process().await?;
        let reply = self.ask(process, &frame).await;
        rendered(reply, permit)
    }

    fn take_idle(&self) -> Option<Process> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.pop()
    }

    fn keep(&self, process: Process) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.push(process);
    }

    /// A process that is ready to render, and whether its template knows tools.
    async fn new_process(&self) -> Result<(Process, bool), RenderError> {
        let mut process = Process::spawn(&self.program).map_err(RenderError::Process)?;
        match process.ask(&self.setup, self.max_time).await {
            Ok(Reply::Ready { knows_tools }) => Ok((process, knows_tools)),
            Ok(Reply::Error(error)) => Err(error.into()),
            Ok(Reply::Rendered(_)) => Err(unexpected()),
            Err(lost) => Err(lost.into()),
        }
    }

    /// One exchange; the process is kept if it is still there.
    async fn ask(&self, mut process: Process, frame: &[u8]) -> Result<Reply, Lost> {
        let reply = process.ask(frame, self.max_time).await?;
        self.keep(process);
        Ok(reply)
    }
}

impl fmt::Debug for ChatTemplates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChatTemplates")
            .field("program", &self.program)
            .finish_non_exhaustive()
    }
}

fn rendered(
    reply: Result<Reply, Lost>,
    permit: SemaphorePermit<'_>,
) -> Result<Rendered<'_>, RenderError> {
    match reply? {
        Reply::Rendered(text) => Ok(Rendered { text, permit }),
        Reply::Error(error) => Err(error.into()),
        Reply::Ready { .. } => Err(unexpected()),
    }
}

fn unexpected() -> RenderError {
    RenderError::Process(std::io::Error::other("it answers something else"))
}

impl From<Lost> for RenderError {
    fn from(lost: Lost) -> Self {
        let failed = |message| Self::Template(TextError::TemplateFailed(message));
        match lost {
            Lost::TooSlow => failed("it took too long".to_owned()),
            Lost::OutOfMemory => failed(format!(
                "it exceeded its memory of {} MiB",
                MAX_MEMORY_BYTES >> 20
            )),
            Lost::Ended(status) => {
                Self::Process(std::io::Error::other(format!("it ended: {status}")))
            }
            Lost::Broken(error) => Self::Process(error),
        }
    }
}
