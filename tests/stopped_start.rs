//! SIGTERM while the daemon starts: it ends at once and well, whatever it waits for, and leaves what a
//! daemon leaves that ends later. Of debug builds, which can be held at a step.
#![cfg(debug_assertions)]

mod common;

use std::{fs::File, io::ErrorKind, os::unix::net::UnixDatagram, path::Path, process::Command};

use common::{
    daemon::{BINARY, Daemon, TempDir, refusal},
    disk::{expect_pattern, expect_served, mark, write_pattern},
    held::{Ended, Held},
    manager::{Manager, NAME},
};
use nix::{
    fcntl::{Flock, FlockArg},
    sys::signal::Signal,
};

/// A daemon with a state in memory.
fn command(socket: &Path, state: Option<&Path>, more: &[&str]) -> Command {
    let mut command = Command::new(BINARY);
    command.arg("--socket-path").arg(socket).args(["--size", "16M"]).args(more);
    state.map(|state| command.arg("--state-dir").arg(state));
    command
}

/// Has a daemon stopped at `step`; it ends before it is ready.
fn stop(command: Command, step: &str) -> Ended {
    let ended = Held::start(command, step).stop();
    ended.expect_unready();
    ended
}

/// Insists that neither a socket nor its lock is there.
fn expect_no_socket(dir: &TempDir) {
    assert!(!dir.join("socket").exists() && !dir.join("socket.lock").exists());
}

#[test]
fn the_wait_for_the_socket_of_a_daemon_that_ends() {
    let mut daemon = Daemon::start("16M", &[]);
    mark(&daemon);
    let home = TempDir::in_memory();
    let state = home.join("disk");
    let ended = stop(command(&daemon.socket(), Some(&state), &["--create"]), "wait.socket");
    // There was no disk yet.
    assert_eq!((ended.stdout.as_str(), state.exists()), ("", false));
    expect_served(&mut daemon);
    assert!(daemon.socket().exists() && !daemon.dir.join("socket.lock").exists());
    daemon.end(Signal::SIGTERM);
}

#[test]
fn the_wait_for_a_state_that_is_in_use() {
    let (home, dir) = (TempDir::in_memory(), TempDir::new());
    let state = home.join("disk");
    let start = || command(&dir.join("socket"), Some(&state), &["--create"]);
    let mut daemon = Daemon::spawn(start(), TempDir::new());
    let other = TempDir::new();
    let ended = stop(command(&other.join("socket"), Some(&state), &["--create"]), "wait.state");
    assert_eq!(ended.stdout, "");
    expect_no_socket(&other);
    assert!(daemon.is_alive());
    daemon.end(Signal::SIGTERM);
    assert_eq!(Daemon::spawn(start(), TempDir::new()).origin(), "opened");
}

#[test]
fn the_wait_for_handed_descriptors_that_are_in_use() {
    let (manager, dir, other) = (Manager::new(3), TempDir::new(), TempDir::new());
    let first = manager.command(&dir, Vec::new(), &["--create"]);
    let mut daemon = Daemon::spawn(first, dir);
    mark(&daemon);
    stop(manager.command(&other, manager.held(), &["--create"]), "wait.state");
    expect_no_socket(&other);
    expect_served(&mut daemon);
    assert_eq!(manager.names(), [NAME; 3]);
    daemon.end(Signal::SIGTERM);
}

#[test]
fn the_wait_for_a_daemon_that_makes_the_same_socket() {
    let dir = TempDir::new();
    let lock = File::create(dir.join("socket.lock")).unwrap();
    let lock = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, errno)| errno).unwrap();
    stop(command(&dir.join("socket"), None, &[]), "wait.turn");
    // It is the other one's.
    assert!(!dir.join("socket").exists() && dir.join("socket.lock").exists());
    drop(lock);
    Daemon::spawn(command(&dir.join("socket"), None, &[]), dir).end(Signal::SIGTERM);
}

/// What was made counts as made only when it can be used.
#[test]
fn the_making_of_a_state() {
    let (home, dir) = (TempDir::in_memory(), TempDir::new());
    let (socket, state) = (dir.join("socket"), home.join("disk"));
    let ended = stop(command(&socket, Some(&state), &["--create"]), "create.sealed");
    assert!(ended.stdout.starts_with("summary: "), "{}", ended.stdout);
    expect_no_socket(&dir);
    let (code, line) = refusal(command(&socket, Some(&state), &[]));
    assert!(code == 1 && line.contains("never finished"), "{line}");
    let daemon = Daemon::spawn(command(&socket, Some(&state), &["--create"]), dir);
    assert_eq!(daemon.origin(), "new");
    daemon.end(Signal::SIGTERM);
}

#[test]
fn the_scan_of_a_state_and_the_making_of_the_socket() {
    let (home, dir) = (TempDir::in_memory(), TempDir::new());
    let (socket, state) = (dir.join("socket"), home.join("disk"));
    let start = |dir| Daemon::spawn(command(&socket, Some(&state), &["--create"]), dir);
    let first = start(TempDir::new());
    let client = |socket: &Path| {
        let options = common::daemon::client_options();
        vhost_user_zram_frontend::Client::connect(socket, &options).expect("client")
    };
    write_pattern(client(&socket).blk(), 0, 100, 1);
    first.end(Signal::SIGKILL);
    for step in ["open.counted", "socket.checked", "socket.bound"] {
        let ended = stop(command(&socket, Some(&state), &[]), step);
        assert!(ended.stdout.contains("summary: orig_data_size=53248 "), "{}", ended.stdout);
        // The first one leaves what the killed daemon left.
        assert_eq!(socket.exists(), step == "open.counted", "{step}");
        assert!(!dir.join("socket.lock").exists());
        let daemon = start(TempDir::new());
        assert_eq!(daemon.origin(), "opened");
        expect_pattern(client(&socket).blk(), 0, 100, 1);
        daemon.end(Signal::SIGKILL);
    }
}

#[test]
fn the_wait_for_the_managers_answer() {
    let manager = Manager::new(3);
    let store = format!("FDSTORE=1 FDNAME={NAME}");
    let remove = format!("FDSTOREREMOVE=1 FDNAME={NAME}");
    let dir = TempDir::new();
    manager.inner().deaf = true;
    stop(manager.command(&dir, Vec::new(), &["--create"]), "wait.manager.barrier");
    // It is to hold nothing, or what it holds would be a state that was never finished.
    manager.wait_for(&remove, 1);
    assert_eq!(manager.inner().heard, [&store, "BARRIER=1", "STOPPING=1", &remove]);
    // One that was never finished is to be forgotten.
    let manager = Manager::new(3);
    drop(Held::start(manager.command(&dir, Vec::new(), &["--create"]), "create.filled"));
    assert_eq!(manager.names(), [NAME; 3]);
    manager.inner().deaf = true;
    let before = manager.inner().heard.len();
    stop(manager.command(&dir, manager.held(), &["--create"]), "wait.manager.barrier");
    manager.wait_for("STOPPING=1", 1);
    assert_eq!(manager.inner().heard[before..], [&remove, "BARRIER=1", "STOPPING=1"]);
    expect_no_socket(&dir);
}

/// A manager that reads nothing, and has no room for another message.
struct Full {
    dir: TempDir,
    _socket: UnixDatagram,
}

impl Full {
    fn new() -> Self {
        let dir = TempDir::new();
        let socket = UnixDatagram::bind(dir.join("notify")).unwrap();
        // Each sender has room of its own, beside that of the receiver.
        loop {
            let sender = UnixDatagram::unbound().unwrap();
            sender.connect(dir.join("notify")).unwrap();
            sender.set_nonblocking(true).unwrap();
            let mut sent = 0;
            let full = loop {
                match sender.send(b"x") {
                    Ok(_) => sent += 1,
                    Err(error) => break error,
                }
            };
            assert_eq!(full.kind(), ErrorKind::WouldBlock);
            if sent == 0 {
                return Self { dir, _socket: socket };
            }
        }
    }

    fn command(&self, mut command: Command) -> Command {
        command.env("NOTIFY_SOCKET", self.dir.join("notify"));
        command
    }
}

#[test]
fn the_wait_for_room_in_the_managers_queue() {
    let (full, dir) = (Full::new(), TempDir::new());
    let args = ["--fd-store", "--create"];
    stop(full.command(command(&dir.join("socket"), None, &args)), "wait.manager.room");
    expect_no_socket(&dir);
    // The last wait of a start is that for being ready.
    let ready = full.command(command(&dir.join("socket"), None, &["--log-level", "debug"]));
    let Ended { status, stdout, stderr } = Held::start(ready, "wait.manager.room").stop();
    assert!(status.success() && stdout.contains("ready:"), "{stdout} {stderr}");
    let told = "cannot notify the service manager: the daemon is to end";
    assert!(stderr.contains(told), "{stderr}");
    expect_no_socket(&dir);
}

/// Only the end interrupts a start: what else is asked for is done when there is a disk.
#[test]
fn statistics_are_given_as_soon_as_there_is_a_disk() {
    let (home, dir) = (TempDir::in_memory(), TempDir::new());
    let state = home.join("disk");
    let start = command(&dir.join("socket"), Some(&state), &["--create"]);
    let held = Held::start(start, "create.sealed");
    held.signal(Signal::SIGUSR1);
    held.release();
    held.wait_for("stats: ");
    held.wait_for("ready: ");
    held.signal(Signal::SIGTERM);
    assert!(held.wait().status.success());
}
