//! From the flags to a plan: the plain workload of the flags, a named one, or a file of prompts.

use anyhow::{bail, ensure};
use serde_json::Value;

use super::args::LoadArgs;
use super::cache_state::CacheState;
use super::client::Client;
use super::layouts::Layout;
use super::plan::Plan;
use super::record::{Scale, WorkloadSource};
use super::workload::dataset::{Dataset, Draw};
use super::workload::definition::Definition;
use super::workload::expand::{Materials, expand};
use super::workload::plain::Workload;
use super::workload::tokenizer::PromptTokenizer;

/// Where the flags say that the prompts come from.
pub enum Prompts {
    Plain(Workload),
    Named(Definition),
    File(Dataset),
}

/// The server that a plan is made for.
pub struct PlanFor<'a> {
    pub client: &'a Client,
    pub model: &'a str,
    /// It serves this run alone.
    pub is_own: bool,
}

impl Prompts {
    /// Reads what there is to read, so that a mistake is told before a server is started for it.
    ///
    /// # Errors
    /// A file cannot be read or is unsound, or flags do not go together.
    pub fn read(load: &LoadArgs) -> anyhow::Result<Self> {
        load.slo()?;
        ensure!(
            load.tokenizer.is_none() || load.workload.is_some() || load.dataset.is_some(),
            "--tokenizer counts the tokens of --workload or --dataset, and neither is given"
        );
        ensure!(
            load.request_rate.is_some() || (load.burstiness == 1.0 && load.ramp_from.is_none()),
            "--burstiness and --ramp-from shape the arrivals of --request-rate, and it is not given"
        );
        match (&load.workload, &load.dataset) {
            (Some(name), None) => Ok(Self::Named(Definition::find(name)?)),
            (None, Some(path)) => Ok(Self::File(Dataset::read(path)?)),
            (None, None) => Ok(Self::Plain(Workload::draw(&load.workload_params())?)),
            (Some(_), Some(_)) => bail!("bug: --workload and --dataset conflict"),
        }
    }

    /// What is to be sent to a server.
    ///
    /// # Errors
    /// The server does not count tokens where it must, or there are too few prompts.
    pub async fn plan(&self, load: &LoadArgs, server: &PlanFor<'_>) -> anyhow::Result<Plan> {
        let by_default = match server.is_own {
            true => CacheState::Cold,
            false => CacheState::AsIs,
        };
        let cache_state = load.cache_state.unwrap_or(by_default);
        if let Self::Plain(workload) = self {
            return Ok(Plan {
                source: None,
                warmup: workload.warmup.clone(),
                phases: vec![load.only_phase(workload.measured.clone())],
                cache_state,
            });
        }
        let file = load.tokenizer.as_deref();
        let tokenizer = PromptTokenizer::open(file, server.client, server.model)?;
        let window = window(server.client).await?;
        match self {
            Self::Plain(_) => bail!("bug: a plain workload is not counted in tokens"),
            Self::Named(definition) => {
                let materials = Materials {
                    tokenizer: &tokenizer,
                    seed: load.seed,
                    scale: load.scale(),
                    window,
                    cache_state: load
                        .cache_state
                        .or(definition.body.cache_state)
                        .unwrap_or(by_default),
                };
                expand(definition, &materials).await
            }
            Self::File(dataset) => {
                let draw = Draw {
                    requests: load.requests,
                    warmup: load.warmup,
                    max_tokens: load.max_tokens,
                    shuffle_seed: load.shuffle.then_some(load.seed),
                    window,
                };
                let (warmup, measured) = dataset.draw(&draw, &tokenizer).await?;
                Ok(Plan {
                    source: Some(WorkloadSource {
                        name: dataset.name(),
                        sha256: dataset.sha256.clone(),
                        scale: Scale::default(),
                        layout: Layout::Plain,
                        num_cut_to_window: 0,
                        expected: None,
                    }),
                    warmup,
                    phases: vec![load.only_phase(measured)],
                    cache_state,
                })
            }
        }
    }
}

/// Most tokens of a prompt and its answer, where the server tells: in its list of models, as vLLM
/// does, or in its statistics.
async fn window(client: &Client) -> anyhow::Result<Option<usize>> {
    let models = client.get_json("/v1/models").await?.unwrap_or_default();
    let of_models = models["data"][0]["max_model_len"].as_u64();
    let stats = match of_models {
        Some(_) => Value::Null,
        None => client.get_json("/stats").await?.unwrap_or_default(),
    };
    let of_stats = stats["model"]["max_model_len_tokens"].as_u64();
    Ok(of_models.or(of_stats).map(|tokens| tokens as usize))
}
