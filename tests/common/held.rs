//! A daemon that is held at a step of its start, and told to end there. Of debug builds, which have
//! failpoints.
#![cfg(debug_assertions)]

use std::{
    collections::HashMap,
    fs::{self, File},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{daemon::TempDir, wait_until};

/// A daemon at a step of its start. Killed when dropped.
pub struct Held {
    child: Child,
    dir: TempDir,
}

/// What a daemon left to say when it ended.
pub struct Ended {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Held {
    /// Starts `command`, and returns when the daemon reached `step` for the first time.
    pub fn start(mut command: Command, step: &str) -> Self {
        let dir = TempDir::new();
        let file = |name| File::create(dir.join(name)).expect("file");
        command.stdin(Stdio::null()).stdout(file("stdout")).stderr(file("stderr"));
        command.env("VUZ_HOLD_AT", step).env("VUZ_HOLD_FILE", dir.join("held"));
        let child = command.spawn().expect("daemon starts");
        let mut held = Self { child, dir };
        wait_until(step, || {
            let ended = held.child.try_wait().expect("wait");
            assert!(ended.is_none(), "{step}: {ended:?} {}", held.said("stderr"));
            held.file().exists()
        });
        held
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).expect("signal");
    }

    /// Lets it continue.
    pub fn release(&self) {
        fs::remove_file(self.file()).expect("it is held");
    }

    /// Waits until it has said `text` on stdout.
    pub fn wait_for(&self, text: &str) {
        wait_until(text, || self.said("stdout").contains(text));
    }

    /// Tells it to end, and lets it continue when it knows.
    pub fn stop(self) -> Ended {
        let before = self.events();
        self.signal(Signal::SIGTERM);
        // It is known to all that waits by an eventfd, whose count the kernel shows.
        wait_until("the signal", || self.events() != before);
        self.release();
        self.wait()
    }

    /// Waits for its end.
    pub fn wait(mut self) -> Ended {
        wait_until("the daemon's end", || self.child.try_wait().expect("wait").is_some());
        let status = self.child.wait().expect("wait");
        Ended { status, stdout: self.said("stdout"), stderr: self.said("stderr") }
    }

    fn file(&self) -> PathBuf {
        self.dir.join("held")
    }

    fn said(&self, stream: &str) -> String {
        fs::read_to_string(self.dir.join(stream)).expect("file")
    }

    /// Counts of its eventfds.
    fn events(&self) -> HashMap<PathBuf, String> {
        let dir = fs::read_dir(format!("/proc/{}/fdinfo", self.child.id())).expect("fdinfo");
        let count = |path: PathBuf| {
            let text = fs::read_to_string(&path).ok()?;
            let count = text.lines().find_map(|line| line.strip_prefix("eventfd-count:"))?;
            Some((path, count.trim().to_owned()))
        };
        dir.filter_map(|entry| count(entry.ok()?.path())).collect()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // Already ended is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Ended {
    /// Insists that it ended well before front ends could come.
    pub fn expect_unready(&self) {
        let Self { status, stdout, stderr } = self;
        assert_eq!(status.code(), Some(0), "{stdout} {stderr}");
        assert!(!stdout.contains("ready:"), "{stdout}");
        assert!(!stderr.contains("error"), "{stderr}");
    }
}
