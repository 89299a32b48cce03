//! A server of the counting model on a free port.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use candlepower::config::{
    EngineConfig, HttpConfig, KvType, MemorySize, ObserveConfig, SpeculationConfig,
};
use candlepower::engine::{self, KvCapacity};
use candlepower::runner::Runner;
use candlepower::server::{self, ApiKeys, ChatTemplates, Handover, ModelInfo, RenderError, Served};
use candlepower::text::SpecialTokens;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::client::{Connection, Response, get, post};
use crate::model::{CHAT_TEMPLATE, CountingRunner, END, tokenizer};

pub const MODEL: &str = "counting";
pub const MAX_MODEL_LEN: usize = 4096;

pub struct TestServer {
    pub address: SocketAddr,
    runtime: Runtime,
    stop: Option<oneshot::Sender<()>>,
    running: Option<JoinHandle<anyhow::Result<()>>>,
}

pub fn config() -> EngineConfig {
    EngineConfig {
        enable_batching: true,
        enable_prefix_caching: true,
        max_batch_size: 8,
        max_batch_tokens: 256,
        max_wait_time: Duration::ZERO,
        queue_max_size: 100,
        request_timeout: Duration::from_secs(600),
        stall_timeout: Duration::from_secs(600),
        max_model_len: None,
        kv_cache_size: MemorySize::Bytes(1),
        kv_cache_type: KvType::F16,
        speculation: SpeculationConfig::OFF,
    }
}

pub fn http() -> HttpConfig {
    HttpConfig {
        api_key: None,
        api_keys_file: None,
        open_endpoints: "health,metrics".parse().expect("two endpoints"),
        cors_allow_origins: None,
        max_connections: 1000,
        max_body_size: 4 << 20,
        max_output_tokens: None,
        max_choices: 128,
        read_timeout: Duration::from_secs(600),
        idle_timeout: Duration::from_secs(600),
    }
}

pub fn observe() -> ObserveConfig {
    ObserveConfig {
        log_prompts: false,
        debug_requests: 0,
    }
}

/// What a server is made of.
pub struct Setup {
    pub runner: Box<dyn Runner>,
    pub engine: EngineConfig,
    pub num_blocks: usize,
    pub http: HttpConfig,
    pub observe: ObserveConfig,
    pub chat_template: Option<&'static str>,
    pub drain_timeout: Duration,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            runner: Box::new(CountingRunner::new()),
            engine: config(),
            num_blocks: 512,
            http: http(),
            observe: observe(),
            chat_template: Some(CHAT_TEMPLATE),
            drain_timeout: Duration::from_secs(60),
        }
    }
}

impl TestServer {
    pub fn start() -> Self {
        Self::of(Setup::default())
    }

    pub fn with(runner: impl Runner + 'static, config: &EngineConfig) -> Self {
        Self::of(Setup {
            runner: Box::new(runner),
            engine: config.clone(),
            ..Setup::default()
        })
    }

    pub fn with_http(http: HttpConfig) -> Self {
        Self::of(Setup {
            http,
            ..Setup::default()
        })
    }

    pub fn of(setup: Setup) -> Self {
        let Setup {
            runner,
            engine: config,
            num_blocks,
            http,
            observe,
            chat_template,
            drain_timeout,
        } = setup;
        let kv = KvCapacity {
            num_blocks,
            bytes_per_token: 1,
        };
        let runtime = Runtime::new().expect("a runtime");
        let templates = chat_template.map(|source| runtime.block_on(templates(source)));
        let max_model_len = MAX_MODEL_LEN.min(kv.num_tokens());
        let served = Served {
            engine: engine::start(runner, kv, max_model_len, &config).expect("it fits"),
            tokenizer: tokenizer(),
            chat_template: templates.map(|templates| templates.expect("they parse")),
            eos_token_ids: vec![END],
            model: ModelInfo {
                name: MODEL.to_owned(),
                architecture: "counter".to_owned(),
                quantization: "none".to_owned(),
                num_parameters: 0,
                weight_bytes: 0,
                loaded_weight_bytes: 0,
                sha256: Some("0123456789abcdef".to_owned()),
                load_time: Duration::from_millis(1500),
                created_unix_s: 1_700_000_000,
                device: "cpu".to_owned(),
            },
            keys: ApiKeys::load(&http).expect("keys"),
            http,
            observe,
            drain_timeout,
            handover: Handover::None,
            settings: json!({"max_batch_size": config.max_batch_size}),
        };
        let listener = runtime
            .block_on(TcpListener::bind("127.0.0.1:0"))
            .expect("a free port");
        let address = listener.local_addr().expect("an address");
        let (stop, stopped) = oneshot::channel::<()>();
        let running = runtime.spawn(server::run(listener, served, async {
            // A dropped sender stops the server as well as a message.
            let _ = stopped.await;
        }));
        Self {
            address,
            runtime,
            stop: Some(stop),
            running: Some(running),
        }
    }

    pub fn send(&self, request: &[u8]) -> Response {
        Connection::open(self.address, request).finish()
    }

    pub fn get(&self, path: &str) -> Response {
        self.send(&get(path))
    }

    pub fn post(&self, path: &str, body: impl ToString) -> Response {
        self.send(&post(path, body))
    }

    pub fn stats(&self) -> Value {
        self.get("/stats").json()
    }

    /// Waits until `/stats` shows what is expected; panics if it never does.
    pub fn await_stats(&self, what: &str, is_expected: impl Fn(&Value) -> bool) -> Value {
        wait_for(what, || {
            let stats = self.stats();
            is_expected(&stats).then_some(stats)
        })
    }

    /// Asks the server to stop, without waiting for it.
    pub fn begin_stop(&mut self) {
        self.stop.take();
    }

    /// What `server::run` returns.
    pub fn outcome(&mut self) -> anyhow::Result<()> {
        let running = self
            .running
            .take()
            .expect("the server was not waited for before");
        self.runtime
            .block_on(running)
            .expect("the server does not panic")
    }
}

/// A template, rendered by processes of the program.
pub async fn templates(source: &str) -> Result<ChatTemplates, RenderError> {
    ChatTemplates::start(program(), source, SpecialTokens::default()).await
}

pub fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_candlepower"))
}

/// Waits for a condition that another thread brings about; only a failure takes long.
pub fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "never came: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
