//! The socket: one daemon gets it, and only the users that are meant to may connect.

mod common;

use std::{
    fs,
    os::unix::{
        fs::{FileTypeExt, MetadataExt, PermissionsExt},
        net::UnixListener,
    },
    path::Path,
    process::{self, Command, Stdio},
};

use common::{
    daemon::{BINARY, Daemon, TempDir, refusal},
    disk::{expect_pattern, write_pattern},
    wait_until,
};
use nix::{
    sys::signal::Signal,
    unistd::{Gid, Group, Uid, User, getegid, geteuid},
};

fn command(socket: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(BINARY);
    command.arg("--socket-path").arg(socket).args(["--size", "1M"]).args(more);
    command
}

/// A daemon that is killed when it is dropped.
struct Child(process::Child);

impl Child {
    fn start(command: &mut Command) -> Self {
        let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Self(quiet.spawn().expect("daemon starts"))
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // Already ended is as good.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Permission bits, owner and group of a socket.
fn access(socket: &Path) -> (u32, u32, u32) {
    let meta = fs::symlink_metadata(socket).expect("a socket");
    assert!(meta.file_type().is_socket());
    (meta.permissions().mode() & 0o7777, meta.uid(), meta.gid())
}

/// Leaves a socket at which no process listens.
fn leave_stale(socket: &Path) {
    drop(UnixListener::bind(socket).expect("a stale socket"));
}

/// Of several daemons on one path that start at once, exactly one serves.
#[test]
fn of_daemons_that_start_at_once_one_gets_the_socket() {
    const DAEMONS: usize = 4;
    for round in 0..25 {
        let dir = TempDir::new();
        let socket = dir.join("socket");
        if round % 2 == 0 {
            leave_stale(&socket);
        }
        let start = |_| Child::start(&mut command(&socket, &[]));
        let mut daemons: Vec<Child> = (0..DAEMONS).map(start).collect();
        let mut ended = Vec::new();
        wait_until("all but one to end", || {
            daemons.retain_mut(|daemon| {
                let status = daemon.0.try_wait().expect("wait");
                ended.extend(status);
                status.is_none()
            });
            ended.len() >= DAEMONS - 1
        });
        assert!(ended.iter().all(|status| status.code() == Some(1)), "{ended:?}");
        let winner = daemons.pop().expect("one continues");
        let client =
            vhost_user_zram_frontend::Client::connect(&socket, &common::daemon::client_options());
        write_pattern(client.expect("a client").blk(), 0, 8, 1);
        drop(winner);
        // A lock that is left behind has to be of a process that was killed with it.
        assert!(!dir.join("socket.lock").exists());
    }
}

/// One is stopped where it has seen that the path is free, or that what is there is stale.
#[cfg(debug_assertions)]
#[test]
fn a_daemon_that_makes_its_socket_keeps_others_out() {
    for stale in [false, true] {
        let dir = TempDir::new();
        let socket = dir.join("socket");
        if stale {
            leave_stale(&socket);
        }
        let first = Child::start(command(&socket, &[]).env("VUZ_STALL_AT", "socket.checked"));
        let lock = dir.join("socket.lock");
        wait_until("the first daemon", || lock.exists());
        let (code, line) = refusal(command(&socket, &[]));
        assert_eq!(code, 1, "{line}");
        assert!(line.contains("another daemon") && line.contains("socket"), "{line}");
        assert_eq!(socket.exists(), stale);
        drop(first);
        // What it leaves keeps no daemon out.
        let daemon = Daemon::spawn(command(&socket, &[]), dir);
        write_pattern(daemon.client().blk(), 0, 8, 1);
        assert!(!lock.exists());
        let (status, _, stderr) = daemon.terminate();
        assert!(status.success(), "{stderr:?}");
        assert!(!socket.exists());
    }
}

/// Of what cannot be had, the lock is named, not the socket that is beside it.
#[test]
fn a_lock_that_cannot_be_had_is_named() {
    let dir = TempDir::new();
    let (socket, lock) = (dir.join("socket"), dir.join("socket.lock"));
    std::os::unix::fs::symlink(dir.join("elsewhere"), &lock).expect("a link");
    let (code, line) = refusal(command(&socket, &[]));
    assert_eq!(code, 1, "{line}");
    assert!(line.contains(&format!("the lock {}", lock.display())), "{line}");
    // It is another user's.
    assert!(lock.is_symlink() && !dir.join("elsewhere").exists() && !socket.exists());
}

#[test]
fn the_holder_of_the_socket_is_named() {
    let daemon = Daemon::start("1M", &[]);
    let (code, line) = refusal(command(&daemon.socket(), &[]));
    assert_eq!(code, 1, "{line}");
    assert!(line.contains(&format!("process {}", daemon.pid())), "{line}");
}

#[test]
fn the_socket_has_the_permissions_that_were_asked_for() {
    let own = getegid().as_raw();
    let name = Group::from_gid(Gid::from_raw(own)).unwrap().map_or(own.to_string(), |g| g.name);
    let number = own.to_string();
    let cases: [(&[&str], u32); 6] = [
        (&[], 0o600),
        (&["--socket-mode", "666"], 0o666),
        (&["--socket-mode", "0060"], 0o060),
        (&["--socket-group", &name], 0o660),
        (&["--socket-group", &number], 0o660),
        (&["--socket-group", &number, "--socket-mode", "620"], 0o620),
    ];
    for (args, mode) in cases {
        for umask in ["000", "077", "777"] {
            let dir = TempDir::new();
            let mut command = Command::new("sh");
            command.args(["-c", &format!("umask {umask}; exec \"$@\""), "sh", BINARY]);
            command.arg("--socket-path").arg(dir.join("socket")).args(["--size", "1M"]).args(args);
            let daemon = Daemon::spawn(command, dir);
            let socket = daemon.socket();
            assert_eq!(access(&socket), (mode, geteuid().as_raw(), own), "{args:?} {umask}");
        }
    }
}

#[test]
fn the_socket_may_belong_to_others() {
    if !geteuid().is_root() {
        eprintln!("only root gives files away: skipped");
        return;
    }
    let nobody = User::from_name("nobody").unwrap().expect("a user nobody");
    let daemon = Daemon::start("1M", &["--socket-owner", "nobody", "--socket-group", "54321"]);
    assert_eq!(access(&daemon.socket()), (0o660, nobody.uid.as_raw(), 54321));
    write_pattern(daemon.client().blk(), 0, 8, 1);
    expect_pattern(daemon.client().blk(), 0, 8, 1);
    let socket = daemon.socket();
    daemon.end(Signal::SIGTERM);
    assert!(!socket.exists());
}

#[test]
fn a_socket_that_cannot_be_given_away_is_one_line_and_none() {
    let dir = TempDir::new();
    let socket = dir.join("socket");
    for (args, word) in [
        (["--socket-owner", "no such user"], "no such user"),
        (["--socket-group", "no such group"], "no such group"),
    ] {
        let (code, line) = refusal(command(&socket, &args));
        assert_eq!(code, 1, "{line}");
        assert!(line.contains(word), "{line}");
    }
    for args in [["--socket-mode", "888"], ["--socket-mode", "1777"], ["--socket-mode", "rw"]] {
        let (code, line) = refusal(command(&socket, &args));
        assert_eq!(code, 2, "{line}");
        assert!(line.contains("--socket-mode"), "{line}");
    }
    let (code, line) = refusal({
        let mut command = Command::new(BINARY);
        command.args(["--fd", "0", "--size", "1M", "--socket-mode", "600"]);
        command
    });
    assert_eq!(code, 2, "{line}");
    if Uid::effective().is_root() {
        // What root may not do either.
        let (code, line) = refusal(command(&socket, &["--socket-owner", "4294967295x"]));
        assert_eq!(code, 1, "{line}");
    } else {
        let (code, line) = refusal(command(&socket, &["--socket-owner", "0"]));
        assert_eq!(code, 1, "{line}");
        assert!(line.contains("user 0"), "{line}");
    }
    assert!(!socket.exists() && !dir.join("socket.lock").exists());
}

/// Between its making and its group, it has neither the group's permissions nor those of others.
#[cfg(debug_assertions)]
#[test]
fn the_socket_has_at_no_time_more_permissions() {
    for (mode, at_first) in [("666", 0o600), ("060", 0), ("400", 0o400)] {
        let dir = TempDir::new();
        let socket = dir.join("socket");
        let args = ["--socket-mode", mode, "--socket-group", &getegid().to_string()];
        let child = Child::start(command(&socket, &args).env("VUZ_STALL_AT", "socket.bound"));
        wait_until("the socket", || socket.exists());
        let (found, ..) = access(&socket);
        drop(child);
        assert_eq!(found, at_first, "{mode}");
    }
}
