//! Whose turn it is: virtual token counters (Sheng et al., "Fairness in Serving Large Language
//! Models", OSDI 2024).
//!
//! Each token that a step computes is charged to its client, and the client that has had least goes
//! first. One that comes anew starts level with those who are here: being away earns no credit.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

/// Who sends requests. Two names with one hash would share a turn, which harms nobody.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ClientId(u64);

impl ClientId {
    pub fn of(name: impl Hash) -> Self {
        let mut hasher = DefaultHasher::new();
        name.hash(&mut hasher);
        Self(hasher.finish())
    }
}

/// The counters of all clients that have requests here.
#[derive(Debug, Default)]
pub(super) struct Fairness {
    accounts: HashMap<ClientId, Account>,
    /// What everybody here has had at least.
    level: u64,
}

#[derive(Debug, Default)]
struct Account {
    num_sequences: usize,
    computed_tokens: u64,
}

impl Fairness {
    /// A sequence of the client has come.
    pub fn enter(&mut self, client: ClientId) {
        self.raise_level();
        let account = self.accounts.entry(client).or_default();
        if account.num_sequences == 0 {
            account.computed_tokens = account.computed_tokens.max(self.level);
        }
        account.num_sequences += 1;
    }

    /// A sequence of the client has ended.
    pub fn leave(&mut self, client: ClientId) {
        let account = self.accounts.get_mut(&client);
        account
            .expect("bug: a client leaves that never came")
            .num_sequences -= 1;
        self.raise_level();
        // Who has left with more than the others keeps that until they have caught up.
        let level = self.level;
        self.accounts
            .retain(|_, account| account.num_sequences > 0 || account.computed_tokens > level);
        if self
            .accounts
            .values()
            .all(|account| account.num_sequences == 0)
        {
            *self = Self::default();
        }
    }

    fn raise_level(&mut self) {
        let here = self
            .accounts
            .values()
            .filter(|account| account.num_sequences > 0);
        let least = here.map(|account| account.computed_tokens).min();
        self.level = self.level.max(least.unwrap_or(0));
    }

    pub fn charge(&mut self, client: ClientId, num_tokens: usize) {
        if let Some(account) = self.accounts.get_mut(&client) {
            account.computed_tokens += num_tokens as u64;
        }
    }

    /// Tokens computed for the client; the least goes first.
    pub fn computed_tokens(&self, client: ClientId) -> u64 {
        self.accounts
            .get(&client)
            .map_or(self.level, |account| account.computed_tokens)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newcomer_starts_level_and_one_that_left_ahead_stays_ahead() {
        let [a, b, c] = ["a", "b", "c"].map(ClientId::of);
        let mut fairness = Fairness::default();
        fairness.enter(a);
        fairness.charge(a, 100);
        fairness.enter(b);
        assert_eq!(
            fairness.computed_tokens(b),
            100,
            "no credit for having been away"
        );
        fairness.charge(a, 70);
        fairness.charge(b, 20);
        fairness.leave(a);
        fairness.enter(c);
        assert_eq!(fairness.computed_tokens(c), 120);
        fairness.enter(a);
        assert_eq!(
            fairness.computed_tokens(a),
            170,
            "leaving does not wipe the slate"
        );
        fairness.leave(a);
        fairness.charge(b, 100);
        fairness.charge(c, 90);
        fairness.enter(a);
        assert_eq!(
            fairness.computed_tokens(a),
            210,
            "the others have caught up"
        );
    }

    #[test]
    fn accounts_go_when_they_tell_nothing_any_more() {
        let mut fairness = Fairness::default();
        let names: Vec<ClientId> = (0..50).map(ClientId::of).collect();
        for client in &names {
            fairness.enter(*client);
        }
        for client in &names[1..] {
            fairness.leave(*client);
        }
        assert_eq!(fairness.accounts.len(), 1);
        fairness.charge(names[0], 5);
        fairness.leave(names[0]);
        assert_eq!((fairness.accounts.len(), fairness.level), (0, 0));
    }
}
