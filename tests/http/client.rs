//! An HTTP client that hides nothing: bytes out, bytes in.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

/// Only a hang takes this long.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Response {
    pub fn header(&self, name: &str) -> Option<&str> {
        value_of(&self.headers, name)
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The payloads of a body that is nothing but server-sent events.
    pub fn events(&self) -> Vec<&str> {
        assert!(self.body.ends_with("\n\n"), "{self:?}");
        let events = self.body.trim_end_matches("\n\n").split("\n\n");
        events
            .map(|event| event.strip_prefix("data: ").expect("a data line"))
            .collect()
    }
}

/// A response whose body is still coming.
pub struct Connection {
    reader: BufReader<TcpStream>,
    pub status: u16,
    pub headers: Vec<(String, String)>,
}

impl Connection {
    /// Sends a request and waits for the head of the response.
    pub fn open(address: SocketAddr, request: &[u8]) -> Self {
        let stream = TcpStream::connect(address).expect("the server listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        Self::ask(BufReader::new(stream), request)
    }

    fn ask(mut reader: BufReader<TcpStream>, request: &[u8]) -> Self {
        let stream = reader.get_mut();
        stream.write_all(request).expect("the server reads");
        let status_line = read_line(&mut reader);
        let status = status_line
            .split(' ')
            .nth(1)
            .and_then(|code| code.parse().ok());
        let mut headers = Vec::new();
        loop {
            let line = read_line(&mut reader);
            let Some((name, value)) = line.split_once(": ") else {
                break;
            };
            headers.push((name.to_ascii_lowercase(), value.to_owned()));
        }
        Self {
            reader,
            status: status.unwrap_or_else(|| panic!("{status_line}")),
            headers,
        }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        value_of(&self.headers, name)
    }

    /// Reads the rest of the answer, and asks again over the same connection.
    pub fn ask_again(mut self, request: &[u8]) -> Self {
        match self.header("content-length") {
            Some(length) => {
                let mut body = vec![0; length.parse().expect("a length")];
                self.reader.read_exact(&mut body).expect("a body");
            }
            None => while self.next_chunk().is_some() {},
        }
        Self::ask(self.reader, request)
    }

    /// The next chunk of a chunked body; `None` after the last.
    pub fn next_chunk(&mut self) -> Option<String> {
        let length = read_line(&mut self.reader);
        let length = usize::from_str_radix(&length, 16).expect("the length of a chunk");
        let mut chunk = vec![0; length + 2];
        self.reader.read_exact(&mut chunk).expect("a whole chunk");
        chunk.truncate(length);
        (length > 0).then(|| String::from_utf8(chunk).expect("UTF-8"))
    }

    pub fn finish(mut self) -> Response {
        let chunked = self.header("transfer-encoding").is_some();
        let mut body = String::new();
        if chunked {
            while let Some(chunk) = self.next_chunk() {
                body += &chunk;
            }
        } else {
            self.reader.read_to_string(&mut body).expect("a body");
        }
        Response {
            status: self.status,
            headers: self.headers,
            body,
        }
    }
}

fn value_of<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    let header = headers.iter().find(|(key, _)| key == name);
    header.map(|(_, value)| value.as_str())
}

fn read_line(reader: &mut impl BufRead) -> String {
    let mut line = String::new();
    reader.read_line(&mut line).expect("a line");
    line.trim_end().to_owned()
}

pub fn get(path: &str) -> Vec<u8> {
    request("GET", path, &[], "")
}

pub fn post(path: &str, body: impl ToString) -> Vec<u8> {
    request("POST", path, &[], &body.to_string())
}

/// One request on a connection of its own.
pub fn request(method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Vec<u8> {
    let mut request = format!("{method} {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n");
    for (name, value) in headers {
        request += &format!("{name}: {value}\r\n");
    }
    request += &format!("content-length: {}\r\n\r\n{body}", body.len());
    request.into_bytes()
}
