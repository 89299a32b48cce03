//! What share of a step is not kernels, measured in the server itself while it streams over HTTP.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::server::RealServer;

const PROMPT: &str = "The old lighthouse stood at the end of the harbour wall. For more than a hundred \
    years its lamp had guided ships past the rocks, and the keeper climbed its stairs every evening.";
const MAX_TOKENS: usize = 400;
/// From the first figures to the last, all sequences decode.
const MEASURED_STEPS: f64 = 250.0;

/// The server's own sums at one moment.
struct Sums {
    steps: f64,
    tokens: f64,
    busy_ms: f64,
    step_ms: f64,
    forward_ms: f64,
    running: f64,
    /// Of the engine and its compute threads, and of all others.
    cpu_seconds: [f64; 2],
}

impl Sums {
    fn of(server: &RealServer) -> Self {
        let (_, stats) = server.call("/stats", &Value::Null);
        let batch = |name: &str| stats["batch"][name].as_f64().expect("a number");
        Self {
            steps: batch("num_steps"),
            tokens: batch("num_generated_tokens"),
            busy_ms: batch("busy_time_ms"),
            step_ms: batch("step_time_ms"),
            forward_ms: batch("forward_time_ms"),
            running: batch("num_running_requests"),
            cpu_seconds: cpu_seconds(server.pid()),
        }
    }
}

/// CPU time of a process's threads.
fn cpu_seconds(pid: u32) -> [f64; 2] {
    const TICKS_PER_SECOND: f64 = 100.0;
    let mut sums = [0.0; 2];
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("Linux tells of threads");
    for task in tasks {
        let path = task.expect("an entry").path().join("stat");
        let Ok(stat) = fs::read_to_string(path) else {
            continue;
        };
        let Some((name, fields)) = stat.rsplit_once(')') else {
            continue;
        };
        let ticks = fields.split_whitespace().skip(11).take(2);
        let ticks: f64 = ticks.filter_map(|ticks| ticks.parse::<f64>().ok()).sum();
        let computes = name.contains("(engine") || name.contains("(compute");
        sums[usize::from(!computes)] += ticks / TICKS_PER_SECOND;
    }
    sums
}

/// Prints a line for each number of clients.
pub fn measure(model: &Path) {
    let model = model.to_str().expect("a path in UTF-8");
    let server = RealServer::start(&[("MODEL", model), ("REQUEST_TIMEOUT", "600")]);
    println!("\n{model}, served, every client streams");
    for clients in [1, 16, 64] {
        thread::scope(|scope| {
            for client in 0..clients {
                let server = &server;
                scope.spawn(move || {
                    let body = json!({"prompt": format!("{client}. {PROMPT}"), "max_tokens": MAX_TOKENS,
                        "temperature": 0, "ignore_eos": true, "stream": true});
                    let mut stream = server.open("/generate", &body);
                    let mut buffer = [0; 1 << 14];
                    while stream.read(&mut buffer).expect("the server answers") > 0 {}
                });
            }
            let until = |reached: &dyn Fn(&Sums) -> bool| loop {
                let sums = Sums::of(&server);
                if reached(&sums) {
                    return sums;
                }
                thread::sleep(Duration::from_millis(20));
            };
            let before = Sums::of(&server);
            let start = until(&|sums| {
                let all_decode = before.tokens + 4.0 * f64::from(clients);
                sums.running == f64::from(clients) && sums.tokens >= all_decode
            });
            let end = until(&|sums| sums.steps >= start.steps + MEASURED_STEPS);
            let steps = end.steps - start.steps;
            let of = |field: fn(&Sums) -> f64| (field(&end) - field(&start)) / steps;
            let (busy, forward) = (of(|sums| sums.busy_ms), of(|sums| sums.forward_ms));
            let [computing, other] =
                [0, 1].map(|part| end.cpu_seconds[part] - start.cpu_seconds[part]);
            println!(
                "{clients:2} clients\t{busy:7.3} ms a step\t{forward:7.3} ms in the runner\t{:5.1} % outside\
                 \t({:.1} % sampling and planning, the rest publishing)\tother threads {:.1} % of the CPU time",
                100.0 * (1.0 - forward / busy),
                100.0 * (of(|sums| sums.step_ms) - forward) / busy,
                100.0 * other / (computing + other),
            );
        });
    }
}
