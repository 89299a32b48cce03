//! The program with real models: sensible text, the same alone and in company, and nothing left
//! behind by clients that leave.

use std::io::{BufRead, BufReader};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::server::{RealServer, model_file};

const SMOLLM2: (&str, &str) = ("smollm2-135m", "SmolLM2-135M-Instruct.Q4_1.gguf");
const QWEN: (&str, &str) = (
    "qwen2.5-coder-0.5b",
    "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
);

fn serve(model: (&str, &str)) -> RealServer {
    serve_with(model, ("SPECULATIVE", "off"))
}

fn serve_with((name, file): (&str, &str), setting: (&str, &str)) -> RealServer {
    let path = model_file(name, file);
    let path = path.to_str().expect("a path in UTF-8");
    RealServer::start(&[("MODEL", path), ("REQUEST_TIMEOUT", "600"), setting])
}

fn chat(server: &RealServer, question: &str, max_tokens: usize) -> String {
    let body = json!({
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,
        "max_tokens": max_tokens,
    });
    let (status, answer) = server.call("/v1/chat/completions", &body);
    assert_eq!(status, 200, "{answer}");
    let text = &answer["choices"][0]["message"]["content"];
    text.as_str().expect("a text").to_owned()
}

const QUESTIONS: [&str; 16] = [
    "What is the capital of France?",
    "Write a Python function that adds two numbers.",
    "Name three colours.",
    "Why is the sky blue?",
    "What is two plus two?",
    "Tell me about the sea.",
    "How do I boil an egg?",
    "Explain recursion in one sentence.",
    "What is a list in Python?",
    "Who wrote Hamlet?",
    "Say hello in Spanish.",
    "What does a compiler do?",
    "Give me a rhyme for house.",
    "How far away is the moon?",
    "What is photosynthesis?",
    "Reverse the string abc.",
];

/// Greedy answers to all questions, one by one and then all at once, are sensible and equal.
fn answers_alone_and_in_company(model: (&str, &str), expected: [(usize, &str); 2]) {
    const MAX_TOKENS: usize = 24;
    let server = serve(model);
    let alone = QUESTIONS.map(|question| chat(&server, question, MAX_TOKENS));
    for (question, word) in expected {
        let answer = &alone[question];
        assert!(answer.contains(word), "{}: {answer}", QUESTIONS[question]);
    }
    // A fresh server: nothing of the first answers is in its cache.
    let server = serve(model);
    let together = thread::scope(|scope| {
        QUESTIONS
            .map(|question| scope.spawn(|| chat(&server, question, MAX_TOKENS)))
            .map(|answer| answer.join().expect("an answer"))
    });
    assert_eq!(alone, together);
    let (_, stats) = server.call("/stats", &Value::Null);
    let mean_batch_size = stats["batch"]["mean_batch_size"].as_f64();
    assert!(
        mean_batch_size > Some(4.0),
        "they did not run together: {stats}"
    );
}

#[test]
fn smollm2_answers_sensibly_alone_and_in_company() {
    // About France it has two first words that lie 0.02 to 0.15 nats apart, as rounding wants it.
    answers_alone_and_in_company(SMOLLM2, [(11, "machine code"), (1, "def ")]);
}

#[test]
fn qwen_answers_sensibly_alone_and_in_company() {
    answers_alone_and_in_company(QWEN, [(0, "Paris"), (1, "def ")]);
}

#[test]
fn two_hundred_requests_of_which_half_leave_midway_leave_nothing_behind() {
    let server = serve(SMOLLM2);
    let body = |index: usize| {
        let question = QUESTIONS[index % QUESTIONS.len()];
        json!({
            "prompt": format!("{question} ({index})"),
            // Those who leave after three tokens leave long before the end.
            "max_tokens": if index.is_multiple_of(2) { 8 + index % 24 } else { 1000 },
            "temperature": if index.is_multiple_of(3) { 0.8 } else { 0.0 },
            "ignore_eos": true,
            "stream": true,
        })
    };
    // Reads the events of request `index`, all of them or only the first few.
    let run = |index: usize| {
        let connection = server.open("/generate", &body(index));
        let events = BufReader::new(connection)
            .lines()
            .map(|line| line.expect("the server writes"))
            .filter(|line| line.starts_with("data: "));
        if index.is_multiple_of(2) {
            let events: Vec<String> = events.collect();
            assert_eq!(
                events.last().map(String::as_str),
                Some("data: [DONE]"),
                "{index}"
            );
        } else {
            assert_eq!(events.take(3).count(), 3, "{index}");
        }
    };
    thread::scope(|scope| {
        for client in 0..20 {
            scope.spawn(move || (0..10).for_each(|round| run(client * 10 + round)));
        }
    });

    let stats = wait_until_idle(&server);
    let requests = &stats["requests"];
    assert_eq!(requests["num_submitted"], 200, "{requests}");
    assert_eq!(requests["num_finished_length"], 100, "{requests}");
    assert_eq!(requests["num_cancelled"], 100, "{requests}");
    let kv = &stats["kv_cache"];
    assert_eq!(kv["used_blocks"], 0, "{kv}");
    let (cached, free) = (&kv["cached_blocks"], &kv["free_blocks"]);
    let total = cached
        .as_u64()
        .zip(free.as_u64())
        .map(|(cached, free)| cached + free);
    assert_eq!(total, kv["total_blocks"].as_u64(), "{kv}");
}

/// The server's figures once nothing runs or waits.
fn wait_until_idle(server: &RealServer) -> Value {
    for _ in 0..600 {
        let (_, stats) = server.call("/stats", &Value::Null);
        let idle = stats["batch"]["num_running_requests"] == 0
            && stats["queue"]["num_waiting_requests"] == 0;
        if idle {
            return stats;
        }
        thread::sleep(Duration::from_millis(100));
    }
    panic!("requests still run a minute after their clients have left");
}

/// Counts on, and repeats itself: drafts hold and fail.
#[test]
fn drafts_leave_the_tokens_of_a_real_model_as_they_are() {
    let plain = serve(SMOLLM2);
    let drafting = serve_with(SMOLLM2, ("SPECULATIVE", "ngram"));
    let ask = |server: &RealServer, prompt: &str, temperature: f64| {
        let body = json!({"prompt": prompt, "max_tokens": 48, "temperature": temperature, "seed": 5, "logprobs": 1});
        let (status, answer) = server.call("/v1/completions", &body);
        assert_eq!(status, 200, "{answer}");
        answer["choices"].clone()
    };
    for prompt in [
        "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12,",
        "def add(a, b):\n    return a + b\n\ndef sub(a, b):\n    return a - b\n\ndef mul(a, b):",
        "The cat sat on the mat. The dog sat on the mat. The cow sat",
    ] {
        for temperature in [0.0, 0.8] {
            let answers = [&plain, &drafting].map(|server| ask(server, prompt, temperature));
            assert_eq!(answers[0], answers[1], "{prompt:?} at {temperature}");
        }
    }
    let (_, stats) = drafting.call("/stats", &Value::Null);
    let count = |name: &str| stats["speculative"][name].as_u64().expect(name);
    let (drafted, accepted) = (count("num_draft_tokens"), count("num_accepted_tokens"));
    assert!(accepted > 0 && accepted < drafted, "{stats}");
}
