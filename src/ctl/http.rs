//! HTTP/1.1 as a client of the daemons needs it: one request on a connection, and an answer that is bounded.
//!
//! A daemon is trusted with a disk and not with the memory of this process: an answer that is not HTTP, has no
//! end or is larger than expected is an error and nothing else.

use std::io::{self, BufRead, Read};

/// The most bytes of an answer's head.
const HEAD: usize = 16 << 10;
/// The most bytes of a line between two chunks.
const CHUNK_LINE: usize = 1 << 10;
/// The most answers of the kind "100 Continue" before the real one.
const INTERIM: usize = 8;

/// What is wrong with an answer.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// Nothing more can be read.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The peer does not speak HTTP/1.
    #[error("the answer is not HTTP/1: {0}")]
    Malformed(&'static str),
}

use HttpError::Malformed;

/// The bytes of a request. `body` is JSON or plain text, as `kind` says.
pub fn request(method: &str, path: &str, body: Option<(&str, &str)>) -> Vec<u8> {
    let mut text = format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\nConnection: close\r\n"
    );
    if let Some((kind, body)) = body {
        text += &format!("Content-Type: {kind}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    } else if method == "GET" {
        text += "\r\n";
    } else {
        text += "Content-Length: 0\r\n\r\n";
    }
    text.into_bytes()
}

/// Where a body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    /// After so many bytes.
    Length(u64),
    /// Where the chunks say.
    Chunked,
    /// With the connection.
    Close,
}

/// The head of an answer.
#[derive(Debug, PartialEq, Eq)]
pub struct Head {
    /// The status, 200 to 599.
    pub status: u16,
    framing: Framing,
}

/// Reads the head of the answer. Answers that only announce another one are skipped.
///
/// # Errors
/// It is not HTTP/1, is too long, or cannot be read.
pub fn head(reader: &mut impl BufRead) -> Result<Head, HttpError> {
    for _ in 0..INTERIM {
        let head = one_head(reader)?;
        if head.status >= 200 {
            return Ok(head);
        }
    }
    Err(Malformed("it announces an answer again and again"))
}

fn one_head(reader: &mut impl BufRead) -> Result<Head, HttpError> {
    let mut left = HEAD;
    let first = line(reader, &mut left)?;
    let rest = first.strip_prefix("HTTP/1.").ok_or(Malformed("its first line is of no version"))?;
    let status = rest.split(' ').nth(1).and_then(|word| word.parse::<u16>().ok());
    let status = status.filter(|status| (100..600).contains(status));
    let status = status.ok_or(Malformed("its first line has no status"))?;
    let (mut length, mut chunked) = (None, false);
    loop {
        let line = line(reader, &mut left)?;
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':').ok_or(Malformed("a header has no colon"))?;
        let value = value.trim();
        if name.eq_ignore_ascii_case("content-length") {
            let bytes: u64 = value.parse().map_err(|_| Malformed("its length is not a number"))?;
            if length.is_some_and(|other| other != bytes) {
                return Err(Malformed("it has two lengths"));
            }
            length = Some(bytes);
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            if !value.eq_ignore_ascii_case("chunked") {
                return Err(Malformed("its encoding is unknown"));
            }
            chunked = true;
        }
    }
    let framing = match (status, chunked, length) {
        (100..200 | 204 | 304, ..) => Framing::Length(0),
        (_, true, _) => Framing::Chunked,
        (_, false, Some(length)) => Framing::Length(length),
        (_, false, None) => Framing::Close,
    };
    Ok(Head { status, framing })
}

/// A line without its end. `left` is how many bytes the peer may still send.
fn line(reader: &mut impl BufRead, left: &mut usize) -> Result<String, HttpError> {
    let mut bytes = Vec::new();
    let most = *left as u64;
    let count = reader.by_ref().take(most).read_until(b'\n', &mut bytes)?;
    *left -= count;
    if bytes.pop() != Some(b'\n') {
        let text = if *left == 0 { "a line is too long" } else { "it ends within a line" };
        return Err(Malformed(text));
    }
    if bytes.last() == Some(&b'\r') {
        bytes.pop();
    }
    String::from_utf8(bytes).map_err(|_| Malformed("a line is not text"))
}

/// The body of an answer, as a reader that ends where the body does.
pub struct Body<R> {
    reader: R,
    framing: Framing,
    /// Bytes left of the body, or of the chunk.
    left: u64,
    /// All of it was read.
    ended: bool,
    /// A chunk was read, and the end of its line was not.
    within: bool,
}

impl<R: BufRead> Body<R> {
    /// The body that follows `head` in `reader`.
    pub fn new(head: &Head, reader: R) -> Self {
        let left = if let Framing::Length(length) = head.framing { length } else { 0 };
        Self { reader, framing: head.framing, left, ended: false, within: false }
    }

    /// What it is read from.
    pub fn reader_mut(&mut self) -> &mut R {
        &mut self.reader
    }

    /// Reads up to the next chunk's first byte, or to the end of all.
    fn next_chunk(&mut self) -> Result<(), HttpError> {
        if self.within {
            if !line(&mut self.reader, &mut { 2 })?.is_empty() {
                return Err(Malformed("a chunk is longer than it says"));
            }
            self.within = false;
        }
        let size = line(&mut self.reader, &mut { CHUNK_LINE })?;
        let digits = size.split(';').next().unwrap_or_default().trim();
        // The standard library's parser takes a sign, too.
        if digits.starts_with(['+', '-']) {
            return Err(Malformed("a chunk has no size"));
        }
        self.left =
            u64::from_str_radix(digits, 16).map_err(|_| Malformed("a chunk has no size"))?;
        self.within = self.left > 0;
        if self.left == 0 {
            let mut left = HEAD;
            while !line(&mut self.reader, &mut left)?.is_empty() {}
            self.ended = true;
        }
        Ok(())
    }
}

impl<R: BufRead> Read for Body<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.ended || buffer.is_empty() {
            return Ok(0);
        }
        if self.framing == Framing::Close {
            return self.reader.read(buffer);
        }
        if self.left == 0 && self.framing == Framing::Chunked {
            self.next_chunk().map_err(|error| match error {
                HttpError::Io(error) => error,
                malformed @ Malformed(_) => io::Error::new(io::ErrorKind::InvalidData, malformed),
            })?;
        }
        if self.left == 0 {
            self.ended = true;
            return Ok(0);
        }
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.reader.read(&mut buffer[..most])?;
        if count == 0 {
            let text = "the connection ended within the answer";
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
        }
        self.left -= count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The status and body of an answer, or what is wrong with it.
    fn answer(bytes: &str) -> Result<(u16, String), String> {
        let mut reader = bytes.as_bytes();
        let head = head(&mut reader).map_err(|error| error.to_string())?;
        let mut text = String::new();
        let mut body = Body::new(&head, &mut reader);
        body.read_to_string(&mut text).map_err(|error| error.to_string())?;
        Ok((head.status, text))
    }

    #[test]
    fn a_request_has_what_a_server_asks_for() {
        let text = String::from_utf8(request("GET", "/v1/disk", None)).unwrap();
        assert!(text.starts_with("GET /v1/disk HTTP/1.1\r\nHost: "), "{text}");
        assert!(
            text.ends_with("Connection: close\r\n\r\n") && !text.contains("Content-"),
            "{text}"
        );
        let text = String::from_utf8(request("PUT", "/x", Some(("text/plain", "\u{e4}")))).unwrap();
        assert!(text.ends_with("Content-Type: text/plain\r\nContent-Length: 2\r\n\r\n\u{e4}"));
    }

    #[test]
    fn an_answer_ends_by_its_length_its_chunks_or_the_connection() {
        let ok = |text: &str| Ok((200, text.to_owned()));
        assert_eq!(answer("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcd"), ok("abc"));
        assert_eq!(answer("HTTP/1.1 200 OK\r\ncontent-length:0\r\n\r\n"), ok(""));
        assert_eq!(answer("HTTP/1.0 200 OK\r\n\r\nabc"), ok("abc"));
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        let sent = |chunks: &str| answer(&(chunked.to_owned() + chunks));
        assert_eq!(sent("3\r\nabc\r\nA;x=y\r\n0123456789\r\n0\r\n\r\n"), ok("abc0123456789"));
        assert_eq!(sent("1\r\na\r\n0\r\nTrailer: x\r\n\r\nmore"), ok("a"));
        let (status, text) = answer("HTTP/1.1 409 Conflict\r\nContent-Length: 1\r\n\r\nx").unwrap();
        assert_eq!((status, text.as_str()), (409, "x"));
        assert_eq!(answer("HTTP/1.1 204 No Content\r\n\r\nx"), Ok((204, String::new())));
        let interim = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx";
        assert_eq!(answer(interim), ok("x"));
    }

    #[test]
    fn an_answer_that_makes_no_sense_is_an_error() {
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        let bad = [
            "",
            "220 smtp ready\r\n",
            "HTTP/1.1 200",
            "HTTP/1.1 20 OK\r\n\r\n",
            "HTTP/1.1 999 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
            "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nabc",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        ];
        for bytes in bad {
            answer(bytes).expect_err(bytes);
        }
        for chunks in
            ["x\r\n", "-1\r\n", "+1\r\na\r\n0\r\n\r\n", "2\r\nabc\r\n0\r\n\r\n", "3\r\nab", ""]
        {
            answer(&(chunked.to_owned() + chunks)).expect_err(chunks);
        }
        answer(&("HTTP/1.1 100 Continue\r\n\r\n".repeat(20))).unwrap_err();
    }

    #[test]
    fn a_head_without_an_end_is_not_read_for_ever() {
        struct Endless(usize);
        impl Read for Endless {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                buffer.fill(b'a');
                self.0 += buffer.len();
                Ok(buffer.len())
            }
        }
        let mut reader = io::BufReader::with_capacity(64, Endless(0));
        let error = head(&mut reader).unwrap_err().to_string();
        assert!(error.contains("too long"), "{error}");
        assert!(reader.get_ref().0 <= HEAD + 64, "{} bytes", reader.get_ref().0);
        let start = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".as_bytes();
        let mut reader = io::BufReader::with_capacity(64, start.chain(Endless(0)));
        let head = head(&mut reader).unwrap();
        let mut body = Body::new(&head, reader);
        body.read(&mut [0; 16]).unwrap_err();
        assert!(body.reader.get_ref().get_ref().1.0 <= CHUNK_LINE + 64);
    }
}
