//! Whether what the clients saw and what the servers say is one and the same.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

use super::act::Kind;
use super::caller::Seen;
use super::server_log::{ServerBook, Told};

/// Faults beyond this many are counted, not listed.
const MAX_LISTED_FAULTS: usize = 20;

/// One request of a client.
#[derive(Clone, Debug)]
pub struct Entry {
    pub id: String,
    pub kind: Kind,
    pub max_tokens: usize,
    pub seen: Seen,
}

/// How many requests of the clients ended how: each of those sent in one of the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientCounts {
    pub sent: u64,
    pub completed: u64,
    pub cancelled: u64,
    pub shed: u64,
    pub timed_out: u64,
    pub refused: u64,
    pub failed: u64,
    pub completed_tokens: u64,
}

/// The same, as the servers have it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerCounts {
    pub completed: u64,
    pub cancelled: u64,
    pub shed: u64,
    pub timed_out: u64,
    pub refused: u64,
    pub failed: u64,
    /// The client had left before the request arrived.
    pub never_arrived: u64,
    /// Tokens of the requests that completed for their clients.
    pub completed_tokens: u64,
    /// All tokens that the engines generated, those for clients that left included.
    pub generated_tokens: u64,
    pub preemptions: u64,
}

/// Both sides, and where they differ.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Balance {
    pub client: ClientCounts,
    pub server: ServerCounts,
    pub by_kind: BTreeMap<Kind, ClientCounts>,
    pub faults: Vec<String>,
}

impl ClientCounts {
    fn count(&mut self, seen: &Seen) {
        self.sent += 1;
        *match seen {
            Seen::Completed { tokens, .. } => {
                self.completed_tokens += *tokens as u64;
                &mut self.completed
            }
            Seen::Left => &mut self.cancelled,
            Seen::Shed => &mut self.shed,
            Seen::TimedOut => &mut self.timed_out,
            Seen::Refused(_) => &mut self.refused,
            Seen::Failed(_) => &mut self.failed,
        } += 1;
    }
}

impl Balance {
    /// Settles the entries with the books of all servers that were there.
    pub fn of(entries: &[Entry], servers: &[ServerBook]) -> Self {
        let mut balance = Self::default();
        let mut faults = Vec::new();
        let mut told: HashMap<&str, Vec<&Told>> = HashMap::new();
        for (id, lines) in servers.iter().flat_map(|server| &server.requests) {
            told.entry(id).or_default().extend(lines);
        }
        let mut cancelled_tokens_max = 0;
        for entry in entries {
            balance.client.count(&entry.seen);
            balance
                .by_kind
                .entry(entry.kind)
                .or_default()
                .count(&entry.seen);
            let lines = told.remove(entry.id.as_str()).unwrap_or_default();
            balance.server.count(&lines);
            if let Seen::Completed { tokens, .. } = entry.seen {
                balance.server.completed_tokens += tokens as u64;
            } else {
                cancelled_tokens_max += entry.max_tokens as u64;
            }
            faults.extend(fault_of(entry, &lines));
        }
        let strangers = told
            .keys()
            .map(|id| format!("request {id:?}: nobody sent it"));
        faults.extend(strangers);
        for (number, server) in servers.iter().enumerate() {
            faults.extend(faults_of_server(number + 1, server));
            balance.server.generated_tokens += server.engine.batch.num_generated_tokens;
            balance.server.preemptions += server.engine.num_preemptions;
        }
        let of_others = balance
            .server
            .generated_tokens
            .checked_sub(balance.server.completed_tokens);
        if of_others.is_none_or(|tokens| tokens > cancelled_tokens_max) {
            faults.push(format!(
                "the engines generated {} tokens; {} were delivered, and the others could have had {cancelled_tokens_max}",
                balance.server.generated_tokens, balance.server.completed_tokens
            ));
        }
        let num_more = faults.len().saturating_sub(MAX_LISTED_FAULTS);
        faults.truncate(MAX_LISTED_FAULTS);
        if num_more > 0 {
            faults.push(format!("and {num_more} more"));
        }
        balance.faults = faults;
        balance
    }
}

impl ServerCounts {
    fn count(&mut self, lines: &[&Told]) {
        *match lines.first() {
            None => &mut self.never_arrived,
            Some(Told::Ended { outcome, .. }) => match outcome.as_str() {
                "stop" | "length" => &mut self.completed,
                "abort" => &mut self.cancelled,
                "timeout" => &mut self.timed_out,
                _ => &mut self.failed,
            },
            Some(Told::Refused(429)) => &mut self.shed,
            Some(Told::Refused(408)) => &mut self.timed_out,
            Some(Told::Refused(400..500)) => &mut self.refused,
            Some(Told::Refused(_)) => &mut self.failed,
        } += 1;
    }
}

/// What is wrong with one request, if anything.
fn fault_of(entry: &Entry, lines: &[&Told]) -> Option<String> {
    let is_bad = matches!(entry.kind, Kind::Malformed | Kind::Oversized);
    let agrees = match (&entry.seen, lines) {
        // What happened to a request while its client left is for the server to tell, but once.
        (Seen::Left, []) => true,
        (Seen::Left, [Told::Ended { outcome, .. }]) => outcome != "error",
        (Seen::Left, [Told::Refused(status)]) => *status < 500,
        (
            Seen::Completed { tokens, streamed },
            [
                Told::Ended {
                    outcome,
                    tokens: told,
                },
            ],
        ) => {
            !is_bad
                && ["stop", "length"].contains(&outcome.as_str())
                && *tokens as u64 == *told
                && streamed.is_none_or(|streamed| streamed == *tokens)
        }
        (Seen::Shed, [Told::Refused(429)]) => !is_bad,
        (Seen::TimedOut, [Told::Ended { outcome, .. }]) => !is_bad && outcome == "timeout",
        (Seen::Refused(status), [Told::Refused(told)]) => is_bad && u64::from(*status) == *told,
        _ => false,
    };
    (!agrees).then(|| {
        format!(
            "request {} ({:?}): its client saw {:?}, its server says {lines:?}",
            entry.id, entry.kind, entry.seen
        )
    })
}

/// What is wrong with the last figures of a server.
fn faults_of_server(number: usize, server: &ServerBook) -> Vec<String> {
    let engine = &server.engine;
    let requests = &engine.requests;
    let ended = requests.num_finished_stop
        + requests.num_finished_length
        + requests.num_cancelled
        + requests.num_timed_out
        + requests.num_failed;
    let residues = [
        (
            "requests submitted and not ended",
            requests.num_submitted.abs_diff(ended),
        ),
        ("requests still running", engine.batch.num_running_requests),
        ("failed steps", engine.batch.num_failed_steps),
        ("blocks with references", engine.kv_cache.used_blocks),
    ];
    residues
        .into_iter()
        .filter(|(_, count)| *count > 0)
        .map(|(what, count)| format!("server {number}: {what}: {count}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(id: &str, kind: Kind, seen: Seen) -> Entry {
        Entry {
            id: id.to_owned(),
            kind,
            max_tokens: 10,
            seen,
        }
    }

    fn completed(tokens: usize, streamed: Option<usize>) -> Seen {
        Seen::Completed { tokens, streamed }
    }

    fn ended(outcome: &str, tokens: u64) -> Told {
        Told::Ended {
            outcome: outcome.to_owned(),
            tokens,
        }
    }

    fn books() -> (Vec<Entry>, ServerBook) {
        let entries = vec![
            entry("a", Kind::Streaming, completed(5, Some(5))),
            entry("b", Kind::Patient, completed(7, None)),
            entry("c", Kind::LeavesInDecode, Seen::Left),
            entry("d", Kind::LeavesInQueue, Seen::Left),
            entry("e", Kind::Patient, Seen::Shed),
            entry("f", Kind::Hasty, Seen::TimedOut),
            entry("g", Kind::Malformed, Seen::Refused(400)),
        ];
        let mut server = ServerBook::default();
        for (id, told) in [
            ("a", ended("length", 5)),
            ("b", ended("stop", 7)),
            ("c", ended("abort", 2)),
            ("e", Told::Refused(429)),
            ("f", ended("timeout", 1)),
            ("g", Told::Refused(400)),
        ] {
            server.requests.insert(id.to_owned(), vec![told]);
        }
        server.engine.requests.num_submitted = 4;
        server.engine.requests.num_finished_length = 1;
        server.engine.requests.num_finished_stop = 1;
        server.engine.requests.num_cancelled = 1;
        server.engine.requests.num_timed_out = 1;
        server.engine.batch.num_generated_tokens = 16;
        (entries, server)
    }

    #[test]
    fn equal_books_balance_to_the_last_request() {
        let (entries, server) = books();
        let balance = Balance::of(&entries, &[server]);
        assert_eq!(balance.faults, Vec::<String>::new());
        let ClientCounts {
            sent,
            completed,
            cancelled,
            shed,
            timed_out,
            refused,
            failed,
            ..
        } = balance.client;
        assert_eq!(
            sent,
            completed + cancelled + shed + timed_out + refused + failed
        );
        assert_eq!(
            (sent, completed, cancelled, balance.client.completed_tokens),
            (7, 2, 2, 12)
        );
        let server = balance.server;
        assert_eq!(
            (server.never_arrived, server.cancelled, server.completed),
            (1, 1, 2)
        );
    }

    /// One change to books that balance, and a word of the fault that it must make.
    #[test]
    fn whatever_does_not_agree_is_a_fault() {
        type Change = fn(&mut Vec<Entry>, &mut ServerBook);
        let changes: [(&str, Change); 12] = [
            ("request a", |entries, _| {
                entries[0].seen = completed(5, Some(4))
            }),
            ("request b", |_, server| {
                server
                    .requests
                    .insert("b".to_owned(), vec![ended("stop", 8)]);
            }),
            ("request b", |_, server| {
                server.requests.remove("b");
            }),
            ("request c", |_, server| {
                let twice = vec![ended("abort", 2), ended("abort", 2)];
                server.requests.insert("c".to_owned(), twice);
            }),
            ("nobody sent it", |_, server| {
                server
                    .requests
                    .insert("x".to_owned(), vec![ended("stop", 1)]);
            }),
            ("request e", |entries, _| {
                entries[4].seen = completed(1, None)
            }),
            ("request g", |entries, _| {
                entries[6].seen = Seen::Refused(404)
            }),
            ("request f", |entries, _| {
                entries[5].seen = Seen::Failed("reset".to_owned())
            }),
            ("blocks with references", |_, server| {
                server.engine.kv_cache.used_blocks = 1
            }),
            ("not ended", |_, server| {
                server.engine.requests.num_submitted = 5
            }),
            ("failed steps", |_, server| {
                server.engine.batch.num_failed_steps = 1
            }),
            ("tokens", |_, server| {
                server.engine.batch.num_generated_tokens = 11
            }),
        ];
        for (word, change) in changes {
            let (mut entries, mut server) = books();
            change(&mut entries, &mut server);
            let faults = Balance::of(&entries, &[server]).faults;
            assert!(
                faults.iter().any(|fault| fault.contains(word)),
                "{word}: {faults:?}"
            );
        }
    }
}
