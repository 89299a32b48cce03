//! Which setting to try next. Only of a server that says its settings; the first rule that applies.

use serde_json::Value;

use super::Finding;
use super::dominance::DOMINANT;
use crate::bench::record::RequestRecord;
use crate::bench::report::analysis::breakdown::{Breakdown, Part};
use crate::bench::report::figures::{Source, throughput_curve};
use crate::bench::report::loads::Load;
use crate::bench::report::words::{counted, number, percent, time};
use crate::bench::server_stats::ServerStats;

/// A batch is full, and a cache too, from this share of its room on.
const FULL: f64 = 0.9;
/// A gain below this is none.
const GAIN_MIN: f64 = 0.1;

type Rule = fn(&Context<'_>) -> Option<(String, &'static str)>;

const RULES: [Rule; 7] = [
    refused,
    timed_out,
    preempted,
    unbatched,
    full_batch,
    long_prompts,
    saturated,
];

struct Context<'a> {
    source: Source<'a>,
    load: &'a Load,
    settings: ServerStats,
    parts: Breakdown,
}

impl Context<'_> {
    fn setting(&self, name: &str) -> Option<&Value> {
        self.settings.settings.get(name)
    }

    fn failures(&self, label: &str) -> usize {
        self.load.metrics.failures.get(label).copied().unwrap_or(0)
    }
}

pub fn read(source: Source<'_>) -> Vec<Finding> {
    let finding = || {
        let load = source.busiest(|load| Breakdown::mean(&load.answers).is_some())?;
        let settings = ServerStats::of(&load.record.run.server.stats_before);
        if settings.settings.is_empty() {
            return None;
        }
        let context = Context {
            source,
            load,
            settings,
            parts: Breakdown::mean(&load.answers)?,
        };
        let (claim, rule) = RULES.iter().find_map(|rule| rule(&context))?;
        Some(Finding {
            topic: "Next knob to turn",
            claim: format!("{claim} ({}).", load.name),
            rule,
        })
    };
    finding().into_iter().collect()
}

fn refused(context: &Context<'_>) -> Option<(String, &'static str)> {
    let refused = context.failures("HTTP 429");
    let limit = context.setting("queue_max_size")?;
    (refused > 0).then(|| {
        (
            format!(
                "QUEUE_MAX_SIZE, now {limit}: the queue was full for {}; a longer one refuses fewer and lets them wait instead",
                counted(refused, "request")
            ),
            "Said when a request was answered 429.",
        )
    })
}

fn timed_out(context: &Context<'_>) -> Option<(String, &'static str)> {
    let limit_s = context.setting("request_timeout_s")?.as_f64()?;
    let requests = context.load.record.requests.iter();
    let is_late = |r: &&RequestRecord| !r.is_success() && r.end_ms - r.sent_ms >= limit_s * 1e3;
    let late = requests.filter(is_late).count();
    (late > 0).then(|| {
        (
            format!(
                "REQUEST_TIMEOUT, now {limit_s} s, or less load: {} failed when it was over",
                counted(late, "request")
            ),
            "Said when a request failed after REQUEST_TIMEOUT or later.",
        )
    })
}

fn preempted(context: &Context<'_>) -> Option<(String, &'static str)> {
    let server = &context.load.metrics.server;
    let preemptions = server.preemptions.filter(|n| *n > 0)?;
    let size = context.setting("kv_cache_size")?;
    Some((
        format!(
            "KV_CACHE_SIZE, now {size}: sequences gave up their blocks and were computed again, {preemptions} times"
        ),
        "Said when sequences were preempted.",
    ))
}

fn unbatched(context: &Context<'_>) -> Option<(String, &'static str)> {
    let is_off = context.setting("enable_batching")? == &Value::Bool(false);
    let share = context.parts.share(Part::Queue);
    (is_off && share >= DOMINANT).then(|| {
        (
            format!("ENABLE_BATCHING=true: one request at a time makes the others wait, {} of their time", percent(share)),
            "Said when waiting dominates and batching is off.",
        )
    })
}

fn full_batch(context: &Context<'_>) -> Option<(String, &'static str)> {
    let limit = context.setting("max_batch_size")?.as_f64()?;
    let share = context.parts.share(Part::Queue);
    let mean = context.load.metrics.server.mean_batch_size?;
    (share >= DOMINANT && mean >= FULL * limit).then(|| {
        (
            format!(
                "MAX_BATCH_SIZE, now {limit}: the batch is full ({} sequences in the mean) while requests wait, {} of their time",
                number(mean),
                percent(share)
            ),
            "Said when waiting dominates and the mean batch is 90 % of MAX_BATCH_SIZE or more.",
        )
    })
}

fn long_prompts(context: &Context<'_>) -> Option<(String, &'static str)> {
    let limit = context.setting("max_batch_tokens")?;
    let share = context.parts.share(Part::Prefill);
    (share >= DOMINANT).then(|| {
        (
            format!(
                "MAX_BATCH_TOKENS, now {limit}: prefill takes {} of the time ({} a request), and this is how much of a prompt a step takes",
                percent(share),
                time(context.parts.prefill_ms)
            ),
            "Said when prefill dominates.",
        )
    })
}

/// No setting helps a machine that is busy, and an idle one wants more requests.
fn saturated(context: &Context<'_>) -> Option<(String, &'static str)> {
    let share = context.parts.share(Part::Decode);
    let curve = throughput_curve(context.source)
        .filter(|curve| share >= DOMINANT && curve.points.len() >= 3)?;
    let [.., before, last] = &curve.points[..] else {
        return None;
    };
    let gain = last.tokens_per_s / before.tokens_per_s - 1.0;
    Some(match gain >= GAIN_MIN {
        true => (
            format!(
                "None yet: from {} to {} requests in flight throughput still grows by {}; send more at once before turning any",
                before.name,
                last.name,
                percent(gain)
            ),
            "Said when decode dominates and the last step of the throughput curve gains 10 % or more.",
        ),
        false => (
            format!(
                "None of the server's: decode takes {} of the time, and from {} to {} requests in flight throughput changes by {} only; the machine is the limit",
                percent(share),
                before.name,
                last.name,
                percent(gain)
            ),
            "Said when decode dominates and the last step of the throughput curve, of three points or more, gains less than 10 %.",
        ),
    })
}
