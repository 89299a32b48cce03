//! A small server that speaks the hub's file API, as far as downloads need it: the list of a
//! repository's files, ranges, etags, the redirect of a large file to another place.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use sha2::{Digest, Sha256};

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// One request as the hub saw it.
#[derive(Clone, Debug)]
pub struct Seen {
    pub path: String,
    pub range: Option<String>,
    pub authorization: Option<String>,
}

/// A file of the hub: what it sends, the hash that it states, and where it breaks off.
#[derive(Clone)]
struct HubFile {
    content: Vec<u8>,
    sha256: String,
    break_off_after: Option<usize>,
}

#[derive(Default)]
struct State {
    /// By `org/name/file`.
    files: BTreeMap<String, HubFile>,
    seen: Vec<Seen>,
    token: Option<String>,
}

/// The server; it answers until the test process ends.
pub struct FakeHub {
    pub endpoint: String,
    state: Arc<Mutex<State>>,
}

impl FakeHub {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&shared);
                // A client that hangs up early is part of some tests.
                thread::spawn(move || answer(stream, &shared).ok());
            }
        });
        Self {
            endpoint: format!("http://{address}"),
            state,
        }
    }

    pub fn put(&self, repo: &str, file: &str, content: &[u8]) {
        self.put_with_hash(repo, file, content, &sha256(content));
    }

    /// A file whose content is not what its hash says.
    pub fn put_with_hash(&self, repo: &str, file: &str, content: &[u8], sha256: &str) {
        let stored = HubFile {
            content: content.to_owned(),
            sha256: sha256.to_owned(),
            break_off_after: None,
        };
        self.lock().files.insert(format!("{repo}/{file}"), stored);
    }

    /// Closes the next download of the file after so many bytes.
    pub fn break_off_once(&self, repo: &str, file: &str, after: usize) {
        let mut state = self.lock();
        let stored = state.files.get_mut(&format!("{repo}/{file}"));
        stored.expect("a file").break_off_after = Some(after);
    }

    pub fn require_token(&self, token: &str) {
        self.lock().token = Some(format!("Bearer {token}"));
    }

    /// The requests so far; the next call starts from nothing.
    pub fn take_seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.lock().seen)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("no test thread has panicked")
    }
}

pub fn sha256(content: &[u8]) -> String {
    let digest = Sha256::digest(content);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn answer(mut stream: TcpStream, state: &Mutex<State>) -> std::io::Result<()> {
    let request = read_request(&stream)?;
    let mut state = state.lock().expect("no test thread has panicked");
    state.seen.push(request.clone());
    let path = request.path.trim_start_matches('/');
    // The other place needs no token: its addresses are given out by the hub.
    let is_moved = path.starts_with("elsewhere/");
    if !is_moved && state.token.is_some() && state.token != request.authorization {
        return write!(
            stream,
            "HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
    }
    if let Some(rest) = path.strip_prefix("api/models/") {
        let (repo, _revision) = rest.split_once("/revision/").unwrap_or((rest, ""));
        return list(&mut stream, &state, repo);
    }
    let (repo, file, is_moved) = match path.strip_prefix("elsewhere/") {
        Some(rest) => split(rest, "/file/", true),
        None => split(path, "/resolve/", false),
    };
    let Some(stored) = state.files.get_mut(&format!("{repo}/{file}")) else {
        return not_found(&mut stream);
    };
    if !is_moved {
        // As on the hub: large files lie on another host, small ones at another path of this one.
        let host = match file.ends_with(".gguf") {
            true => format!("http://{}", stream.local_addr()?),
            false => String::new(),
        };
        return write!(
            stream,
            "HTTP/1.1 302 Found\r\nLocation: {host}/elsewhere/{repo}/file/{COMMIT}/{file}\r\n\
             X-Repo-Commit: {COMMIT}\r\nX-Linked-Etag: \"{}\"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            stored.sha256
        );
    }
    let stored = HubFile {
        break_off_after: stored
            .break_off_after
            .take_if(|_| request.range.as_deref() != Some("bytes=0-0")),
        ..stored.clone()
    };
    drop(state);
    send(&mut stream, &stored, request.range.as_deref())
}

fn split<'a>(path: &'a str, separator: &str, is_moved: bool) -> (&'a str, &'a str, bool) {
    let (repo, rest) = path.split_once(separator).unwrap_or((path, ""));
    let (_revision, file) = rest.split_once('/').unwrap_or(("", rest));
    (repo, file, is_moved)
}

fn read_request(stream: &TcpStream) -> std::io::Result<Seen> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next().unwrap_or(Ok(String::new()))?;
    let mut request = Seen {
        path: first.split(' ').nth(1).unwrap_or_default().to_owned(),
        range: None,
        authorization: None,
    };
    for line in lines {
        let line = line?;
        match line.split_once(": ") {
            None => break,
            Some((name, value)) if name.eq_ignore_ascii_case("range") => {
                request.range = Some(value.to_owned())
            }
            Some((name, value)) if name.eq_ignore_ascii_case("authorization") => {
                request.authorization = Some(value.to_owned());
            }
            Some(_) => {}
        }
    }
    Ok(request)
}

fn list(stream: &mut TcpStream, state: &State, repo: &str) -> std::io::Result<()> {
    let prefix = format!("{repo}/");
    let names = state
        .files
        .keys()
        .filter_map(|path| path.strip_prefix(&prefix));
    let siblings: Vec<_> = names
        .map(|name| serde_json::json!({"rfilename": name}))
        .collect();
    if siblings.is_empty() {
        return not_found(stream);
    }
    let body = serde_json::json!({"id": repo, "sha": COMMIT, "siblings": siblings}).to_string();
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

fn not_found(stream: &mut TcpStream) -> std::io::Result<()> {
    write!(
        stream,
        "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    )
}

fn send(stream: &mut TcpStream, file: &HubFile, range: Option<&str>) -> std::io::Result<()> {
    let size = file.content.len();
    let bounds = range.and_then(|range| range.strip_prefix("bytes=")?.split_once('-'));
    let (start, end) = match bounds {
        None => (0, size),
        Some((start, end)) => (
            start.parse().unwrap_or(0),
            end.parse::<usize>()
                .map_or(size, |last| (last + 1).min(size)),
        ),
    };
    if start >= size {
        return write!(
            stream,
            "HTTP/1.1 416 Range Not Satisfiable\r\nContent-Range: bytes */{size}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
    }
    let status = if range.is_some() {
        "206 Partial Content"
    } else {
        "200 OK"
    };
    write!(
        stream,
        "HTTP/1.1 {status}\r\nETag: \"{}\"\r\nX-Repo-Commit: {COMMIT}\r\n\
         Content-Range: bytes {start}-{}/{size}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        file.sha256,
        end - 1,
        end - start
    )?;
    let end = file
        .break_off_after
        .map_or(end, |after| (start + after).min(end));
    stream.write_all(&file.content[start..end])
}
