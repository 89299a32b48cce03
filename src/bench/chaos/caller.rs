//! One client of the storm: sends a request, behaves as its act says, and notes what it saw.

use std::time::Duration;

use anyhow::Context as _;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::act::{Act, Leaves};
use crate::bench::endpoint::Endpoint;
use crate::bench::sse::SseParser;

/// A client waits no longer; a server that makes one wait so long hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the client saw of its request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Seen {
    /// `tokens` is what the answer says; `streamed` is how many came one by one.
    Completed {
        tokens: usize,
        streamed: Option<usize>,
    },
    /// It hung up.
    Left,
    /// 429: no room, or no time.
    Shed,
    /// 408, or an error event that says so: time was over.
    TimedOut,
    /// 4xx: the request is wrong.
    Refused(u16),
    Failed(String),
}

/// A client for all callers, with connections that are kept.
#[derive(Clone, Debug)]
pub struct Caller {
    http: HttpClient<HttpConnector, Full<Bytes>>,
    url: String,
}

impl Caller {
    pub fn new(endpoint: &Endpoint) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        Self {
            http: HttpClient::builder(TokioExecutor::new()).build(connector),
            url: endpoint.url("/generate"),
        }
    }

    pub async fn play(&self, act: Act, id: &str) -> Seen {
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(&self.url)
            .header(header::CONTENT_TYPE, "application/json")
            .header("x-request-id", id);
        for (name, value) in &act.headers {
            request = request.header(*name, value);
        }
        let request = match request.body(Full::from(act.body.clone())) {
            Ok(request) => request,
            Err(error) => return Seen::Failed(error.to_string()),
        };
        let call = async {
            match self.http.request(request).await {
                Ok(response) => self.read(response, &act).await,
                Err(error) => Seen::Failed(format!("{:#}", anyhow::Error::from(error))),
            }
        };
        let limit = match act.leaves {
            Leaves::After(time) => time,
            _ => PATIENCE,
        };
        match tokio::time::timeout(limit, call).await {
            Ok(seen) => seen,
            Err(_) if limit < PATIENCE => Seen::Left,
            Err(_) => Seen::Failed(format!("no end after {} s", PATIENCE.as_secs())),
        }
    }

    async fn read(&self, response: Response<Incoming>, act: &Act) -> Seen {
        let status = response.status();
        let is_stream = response
            .headers()
            .get(header::CONTENT_TYPE)
            .is_some_and(|value| value.as_bytes().starts_with(b"text/event-stream"));
        if status == StatusCode::OK && is_stream {
            return read_stream(response.into_body(), act).await;
        }
        let body = match response.into_body().collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) => return Seen::Failed(format!("{:#}", anyhow::Error::from(error))),
        };
        let Ok(body) = serde_json::from_slice::<Value>(&body) else {
            return Seen::Failed(format!("{status}: not JSON"));
        };
        match status {
            StatusCode::OK => match completion_tokens(&body) {
                Some(tokens) => Seen::Completed {
                    tokens,
                    streamed: None,
                },
                None => Seen::Failed("an answer without usage".to_owned()),
            },
            StatusCode::TOO_MANY_REQUESTS => Seen::Shed,
            StatusCode::REQUEST_TIMEOUT => Seen::TimedOut,
            status if status.is_client_error() => Seen::Refused(status.as_u16()),
            status => Seen::Failed(format!("{status}: {}", body["error"]["message"])),
        }
    }
}

async fn read_stream(mut body: Incoming, act: &Act) -> Seen {
    let mut parser = SseParser::default();
    let mut progress = Stream::default();
    while let Some(frame) = body.frame().await {
        let frame = match frame {
            Ok(frame) => frame,
            Err(error) => return Seen::Failed(format!("{:#}", anyhow::Error::from(error))),
        };
        if let Some(bytes) = frame.data_ref()
            && let Err(error) = parser.feed(bytes, |data| progress.take(data))
        {
            return Seen::Failed(format!("{error:#}"));
        }
        if let Some(end) = progress.error.take() {
            return end;
        }
        if let Leaves::AfterTokens(count) = act.leaves
            && progress.num_tokens >= count
        {
            return Seen::Left;
        }
        tokio::time::sleep(act.pause).await;
    }
    match (progress.tokens, progress.is_done) {
        (Some(tokens), true) => Seen::Completed {
            tokens,
            streamed: Some(progress.num_tokens),
        },
        _ => Seen::Failed("the stream was cut".to_owned()),
    }
}

/// A stream so far.
#[derive(Default)]
struct Stream {
    num_tokens: usize,
    tokens: Option<usize>,
    error: Option<Seen>,
    is_done: bool,
}

impl Stream {
    fn take(&mut self, data: &[u8]) -> anyhow::Result<()> {
        if data == b"[DONE]" {
            self.is_done = true;
            return Ok(());
        }
        let event: Value = serde_json::from_slice(data).context("an event is not JSON")?;
        self.num_tokens += usize::from(event["token"].is_u64());
        self.tokens = completion_tokens(&event).or(self.tokens);
        if let Some(error) = event.get("error") {
            self.error = Some(match error["code"].as_str() {
                Some("request_timeout") => Seen::TimedOut,
                _ => Seen::Failed(error["message"].to_string()),
            });
        }
        Ok(())
    }
}

fn completion_tokens(answer: &Value) -> Option<usize> {
    let tokens = answer["usage"]["completion_tokens"].as_u64()?;
    usize::try_from(tokens).ok()
}
