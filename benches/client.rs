//! What the load generator itself does to its numbers: how far reported times lie from those that a
//! server was told to take, and what the client costs.
//!
//!     cargo bench --bench client
//!
//! The server is a process of its own, so that its work is not the client's. It has a thread for each
//! connection and waits by the operating system's clock, which is good to a tenth of a millisecond.

use std::io::{BufRead as _, BufReader, Read as _, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use candlepower::bench::metrics::Metrics;
use candlepower::bench::raw_record::RawRecord as _;
use candlepower::bench::record::{Record, RequestRecord};
use candlepower::bench::statistics::Summary;
use candlepower::bench::{BenchArgs, run_in};
use clap::Parser;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    bench: BenchArgs,
}

/// How a server paces its answers.
#[derive(Clone, Copy, Default)]
struct Pace {
    ttft: Duration,
    itl: Duration,
    /// Nothing is sent for a while from one request on, counted from 1, with those that warm up.
    stall: Option<(usize, Duration)>,
}

const WARMUP: usize = 4;

fn main() -> std::io::Result<()> {
    let words: Vec<String> = std::env::args().collect();
    if let Some(at) = words.iter().position(|word| word == "--serve") {
        let number = |at: usize| words.get(at).and_then(|word| word.parse().ok());
        let us = |at: usize| Duration::from_micros(number(at).unwrap_or_default());
        return serve(Pace {
            ttft: us(at + 1),
            itl: us(at + 2),
            stall: number(at + 3).map(|request| (request as usize, us(at + 4))),
        });
    }
    told_times();
    told_stall();
    cost();
    Ok(())
}

fn told_times() {
    println!("reported - told, in ms; 4 clients, 40 requests of 20 tokens");
    println!(
        "{:>10}{:>10}{:>12}{:>12}{:>12}{:>12}",
        "TTFT", "ITL", "TTFT mean", "TTFT p99", "ITL mean", "ITL p99"
    );
    for (ttft_ms, itl_ms) in [(2, 1), (20, 5), (100, 20), (500, 50)] {
        let pace = Pace {
            ttft: Duration::from_millis(ttft_ms),
            itl: Duration::from_millis(itl_ms),
            stall: None,
        };
        let flags = "--concurrency 4 --requests 40 --max-tokens 20";
        let latencies = Metrics::of(&measured(pace, flags)).latencies;
        let ttft = latencies.ttft_ms.expect("a TTFT");
        let itl = latencies.itl_ms.expect("an ITL");
        let (ttft_told, itl_told) = (ttft_ms as f64, itl_ms as f64);
        println!(
            "{ttft_ms:>10}{itl_ms:>10}{:>12.3}{:>12.3}{:>12.3}{:>12.3}",
            ttft.mean - ttft_told,
            ttft.p99 - ttft_told,
            itl.mean - itl_told,
            itl.p99 - itl_told
        );
    }
}

/// A server that stops for a second while requests are due every 20 ms.
fn told_stall() {
    const AT_REQUEST: usize = 100;
    let (ttft, stall) = (Duration::from_millis(20), Duration::from_secs(1));
    let pace = Pace {
        ttft,
        itl: Duration::from_millis(5),
        stall: Some((WARMUP + AT_REQUEST, stall)),
    };
    let flags = "--request-rate 50 --requests 250 --max-tokens 4";
    let record = measured(pace, flags);
    let mut requests: Vec<&RequestRecord> = record.requests.iter().collect();
    requests.sort_by(|a, b| a.sent_ms.total_cmp(&b.sent_ms));
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let begin = requests[AT_REQUEST - 1].sent_ms;
    let told = |request: &RequestRecord| {
        let first = request.sent_ms + ms(ttft);
        let is_held = (begin..begin + ms(stall)).contains(&first);
        (if is_held { begin + ms(stall) } else { first }) - request.due_ms
    };
    let told: Vec<f64> = requests.iter().map(|request| told(request)).collect();
    let told = Summary::of_ms(&told).expect("requests");
    let latencies = Metrics::of(&record).latencies;
    let reported = latencies.ttft_ms.expect("a TTFT");
    println!(
        "\na stall of {} ms under 50 requests/s, TTFT in ms: told p50 {:.3}, p99 {:.3}; reported p50 {:.3}, p99 {:.3}",
        ms(stall),
        told.p50,
        told.p99,
        reported.p50,
        reported.p99
    );
}

/// 64 streams of a token each 32 ms: 2000 a second.
fn cost() {
    let pace = Pace {
        ttft: Duration::from_millis(32),
        itl: Duration::from_millis(32),
        stall: None,
    };
    let flags = "--concurrency 64 --requests 192 --max-tokens 150";
    let metrics = Metrics::of(&measured(pace, flags));
    println!(
        "\n64 clients, {:.0} tokens/s streamed: the client takes {:.1} % of one core",
        metrics.output_throughput_tokens_per_s.expect("tokens"),
        metrics.client_cpu_share * 100.0
    );
}

/// The record of a run against a server of such a pace.
fn measured(pace: Pace, flags: &str) -> Record {
    let server = Server::start(pace);
    let folder = std::env::temp_dir().join(format!("candlepower-client-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a temporary folder");
    let output = folder.join("run.json");
    let output_text = output.to_string_lossy();
    let warmup = WARMUP.to_string();
    let fixed = [
        "bench",
        "--endpoint",
        &server.base,
        "--no-append",
        "--warmup",
        &warmup,
        "--output",
        &output_text,
    ];
    let flags: Vec<&str> = flags.split(' ').collect();
    let args = Cli::parse_from([&fixed[..], &flags].concat()).bench;
    // The table of the run is not what is wanted here, but there it is.
    run_in(&folder, &args).expect("a sound run");
    let record = Record::read(&output).expect("a record");
    std::fs::remove_dir_all(&folder).expect("a temporary folder");
    record
}

/// The server's process; it ends with its value.
struct Server {
    child: Child,
    base: String,
}

impl Server {
    fn start(pace: Pace) -> Self {
        let us = |time: Duration| time.as_micros().to_string();
        let stall = pace.stall.map(|(at, time)| [at.to_string(), us(time)]);
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .args(["--serve", &us(pace.ttft), &us(pace.itl)])
            .args(stall.into_iter().flatten())
            .stdout(Stdio::piped())
            .spawn()
            .expect("this program starts again");
        let stdout = child.stdout.take().expect("a pipe");
        let mut base = String::new();
        let read = BufReader::new(stdout).read_line(&mut base);
        read.expect("the server says where it is");
        let base = base.trim().to_owned();
        Self { child, base }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().expect("the server runs");
        self.child.wait().expect("the server ends");
    }
}

fn serve(pace: Pace) -> std::io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    println!("http://{}", listener.local_addr()?);
    let schedule = Arc::new(Schedule {
        pace,
        came: AtomicUsize::new(0),
        stall_began: OnceLock::new(),
    });
    for stream in listener.incoming() {
        let (stream, schedule) = (stream?, Arc::clone(&schedule));
        std::thread::spawn(move || answer_all(stream, &schedule));
    }
    Ok(())
}

/// When what is sent.
struct Schedule {
    pace: Pace,
    /// Requests for tokens.
    came: AtomicUsize,
    stall_began: OnceLock<Instant>,
}

impl Schedule {
    fn take_request(&self, came: Instant) {
        let number = self.came.fetch_add(1, Ordering::Relaxed) + 1;
        if self.pace.stall.is_some_and(|(at, _)| at == number) {
            self.stall_began.get_or_init(|| came);
        }
    }

    fn wait_for_token(&self, request_came: Instant, index: u32) {
        sleep_until(request_came + self.pace.ttft + self.pace.itl * index);
        if let (Some(began), Some((_, time))) = (self.stall_began.get(), self.pace.stall) {
            sleep_until(*began + time);
        }
    }
}

fn sleep_until(at: Instant) {
    std::thread::sleep(at.saturating_duration_since(Instant::now()));
}

/// Answers the requests of a connection until the client closes it.
fn answer_all(mut stream: TcpStream, schedule: &Schedule) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    loop {
        let mut request = String::new();
        if reader.read_line(&mut request)? == 0 {
            return Ok(());
        }
        let mut length = 0;
        loop {
            let mut header = String::new();
            reader.read_line(&mut header)?;
            let header = header.trim().to_ascii_lowercase();
            if header.is_empty() {
                break;
            }
            if let Some(value) = header.strip_prefix("content-length:") {
                length = value.trim().parse().unwrap_or(0);
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let came = Instant::now();
        match request.split(' ').nth(1) {
            Some("/v1/completions") => {
                schedule.take_request(came);
                stream_tokens(&mut stream, &body, came, schedule)?;
            }
            Some("/v1/models") => whole(&mut stream, "200 OK", r#"{"data": [{"id": "paced"}]}"#)?,
            _ => whole(&mut stream, "404 Not Found", "{}")?,
        }
    }
}

fn whole(stream: &mut TcpStream, status: &str, body: &str) -> std::io::Result<()> {
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 {status}\r\ncontent-length: {length}\r\n\r\n{body}"
    )
}

/// One event a token, each at its moment, however long the one before took.
fn stream_tokens(
    stream: &mut TcpStream,
    body: &[u8],
    came: Instant,
    schedule: &Schedule,
) -> std::io::Result<()> {
    let ask: serde_json::Value = serde_json::from_slice(body)?;
    let tokens = ask["max_tokens"].as_u64().unwrap_or(1);
    stream.write_all(
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n",
    )?;
    for index in 0..tokens {
        schedule.wait_for_token(came, index as u32);
        chunk(
            stream,
            "data: {\"choices\": [{\"index\": 0, \"text\": \" word\"}]}\n\n",
        )?;
    }
    let end = format!(
        "data: {{\"choices\": [{{\"index\": 0, \"text\": \"\", \"finish_reason\": \"length\"}}]}}\n\n\
         data: {{\"choices\": [], \"usage\": {{\"prompt_tokens\": 8, \"completion_tokens\": {tokens}}}}}\n\n\
         data: [DONE]\n\n"
    );
    chunk(stream, &end)?;
    stream.write_all(b"0\r\n\r\n")
}

fn chunk(stream: &mut TcpStream, data: &str) -> std::io::Result<()> {
    write!(stream, "{:x}\r\n{data}\r\n", data.len())
}
