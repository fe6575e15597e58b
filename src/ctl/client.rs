//! A client of one daemon's API.

use std::fs;
use std::io::{self, BufReader, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use serde::de::DeserializeOwned;
use serde_json::Value;
use vhost_user_zram::internals::api::Refusal;

use crate::http::{self, Body, HttpError};

/// The most bytes of an answer that is kept in memory.
const ANSWER: u64 = 16 << 20;
/// The longest wait for what takes a daemon long, such as making a large disk blank.
const PATIENCE: Duration = Duration::from_secs(120);
/// A wait that nothing takes as long as.
const FOREVER: Duration = Duration::from_secs(30 * 24 * 3600);
/// Time between two attempts at a daemon whose queue of connections is full.
const RETRY: Duration = Duration::from_millis(5);

/// Why a daemon cannot be asked, or does not do what it is asked for.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// There is no such socket.
    #[error("{} does not exist", .0.display())]
    Missing(PathBuf),
    /// A socket that its daemon left behind.
    #[error("no daemon listens on {}: the socket is stale", .0.display())]
    Stale(PathBuf),
    /// A socket that this user may not use, or that is something else.
    #[error("cannot connect to {}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The daemon takes too long.
    #[error("{} does not answer within {} s", path.display(), limit.as_secs_f64())]
    Silent {
        /// The socket.
        path: PathBuf,
        /// The longest wait.
        limit: Duration,
    },
    /// The connection broke, or what came is not HTTP.
    #[error("cannot talk to {}", path.display())]
    Broken {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: HttpError,
    },
    /// An answer that is not to be kept in memory.
    #[error("{} sends more than {ANSWER} bytes", .0.display())]
    TooLarge(PathBuf),
    /// The daemon says no.
    #[error("{sentence} ({errno})")]
    Refused {
        /// Status of the answer.
        status: u16,
        /// Name of the error, as the kernel's drivers have them.
        errno: String,
        /// What is wrong and what to do.
        sentence: String,
    },
    /// The daemon says no, in a form that is not the API's.
    #[error("{} answers with status {status}", path.display())]
    Status {
        /// The socket.
        path: PathBuf,
        /// Status of the answer.
        status: u16,
    },
    /// The answer is of another version of the API.
    #[error("{} does not answer as this version of the API does", path.display())]
    Json {
        /// The socket.
        path: PathBuf,
        /// What is not understood.
        source: serde_json::Error,
    },
    /// What a daemon sends cannot be passed on.
    #[error("cannot write the answer")]
    Output(#[source] io::Error),
}

impl ClientError {
    /// One or two words for a table.
    pub fn state(&self) -> &'static str {
        match self {
            Self::Missing(_) => "missing",
            Self::Stale(_) => "stale socket",
            Self::Connect { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                "no permission"
            }
            Self::Silent { .. } => "silent",
            Self::Refused { .. } | Self::Status { .. } => "refuses",
            Self::Connect { .. }
            | Self::Broken { .. }
            | Self::TooLarge(_)
            | Self::Json { .. }
            | Self::Output(_) => "not understood",
        }
    }
}

/// A daemon, found by the socket of its API. Each request is a connection of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Client {
    path: PathBuf,
    limit: Duration,
}

/// A stream whose reads and writes end at a point in time.
struct Timed {
    stream: UnixStream,
    until: Instant,
}

impl Timed {
    fn left(&self) -> io::Result<Duration> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
    }
}

/// A time-out of a socket is EAGAIN.
fn timed_out(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::WouldBlock { io::ErrorKind::TimedOut.into() } else { error }
}

impl Read for Timed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(Some(self.left()?))?;
        self.stream.read(buffer).map_err(timed_out)
    }
}

impl Write for Timed {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(Some(self.left()?))?;
        self.stream.write(buffer).map_err(timed_out)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

/// What a daemon is asked for.
#[derive(Clone, Copy)]
struct Question<'q> {
    method: &'q str,
    path: &'q str,
    /// Its type and text.
    body: Option<(&'q str, &'q str)>,
}

impl Client {
    /// The daemon whose API is at `path`. No answer is waited for longer than `limit`.
    pub fn new(path: impl Into<PathBuf>, limit: Duration) -> Self {
        Self { path: path.into(), limit }
    }

    /// The socket.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The same daemon, for what takes it long.
    pub fn patient(&self) -> Self {
        Self { path: self.path.clone(), limit: self.limit.max(PATIENCE) }
    }

    /// The same daemon, for what is to be waited for to its end.
    pub fn tireless(&self) -> Self {
        Self { path: self.path.clone(), limit: FOREVER }
    }

    /// Reads what is at `path`.
    ///
    /// # Errors
    /// The daemon cannot be asked, refuses, or answers something else.
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.json(Question { method: "GET", path, body: None })
    }

    /// Changes what is at `path`.
    ///
    /// # Errors
    /// As with [`Client::get`].
    pub fn patch<T: DeserializeOwned>(&self, path: &str, body: &Value) -> Result<T, ClientError> {
        let body = body.to_string();
        self.json(Question { method: "PATCH", path, body: Some(("application/json", &body)) })
    }

    /// Has the daemon do what `path` names.
    ///
    /// # Errors
    /// As with [`Client::get`].
    pub fn post<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.json(Question { method: "POST", path, body: None })
    }

    /// Ends what is at `path`.
    ///
    /// # Errors
    /// As with [`Client::get`].
    pub fn delete(&self, path: &str) -> Result<(), ClientError> {
        self.text(Question { method: "DELETE", path, body: None }).map(drop)
    }

    /// Reads text.
    ///
    /// # Errors
    /// As with [`Client::get`].
    pub fn get_text(&self, path: &str) -> Result<String, ClientError> {
        self.text(Question { method: "GET", path, body: None })
    }

    /// Writes text.
    ///
    /// # Errors
    /// As with [`Client::get`].
    pub fn put_text(&self, path: &str, text: &str) -> Result<(), ClientError> {
        let body = Some(("text/plain", text));
        self.text(Question { method: "PUT", path, body }).map(drop)
    }

    /// Copies text of any length to `output`. The limit is one between two parts of it.
    ///
    /// # Errors
    /// As with [`Client::get`], and what `output` says.
    pub fn copy_text(&self, path: &str, output: &mut impl Write) -> Result<(), ClientError> {
        let mut body = self.ask(Question { method: "GET", path, body: None })?;
        let mut buffer = vec![0; 64 << 10];
        loop {
            let count = body.read(&mut buffer).map_err(|error| self.broken(error.into()))?;
            if count == 0 {
                return output.flush().map_err(ClientError::Output);
            }
            output.write_all(&buffer[..count]).map_err(ClientError::Output)?;
            body.prolong(self.limit);
        }
    }

    fn json<T: DeserializeOwned>(&self, question: Question<'_>) -> Result<T, ClientError> {
        let text = self.text(question)?;
        serde_json::from_str(&text)
            .map_err(|source| ClientError::Json { path: self.path.clone(), source })
    }

    fn text(&self, question: Question<'_>) -> Result<String, ClientError> {
        let mut body = self.ask(question)?;
        self.all(&mut body)
    }

    /// The rest of an answer.
    fn all(&self, body: &mut impl Read) -> Result<String, ClientError> {
        let mut bytes = Vec::new();
        let read = body.take(ANSWER + 1).read_to_end(&mut bytes);
        read.map_err(|error| self.broken(error.into()))?;
        if bytes.len() as u64 > ANSWER {
            return Err(ClientError::TooLarge(self.path.clone()));
        }
        String::from_utf8(bytes).map_err(|_| self.broken(HttpError::Malformed("it is not text")))
    }

    /// Sends a request. Gives the body of an answer that says yes.
    fn ask(&self, question: Question<'_>) -> Result<Answer, ClientError> {
        let until = Instant::now() + self.limit;
        let mut stream = Timed { stream: self.connect(until)?, until };
        let bytes = http::request(question.method, question.path, question.body);
        // A daemon that refuses early answers before all was read.
        let written = stream.write_all(&bytes);
        let mut reader = BufReader::new(stream);
        let head = match (http::head(&mut reader), written) {
            (Ok(head), _) => head,
            (Err(_), Err(error)) => return Err(self.broken(error.into())),
            (Err(error), Ok(())) => return Err(self.broken(error)),
        };
        let mut body = Answer(Body::new(&head, reader));
        if (200..300).contains(&head.status) {
            return Ok(body);
        }
        let status = head.status;
        let text = self.all(&mut body)?;
        Err(match serde_json::from_str(&text) {
            Ok(Refusal { errno, error }) => {
                // This program adds the name of the error, which ends the sentence.
                let sentence = error.trim_end_matches('.').to_owned();
                ClientError::Refused { status, errno, sentence }
            }
            Err(_) => ClientError::Status { path: self.path.clone(), status },
        })
    }

    fn broken(&self, source: HttpError) -> ClientError {
        let path = self.path.clone();
        match source {
            HttpError::Io(error) if error.kind() == io::ErrorKind::TimedOut => {
                ClientError::Silent { path, limit: self.limit }
            }
            source => ClientError::Broken { path, source },
        }
    }

    /// Connects without ever waiting for a daemon that takes no connections.
    fn connect(&self, until: Instant) -> Result<UnixStream, ClientError> {
        let path = || self.path.clone();
        let fail = |errno: Errno| match errno {
            Errno::ENOENT => ClientError::Missing(path()),
            Errno::ECONNREFUSED if is_socket(&self.path) => ClientError::Stale(path()),
            errno => ClientError::Connect { path: path(), source: errno.into() },
        };
        let address = UnixAddr::new(&self.path).map_err(fail)?;
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let new = socket(AddressFamily::Unix, SockType::Stream, flags, None);
        let socket: OwnedFd = new.map_err(fail)?;
        loop {
            match connect(socket.as_raw_fd(), &address) {
                Ok(()) => break,
                // Its queue of connections is full.
                Err(Errno::EAGAIN) if Instant::now() < until => thread::sleep(RETRY),
                Err(Errno::EAGAIN) => {
                    return Err(ClientError::Silent { path: path(), limit: self.limit });
                }
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(fail(errno)),
            }
        }
        let stream = UnixStream::from(socket);
        let blocking = stream.set_nonblocking(false);
        blocking.map_err(|source| ClientError::Connect { path: path(), source })?;
        Ok(stream)
    }
}

fn is_socket(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    fs::metadata(path).is_ok_and(|meta| meta.file_type().is_socket())
}

/// The body of an answer, and its connection.
struct Answer(Body<BufReader<Timed>>);

impl Answer {
    /// Has the limit begin anew.
    fn prolong(&mut self, limit: Duration) {
        self.0.reader_mut().get_mut().until = Instant::now() + limit;
    }
}

impl Read for Answer {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}
