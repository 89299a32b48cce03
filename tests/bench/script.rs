//! A server that answers as a script says, and remembers what it was asked.

use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use futures_util::stream::{self, StreamExt as _};
use serde_json::{Value, json};
use tokio::sync::{Barrier, Notify, watch};

/// How generations are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Script {
    /// One event a token, then finish reason, usage and [DONE].
    Sound,
    TwoTokensAnEvent,
    NoUsage,
    UsageOfEverySecond,
    EverySecondRefused,
    Status(u16),
    NoFinish,
    NoDone,
    /// The connection breaks after two tokens.
    BrokenBody,
    NotJson,
    Html,
    ErrorEvent,
    /// One JSON object with `text` and `cached` alone.
    PlainJson,
    /// Never answers.
    Silent,
    /// Answers when three requests wait.
    WaitForThree,
    /// Answers nothing until so many requests have come.
    StallUntil(usize),
    /// Stops serving at the sixth request: after the warm-up and some measured ones.
    DiesAfterFive,
}

/// Serves on a port of its own until it is dropped.
pub struct ScriptedServer {
    pub base: String,
    state: Arc<ServerState>,
    thread: Option<JoinHandle<()>>,
}

struct ServerState {
    script: Script,
    asked: Mutex<Vec<Asked>>,
    in_flight: AtomicUsize,
    max_in_flight: AtomicUsize,
    three: Barrier,
    death: Notify,
    /// How many requests have come, where a script waits for it.
    came: watch::Sender<usize>,
}

struct Asked {
    request_id: String,
    body: Value,
}

impl ScriptedServer {
    pub fn start(script: Script) -> Self {
        let state = Arc::new(ServerState {
            script,
            asked: Mutex::default(),
            in_flight: AtomicUsize::new(0),
            max_in_flight: AtomicUsize::new(0),
            three: Barrier::new(3),
            death: Notify::new(),
            came: watch::Sender::new(0),
        });
        let router = Router::new()
            .route(
                "/v1/models",
                get(async || Json(json!({"data": [{"id": "scripted-model"}]}))),
            )
            .route("/stats", get(async || Json(stats())))
            .route("/v1/completions", post(completions))
            .route("/generate", post(generate))
            .with_state(Arc::clone(&state));
        let (send_base, base) = std::sync::mpsc::channel();
        let of_thread = Arc::clone(&state);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            // With the runtime all connections end, as when a process dies.
            runtime.expect("a runtime").block_on(async {
                let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
                    .await
                    .expect("a free port");
                let address = listener.local_addr().expect("an address");
                send_base
                    .send(format!("http://{address}"))
                    .expect("the test waits for it");
                tokio::select! {
                    served = axum::serve(listener, router) => served.expect("the server runs"),
                    () = of_thread.death.notified() => {}
                }
            });
        });
        let base = base.recv().expect("the server has a port");
        Self {
            base,
            state,
            thread: Some(thread),
        }
    }

    pub fn bodies(&self) -> Vec<Value> {
        self.asked(|_| true, |asked| asked.body.clone())
    }

    pub fn request_ids(&self) -> Vec<String> {
        self.asked(|_| true, |asked| asked.request_id.clone())
    }

    pub fn measured_prompts(&self) -> Vec<String> {
        self.asked(|asked| !is_warmup(asked), prompt)
    }

    pub fn warmup_prompts(&self) -> Vec<String> {
        self.asked(is_warmup, prompt)
    }

    pub fn max_in_flight(&self) -> usize {
        self.state.max_in_flight.load(Ordering::SeqCst)
    }

    fn asked<T>(&self, wanted: impl Fn(&Asked) -> bool, of: impl Fn(&Asked) -> T) -> Vec<T> {
        let asked = self.state.asked.lock().expect("no handler panicked");
        asked.iter().filter(|asked| wanted(asked)).map(of).collect()
    }
}

impl Drop for ScriptedServer {
    fn drop(&mut self) {
        self.state.death.notify_one();
        if let Some(thread) = self.thread.take() {
            assert!(thread.join().is_ok(), "the scripted server panicked");
        }
    }
}

fn is_warmup(asked: &Asked) -> bool {
    asked.request_id.contains("warmup")
}

fn prompt(asked: &Asked) -> String {
    asked.body["prompt"].as_str().expect("a prompt").to_owned()
}

fn stats() -> Value {
    json!({
        "memory": {"rss_bytes": 10 << 20},
        "model": {"load_time_ms": 12.0},
        "settings": {"enable_batching": true},
    })
}

async fn completions(
    State(state): State<Arc<ServerState>>,
    headers: HeaderMap,
    Json(body): Json<Value>,
) -> Response {
    answer(&state, &headers, body, |text, finish_reason| {
        json!({"choices": [{"index": 0, "text": text, "finish_reason": finish_reason}]})
    })
    .await
}

async fn generate(
    State(state): State<Arc<ServerState>>,
    headers: HeaderMap,
    Json(body): Json<Value>,
) -> Response {
    answer(&state, &headers, body, |text, finish_reason| {
        json!({"text": text, "finish_reason": finish_reason, "cached": finish_reason.map(|_| false)})
    })
    .await
}

/// An event with a text, or with the finish reason.
type Event = fn(&str, Option<&str>) -> Value;

async fn answer(state: &ServerState, headers: &HeaderMap, body: Value, event: Event) -> Response {
    let now_in_flight = state.in_flight.fetch_add(1, Ordering::SeqCst) + 1;
    state
        .max_in_flight
        .fetch_max(now_in_flight, Ordering::SeqCst);
    let max_tokens = body["max_tokens"].as_u64().expect("max_tokens");
    let number = {
        let mut asked = state.asked.lock().expect("no handler panicked");
        let id = headers["x-request-id"]
            .to_str()
            .expect("a plain id")
            .to_owned();
        asked.push(Asked {
            request_id: id,
            body,
        });
        asked.len()
    };
    let response = scripted(state, number, max_tokens, event).await;
    state.in_flight.fetch_sub(1, Ordering::SeqCst);
    response
}

async fn scripted(state: &ServerState, number: usize, max_tokens: u64, event: Event) -> Response {
    let token = || event(" word", None);
    let tokens = || (0..max_tokens).map(|_| token()).collect::<Vec<_>>();
    let finish = || event("", Some("length"));
    let sound = |usage: bool| {
        let end = usage.then(|| usage_event(max_tokens));
        stream_of(
            [tokens(), vec![finish()], end.into_iter().collect()].concat(),
            "data: [DONE]\n\n",
        )
    };
    let is_second = number.is_multiple_of(2);
    match state.script {
        Script::Sound => sound(true),
        Script::NoUsage => sound(false),
        Script::UsageOfEverySecond => sound(is_second),
        Script::EverySecondRefused if is_second => refusal(429),
        Script::EverySecondRefused => sound(true),
        Script::Status(status) => refusal(status),
        Script::TwoTokensAnEvent => {
            let pairs = (0..max_tokens / 2).map(|_| token()).collect::<Vec<_>>();
            stream_of(
                [pairs, vec![finish(), usage_event(max_tokens)]].concat(),
                "data: [DONE]\n\n",
            )
        }
        Script::NoFinish => stream_of(tokens(), ""),
        Script::NoDone => stream_of(
            [tokens(), vec![finish(), usage_event(max_tokens)]].concat(),
            "",
        ),
        Script::BrokenBody => {
            let first = stream::iter([Ok(Bytes::from(events(&tokens()[..2])))]);
            let broken = stream::once(async {
                // A body that waits has been sent as far as it goes.
                tokio::task::yield_now().await;
                Err(std::io::Error::other("scripted break"))
            });
            event_stream(Body::from_stream(first.chain(broken)))
        }
        Script::NotJson => stream_of(vec![], "data: {\"choices\": \n\n"),
        Script::Html => "<html>hello</html>".into_response(),
        Script::ErrorEvent => stream_of(
            vec![token(), json!({"error": {"message": "scripted"}})],
            "data: [DONE]\n\n",
        ),
        Script::PlainJson => Json(json!({"text": "some words", "cached": true})).into_response(),
        Script::Silent => std::future::pending().await,
        Script::WaitForThree => {
            state.three.wait().await;
            sound(true)
        }
        Script::StallUntil(count) => {
            let mut came = state.came.subscribe();
            state.came.send_replace(number);
            came.wait_for(|came| *came >= count)
                .await
                .expect("the state outlives its server");
            sound(true)
        }
        Script::DiesAfterFive => {
            if number > 5 {
                state.death.notify_one();
                return std::future::pending().await;
            }
            sound(true)
        }
    }
}

fn usage_event(tokens: u64) -> Value {
    json!({
        "choices": [],
        "usage": {
            "prompt_tokens": 30,
            "completion_tokens": tokens,
            "prompt_tokens_details": {"cached_tokens": 0},
        },
        "timings": {"queue_ms": 1.0, "prefill_ms": 2.0, "decode_ms": 3.0},
    })
}

fn refusal(status: u16) -> Response {
    let status = StatusCode::from_u16(status).expect("a status");
    (
        status,
        Json(json!({"error": {"message": "scripted refusal"}})),
    )
        .into_response()
}

fn events(values: &[Value]) -> String {
    values
        .iter()
        .map(|value| format!("data: {value}\n\n"))
        .collect()
}

/// Each event in a read of its own, as far as the sockets allow.
fn stream_of(values: Vec<Value>, end: &'static str) -> Response {
    let parts: Vec<Result<Bytes, Infallible>> = values
        .iter()
        .map(|value| Ok(Bytes::from(events(std::slice::from_ref(value)))))
        .chain([Ok(Bytes::from(end))])
        .collect();
    event_stream(Body::from_stream(stream::iter(parts)))
}

fn event_stream(body: Body) -> Response {
    (
        [(header::CONTENT_TYPE, "text/event-stream; charset=utf-8")],
        body,
    )
        .into_response()
}
