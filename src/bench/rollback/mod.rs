//! `bench rollback`: the drill of turning batching off under load.
//!
//! A server with batching serves a steady load. Then one without takes its port, as in the rollback
//! plan of an optimization, and the load goes on. The drill is passed if no request failed and every
//! prompt's text is the same before and after, to the byte.

pub mod record;
mod section;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use clap::Args;
use clap::builder::RangedU64ValueParser;

use self::record::{Answer, Plan, RollbackRecord, Times};
use super::ab::args::Settings;
use super::client::Client;
use super::drill::Circumstances;
use super::endpoint::{Ask, Endpoint};
use super::raw_record::conclude;
use super::record::round_to_us;
use super::relay::Relay;
use super::result_file::ResultFile;
use super::workload::CORPUS;

/// Words of a prompt.
const PROMPT_WORDS: usize = 40;

/// Turn batching off by restart under load, and check that nobody notices
#[derive(Args, Clone, Debug)]
pub struct RollbackArgs {
    /// What the server is rolled back to
    #[arg(
        long,
        default_value = "ENABLE_BATCHING=false,MAX_BATCH_SIZE=1",
        value_name = "SETTINGS"
    )]
    pub to: Settings,
    /// Clients, each sending its next request when its last one ended
    #[arg(long, default_value_t = 8, value_parser = RangedU64ValueParser::<usize>::new().range(1..=1000))]
    pub concurrency: usize,
    /// Different prompts, asked again and again
    #[arg(long, default_value_t = 24, value_parser = RangedU64ValueParser::<usize>::new().range(1..=1000))]
    pub prompts: usize,
    /// Tokens of each answer
    #[arg(long, default_value_t = 32, value_parser = RangedU64ValueParser::<usize>::new().range(1..=10_000))]
    pub max_tokens: usize,
    /// Raw record, as JSON [default: a new file under benches/results/]
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Print and save the result, and leave BENCHMARKS.md as it is
    #[arg(long)]
    pub no_append: bool,
}

/// Holds the drill, saves and shows it.
///
/// # Errors
/// A server does not start or end, a file cannot be written, or the drill is not passed.
pub async fn session(folder: &Path, args: &RollbackArgs) -> anyhow::Result<()> {
    let file = ResultFile::prepare(folder, args.output.as_deref(), "-rollback")?;
    conclude(hold(args, &file).await?, &file, !args.no_append)
}

async fn hold(args: &RollbackArgs, file: &ResultFile) -> anyhow::Result<RollbackRecord> {
    let before = BTreeMap::from([("REQUEST_TIMEOUT".to_owned(), "600".to_owned())]);
    let mut after = before.clone();
    after.extend(args.to.0.clone());
    let mut relay = Relay::start(&before, &file.log()).await?;
    let client = Client::new(relay.endpoint.clone(), None);
    let stats = client.get_json("/stats").await?.unwrap_or_default();
    let about = Circumstances::now(&file.root, &before, &stats);
    let model = client
        .model_id()
        .await?
        .context("the server lists no model")?;

    let load = Load {
        began: Instant::now(),
        prompts: prompts(args.prompts),
        max_tokens: args.max_tokens,
        model,
        endpoint: relay.endpoint.clone(),
        next: Cell::new(0),
        stops: Cell::new(false),
        has_failed: Cell::new(false),
        answers: RefCell::new(Vec::new()),
    };
    let drill = async {
        load.each_prompt_once_more().await;
        let told = load.now_ms();
        let replacement = relay.replace(&after, &file.log(), |_| ()).await?;
        let ready = told + replacement.start_up.as_secs_f64() * 1e3;
        let alone = load.now_ms();
        load.each_prompt_once_more().await;
        load.stops.set(true);
        anyhow::Ok(Times {
            told_ms: round_to_us(told),
            ready_ms: round_to_us(ready),
            alone_ms: round_to_us(alone),
        })
    };
    let clients = (0..args.concurrency).map(|_| load.client());
    let clients = futures_util::future::join_all(clients);
    let (times, _) = tokio::join!(drill, clients);
    let times = times?;
    let settings = client.get_json("/stats").await?.unwrap_or_default();
    relay.stop().await?;
    Ok(RollbackRecord {
        rollback: Plan {
            to: args.to.clone(),
            concurrency: args.concurrency,
            prompts: args.prompts,
            max_tokens: args.max_tokens,
            settings_before: stats["settings"].clone(),
            settings_after: settings["settings"].clone(),
        },
        about,
        times,
        answers: load.answers.into_inner(),
    })
}

/// Prompts that begin with different words.
fn prompts(count: usize) -> Vec<String> {
    let words: Vec<&str> = CORPUS.split_whitespace().collect();
    (0..count)
        .map(|index| {
            let start = index * words.len() / count;
            let words = words.iter().cycle().skip(start).take(PROMPT_WORDS);
            words.copied().collect::<Vec<_>>().join(" ")
        })
        .collect()
}

/// The clients, and what they saw. All on one thread.
struct Load {
    began: Instant,
    prompts: Vec<String>,
    max_tokens: usize,
    model: String,
    endpoint: Endpoint,
    next: Cell<usize>,
    stops: Cell<bool>,
    has_failed: Cell<bool>,
    answers: RefCell<Vec<Answer>>,
}

impl Load {
    fn now_ms(&self) -> f64 {
        self.began.elapsed().as_secs_f64() * 1e3
    }

    /// Waits until each prompt has been sent and answered from now on, or a request has failed.
    async fn each_prompt_once_more(&self) {
        let now_ms = self.now_ms();
        let mut is_answered = vec![false; self.prompts.len()];
        let mut num_seen = 0;
        while is_answered.contains(&false) && !self.has_failed.get() {
            for answer in &self.answers.borrow()[num_seen..] {
                is_answered[answer.prompt] |= answer.sent_ms >= now_ms;
                num_seen += 1;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// One client: the next prompt when its last one was answered.
    async fn client(&self) {
        let client = Client::new(self.endpoint.clone(), None);
        while !self.stops.get() && !self.has_failed.get() {
            let number = self.next.get();
            self.next.set(number + 1);
            let prompt = number % self.prompts.len();
            let sent_ms = self.now_ms();
            let outcome = self.ask(&client, &self.prompts[prompt]).await;
            let (text, failure) = match outcome {
                Ok(text) => (Some(text), None),
                Err(error) => {
                    self.has_failed.set(true);
                    (None, Some(format!("{error:#}")))
                }
            };
            self.answers.borrow_mut().push(Answer {
                prompt,
                sent_ms: round_to_us(sent_ms),
                end_ms: round_to_us(self.now_ms()),
                text,
                failure,
            });
        }
    }

    async fn ask(&self, client: &Client, prompt: &str) -> anyhow::Result<String> {
        let mut body = self.endpoint.body(&Ask {
            model: &self.model,
            prompt,
            max_tokens: self.max_tokens,
            ignore_eos: true,
        });
        body["stream"] = false.into();
        body["stream_options"] = serde_json::Value::Null;
        let (status, answer) = client.post_json(self.endpoint.path(), &body).await?;
        ensure!(
            status.is_success(),
            "{status}: {}",
            answer["error"]["message"]
        );
        let text = answer["choices"][0]["text"].as_str();
        Ok(text.context("an answer without a text")?.to_owned())
    }
}
