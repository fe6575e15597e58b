//! A client of the control API that is nothing but bytes on a socket, so that it can send what no library
//! would.

use std::{
    io::{ErrorKind, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

use super::{
    LIMIT,
    daemon::{BINARY, Daemon, TempDir},
};

/// A connection to the API.
pub struct Http {
    pub stream: UnixStream,
    read: Vec<u8>,
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(header, _)| header == name);
        found.map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("text")
    }

    pub fn json(&self) -> Value {
        assert_eq!(self.header("content-type"), Some("application/json"), "{self:?}");
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Insists that it is a refusal, and that it says what to do.
    pub fn refused(&self, status: u16, errno: &str) -> String {
        let json = self.json();
        assert_eq!((self.status, json["errno"].as_str()), (status, Some(errno)), "{json}");
        let error = json["error"].as_str().expect("a sentence").to_owned();
        assert!(error.len() > 10 && json.as_object().expect("an object").len() == 2, "{json}");
        error
    }

    /// Insists that it is what was asked for.
    pub fn ok(&self) -> Value {
        assert!((200..300).contains(&self.status), "{} {}", self.status, self.text());
        self.json()
    }
}

impl Http {
    pub fn connect(path: &Path) -> Self {
        let stream = UnixStream::connect(path).expect("connect");
        stream.set_read_timeout(Some(LIMIT)).expect("limit");
        stream.set_write_timeout(Some(LIMIT)).expect("limit");
        Self { stream, read: Vec::new() }
    }

    /// Sends a request with a body of JSON, if it is not empty.
    pub fn send(&mut self, method: &str, path: &str, body: &str) {
        let about = match body {
            "" => String::new(),
            body => format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len()),
        };
        let request = format!("{method} {path} HTTP/1.1\r\nHost: api\r\n{about}\r\n{body}");
        self.stream.write_all(request.as_bytes()).expect("send");
    }

    /// Sends bytes as far as the peer takes them.
    pub fn send_raw(&mut self, bytes: &[u8]) {
        // A peer that has heard enough hangs up, and has answered before.
        let _ = self.stream.write_all(bytes);
    }

    /// Reads up to the end of a header; `None` if the peer hangs up instead.
    pub fn head(&mut self) -> Option<Answer> {
        let end = loop {
            let end = self.read.windows(4).position(|bytes| bytes == b"\r\n\r\n");
            if let Some(end) = end {
                break end;
            }
            if !self.more() {
                return None;
            }
        };
        let head: Vec<u8> = self.read.drain(..end + 4).collect();
        let head = String::from_utf8(head).expect("text");
        let mut lines = head.lines();
        let status = lines.next()?.split(' ').nth(1)?.parse().expect("a status");
        let headers = lines.filter_map(|line| line.split_once(':'));
        let headers =
            headers.map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()));
        Some(Answer { status, headers: headers.collect(), body: Vec::new() })
    }

    /// Reads an answer; `None` if the peer hangs up instead.
    pub fn answer(&mut self) -> Option<Answer> {
        let mut answer = self.head()?;
        if answer.header("transfer-encoding") == Some("chunked") {
            while let Some(chunk) = self.chunk() {
                answer.body.extend(chunk);
            }
            return Some(answer);
        }
        let length =
            answer.header("content-length").map_or(0, |text| text.parse().expect("length"));
        while self.read.len() < length {
            if !self.more() {
                return None;
            }
        }
        answer.body = self.read.drain(..length).collect();
        Some(answer)
    }

    /// Reads a chunk of a body; `None` if it was the last one.
    pub fn chunk(&mut self) -> Option<Vec<u8>> {
        let end = loop {
            if let Some(end) = self.read.windows(2).position(|bytes| bytes == b"\r\n") {
                break end;
            }
            assert!(self.more(), "the peer hung up in the middle of a body");
        };
        let length: Vec<u8> = self.read.drain(..end + 2).collect();
        let length = std::str::from_utf8(&length[..end]).expect("a length");
        let length = usize::from_str_radix(length, 16).expect("a length");
        while self.read.len() < length + 2 {
            assert!(self.more(), "the peer hung up in the middle of a chunk");
        }
        let chunk = self.read.drain(..length).collect();
        self.read.drain(..2);
        (length > 0).then_some(chunk)
    }

    /// A request and its answer.
    pub fn ask(&mut self, method: &str, path: &str, body: &str) -> Answer {
        self.send(method, path, body);
        self.answer().unwrap_or_else(|| panic!("{method} {path}: no answer"))
    }

    /// Whether the peer hangs up, when all that it sent is read.
    pub fn is_hung_up(&mut self) -> bool {
        while self.more() {}
        true
    }

    /// Reads more; false if the peer hung up.
    fn more(&mut self) -> bool {
        let mut bytes = [0; 65536];
        match self.stream.read(&mut bytes) {
            Ok(0) => false,
            Ok(count) => {
                self.read.extend(&bytes[..count]);
                true
            }
            Err(error) if error.kind() == ErrorKind::ConnectionReset => false,
            Err(error) => panic!("nothing comes: {error}"),
        }
    }
}

/// A client that listens to events.
pub struct Listener(Http);

impl Listener {
    /// Returns when the daemon has said that it is heard.
    pub fn new(path: &Path) -> Self {
        let mut http = Http::connect(path);
        http.send("GET", "/v1/events", "");
        let head = http.head().expect("an answer");
        assert_eq!(head.status, 200);
        assert_eq!(head.header("content-type"), Some("text/event-stream"));
        assert_eq!(http.chunk().expect("a sign of life"), b":\n\n");
        Self(http)
    }

    /// The next event; `None` if the stream has ended in good order.
    pub fn next(&mut self) -> Option<Value> {
        loop {
            let chunk = String::from_utf8(self.0.chunk()?).expect("text");
            if chunk == ":\n\n" {
                continue;
            }
            let field = |name| chunk.lines().find_map(|line| line.strip_prefix(name));
            let event: Value = serde_json::from_str(field("data: ").expect("data")).expect("JSON");
            assert_eq!(field("event: "), event["kind"].as_str(), "{chunk}");
            assert_eq!(field("id: "), Some(event["id"].to_string().as_str()), "{chunk}");
            return Some(event);
        }
    }

    /// The next event of this kind.
    pub fn wait_for(&mut self, kind: &str) -> Value {
        loop {
            let event = self.next().unwrap_or_else(|| panic!("the stream ended before {kind}"));
            if event["kind"] == kind {
                return event;
            }
        }
    }

    /// The client, to do worse with it.
    pub fn into_http(self) -> Http {
        self.0
    }
}

/// Where the API of a daemon is that [`start`] started.
pub fn api_of(daemon: &Daemon) -> PathBuf {
    daemon.dir.join("api")
}

/// A daemon with an API, and a disk of `size`.
pub fn start(size: &str, args: &[&str]) -> Daemon {
    let dir = TempDir::new();
    let command = command(&dir, size, args);
    Daemon::spawn(command, dir)
}

/// The command that starts one with its sockets in `dir`.
pub fn command(dir: &TempDir, size: &str, args: &[&str]) -> Command {
    let mut command = Command::new(BINARY);
    command.arg("--socket-path").arg(dir.join("socket")).arg("--api-socket").arg(dir.join("api"));
    command.args(["--size", size]).args(args);
    command
}

/// One request on a connection of its own.
pub fn ask(daemon: &Daemon, method: &str, path: &str, body: &str) -> Answer {
    Http::connect(&api_of(daemon)).ask(method, path, body)
}

/// What the API says of the disk.
pub fn disk(daemon: &Daemon) -> Value {
    ask(daemon, "GET", "/v1/disk", "").ok()
}
