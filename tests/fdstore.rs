//! A disk that outlives its daemon in descriptors that a service manager holds.

mod common;

use std::{
    fs,
    io::{Read, Seek},
    os::{fd::OwnedFd, unix::net::UnixListener},
    process::Command,
};

#[cfg(debug_assertions)]
use common::loading::Loading;
use common::{
    daemon::{BINARY, Daemon, TempDir, client_options, refusal},
    disk::{expect_pattern, expect_served, expect_zeroes, mark, pattern, write_pattern},
    manager::{Manager, NAME, some_file},
};
use nix::sys::{signal::Signal, stat::fstat};
use vhost_user_zram_frontend::Client;

/// What holds a state: three descriptors of one name.
const STATE: [&str; 3] = [NAME; 3];

impl Manager {
    /// Starts a daemon with all that is held.
    fn start(&self, args: &[&str]) -> Daemon {
        self.start_with(self.held(), args)
    }

    fn start_with(&self, fds: Vec<(String, OwnedFd)>, args: &[&str]) -> Daemon {
        let dir = TempDir::new();
        Daemon::spawn(self.command(&dir, fds, args), dir)
    }

    /// Insists that a daemon with these descriptors says one line with these words, and fails.
    fn refuses(&self, fds: Vec<(String, OwnedFd)>, args: &[&str], words: &[&str]) {
        let dir = TempDir::new();
        refuses(self.command(&dir, fds, args), words);
        assert!(!dir.join("socket").exists());
    }
}

fn refuses(command: Command, words: &[&str]) {
    let (code, line) = refusal(command);
    assert_eq!(code, 1, "{line}");
    assert!(line.starts_with("error: "), "{line}");
    assert!(words.iter().all(|word| line.contains(word)), "{line}");
}

#[test]
fn a_disk_outlives_its_daemon_in_the_managers_hands() {
    let manager = Manager::new(8);
    let daemon = manager.start(&["--create"]);
    assert_eq!(daemon.origin(), "new");
    assert_eq!(manager.names(), STATE);
    manager.wait_for("READY=1", 1);
    // It is held before any process is told that the disk can be used.
    let store = format!("FDSTORE=1 FDNAME={NAME}");
    assert_eq!(manager.inner().heard, [&store, "BARRIER=1", "READY=1"]);
    write_pattern(daemon.client().blk(), 0, 1000, 0);
    daemon.end(Signal::SIGKILL);
    let orders = [[2, 1, 0], [1, 2, 0], [0, 1, 2], [2, 0, 1]];
    let signals = [Signal::SIGTERM, Signal::SIGKILL, Signal::SIGTERM, Signal::SIGKILL];
    for (generation, (order, signal)) in (1..).zip(orders.into_iter().zip(signals)) {
        let held = manager.held();
        let handed = order.map(|at: usize| (NAME.into(), held[at].1.try_clone().unwrap()));
        drop(held);
        // A unit's command line is the same ever after.
        let mut daemon = manager.start_with(handed.into(), &["--create"]);
        assert_eq!(daemon.origin(), "opened");
        expect_pattern(daemon.client().blk(), 0, 1000, generation - 1);
        write_pattern(daemon.client().blk(), 0, 1000, generation);
        let stats = daemon.stats();
        assert_eq!(stats["orig_data_size"], 125 * 4096);
        assert!(stats["state_bytes"] > 0);
        manager.wait_for("READY=1", generation as usize + 1);
        daemon.end(signal);
    }
    manager.wait_for("STOPPING=1", 2);
    // It has them already: they are sent once.
    assert_eq!(manager.names(), STATE);
    assert_eq!(manager.inner().heard.iter().filter(|heard| **heard == store).count(), 1);
}

#[test]
fn two_daemons_cannot_have_one_set_of_descriptors() {
    let manager = Manager::new(3);
    let mut first = manager.start(&["--create"]);
    mark(&first);
    for args in [&[][..], &["--create"]] {
        manager.refuses(manager.held(), args, &["in use"]);
        expect_served(&mut first);
    }
    first.end(Signal::SIGKILL);
    expect_served(&mut manager.start(&[]));
}

#[test]
fn nothing_is_made_unless_it_is_asked_for_and_a_manager_holds_it() {
    let manager = Manager::new(3);
    manager.refuses(Vec::new(), &[], &["no state", "--create"]);
    assert!(manager.inner().heard.is_empty());
    let dir = TempDir::new();
    let mut command = manager.command(&dir, Vec::new(), &["--create"]);
    command.env_remove("NOTIFY_SOCKET");
    refuses(command, &["NOTIFY_SOCKET"]);
    let mut command = manager.command(&dir, Vec::new(), &["--create"]);
    command.env("NOTIFY_SOCKET", dir.join("nobody"));
    refuses(command, &["cannot send", "NOTIFY_SOCKET"]);
    // It says that it holds two at most.
    let few = Manager::new(2);
    few.refuses(Vec::new(), &["--create"], &["2 descriptors", "3", "FileDescriptorStoreMax="]);
    assert!(few.inner().heard.is_empty());
}

/// A manager that holds nothing for a service says nothing of it: it has to be found out.
#[test]
fn a_manager_that_gives_descriptors_up_is_found_out() {
    for most in 0..3 {
        let manager = Manager::new(most);
        let dir = TempDir::new();
        let mut command = manager.command(&dir, Vec::new(), &["--create"]);
        command.env_remove("FDSTORE");
        refuses(command, &["does not store", "FileDescriptorStoreMax="]);
        // Nor is a part of it left there, which would be a lost state to the next daemon.
        assert!(manager.names().is_empty(), "{:?}", manager.names());
        manager.inner().most = 3;
        assert_eq!(manager.start(&["--create"]).origin(), "new");
    }
    // Others have some, too.
    let manager = Manager::new(4);
    let dir = TempDir::new();
    let strange = || ("strange".to_owned(), OwnedFd::from(some_file(&dir, b"strange")));
    manager.inner().held.extend([strange(), strange()]);
    manager.refuses(manager.held(), &["--create"], &["does not store"]);
    assert_eq!(manager.names(), ["strange"; 2]);
}

#[test]
fn the_wait_for_a_manager_that_does_not_answer_ends() {
    let manager = Manager::new(3);
    manager.inner().deaf = true;
    manager.refuses(Vec::new(), &["--create"], &["does not answer"]);
}

#[test]
fn descriptors_that_are_no_whole_state_are_refused() {
    let manager = Manager::new(8);
    manager.start(&["--create"]).end(Signal::SIGTERM);
    for missing in 0..3 {
        let mut held = manager.held();
        held.remove(missing);
        for args in [&[][..], &["--create"]] {
            let copies = held.iter().map(|(n, fd)| (n.clone(), fd.try_clone().unwrap())).collect();
            manager.refuses(copies, args, &["lost"]);
        }
    }
    // Of two disks at once.
    let other = Manager::new(3);
    other.start(&["--create"]).end(Signal::SIGTERM);
    let both = manager.held().into_iter().chain(other.held()).collect();
    manager.refuses(both, &["--create"], &["damaged"]);
    let mut mixed = manager.held();
    mixed[1] = other.held().remove(1);
    manager.refuses(mixed, &["--create"], &["another disk"]);
    // No state at all; and no file.
    let dir = TempDir::new();
    let strange = vec![(NAME.into(), some_file(&dir, b"nothing").into())];
    manager.refuses(strange, &["--create"], &["damaged"]);
    let socket = UnixListener::bind(dir.join("listener")).unwrap();
    manager.refuses(vec![(NAME.into(), socket.into())], &["--create"], &["is not a file"]);
    // Of a smaller size.
    manager.refuses(
        manager.held(),
        &["--size", "8M", "--create"],
        &["16777216", "8388608", "shrink"],
    );
    // Another codec is for new pages.
    assert_eq!(manager.start(&["--algorithm", "zstd"]).origin(), "opened");
}

/// A disk may be among what was handed to another process.
#[test]
fn descriptors_for_another_process_are_not_taken_for_none() {
    let manager = Manager::new(8);
    let daemon = manager.start(&["--create"]);
    write_pattern(daemon.client().blk(), 0, 8, 1);
    daemon.end(Signal::SIGTERM);
    for pid in ["1", "", "none"] {
        let dir = TempDir::new();
        let named = manager.command(&dir, manager.held(), &["--create"]);
        // The same without the shell, which would put its own number there.
        let mut command = Command::new(BINARY);
        command.args(named.get_args().skip(4));
        for (name, value) in named.get_envs() {
            command.env(name, value.expect("a value"));
        }
        command.env("LISTEN_PID", pid);
        refuses(command, &["another process", "LISTEN_PID"]);
    }
    assert_eq!(manager.names(), STATE);
    expect_pattern(manager.start(&[]).client().blk(), 0, 8, 1);
}

#[test]
fn descriptors_of_other_names_are_left_alone() {
    let manager = Manager::new(8);
    let dir = TempDir::new();
    // A file; a state of another disk; and the socket that front ends come to.
    let mut file = some_file(&dir, b"not ours");
    let other = Manager::new(3);
    let daemon = other.start(&["--create"]);
    write_pattern(daemon.client().blk(), 0, 8, 7);
    daemon.end(Signal::SIGTERM);
    let listener = UnixListener::bind(dir.join("listener")).unwrap();
    for round in 0..3_u64 {
        let mut fds: Vec<(String, OwnedFd)> = vec![
            ("strange".into(), file.try_clone().unwrap().into()),
            ("disk.socket".into(), listener.try_clone().unwrap().into()),
        ];
        fds.extend(other.held().into_iter().map(|(_, fd)| ("other-disk".to_owned(), fd)));
        for (at, held) in manager.held().into_iter().enumerate() {
            fds.insert(at * 2, held);
        }
        // Which number it has depends on what is before it.
        let number = 3 + fds.iter().position(|(name, _)| name == "disk.socket").unwrap();
        let daemon = manager.start_with(fds, &["--create", "--fd", &number.to_string()]);
        assert_eq!(daemon.origin(), if round == 0 { "new" } else { "opened" });
        let mut client = Client::connect(dir.join("listener"), &client_options()).unwrap();
        if round == 0 {
            expect_zeroes(client.blk(), 0, 8);
        } else {
            expect_pattern(client.blk(), 0, 8, round - 1);
        }
        write_pattern(client.blk(), 0, 8, round);
        drop(client);
        daemon.end(if round == 1 { Signal::SIGTERM } else { Signal::SIGKILL });
        assert_eq!(manager.names(), STATE);
    }
    let mut contents = String::new();
    file.rewind().unwrap();
    file.read_to_string(&mut contents).unwrap();
    assert_eq!(contents, "not ours");
    expect_pattern(other.start(&[]).client().blk(), 0, 8, 7);
}

#[cfg(debug_assertions)]
#[test]
fn a_state_that_was_never_finished_is_forgotten_and_made_anew() {
    let manager = Manager::new(3);
    let dir = TempDir::new();
    let image = dir.join("image");
    let load = ["--create", "--load", image.to_str().unwrap()];
    // The arena is the one that grows.
    let held = || manager.held().iter().map(|(_, fd)| fstat(fd).unwrap().st_blocks).max();
    let blocks = || held().map_or(0, |blocks| blocks as u64);
    let mut loading = Loading::start(manager.command(&dir, Vec::new(), &load), &image, blocks);
    loading.0.kill().unwrap();
    loading.0.wait().unwrap();
    assert_eq!(manager.names(), STATE);
    let first = manager.held();
    manager.refuses(manager.held(), &[], &["never finished", "--create"]);

    fs::write(&image, pattern(0, 100, 2)).unwrap();
    let daemon = manager.start(&load);
    assert_eq!(daemon.origin(), "new");
    expect_pattern(daemon.client().blk(), 0, 100, 2);
    expect_zeroes(daemon.client().blk(), 100, 8000);
    manager.wait_for("READY=1", 1);
    let remove = format!("FDSTOREREMOVE=1 FDNAME={NAME}");
    let store = format!("FDSTORE=1 FDNAME={NAME}");
    let heard = manager.inner().heard.clone();
    let expected = [&store, "BARRIER=1", &remove, "BARRIER=1", &store, "BARRIER=1", "READY=1"];
    assert_eq!(heard, expected);
    daemon.end(Signal::SIGKILL);
    // Three of the new one, none of the old.
    assert_eq!(manager.names(), STATE);
    let inode = |fd: &OwnedFd| fstat(fd).unwrap().st_ino;
    for (_, fd) in manager.held() {
        assert!(first.iter().all(|(_, old)| inode(old) != inode(&fd)));
    }
    drop(first);
    let daemon = manager.start(&["--create"]);
    assert_eq!(daemon.origin(), "opened");
    expect_pattern(daemon.client().blk(), 0, 100, 2);
}

/// A manager of another kind: it hands descriptors back and does not want to hear anything.
#[test]
fn a_state_that_is_handed_back_needs_no_socket() {
    let manager = Manager::new(3);
    let daemon = manager.start(&["--create"]);
    write_pattern(daemon.client().blk(), 0, 100, 1);
    daemon.end(Signal::SIGKILL);
    let dir = TempDir::new();
    let mut command = manager.command(&dir, manager.held(), &[]);
    command.env_remove("NOTIFY_SOCKET");
    let daemon = Daemon::spawn(command, dir);
    assert_eq!(daemon.origin(), "opened");
    expect_pattern(daemon.client().blk(), 0, 100, 1);
}

/// A daemon that keeps nothing tells a manager nonetheless when it is ready.
#[test]
fn readiness_is_told_without_a_state_too() {
    let manager = Manager::new(0);
    let dir = TempDir::new();
    let mut command = Command::new(BINARY);
    command.arg("--socket-path").arg(dir.join("socket")).args(["--size", "16M"]);
    command.env("NOTIFY_SOCKET", manager.socket());
    let daemon = Daemon::spawn(command, dir);
    manager.wait_for("READY=1", 1);
    daemon.end(Signal::SIGTERM);
    manager.wait_for("STOPPING=1", 1);
}
