//! The daemon under test, as a child process in a directory of its own.

use std::{
    collections::HashMap,
    env, fs,
    os::unix::net::UnixStream,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Output, Stdio},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use vhost_user_zram_frontend::{Client, ClientOptions, Options, Session};

use super::LIMIT;
pub use super::process::{Lines, TempDir, figures};

/// The daemon's executable.
pub const BINARY: &str = env!("CARGO_BIN_EXE_vhost-user-zram");

/// A running daemon; killed when dropped.
pub struct Daemon {
    child: Child,
    pub dir: TempDir,
    pub stdout: Lines,
    pub stderr: Lines,
    readers: Vec<JoinHandle<()>>,
    stats_asked: usize,
}

impl Daemon {
    /// Starts a daemon with a disk of `size` and more arguments, and waits until it is ready.
    pub fn start(size: &str, args: &[&str]) -> Self {
        let dir = TempDir::new();
        let mut command = Command::new(BINARY);
        command.arg("--socket-path").arg(dir.join("socket")).args(["--size", size]).args(args);
        Self::spawn(command, dir)
    }

    /// Starts a daemon by any command, and waits until it is ready. `VUZ_TEST_POLL_US` is its `--poll-us`, if
    /// the command has none.
    pub fn spawn(mut command: Command, dir: TempDir) -> Self {
        if let Some(limit) = env::var_os("VUZ_TEST_POLL_US")
            && command.get_args().all(|arg| arg != "--poll-us")
        {
            command.arg("--poll-us").arg(limit);
        }
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("daemon starts");
        let (stdout, out) = Lines::follow(child.stdout.take().expect("stdout"), None);
        let (stderr, err) = Lines::follow(child.stderr.take().expect("stderr"), None);
        let readers = vec![out, err];
        let mut daemon = Self { child, dir, stdout, stderr, readers, stats_asked: 0 };
        let deadline = Instant::now() + LIMIT;
        while daemon.stdout.wait_for("ready", 0, Duration::from_millis(100)).is_none() {
            if !daemon.is_alive() || Instant::now() > deadline {
                panic!("no ready line: {:?} {:?}", daemon.stdout.all(), daemon.stderr.all());
            }
        }
        daemon
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.join("socket")
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid() as i32), signal).expect("signal");
    }

    /// Whether the process still runs.
    pub fn is_alive(&mut self) -> bool {
        self.child.try_wait().expect("wait").is_none()
    }

    /// Waits for the process to end; gives its status and all it has said.
    pub fn wait(mut self) -> (ExitStatus, Vec<String>, Vec<String>) {
        (self.join(), self.stdout.all(), self.stderr.all())
    }

    /// The same; what it has said stays here.
    pub fn join(&mut self) -> ExitStatus {
        let deadline = Instant::now() + LIMIT;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("wait") {
                break status;
            }
            assert!(Instant::now() < deadline, "the daemon does not end: {:?}", self.stderr.all());
            thread::sleep(Duration::from_millis(2));
        };
        for reader in self.readers.drain(..) {
            reader.join().expect("reader");
        }
        status
    }

    /// Ends it by SIGTERM, in good order, or by SIGKILL.
    pub fn end(self, signal: Signal) {
        self.signal(signal);
        let (status, _, stderr) = self.wait();
        assert_eq!(status.success(), signal == Signal::SIGTERM, "{status:?} {stderr:?}");
    }

    /// What it says of its disk's state: that there is "none", or that it is "new" or "opened".
    pub fn origin(&self) -> String {
        let ready = self.stdout.wait_for("ready:", 0, LIMIT).expect("ready");
        let found = ready.split_whitespace().find_map(|word| word.strip_prefix("state="));
        found.unwrap_or_else(|| panic!("{ready}")).to_owned()
    }

    /// Ends it by SIGTERM.
    pub fn terminate(self) -> (ExitStatus, Vec<String>, Vec<String>) {
        self.signal(Signal::SIGTERM);
        self.wait()
    }

    /// The numbers of the line that SIGUSR1 asks for.
    pub fn stats(&mut self) -> HashMap<String, u64> {
        self.signal(Signal::SIGUSR1);
        let line = self.stdout.wait_for("stats:", self.stats_asked, LIMIT);
        let line = line.unwrap_or_else(|| panic!("no stats line: {:?}", self.stderr.all()));
        self.stats_asked += 1;
        figures(&line)
    }

    /// Waits for a line of the log that contains `text`. What a test has seen by other means may be in
    /// the log later than that, so this, or the whole log of a daemon that has ended, is what to check.
    pub fn wait_for_log(&self, text: &str) -> String {
        let line = self.stderr.wait_for_text(text, LIMIT);
        line.unwrap_or_else(|| panic!("no line with {text:?}: {:?}", self.stderr.all()))
    }

    /// Ends it by SIGTERM; gives all it has logged.
    pub fn log(self) -> Vec<String> {
        let (status, _, lines) = self.terminate();
        assert!(status.success(), "{status:?}: {lines:?}");
        lines
    }

    /// Number of descriptors the process has open.
    pub fn open_fds(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid())).expect("fds").count()
    }

    /// Names of its threads, as far as the kernel shows them.
    pub fn threads(&self) -> Vec<String> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid())).expect("tasks");
        let names =
            tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok());
        names.map(|name| name.trim_end().to_owned()).collect()
    }

    /// Roles of the threads that serve queues, sorted.
    pub fn queue_threads(&self) -> Vec<String> {
        let mut names = self.threads();
        // The disk's name follows.
        names.iter_mut().for_each(|name| name.truncate(name.find(' ').unwrap_or(name.len())));
        names.retain(|name| name.starts_with("queue-"));
        names.sort();
        names
    }

    /// A bare connection.
    pub fn stream(&self) -> UnixStream {
        vhost_user_zram_frontend::session::connect_socket(self.socket(), LIMIT).expect("connect")
    }

    /// A negotiated session without memory or rings.
    pub fn session(&self) -> Session {
        Session::connect(self.socket(), &session_options()).expect("session")
    }

    /// A client as `options` say.
    pub fn client_with(&self, options: &ClientOptions) -> Client {
        Client::connect(self.socket(), options).expect("client")
    }

    /// A client with one queue.
    pub fn client(&self) -> Client {
        self.client_with(&client_options())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Already ended is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("daemon said: {:#?}\n{:#?}", self.stdout.all(), self.stderr.all());
        }
    }
}

/// Runs a daemon that is to end by itself, to its end.
pub fn output(command: &mut Command) -> Output {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("daemon starts");
    let deadline = Instant::now() + LIMIT;
    while child.try_wait().expect("wait").is_none() {
        if Instant::now() > deadline {
            // Its end is what the test wants to see.
            let _ = child.kill();
            panic!("{command:?} was taken for good");
        }
        thread::sleep(Duration::from_millis(2));
    }
    child.wait_with_output().expect("output")
}

/// Runs a daemon that is to refuse to start; gives its exit code and all it said, which has to be one
/// line.
pub fn refusal(mut command: Command) -> (i32, String) {
    let output = output(&mut command);
    let stderr = String::from_utf8_lossy(&output.stderr).trim_end().to_owned();
    assert_eq!(stderr.lines().count(), 1, "{command:?}:\n{stderr}");
    assert!(output.stdout.is_empty(), "{command:?}: {:?}", String::from_utf8_lossy(&output.stdout));
    let code = output.status.code();
    (code.unwrap_or_else(|| panic!("{command:?}: {:?}\n{stderr}", output.status)), stderr)
}

/// Session options with the tests' limit.
pub fn session_options() -> Options {
    Options { timeout: LIMIT, ..Options::default() }
}

/// Client options with the tests' limit.
pub fn client_options() -> ClientOptions {
    ClientOptions { session: session_options(), ..ClientOptions::default() }
}
