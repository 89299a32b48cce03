//! Splits a byte stream into the `data:` payloads of server-sent events, as the bytes come.
//!
//! Each `data:` line is one payload: every LLM server sends its JSON on one line. Payloads are
//! parsed in place; only a line that is cut by the end of a read is copied.

/// Longest line that is still read; a longer one means that the peer does not speak SSE.
const LINE_BYTES_MAX: usize = 1 << 20;

/// Keeps the unfinished line between two reads.
#[derive(Debug, Default)]
pub struct SseParser {
    partial: Vec<u8>,
}

/// A line without an end.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a line of the event stream is longer than {LINE_BYTES_MAX} bytes")]
pub struct LineTooLong;

impl SseParser {
    /// Calls `on_data` for each `data:` line that `bytes` completes; stops at its first error.
    pub fn feed<E: From<LineTooLong>>(
        &mut self,
        mut bytes: &[u8],
        mut on_data: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        while let Some(end) = bytes.iter().position(|&byte| byte == b'\n') {
            let (line, rest) = (&bytes[..end], &bytes[end + 1..]);
            if self.partial.is_empty() {
                payload(line).map_or(Ok(()), &mut on_data)?;
            } else {
                self.partial.extend_from_slice(line);
                let whole = std::mem::take(&mut self.partial);
                payload(&whole).map_or(Ok(()), &mut on_data)?;
            }
            bytes = rest;
        }
        if self.partial.len() + bytes.len() > LINE_BYTES_MAX {
            return Err(LineTooLong.into());
        }
        self.partial.extend_from_slice(bytes);
        Ok(())
    }
}

/// The value of a `data:` line; `None` for comments, other fields and blank lines.
fn payload(line: &[u8]) -> Option<&[u8]> {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let value = line.strip_prefix(b"data:")?;
    Some(value.strip_prefix(b" ").unwrap_or(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payloads(reads: &[&[u8]]) -> Vec<String> {
        let mut parser = SseParser::default();
        let mut found = Vec::new();
        for read in reads {
            parser
                .feed(read, |data| {
                    found.push(String::from_utf8_lossy(data).into_owned());
                    Ok::<(), LineTooLong>(())
                })
                .expect("short lines");
        }
        found
    }

    #[test]
    fn every_way_to_cut_the_bytes_gives_the_same_payloads() {
        let stream = b": ping\r\nevent: x\ndata: {\"a\":1}\r\n\r\ndata:two\n\ndata: [DONE]\n\n";
        for cut in 0..=stream.len() {
            let (left, right) = stream.split_at(cut);
            assert_eq!(
                payloads(&[left, right]),
                ["{\"a\":1}", "two", "[DONE]"],
                "cut at {cut}"
            );
        }
        let single: Vec<&[u8]> = stream.chunks(1).collect();
        assert_eq!(payloads(&single), ["{\"a\":1}", "two", "[DONE]"]);
    }

    #[test]
    fn an_unfinished_line_is_no_payload() {
        assert!(payloads(&[b"data: {\"a\""]).is_empty());
    }

    #[test]
    fn a_line_without_end_is_refused() {
        let mut parser = SseParser::default();
        let read = vec![b'x'; LINE_BYTES_MAX];
        let mut feed = || parser.feed(&read, |_| Ok::<(), LineTooLong>(()));
        assert_eq!(feed(), Ok(()));
        assert_eq!(feed(), Err(LineTooLong));
    }
}
