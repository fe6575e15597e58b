//! The daemon and QEMU as child processes, which end with this one.

use std::{
    fs::{File, OpenOptions},
    path::Path,
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::common::Lines;

/// How long anything may take that a test waits for. Only a hang takes that long, and how long something
/// took is never judged.
pub const LIMIT: Duration = Duration::from_secs(600);
/// How often a wait checks whether what it waits for can still come.
pub const SLICE: Duration = Duration::from_millis(100);

/// A child with its output as lines, and in a log. It is killed when this is dropped.
pub struct Process {
    child: Child,
    readers: Vec<JoinHandle<()>>,
    pub stdin: Option<ChildStdin>,
    pub stdout: Lines,
    pub stderr: Lines,
}

impl Process {
    /// Starts `program` by way of setpriv, so that it dies with this process however that ends.
    pub fn start(command: &Command, log: &Path, stdin: Stdio) -> Result<Self> {
        let open = || OpenOptions::new().append(true).create(true).open(log);
        let log_file = |log: std::io::Result<File>| log.with_context(|| "a log".to_owned());
        let mut child = Command::new("setpriv");
        child.args(["--pdeathsig", "KILL"]).arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => child.env(name, value),
                None => child.env_remove(name),
            };
        }
        if let Some(dir) = command.get_current_dir() {
            child.current_dir(dir);
        }
        let mut child = child
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("setpriv cannot be started (package util-linux)")?;
        let stdin = child.stdin.take();
        let (out, err) = (child.stdout.take(), child.stderr.take());
        let (Some(out), Some(err)) = (out, err) else { bail!("a child without output") };
        let (stdout, out) = Lines::follow(out, Some(log_file(open())?));
        let (stderr, err) = Lines::follow(err, Some(log_file(open())?));
        Ok(Self { child, readers: vec![out, err], stdin, stdout, stderr })
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        // A child that was waited for has no number any more.
        if self.is_alive() {
            let pid = i32::try_from(self.id()).context("a process number")?;
            kill(Pid::from_raw(pid), signal).with_context(|| format!("{signal}"))?;
        }
        Ok(())
    }

    /// Waits for the end of the child and of all that it says.
    pub fn join(&mut self) -> Result<ExitStatus> {
        let deadline = Instant::now() + LIMIT;
        let status = loop {
            if let Some(status) = self.child.try_wait().context("wait")? {
                break status;
            }
            if Instant::now() > deadline {
                bail!("process {} does not end within {LIMIT:?}", self.id());
            }
            thread::sleep(Duration::from_millis(5));
        };
        self.stdin = None;
        for reader in self.readers.drain(..) {
            // A reader does not panic, and its lines are what they are.
            let _ = reader.join();
        }
        Ok(status)
    }

    /// Sends a signal and waits for the end.
    pub fn end(&mut self, signal: Signal) -> Result<ExitStatus> {
        self.signal(signal)?;
        self.join()
    }

    /// The last line that it said to stderr, or else to stdout.
    pub fn last_words(&self) -> String {
        let last = |lines: &Lines| lines.all().into_iter().rev().find(|line| !line.is_empty());
        last(&self.stderr).or_else(|| last(&self.stdout)).unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Already ended is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
