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
use std::time::{Duration, Instant};

use candlepower::bench::metrics::Metrics;
use candlepower::bench::raw_record::RawRecord as _;
use candlepower::bench::record::Record;
use candlepower::bench::{BenchArgs, run_in};
use clap::Parser;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    bench: BenchArgs,
}

/// How a server paces its answers.
#[derive(Clone, Copy)]
struct Pace {
    ttft: Duration,
    itl: Duration,
}

fn main() -> std::io::Result<()> {
    let words: Vec<String> = std::env::args().collect();
    if let Some(at) = words.iter().position(|word| word == "--serve") {
        let us = |word: &String| Duration::from_micros(word.parse().expect("microseconds"));
        return serve(Pace {
            ttft: us(&words[at + 1]),
            itl: us(&words[at + 2]),
        });
    }
    println!("reported - told, in ms; 4 clients, 40 requests of 20 tokens");
    println!(
        "{:>10}{:>10}{:>12}{:>12}{:>12}{:>12}",
        "TTFT", "ITL", "TTFT mean", "TTFT p99", "ITL mean", "ITL p99"
    );
    for (ttft_ms, itl_ms) in [(2, 1), (20, 5), (100, 20), (500, 50)] {
        let pace = Pace {
            ttft: Duration::from_millis(ttft_ms),
            itl: Duration::from_millis(itl_ms),
        };
        let metrics = measured(
            pace,
            &[
                "--concurrency",
                "4",
                "--requests",
                "40",
                "--max-tokens",
                "20",
            ],
        );
        let (ttft, itl) = (
            metrics.latencies.ttft_ms.expect("a TTFT"),
            metrics.latencies.itl_ms.expect("an ITL"),
        );
        let (ttft_told, itl_told) = (ttft_ms as f64, itl_ms as f64);
        println!(
            "{ttft_ms:>10}{itl_ms:>10}{:>12.3}{:>12.3}{:>12.3}{:>12.3}",
            ttft.mean - ttft_told,
            ttft.p99 - ttft_told,
            itl.mean - itl_told,
            itl.p99 - itl_told
        );
    }
    // 64 streams of a token each 32 ms: 2000 a second.
    let pace = Pace {
        ttft: Duration::from_millis(32),
        itl: Duration::from_millis(32),
    };
    let flags = [
        "--concurrency",
        "64",
        "--requests",
        "192",
        "--max-tokens",
        "150",
    ];
    let metrics = measured(pace, &flags);
    println!(
        "\n64 clients, {:.0} tokens/s streamed: the client takes {:.1} % of one core",
        metrics.output_throughput_tokens_per_s.expect("tokens"),
        metrics.client_cpu_share * 100.0
    );
    Ok(())
}

fn measured(pace: Pace, flags: &[&str]) -> Metrics {
    let server = Server::start(pace);
    let folder = std::env::temp_dir().join(format!("candlepower-client-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a temporary folder");
    let output = folder.join("run.json");
    let output_text = output.to_string_lossy();
    let fixed = [
        "bench",
        "--endpoint",
        &server.base,
        "--no-append",
        "--warmup",
        "4",
        "--output",
        &output_text,
    ];
    let args = Cli::parse_from([&fixed[..], flags].concat()).bench;
    // The table of the run is not what is wanted here, but there it is.
    run_in(&folder, &args).expect("a sound run");
    let record = Record::read(&output).expect("a record");
    std::fs::remove_dir_all(&folder).expect("a temporary folder");
    Metrics::of(&record)
}

/// The server's process; it ends with its value.
struct Server {
    child: Child,
    base: String,
}

impl Server {
    fn start(pace: Pace) -> Self {
        let us = |time: Duration| time.as_micros().to_string();
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .args(["--serve", &us(pace.ttft), &us(pace.itl)])
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
    for stream in listener.incoming() {
        let stream = stream?;
        std::thread::spawn(move || answer_all(stream, pace));
    }
    Ok(())
}

/// Answers the requests of a connection until the client closes it.
fn answer_all(mut stream: TcpStream, pace: Pace) -> std::io::Result<()> {
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
            Some("/v1/completions") => stream_tokens(&mut stream, &body, came, pace)?,
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
    pace: Pace,
) -> std::io::Result<()> {
    let ask: serde_json::Value = serde_json::from_slice(body)?;
    let tokens = ask["max_tokens"].as_u64().unwrap_or(1);
    stream.write_all(
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n",
    )?;
    for index in 0..tokens {
        let due = came + pace.ttft + pace.itl * index as u32;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
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
