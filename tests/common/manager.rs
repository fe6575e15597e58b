//! A stand-in for a service manager: it is told what becomes of a daemon, and holds descriptors from
//! one process to the next.

use std::{
    fs::File,
    io::IoSliceMut,
    mem::MaybeUninit,
    os::{fd::OwnedFd, unix::net::UnixDatagram},
    path::PathBuf,
    process::Command,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::Instant,
};

use command_fds::{CommandFdExt, FdMapping};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use super::{
    LIMIT,
    daemon::{BINARY, TempDir},
};

/// The name under which the daemon has its descriptors held.
pub const NAME: &str = "vhost-user-zram";

/// What it holds and heard.
#[derive(Default)]
pub struct Inner {
    pub held: Vec<(String, OwnedFd)>,
    /// Each message, its lines separated by blanks.
    pub heard: Vec<String>,
    /// Descriptors that it holds at most; it says nothing of those it does not.
    pub most: usize,
    /// Whether it takes messages and does nothing.
    pub deaf: bool,
}

type Shared = Arc<(Mutex<Inner>, Condvar)>;

/// The manager, as long as it lives.
pub struct Manager {
    dir: TempDir,
    shared: Shared,
    thread: Option<JoinHandle<()>>,
}

impl Manager {
    pub fn new(most: usize) -> Self {
        let dir = TempDir::new();
        let socket = UnixDatagram::bind(dir.join("notify")).expect("socket");
        let shared = Shared::default();
        shared.0.lock().expect("shared").most = most;
        let theirs = Arc::clone(&shared);
        let thread = std::thread::spawn(move || while hear(&socket, &theirs) {});
        Self { dir, shared, thread: Some(thread) }
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.join("notify")
    }

    /// What it holds and heard, now.
    pub fn inner(&self) -> MutexGuard<'_, Inner> {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Names of what it holds.
    pub fn names(&self) -> Vec<String> {
        self.inner().held.iter().map(|(name, _)| name.clone()).collect()
    }

    /// Copies of the descriptors that it holds, as it hands them to a process.
    pub fn held(&self) -> Vec<(String, OwnedFd)> {
        let copy = |(name, fd): &(String, OwnedFd)| (name.clone(), fd.try_clone().expect("dup"));
        self.inner().held.iter().map(copy).collect()
    }

    /// Waits until it has heard `message` `times` times.
    pub fn wait_for(&self, message: &str, times: usize) {
        let deadline = Instant::now() + LIMIT;
        let mut inner = self.inner();
        while inner.heard.iter().filter(|heard| *heard == message).count() < times {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "no {message}: {:?}", inner.heard);
            let waited = self.shared.1.wait_timeout(inner, left);
            inner = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// A daemon with `--fd-store` to which it hands these descriptors, from 3 on.
    pub fn command(&self, dir: &TempDir, fds: Vec<(String, OwnedFd)>, args: &[&str]) -> Command {
        let mut command = self.launch(fds, ["--fd-store"].iter().chain(args).copied());
        if !args.contains(&"--fd") {
            command.arg("--socket-path").arg(dir.join("socket"));
        }
        if !args.contains(&"--size") {
            command.args(["--size", "16M"]);
        }
        command
    }

    /// A daemon with these arguments and no others.
    pub fn launch<'a>(
        &self,
        fds: Vec<(String, OwnedFd)>,
        args: impl IntoIterator<Item = &'a str>,
    ) -> Command {
        // Whose process number is known to the shell alone, which becomes the daemon.
        let mut command = Command::new("sh");
        if fds.is_empty() {
            command.args(["-c", "exec \"$@\"", "sh"]);
        } else {
            command.args(["-c", "LISTEN_PID=$$ exec \"$@\"", "sh"]);
            let names: Vec<&str> = fds.iter().map(|(name, _)| name.as_str()).collect();
            command.env("LISTEN_FDS", fds.len().to_string()).env("LISTEN_FDNAMES", names.join(":"));
        }
        command.arg(BINARY).args(args);
        command.env("NOTIFY_SOCKET", self.socket());
        let most = self.inner().most;
        if most > 0 {
            command.env("FDSTORE", most.to_string());
        }
        let mappings = (3..).zip(fds);
        let mappings = mappings.map(|(child_fd, (_, parent_fd))| FdMapping { parent_fd, child_fd });
        command.fd_mappings(mappings.collect()).expect("one descriptor at each number");
        command
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        let sent = UnixDatagram::unbound().and_then(|s| s.send_to(b"QUIT", self.socket()));
        if let (Ok(_), Some(thread)) = (sent, self.thread.take()) {
            // What it has to say was said where it failed.
            let _ = thread.join();
        }
    }
}

/// Takes one message; false if it was the last.
fn hear(socket: &UnixDatagram, shared: &Shared) -> bool {
    let mut bytes = [0; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut pieces = [IoSliceMut::new(&mut bytes)];
    let flags = RecvFlags::CMSG_CLOEXEC;
    let length = recvmsg(socket, &mut pieces, &mut control, flags).expect("message").bytes;
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    let text = String::from_utf8_lossy(&bytes[..length]).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    if lines == ["QUIT"] {
        return false;
    }
    let mut inner = shared.0.lock().unwrap_or_else(PoisonError::into_inner);
    inner.heard.push(lines.join(" "));
    shared.1.notify_all();
    if inner.deaf {
        // Neither answered nor closed.
        inner.held.extend(fds.into_iter().map(|fd| ("deaf".to_owned(), fd)));
        return true;
    }
    let name = lines.iter().find_map(|line| line.strip_prefix("FDNAME=")).unwrap_or("stored");
    if lines.contains(&"FDSTOREREMOVE=1") {
        inner.held.retain(|(held, _)| held != name);
    } else if lines.contains(&"FDSTORE=1") {
        for fd in fds {
            if inner.held.len() < inner.most {
                inner.held.push((name.to_owned(), fd));
            }
        }
    }
    // Whatever else came with it is closed here: that is the answer to a barrier.
    true
}

/// An open file that does not belong to a state.
pub fn some_file(dir: &TempDir, contents: &[u8]) -> File {
    let path = dir.join("some-file");
    std::fs::write(&path, contents).expect("file");
    File::options().read(true).write(true).open(path).expect("file")
}
