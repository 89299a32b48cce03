//! Sends one request and watches its answer: bytes in, a [`RequestRecord`] out.
//!
//! Whatever goes wrong is written into the record; nothing here ends a run.

use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{HeaderValue, InvalidHeaderValue};
use hyper::http::request;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;

use super::endpoint::{Api, Ask, Endpoint};
use super::record::{
    Clock, Failure, FailureReason, RequestRecord, ServerTimings, Usage, round_to_us,
};
use super::sse::{LineTooLong, SseParser};
use super::wire::{Answer, error_message};
use super::workload::Prompt;

/// Most bytes of an answer that is not a stream.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// A connection that was idle for longer is not used again. Servers close them after 5 s (uvicorn,
/// cpp-httplib), and a request that is sent at that moment would fail by the client's fault.
const IDLE_MAX: Duration = Duration::from_secs(3);

/// Limit for the questions beside the measurement: models, stats, health.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(10);

/// What all requests of a run share.
#[derive(Clone, Debug)]
pub struct RequestParams {
    pub model: String,
    pub ignore_eos: bool,
    pub timeout: Duration,
    /// Of the run, counted from 0.
    pub phase: usize,
    /// Begins every request id, so that the server's log tells runs apart.
    pub id_prefix: String,
}

/// What a server may ask its clients for. Never shown.
#[derive(Clone, Debug)]
pub struct ApiKey(HeaderValue);

impl FromStr for ApiKey {
    type Err = InvalidHeaderValue;

    fn from_str(key: &str) -> Result<Self, InvalidHeaderValue> {
        let mut header = HeaderValue::from_str(&format!("Bearer {key}"))?;
        header.set_sensitive(true);
        Ok(Self(header))
    }
}

/// A client of one server, with kept-alive connections.
#[derive(Clone, Debug)]
pub struct Client {
    http: HttpClient<HttpConnector, Full<Bytes>>,
    pub endpoint: Endpoint,
    api_key: Option<ApiKey>,
}

impl Client {
    pub fn new(endpoint: Endpoint, api_key: Option<ApiKey>) -> Self {
        let http = HttpClient::builder(TokioExecutor::new())
            .pool_idle_timeout(IDLE_MAX)
            .build(connector());
        Self {
            http,
            endpoint,
            api_key,
        }
    }

    /// With a connection for each request: some servers close a kept one when the next request may be
    /// on its way already, which then fails.
    pub fn with_connection_per_request(self) -> Self {
        let http = HttpClient::builder(TokioExecutor::new())
            .pool_max_idle_per_host(0)
            .build(connector());
        Self { http, ..self }
    }

    /// Sends one prompt; `due` is when it should have been sent.
    pub async fn send(
        &self,
        params: &RequestParams,
        prompt: &Prompt,
        index: usize,
        due: Instant,
        clock: &Clock,
    ) -> RequestRecord {
        let request_id = match params.phase {
            0 => format!("{}-{index}", params.id_prefix),
            phase => format!("{}-{phase}-{index}", params.id_prefix),
        };
        let ask = Ask {
            model: &params.model,
            prompt: &prompt.text,
            max_tokens: prompt.max_tokens,
            ignore_eos: params.ignore_eos,
        };
        let request = self.post(&self.endpoint.body(&ask), &request_id);
        let sent = Instant::now();
        let mut seen = Observation::default();
        let exchange = async { self.exchange(request?, &mut seen).await };
        let outcome = tokio::time::timeout(params.timeout, exchange).await;
        let failure = match outcome {
            Ok(result) => result.err(),
            Err(_) => {
                let message = format!("no end after {} s", params.timeout.as_secs_f64());
                Some(Failure::new(FailureReason::Timeout, message))
            }
        };
        let end = if failure.is_some() {
            Instant::now()
        } else {
            seen.end.unwrap_or_else(Instant::now)
        };
        RequestRecord {
            index,
            prompt: prompt.id,
            repeat: prompt.repeat,
            phase: params.phase,
            class: prompt.class.clone(),
            asked_prompt_tokens: prompt.tokens,
            shared_prompt_tokens: prompt.shared_tokens,
            max_tokens: Some(prompt.max_tokens),
            request_id,
            due_ms: clock.ms(due),
            sent_ms: clock.ms(sent),
            first_token_ms: seen.first_token.map(|at| clock.ms(at)),
            end_ms: clock.ms(end),
            gaps_ms: seen.gaps_ms,
            usage: seen.usage,
            cached: seen.cached,
            timings: seen.timings,
            logged: None,
            finish_reason: seen.finish_reason,
            status: seen.status.map(|status| status.as_u16()),
            failure,
        }
    }

    fn post(&self, body: &Value, request_id: &str) -> Result<Request<Full<Bytes>>, Failure> {
        self.request(Method::POST, &self.endpoint.url(self.endpoint.path()))
            .header(header::CONTENT_TYPE, "application/json")
            .header("x-request-id", request_id)
            .body(Full::from(body.to_string()))
            .map_err(|error| Failure::new(FailureReason::Connection, error.to_string()))
    }

    fn request(&self, method: Method, url: &str) -> request::Builder {
        let request = Request::builder().method(method).uri(url);
        match &self.api_key {
            Some(ApiKey(key)) => request.header(header::AUTHORIZATION, key),
            None => request,
        }
    }

    async fn exchange(
        &self,
        request: Request<Full<Bytes>>,
        seen: &mut Observation,
    ) -> Result<(), Failure> {
        let response = self
            .http
            .request(request)
            .await
            .map_err(|error| Failure::new(FailureReason::Connection, chain(&error)))?;
        seen.status = Some(response.status());
        if response.status() != StatusCode::OK {
            let body = whole_body(response).await.unwrap_or_default();
            return Err(Failure::new(FailureReason::Status, error_message(&body)));
        }
        if is_event_stream(&response) {
            self.watch_stream(response, seen).await
        } else {
            read_whole(response, seen).await
        }
    }

    async fn watch_stream(
        &self,
        response: Response<Incoming>,
        seen: &mut Observation,
    ) -> Result<(), Failure> {
        let mut body = response.into_body();
        let mut parser = SseParser::default();
        while let Some(frame) = body.frame().await {
            let now = Instant::now();
            let frame = frame.map_err(|error| cut_stream(&chain(&error)))?;
            if let Some(bytes) = frame.data_ref() {
                parser.feed(bytes, |data| seen.take_event(data, now))?;
            }
        }
        match (self.endpoint.api, seen) {
            (
                _,
                Observation {
                    finish_reason: None,
                    ..
                },
            ) => Err(cut_stream("no finish reason came")),
            (Api::Completions, Observation { done: false, .. }) => {
                Err(cut_stream("no [DONE] came"))
            }
            _ => Ok(()),
        }
    }

    /// GETs a JSON document; `None` if the server has no such path or answers otherwise.
    ///
    /// # Errors
    /// The server cannot be reached or does not answer in time.
    pub async fn get_json(&self, path: &str) -> anyhow::Result<Option<Value>> {
        let (status, body) = self.get(path).await?;
        Ok((status == StatusCode::OK)
            .then(|| serde_json::from_slice(&body).ok())
            .flatten())
    }

    /// POSTs a JSON document, and waits for the answer however long it takes.
    ///
    /// # Errors
    /// The server cannot be reached, or answers with something else than JSON.
    pub async fn post_json(&self, path: &str, body: &Value) -> anyhow::Result<(StatusCode, Value)> {
        let request = Request::post(self.endpoint.url(path))
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::from(body.to_string()))?;
        let response = self.http.request(request).await?;
        let status = response.status();
        let body = whole_body(response)
            .await
            .map_err(|error| anyhow::anyhow!(error))?;
        let answer = serde_json::from_slice(&body).context("the answer is not JSON")?;
        Ok((status, answer))
    }

    /// POSTs a JSON document; `None` if the server has no such path or answers otherwise.
    ///
    /// # Errors
    /// The server cannot be reached or does not answer in time.
    pub async fn ask_json(&self, path: &str, body: &Value) -> anyhow::Result<Option<Value>> {
        let request = self
            .request(Method::POST, &self.endpoint.url(path))
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::from(body.to_string()))?;
        let (status, body) = self.question(request).await?;
        Ok((status == StatusCode::OK)
            .then(|| serde_json::from_slice(&body).ok())
            .flatten())
    }

    /// GETs a path.
    ///
    /// # Errors
    /// The server cannot be reached or does not answer in time.
    pub async fn get(&self, path: &str) -> anyhow::Result<(StatusCode, Bytes)> {
        let url = self.endpoint.url(path);
        let request = self.request(Method::GET, &url).body(Full::default());
        let request = request.with_context(|| format!("cannot reach {url}"))?;
        self.question(request).await
    }

    async fn question(&self, request: Request<Full<Bytes>>) -> anyhow::Result<(StatusCode, Bytes)> {
        let url = request.uri().to_string();
        let question = async {
            let response = self.http.request(request).await?;
            let status = response.status();
            let body = whole_body(response)
                .await
                .map_err(|error| anyhow::anyhow!(error))?;
            anyhow::Ok((status, body))
        };
        match tokio::time::timeout(QUESTION_TIMEOUT, question).await {
            Ok(answer) => answer.with_context(|| format!("cannot reach {url}")),
            Err(_) => bail!(
                "{url} gave no answer within {} s",
                QUESTION_TIMEOUT.as_secs()
            ),
        }
    }

    /// The first model of `/v1/models`; `None` if the server lists none.
    ///
    /// # Errors
    /// The server cannot be reached or does not answer in time.
    pub async fn model_id(&self) -> anyhow::Result<Option<String>> {
        let models = self.get_json("/v1/models").await?;
        Ok(models.and_then(|models| models["data"][0]["id"].as_str().map(str::to_owned)))
    }
}

fn connector() -> HttpConnector {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    connector
}

/// What has been seen of one answer; stays readable when the exchange is cut by its time limit.
#[derive(Debug, Default)]
struct Observation {
    status: Option<StatusCode>,
    first_token: Option<Instant>,
    last_token: Option<Instant>,
    end: Option<Instant>,
    gaps_ms: Vec<f64>,
    usage: Option<Usage>,
    cached: Option<bool>,
    timings: Option<ServerTimings>,
    finish_reason: Option<String>,
    /// `[DONE]` came.
    done: bool,
}

impl Observation {
    fn take_event(&mut self, data: &[u8], now: Instant) -> Result<(), Failure> {
        if data == b"[DONE]" {
            self.done = true;
            return Ok(());
        }
        let answer: Answer = serde_json::from_slice(data).map_err(|error| {
            Failure::new(
                FailureReason::Malformed,
                format!("an event is not the expected JSON: {error}"),
            )
        })?;
        if answer.has_text() {
            self.take_token(now);
        }
        self.take_answer(answer, now)
    }

    fn take_token(&mut self, now: Instant) {
        if let Some(last) = self.last_token.replace(now) {
            self.gaps_ms
                .push(round_to_us((now - last).as_secs_f64() * 1e3));
        }
        self.first_token.get_or_insert(now);
        self.end = Some(now);
    }

    fn take_answer(&mut self, mut answer: Answer, now: Instant) -> Result<(), Failure> {
        if let Some(error) = answer.error {
            return Err(Failure::new(
                FailureReason::ErrorEvent,
                error.into_message(),
            ));
        }
        if let Some(reason) = answer.finish_reason() {
            self.finish_reason = Some(reason);
            self.end = Some(now);
        }
        self.usage = answer.usage().or(self.usage);
        self.cached = answer.cached.or(self.cached);
        self.timings = answer.timings().or(self.timings);
        Ok(())
    }
}

/// An answer in one piece has an end, and no first token: that is not made up.
async fn read_whole(response: Response<Incoming>, seen: &mut Observation) -> Result<(), Failure> {
    let body = whole_body(response)
        .await
        .map_err(|error| Failure::new(FailureReason::Connection, error.to_string()))?;
    let now = Instant::now();
    let answer: Answer = serde_json::from_slice(&body).map_err(|error| {
        let message = format!("the answer is neither JSON nor an event stream: {error}");
        Failure::new(FailureReason::Malformed, message)
    })?;
    seen.end = Some(now);
    seen.take_answer(answer, now)
}

async fn whole_body(
    response: Response<Incoming>,
) -> Result<Bytes, Box<dyn std::error::Error + Send + Sync>> {
    Ok(Limited::new(response.into_body(), ANSWER_BYTES_MAX)
        .collect()
        .await?
        .to_bytes())
}

fn is_event_stream(response: &Response<Incoming>) -> bool {
    let content_type = response.headers().get(header::CONTENT_TYPE);
    content_type
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| value.starts_with("text/event-stream"))
}

fn cut_stream(message: &str) -> Failure {
    Failure::new(FailureReason::CutStream, message)
}

impl From<LineTooLong> for Failure {
    fn from(error: LineTooLong) -> Self {
        Self::new(FailureReason::Malformed, error.to_string())
    }
}

/// An error with its causes: hyper's own message is only the outermost.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
