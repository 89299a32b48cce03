//! A process that renders one model's chat template, for a server that must outlive it.
//!
//! It limits its own memory, so that a template that asks for more ends this process and no other;
//! whoever started it ends it when it takes too long. It reads frames from standard input and answers
//! each on standard output: the first is a [`Setup`], all others are [`Rendering`]s. When its input
//! ends, so does it, in the middle of a rendering too: it never outlives its server.

use std::io::{self, ErrorKind, Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::exit;
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use rustix::process::{Resource, Rlimit, setrlimit};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

use super::{ChatTemplate, MAX_OUTPUT_BYTES, SpecialTokens};
use crate::text::TextError;

/// The subcommand of the program that calls [`run`].
pub const SUBCOMMAND: &str = "chat-template-worker";

/// Heap of a worker, beside what the program takes before it renders anything. The longest chat that
/// a server takes by default needs a tenth.
pub const MAX_MEMORY_BYTES: u64 = 256 << 20;

/// minijinja compares, prints and drops values recursively, and nobody writes a template whose values
/// nest by the thousand. One that does overflows the stack, which ends the process just as well.
const STACK_BYTES: usize = 64 << 20;

/// A reply is a text that was rendered, or shorter.
pub const MAX_REPLY_BYTES: usize = MAX_OUTPUT_BYTES + 1;

/// What a worker renders.
#[derive(Debug, Serialize, Deserialize)]
pub struct Setup {
    pub source: String,
    pub special: SpecialTokens,
}

/// The arguments of [`ChatTemplate::render`]. In a list, so that nothing nests deeper than in the
/// request that it came from.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Rendering(
    /// The messages.
    pub Json,
    /// The tools.
    pub Option<Json>,
    /// Whether the answer begins at the end.
    pub bool,
    /// Further variables.
    pub Map<String, Json>,
);

/// What the worker says to a frame.
#[derive(Debug)]
pub enum Reply {
    /// To the setup: the template parses.
    Ready {
        knows_tools: bool,
    },
    Rendered(String),
    Error(TextError),
}

impl Reply {
    fn kind_and_text(&self) -> (u8, &str) {
        match self {
            Self::Ready { knows_tools: false } => (b'p', ""),
            Self::Ready { knows_tools: true } => (b't', ""),
            Self::Rendered(text) => (b'r', text),
            Self::Error(TextError::TemplateSyntax(message)) => (b's', message),
            Self::Error(TextError::TemplateRefused(message)) => (b'x', message),
            Self::Error(TextError::TemplateFailed(message)) => (b'f', message),
            Self::Error(_) => (b'f', "its text cannot be read"),
        }
    }

    /// # Errors
    /// The frame is not one that a worker sends.
    pub fn decode(frame: Vec<u8>) -> io::Result<Self> {
        let mut text = String::from_utf8(frame).map_err(io::Error::other)?;
        if text.is_empty() {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        let kind = text.remove(0);
        Ok(match kind {
            'p' => Self::Ready { knows_tools: false },
            't' => Self::Ready { knows_tools: true },
            'r' => Self::Rendered(text),
            's' => Self::Error(TextError::TemplateSyntax(text)),
            'x' => Self::Error(TextError::TemplateRefused(text)),
            'f' => Self::Error(TextError::TemplateFailed(text)),
            kind => return Err(io::Error::other(format!("a reply of kind {kind:?}"))),
        })
    }
}

/// Runs a worker until its input ends, which ends the process.
///
/// # Errors
/// The system does not let it limit itself, or its input breaks off.
pub fn run() -> io::Result<()> {
    let (sender, frames) = channel();
    thread::Builder::new()
        .stack_size(STACK_BYTES)
        .spawn(move || answer(&frames))?;
    limit()?;
    let mut input = io::stdin().lock();
    while let Some(frame) = read_frame(&mut input)? {
        if sender.send(frame).is_err() {
            return Err(io::Error::other("nobody renders any more"));
        }
    }
    exit(0);
}

fn limit() -> io::Result<()> {
    let at_most = |bytes| Rlimit {
        current: Some(bytes),
        maximum: Some(bytes),
    };
    // Other systems take the limit and do not hold it.
    if cfg!(target_os = "linux") {
        let bytes = address_space()? + MAX_MEMORY_BYTES;
        setrlimit(Resource::As, at_most(bytes))?;
    }
    // A death here is ordinary, and its memory is nobody's to read.
    setrlimit(Resource::Core, at_most(0))?;
    Ok(())
}

/// What the program's code, libraries and stacks take of it.
fn address_space() -> io::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let kib = status.lines().find_map(|line| {
        let size = line.strip_prefix("VmSize:")?;
        size.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
    });
    kib.map(|kib| kib << 10)
        .ok_or_else(|| io::Error::other("/proc/self/status has no VmSize"))
}

fn answer(frames: &Receiver<Vec<u8>>) {
    let mut template = None;
    let mut output = io::stdout().lock();
    while let Ok(frame) = frames.recv() {
        let reply = catch_unwind(AssertUnwindSafe(|| reply(&mut template, &frame)));
        let reply = reply.unwrap_or_else(|_| {
            Reply::Error(TextError::TemplateFailed(
                "its rendering panicked".to_string(),
            ))
        });
        let (kind, text) = reply.kind_and_text();
        if write_frame(&mut output, kind, text).is_err() {
            exit(1);
        }
    }
}

fn reply(template: &mut Option<ChatTemplate>, frame: &[u8]) -> Reply {
    let unreadable = |error: serde_json::Error| TextError::TemplateFailed(error.to_string());
    let reply = match template {
        None => serde_json::from_slice::<Setup>(frame)
            .map_err(unreadable)
            .and_then(|setup| ChatTemplate::new(&setup.source, setup.special))
            .map(|parsed| {
                let knows_tools = parsed.knows_tools();
                *template = Some(parsed);
                Reply::Ready { knows_tools }
            }),
        Some(template) => serde_json::from_slice::<Rendering>(frame)
            .map_err(unreadable)
            .and_then(|Rendering(messages, tools, add_generation_prompt, extra)| {
                template.render(&messages, tools.as_ref(), add_generation_prompt, &extra)
            })
            .map(Reply::Rendered),
    };
    reply.unwrap_or_else(Reply::Error)
}

/// The next frame; `None` if there is none any more.
fn read_frame(input: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 4];
    match input.read_exact(&mut length) {
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    }
    let mut frame = vec![0; u32::from_le_bytes(length) as usize];
    input.read_exact(&mut frame)?;
    Ok(Some(frame))
}

fn write_frame(output: &mut impl Write, kind: u8, text: &str) -> io::Result<()> {
    let length = u32::try_from(text.len() + 1).map_err(io::Error::other)?;
    output.write_all(&length.to_le_bytes())?;
    output.write_all(&[kind])?;
    output.write_all(text.as_bytes())?;
    output.flush()
}
