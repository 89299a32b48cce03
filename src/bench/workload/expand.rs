//! From a named workload to the prompts that a run sends.

use std::collections::HashSet;

use anyhow::{Context as _, ensure};
use rand::SeedableRng as _;
use rand::seq::SliceRandom as _;
use rand_chacha::ChaCha8Rng;

use super::Prompt;
use super::definition::{Class, Definition, Order, PhaseBody};
use super::exact::{Cut, Cutter};
use super::openings::repeat_plan;
use super::tokenizer::PromptTokenizer;
use crate::bench::cache_state::CacheState;
use crate::bench::load::Arrivals;
use crate::bench::plan::{PhasePlan, Plan};
use crate::bench::record::{Scale, WorkloadSource};

/// Requests of one conversation, or a single one.
#[derive(Clone)]
struct Unit {
    /// Its class and group, where prompts of a group begin alike.
    group: Option<(String, usize)>,
    prompts: Vec<Prompt>,
}

/// What the prompts are made of.
pub struct Materials<'a> {
    pub tokenizer: &'a PromptTokenizer<'a>,
    pub seed: u64,
    pub scale: Scale,
    /// Tokens of a prompt and its answer together, where the server tells.
    pub window: Option<usize>,
    pub cache_state: CacheState,
}

/// The plan of a workload for one model: same definition, seed and tokenizer, same prompts.
///
/// # Errors
/// The tokenizer does not answer, or the text does not give the prompts that are wanted.
pub async fn expand(definition: &Definition, materials: &Materials<'_>) -> anyhow::Result<Plan> {
    let body = &definition.body;
    let mut rng = ChaCha8Rng::seed_from_u64(materials.seed);
    let longest = body.phases.iter().flat_map(|phase| &phase.classes);
    let longest = longest.map(|class| materials.longest(class)).max();
    let cutter = Cutter::new(materials.tokenizer, longest.unwrap_or(1), &mut rng).await?;
    let mut expansion = Expansion {
        materials,
        cutter,
        rng,
        next_id: 0,
        num_cut_to_window: 0,
    };
    let mut phases = Vec::with_capacity(body.phases.len());
    for (number, phase) in body.phases.iter().enumerate() {
        let plan = expansion.phase(phase, number).await;
        phases.push(plan.with_context(|| format!("phase {:?}", phase.name))?);
    }
    let warmup = expansion.warmup(body.warmup, &phases).await?;
    let is_whole = materials.scale == Scale::default() && expansion.num_cut_to_window == 0;
    Ok(Plan {
        source: Some(WorkloadSource {
            name: definition.name.clone(),
            sha256: definition.sha256.clone(),
            scale: materials.scale,
            layout: body.layout,
            num_cut_to_window: expansion.num_cut_to_window,
            expected: body.expected.filter(|_| is_whole),
        }),
        warmup,
        phases,
        cache_state: materials.cache_state,
    })
}

impl Materials<'_> {
    fn scaled_requests(&self, class: &Class) -> usize {
        let conversations = class.requests / class.turns;
        let scaled = (conversations as f64 * self.scale.requests)
            .round()
            .max(1.0);
        scaled as usize * class.turns
    }

    fn scaled_tokens(&self, tokens: usize) -> usize {
        (tokens as f64 * self.scale.lengths).round().max(1.0) as usize
    }

    /// Tokens of the longest prompt.
    fn longest(&self, class: &Class) -> usize {
        let shared = class.shared_prefix.map_or(0, |shared| shared.tokens);
        self.scaled_tokens(shared) + self.scaled_tokens(class.prompt_tokens.max) * class.turns
    }

    fn scaled_arrivals(&self, arrivals: Arrivals) -> Arrivals {
        let factor = self.scale.rates;
        match arrivals {
            Arrivals::Closed { .. } => arrivals,
            Arrivals::Open {
                request_rate_per_s,
                burstiness,
                ramp_from_per_s,
            } => Arrivals::Open {
                request_rate_per_s: request_rate_per_s * factor,
                burstiness,
                ramp_from_per_s: ramp_from_per_s.map(|rate| rate * factor),
            },
            Arrivals::Bursts {
                burst_size,
                interval_s,
            } => Arrivals::Bursts {
                burst_size,
                interval_s: interval_s / factor,
            },
        }
    }
}

struct Expansion<'a> {
    materials: &'a Materials<'a>,
    cutter: Cutter<'a>,
    rng: ChaCha8Rng,
    next_id: usize,
    num_cut_to_window: usize,
}

impl Expansion<'_> {
    async fn phase(&mut self, phase: &PhaseBody, number: usize) -> anyhow::Result<PhasePlan> {
        let mut by_class: Vec<Vec<Unit>> = Vec::with_capacity(phase.classes.len());
        for class in &phase.classes {
            let units = self.class(class).await;
            by_class.push(units.with_context(|| format!("class {}", class.label()))?);
        }
        let units = match phase.order {
            Order::RoundRobin => round_robin(by_class),
            Order::Shuffled => {
                let mut units: Vec<Unit> = by_class.into_iter().flatten().collect();
                // One class keeps its own order, in which repeats follow what they repeat.
                if phase.classes.len() > 1 {
                    units.shuffle(&mut self.rng);
                }
                units
            }
        };
        Ok(PhasePlan {
            name: phase.name.clone(),
            arrivals: self.materials.scaled_arrivals(phase.arrivals),
            seed: self.materials.seed.wrapping_add(number as u64),
            prompts: in_sending_order(units),
        })
    }

    async fn class(&mut self, class: &Class) -> anyhow::Result<Vec<Unit>> {
        let num_units = self.materials.scaled_requests(class) / class.turns;
        let repeats = repeat_plan(num_units, class.repeat_ratio, &mut self.rng);
        let num_new = repeats.iter().filter(|is_repeat| !**is_repeat).count();
        let mut prompt_tokens: Vec<usize> = class.prompt_tokens.spread(num_new).collect();
        prompt_tokens.shuffle(&mut self.rng);
        let mut output_tokens: Vec<usize> = class.output_tokens.spread(num_units).collect();
        output_tokens.shuffle(&mut self.rng);
        let heads = self.heads(class).await?;

        let mut new = prompt_tokens.into_iter();
        let mut units: Vec<Unit> = Vec::with_capacity(num_units);
        let mut originals: Vec<usize> = Vec::with_capacity(num_new);
        for (number, (is_repeat, output)) in repeats.into_iter().zip(output_tokens).enumerate() {
            if is_repeat {
                let original =
                    originals[rand::Rng::random_range(&mut self.rng, 0..originals.len())];
                let repeated = units[original].clone();
                units.push(repeated);
                continue;
            }
            originals.push(number);
            let group = number % heads.len();
            let length = new.next().context("bug: a length for each new prompt")?;
            units.push(
                self.unit(class, &heads[group], group, length, output)
                    .await?,
            );
        }
        Ok(units)
    }

    /// What the prompts of each group begin with; nothing where they share nothing.
    async fn heads(&mut self, class: &Class) -> anyhow::Result<Vec<Cut>> {
        let Some(shared) = class.shared_prefix else {
            return Ok(vec![Cut::default()]);
        };
        let tokens = self.materials.scaled_tokens(shared.tokens);
        let mut heads = Vec::with_capacity(shared.groups);
        for _ in 0..shared.groups {
            heads.extend(self.cutter.nested(&Cut::default(), &[tokens]).await?);
        }
        Ok(heads)
    }

    /// One request, or all turns of a conversation.
    async fn unit(
        &mut self,
        class: &Class,
        head: &Cut,
        group: usize,
        prompt_tokens: usize,
        output_tokens: usize,
    ) -> anyhow::Result<Unit> {
        let materials = self.materials;
        let output = materials.scaled_tokens(output_tokens);
        let own = materials.scaled_tokens(prompt_tokens);
        let shared = match class.shared_prefix {
            Some(_) => head.ids.len() + self.cutter.num_special(),
            None => 0,
        };
        let mut lengths: Vec<usize> = (1..=class.turns).map(|turn| shared + turn * own).collect();
        for length in &mut lengths {
            let most = materials.window.map(|window| window.saturating_sub(output));
            if let Some(most) = most.filter(|most| most < length) {
                ensure!(
                    class.turns == 1 && most > shared,
                    "prompts of {length} tokens and answers of {output} do not fit into the model's window: use \
                     --scale-lengths"
                );
                *length = most;
                self.num_cut_to_window += 1;
            }
        }
        let cuts = self.cutter.nested(head, &lengths).await?;
        let session = (class.turns > 1).then_some(self.next_id);
        let mut before = 0;
        let prompts = cuts
            .into_iter()
            .enumerate()
            .map(|(turn, cut)| {
                let id = self.next_id;
                self.next_id += 1;
                let tokens = cut.ids.len() + self.cutter.num_special();
                let shared_tokens = match turn {
                    0 => shared,
                    _ => before,
                };
                before = tokens;
                Prompt {
                    id,
                    repeat: false,
                    text: cut.text,
                    max_tokens: output,
                    class: class.name.as_ref().map(|name| match class.turns {
                        1 => name.clone(),
                        _ => format!("{name}, turn {}", turn + 1),
                    }),
                    tokens: Some(tokens),
                    shared_tokens: Some(shared_tokens),
                    session,
                }
            })
            .collect();
        let shared = class.shared_prefix;
        Ok(Unit {
            group: shared.map(|_| (class.label().to_owned(), group)),
            prompts,
        })
    }

    /// Prompts as long as the first ones that are measured, and none of them.
    async fn warmup(&mut self, count: usize, phases: &[PhasePlan]) -> anyhow::Result<Vec<Prompt>> {
        let measured: Vec<&Prompt> = phases.iter().flat_map(|phase| &phase.prompts).collect();
        let mut warmup = Vec::with_capacity(count);
        for like in measured.iter().cycle().take(count) {
            let tokens = like
                .tokens
                .context("bug: exact prompts know their length")?;
            let cuts = self.cutter.nested(&Cut::default(), &[tokens]).await?;
            warmup.extend(cuts.into_iter().map(|cut| Prompt {
                text: cut.text,
                repeat: false,
                class: None,
                session: None,
                ..(*like).clone()
            }));
        }
        Ok(warmup)
    }
}

/// One unit of each class, again and again until all are taken.
fn round_robin(by_class: Vec<Vec<Unit>>) -> Vec<Unit> {
    let mut rest: Vec<_> = by_class.into_iter().map(Vec::into_iter).collect();
    let mut units = Vec::new();
    loop {
        let before = units.len();
        units.extend(rest.iter_mut().filter_map(Iterator::next));
        if units.len() == before {
            return units;
        }
    }
}

/// The prompts one after another. A text that came before is a repeat, and the first of a group
/// shares nothing with what came before.
fn in_sending_order(units: Vec<Unit>) -> Vec<Prompt> {
    let mut ids = HashSet::new();
    let mut groups = HashSet::new();
    let mut prompts = Vec::new();
    for mut unit in units {
        if let Some(first) = unit.prompts.first_mut()
            && unit.group.is_some_and(|group| groups.insert(group))
        {
            first.shared_tokens = Some(0);
        }
        prompts.extend(unit.prompts);
    }
    for prompt in &mut prompts {
        prompt.repeat = !ids.insert(prompt.id);
    }
    prompts
}
