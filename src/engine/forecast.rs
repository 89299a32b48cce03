//! How long a request will wait, from what the engine has measured of late. Numbers in, numbers
//! out: no clock, no request.
//!
//! A step's time is a line over its tokens, fitted to the latest steps. A sequence costs its prompt
//! tokens once and then one token a step, for as many steps as outputs of late had tokens. Whoever
//! is ahead in the queue takes the place in the batch that becomes free first.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::time::Duration;

use super::fairness::ClientId;

/// Weight of the newest measurement in a running mean.
const NEWEST: f64 = 0.05;

/// Step times as a line over tokens: a weighted least-squares fit that forgets old steps.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct StepCost {
    mean_tokens: f64,
    mean_s: f64,
    variance: f64,
    covariance: f64,
    num_steps: u64,
}

impl StepCost {
    pub fn note(&mut self, num_tokens: usize, time: Duration) {
        let (tokens, seconds) = (num_tokens as f64, time.as_secs_f64());
        self.num_steps += 1;
        // The plain mean at first, so that the first step is not taken for the truth.
        let weight = NEWEST.max(1.0 / self.num_steps as f64);
        let (off_tokens, off_s) = (tokens - self.mean_tokens, seconds - self.mean_s);
        self.mean_tokens += weight * off_tokens;
        self.mean_s += weight * off_s;
        self.variance = (1.0 - weight) * (self.variance + weight * off_tokens * off_tokens);
        self.covariance = (1.0 - weight) * (self.covariance + weight * off_tokens * off_s);
    }

    /// Seconds of one more token in a step. Steps of one size tell nothing of it: then all is base.
    fn token_s(&self) -> f64 {
        match self.variance > 1e-9 {
            true => (self.covariance / self.variance).clamp(0.0, self.mean_s / self.mean_tokens),
            false => 0.0,
        }
    }

    fn step_s(&self, num_tokens: f64) -> f64 {
        self.mean_s + self.token_s() * (num_tokens - self.mean_tokens)
    }
}

/// A running mean; `None` before the first value.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Mean(Option<f64>);

impl Mean {
    pub fn note(&mut self, value: f64) {
        self.0 = Some(self.0.map_or(value, |mean| mean + NEWEST * (value - mean)));
    }
}

/// What is still to be computed of a sequence.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Work {
    pub prefill_tokens: usize,
    /// Most tokens still to be generated, and how many were.
    pub max_tokens: usize,
    pub generated_tokens: usize,
}

/// A request in the queue, or about to enter it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Queued {
    pub priority: i32,
    pub client: ClientId,
    pub work: Work,
}

/// The engine's load as its thread last saw it, and who has come since.
#[derive(Clone, Debug, Default)]
pub(super) struct Load {
    pub cost: StepCost,
    /// Tokens of an output.
    pub output_tokens: Mean,
    /// Share of a prompt's tokens that is not in the prefix cache.
    pub computed_share: Mean,
    pub max_batch_tokens: usize,
    /// Sequences that run at a time: MAX_BATCH_SIZE, or what the pool holds.
    pub num_places: usize,
    pub running: Vec<Work>,
    /// In the order of arrival.
    pub waiting: Vec<Queued>,
}

/// What a request has before it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Forecast {
    /// Until its first prefill chunk.
    pub wait: Duration,
    pub first_token: Duration,
    pub end: Duration,
    /// Whether others are in its way.
    pub is_contended: bool,
}

impl Load {
    /// `None` before anything was measured.
    pub fn forecast(&self, newcomer: &Queued) -> Option<Forecast> {
        let output_tokens = self.output_tokens.0?;
        let computed_share = self.computed_share.0?;
        let ahead = self.ahead_of(newcomer);
        let num_places = self.num_places.max(1);
        let num_before = self.running.len() + ahead.len();
        let decode_s = self.cost.step_s((num_before + 1).min(num_places) as f64);
        let steps = |work: &Work| {
            let left = (output_tokens - work.generated_tokens as f64).max(1.0);
            left.min(work.max_tokens as f64)
        };

        let prefill_tokens: f64 = self
            .running
            .iter()
            .map(|work| work.prefill_tokens as f64)
            .chain(
                ahead
                    .iter()
                    .map(|work| work.prefill_tokens as f64 * computed_share),
            )
            .sum();
        let mut wait_s = prefill_tokens * self.cost.token_s();
        let is_full = num_before >= num_places;
        if is_full {
            // When each place becomes free; nanoseconds, because floats have no order.
            let mut free: BinaryHeap<_> = self
                .running
                .iter()
                .map(|work| Reverse(nanoseconds(steps(work) * decode_s)))
                .chain(std::iter::repeat_n(
                    Reverse(0),
                    num_places.saturating_sub(self.running.len()),
                ))
                .collect();
            for work in &ahead {
                let Reverse(start) = free.pop().unwrap_or_default();
                free.push(Reverse(start + nanoseconds(steps(work) * decode_s)));
            }
            wait_s += free.pop().map_or(0, |Reverse(start)| start) as f64 / 1e9;
        }
        let own = newcomer.work.prefill_tokens as f64 * computed_share;
        let others = (num_before + 1).min(num_places) as f64 - 1.0;
        let chunk = own.min(self.max_batch_tokens as f64);
        let num_chunks = (own / self.max_batch_tokens as f64).ceil().max(1.0);
        let first_token_s = wait_s + num_chunks * self.cost.step_s(others + chunk);
        let end_s = first_token_s + (steps(&newcomer.work) - 1.0) * decode_s;
        Some(Forecast {
            wait: seconds(wait_s),
            first_token: seconds(first_token_s),
            end: seconds(end_s),
            is_contended: is_full || !ahead.is_empty(),
        })
    }

    /// The queued work that comes first: whatever is more urgent, and of the same urgency each
    /// client's requests in turn.
    fn ahead_of(&self, newcomer: &Queued) -> Vec<Work> {
        let same_client = |queued: &&Queued| {
            queued.client == newcomer.client && queued.priority == newcomer.priority
        };
        let turn = self.waiting.iter().filter(same_client).count() + 1;
        let mut turns: HashMap<ClientId, usize> = HashMap::new();
        let mut ahead = Vec::new();
        for queued in &self.waiting {
            if queued.priority == newcomer.priority {
                let taken = turns.entry(queued.client).or_insert(0);
                *taken += 1;
                if *taken <= turn {
                    ahead.push(queued.work);
                }
            } else if queued.priority < newcomer.priority {
                ahead.push(queued.work);
            }
        }
        ahead
    }
}

fn nanoseconds(seconds: f64) -> u64 {
    (seconds * 1e9) as u64
}

fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 10 ms a step and 1 ms a token in it; outputs of 20 tokens.
    fn load(num_places: usize) -> Load {
        let mut load = Load {
            num_places,
            max_batch_tokens: 100,
            ..Load::default()
        };
        for tokens in [1, 50, 100, 10, 80] {
            load.cost
                .note(tokens, Duration::from_millis(10 + tokens as u64));
        }
        load.output_tokens.note(20.0);
        load.computed_share.note(1.0);
        load
    }

    fn work(prefill_tokens: usize, max_tokens: usize) -> Work {
        Work {
            prefill_tokens,
            max_tokens,
            generated_tokens: 0,
        }
    }

    fn queued(client: &str, priority: i32, work: Work) -> Queued {
        Queued {
            priority,
            client: ClientId::of(client),
            work,
        }
    }

    fn assert_ms(actual: Duration, expected_ms: f64) {
        let actual_ms = actual.as_secs_f64() * 1e3;
        assert!(
            (actual_ms - expected_ms).abs() < 0.01,
            "{actual_ms} ms, not {expected_ms} ms"
        );
    }

    #[test]
    fn the_line_through_the_steps_is_found_and_steps_of_one_size_give_their_mean() {
        let cost = load(1).cost;
        assert!((cost.token_s() - 1e-3).abs() < 1e-9);
        assert!((cost.step_s(40.0) - 50e-3).abs() < 1e-9);
        let mut flat = StepCost::default();
        flat.note(8, Duration::from_millis(20));
        flat.note(8, Duration::from_millis(40));
        assert!((flat.step_s(8.0) - 30e-3).abs() < 1e-9);
        assert!((flat.step_s(80.0) - 30e-3).abs() < 1e-9);
    }

    #[test]
    fn nothing_is_foretold_before_something_was_measured() {
        assert_eq!(Load::default().forecast(&queued("a", 0, work(10, 5))), None);
    }

    #[test]
    fn an_idle_engine_makes_nobody_wait() {
        let forecast = load(2)
            .forecast(&queued("a", 0, work(40, 5)))
            .expect("measured");
        assert_ms(forecast.wait, 0.0);
        assert_ms(forecast.first_token, 10.0 + 40.0);
        assert_ms(forecast.end, 50.0 + 4.0 * 11.0);
        assert!(!forecast.is_contended);
        // 250 tokens in chunks of 100.
        let long = load(2)
            .forecast(&queued("a", 0, work(250, 1)))
            .expect("measured");
        assert_ms(long.first_token, 3.0 * 110.0);
    }

    #[test]
    fn a_full_batch_makes_the_newcomer_wait_for_the_place_that_is_free_first() {
        let mut load = load(2);
        let halfway = Work {
            prefill_tokens: 0,
            max_tokens: 90,
            generated_tokens: 15,
        };
        load.running = vec![work(0, 8), halfway];
        // Outputs have 20 tokens, of which one sequence has 15; the other may have 8. A step of two
        // takes 12 ms.
        let newcomer = queued("a", 0, work(0, 4));
        let forecast = load.forecast(&newcomer).expect("measured");
        assert_ms(forecast.wait, 5.0 * 12.0);
        assert!(forecast.is_contended);
        // The one ahead takes that place until step 15, its prompt delays all; the other ends at 8.
        load.waiting = vec![queued("a", 0, work(30, 10))];
        let forecast = load.forecast(&newcomer).expect("measured");
        assert_ms(forecast.wait, 8.0 * 12.0 + 30.0);
    }

    #[test]
    fn only_the_more_urgent_and_each_clients_turn_are_ahead() {
        let mut load = load(1);
        load.running = vec![work(0, 20)];
        load.waiting = (0..9).map(|_| queued("flood", 0, work(0, 20))).collect();
        let wait = |load: &Load, client, priority| {
            let newcomer = queued(client, priority, work(0, 20));
            load.forecast(&newcomer)
                .expect("measured")
                .wait
                .as_secs_f64()
                * 1e3
                / 11.0
        };
        assert!((wait(&load, "flood", 0) - 200.0).abs() < 0.1);
        assert!((wait(&load, "other", 0) - 40.0).abs() < 0.1);
        assert!((wait(&load, "other", -1) - 20.0).abs() < 0.1);
        assert!((wait(&load, "other", 1) - 200.0).abs() < 0.1);
    }
}
