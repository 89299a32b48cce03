//! Real models give the reference's numbers: the running program, asked over HTTP, against
//! transformers with the same file dequantised to f32 (scripts/make-goldens).

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::thread;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::server::{RealServer, model_file};

/// How far the mean negative log-likelihood may be from the reference's.
const MAX_RELATIVE_DIFFERENCE: f64 = 0.005;
/// Positions at which the most likely token must be the reference's.
const MIN_AGREEMENT: f64 = 0.97;
/// The same of other types of K and V, beside f16. Each of two may be 0.12 % off for all else that is
/// rounded, one up and the other down: f32 is by -0.11 % with AVX-512 and +0.11 % with AVX2.
const MAX_KV_RELATIVE_DIFFERENCE: f64 = 0.003;
/// Of all texts together, in which that cancels.
const MAX_KV_RELATIVE_DIFFERENCE_OF_ALL: f64 = 0.002;
const MIN_KV_AGREEMENT: f64 = 0.96;
/// Where the reference is less sure than this between two tokens, either may come.
const UNSURE_MARGIN_NATS: f64 = 0.15;

/// What transformers says. A position's figures are about the token there, given those before
/// it, so the first position has none.
#[derive(Deserialize)]
struct Golden {
    model: String,
    file: String,
    documents: Vec<Document>,
    continuations: Vec<Continuation>,
    /// The text of every id in this file.
    pieces: BTreeMap<u32, String>,
}

#[derive(Deserialize)]
struct Document {
    name: String,
    kind: String,
    ids: Vec<u32>,
    logprobs: Vec<Option<f64>>,
    /// The most likely token at each position.
    top: Vec<Option<u32>>,
}

#[derive(Deserialize)]
struct Continuation {
    name: String,
    prompt_ids: Vec<u32>,
    ids: Vec<u32>,
    /// Between the two most likely tokens, in nats.
    margins: Vec<f64>,
}

impl Golden {
    fn read(model: &str) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/data/faithful")
            .join(format!("{model}.json"));
        let text = fs::read_to_string(&path).expect("scripts/make-goldens made it");
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    fn piece(&self, id: u32) -> &str {
        &self.pieces[&id]
    }
}

/// The `logprobs` of a completion. (tokens of prompt and output)
#[derive(Deserialize)]
struct Logprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<Option<f64>>,
    top_logprobs: Vec<Option<BTreeMap<String, f64>>>,
}

impl Logprobs {
    /// The most likely token at a position.
    fn top(&self, position: usize) -> Option<&str> {
        let candidates = self.top_logprobs[position].as_ref()?;
        let best = candidates.iter().max_by(|a, b| a.1.total_cmp(b.1))?;
        Some(best.0.as_str())
    }
}

fn complete(server: &RealServer, prompt: &[u32], settings: Value) -> Logprobs {
    let mut body = json!({"prompt": prompt, "temperature": 0, "logprobs": 1});
    let settings = settings
        .as_object()
        .expect("settings are an object")
        .clone();
    body.as_object_mut()
        .expect("it is an object")
        .extend(settings);
    let (status, mut answer) = server.call("/v1/completions", &body);
    assert_eq!(status, 200, "{answer}");
    serde_json::from_value(answer["choices"][0]["logprobs"].take()).expect("log-probabilities")
}

/// The scores of documents of one kind, added up.
#[derive(Default)]
struct Score {
    num_tokens: usize,
    nll: f64,
    reference_nll: f64,
    num_agreements: usize,
    largest_difference: f64,
    square_differences: f64,
}

impl Score {
    fn add(&mut self, golden: &Golden, document: &Document, scored: &Logprobs) {
        let pieces: Vec<&str> = document.ids.iter().map(|&id| golden.piece(id)).collect();
        assert_eq!(scored.tokens, pieces, "{}", document.name);
        assert_eq!(scored.token_logprobs[0], None, "{}", document.name);
        for position in 1..document.ids.len() {
            let logprob = scored.token_logprobs[position].expect("a log-probability");
            let reference = document.logprobs[position].expect("a log-probability");
            let reference_top = document.top[position].expect("an id");
            let agrees = scored.top(position) == Some(golden.piece(reference_top));
            self.num_tokens += 1;
            self.nll -= logprob;
            self.reference_nll -= reference;
            self.num_agreements += usize::from(agrees);
            let difference = logprob - reference;
            self.largest_difference = self.largest_difference.max(difference.abs());
            self.square_differences += difference * difference;
        }
    }

    fn mean(&self, sum: f64) -> f64 {
        sum / self.num_tokens as f64
    }

    fn relative_difference(&self) -> f64 {
        self.nll / self.reference_nll - 1.0
    }

    fn agreement(&self) -> f64 {
        self.mean(self.num_agreements as f64)
    }

    fn row(&self, model: &str, kind: &str) -> String {
        format!(
            "| {model} | {kind} | {} | {:.5} | {:.5} | {:+.4} % | {:.4} | {:.4} | {:.2} % |",
            self.num_tokens,
            self.mean(self.reference_nll),
            self.mean(self.nll),
            100.0 * self.relative_difference(),
            self.largest_difference,
            self.mean(self.square_differences).sqrt(),
            100.0 * self.agreement(),
        )
    }
}

fn score(server: &RealServer, golden: &Golden, kind: &str) -> Score {
    let mut score = Score::default();
    for document in golden
        .documents
        .iter()
        .filter(|document| document.kind == kind)
    {
        let settings = json!({"max_tokens": 0, "echo": true});
        score.add(golden, document, &complete(server, &document.ids, settings));
    }
    score
}

/// Continues a prompt greedily. Returns the number of tokens up to where the reference is
/// unsure, and the first difference among them.
fn follow(
    server: &RealServer,
    golden: &Golden,
    continuation: &Continuation,
) -> (usize, Option<String>) {
    let settings = json!({"max_tokens": continuation.ids.len()});
    let tokens = complete(server, &continuation.prompt_ids, settings).tokens;
    let is_sure = |margin: &&f64| **margin >= UNSURE_MARGIN_NATS;
    let num_sure = continuation.margins.iter().take_while(is_sure).count();
    let expected = continuation.ids[..num_sure]
        .iter()
        .map(|&id| golden.piece(id));
    let difference = expected.enumerate().find_map(|(step, piece)| {
        let token = tokens.get(step).map(String::as_str);
        (token != Some(piece)).then(|| {
            format!(
                "{}, step {step}: {token:?}, not {piece:?}",
                continuation.name
            )
        })
    });
    (num_sure, difference)
}

fn gives_the_references_numbers(model: &str) {
    let golden = Golden::read(model);
    let path = model_file(&golden.model, &golden.file);
    let path = path.to_str().expect("a path in UTF-8");
    let server = RealServer::start(&[("MODEL", path), ("REQUEST_TIMEOUT", "600")]);

    let scores = ["prose", "code"].map(|kind| (kind, score(&server, &golden, kind)));
    let followed: Vec<_> = thread::scope(|scope| {
        let requests: Vec<_> = golden
            .continuations
            .iter()
            .map(|it| scope.spawn(|| follow(&server, &golden, it)))
            .collect();
        requests
            .into_iter()
            .map(|it| it.join().expect("an answer"))
            .collect()
    });

    let num_sure: usize = followed.iter().map(|(num_sure, _)| num_sure).sum();
    let differences: Vec<&String> = followed.iter().filter_map(|(_, it)| it.as_ref()).collect();
    let mut table = String::from(
        "| model | text | tokens | NLL of transformers, nats | NLL, nats | difference \
         | largest difference of a token, nats | rms of these, nats | same most likely token |\n\
         |---|---|---:|---:|---:|---:|---:|---:|---:|\n",
    );
    for (kind, score) in &scores {
        table += &score.row(model, kind);
        table += "\n";
    }
    println!(
        "{table}\n{model}: {} of {} greedy continuations are the reference's wherever it is sure \
         ({num_sure} tokens)\n",
        followed.len() - differences.len(),
        followed.len(),
    );

    for (kind, score) in &scores {
        assert!(
            score.num_tokens >= 600,
            "{kind}: {} tokens",
            score.num_tokens
        );
        assert!(
            score.relative_difference().abs() <= MAX_RELATIVE_DIFFERENCE,
            "{kind}: NLL"
        );
        assert!(
            score.agreement() >= MIN_AGREEMENT,
            "{kind}: most likely tokens"
        );
    }
    assert!(
        num_sure >= 100,
        "the reference is sure of {num_sure} tokens only"
    );
    assert!(differences.is_empty(), "{differences:?}");
}

#[test]
fn smollm2_gives_the_references_numbers() {
    gives_the_references_numbers("smollm2-135m");
}

#[test]
fn qwen_gives_the_references_numbers() {
    gives_the_references_numbers("qwen2.5-coder-0.5b");
}

#[test]
fn types_of_keys_and_values_give_nearly_the_same_numbers() {
    let golden = Golden::read("smollm2-135m");
    let path = model_file(&golden.model, &golden.file);
    let path = path.to_str().expect("a path in UTF-8");
    // 30 layers with 3 heads of 64 elements; keys of 16 bits have one scale of 16 a head, codes of 8 bits
    // two.
    let heads = 30 * 3;
    let types = [
        ("f16", heads * (2 + 128 + 128)),
        ("f32", heads * 2 * 256),
        ("q8_0", heads * 2 * 68),
    ];
    let scores = types.map(|(kv_type, bytes_per_token)| {
        let server = RealServer::start(&[("MODEL", path), ("KV_CACHE_TYPE", kv_type)]);
        let (_, stats) = server.call("/stats", &Value::Null);
        let cache = &stats["kv_cache"];
        assert_eq!(cache["cache_type"], kv_type);
        assert_eq!(cache["bytes_per_token"], bytes_per_token);
        assert_eq!(cache["total_blocks"], (2u64 << 30) / (32 * bytes_per_token));
        let score = |document: &Document| {
            let settings = json!({"max_tokens": 0, "echo": true});
            complete(&server, &document.ids, settings)
        };
        let scored: Vec<Logprobs> = golden.documents.iter().map(score).collect();
        (kv_type, scored)
    });
    println!(
        "| K and V | text | NLL, nats | against f16 | most likely token as with f16 \
         | as in transformers |\n\
         |---|---|---:|---:|---:|---:|"
    );
    let (_, of_f16) = &scores[0];
    let mut failures = Vec::new();
    for (kv_type, scored) in &scores {
        let (mut all_nll, mut all_f16_nll) = (0.0, 0.0);
        for kind in ["prose", "code"] {
            let (mut nll, mut f16_nll) = (0.0, 0.0);
            let (mut num_tokens, mut num_agreements) = (0, 0);
            let mut reference = Score::default();
            let documents = golden.documents.iter().zip(scored.iter().zip(of_f16));
            for (document, (scored, of_f16)) in documents.filter(|(it, _)| it.kind == kind) {
                reference.add(&golden, document, scored);
                nll -= scored.token_logprobs.iter().flatten().sum::<f64>();
                f16_nll -= of_f16.token_logprobs.iter().flatten().sum::<f64>();
                let positions = 1..scored.tokens.len();
                num_tokens += positions.len();
                num_agreements += positions
                    .filter(|&i| scored.top(i) == of_f16.top(i))
                    .count();
            }
            all_nll += nll;
            all_f16_nll += f16_nll;
            let difference = nll / f16_nll - 1.0;
            let agreement = num_agreements as f64 / num_tokens as f64;
            println!(
                "| {kv_type} | {kind} | {:.5} | {:+.4} % | {:.2} % | {:.2} % |",
                nll / num_tokens as f64,
                100.0 * difference,
                100.0 * agreement,
                100.0 * reference.agreement()
            );
            if difference.abs() > MAX_KV_RELATIVE_DIFFERENCE || agreement < MIN_KV_AGREEMENT {
                failures.push(format!("{kv_type}, {kind}"));
            }
        }
        let difference: f64 = all_nll / all_f16_nll - 1.0;
        if difference.abs() > MAX_KV_RELATIVE_DIFFERENCE_OF_ALL {
            failures.push(format!("{kv_type}, all texts: {difference:e}"));
        }
    }
    assert!(failures.is_empty(), "{failures:?}");
}
