//! Hosts that are short of descriptors, threads or memory that may be locked: one line, and never a
//! death without a word.

mod common;

use std::{
    fs,
    io::Read,
    os::unix::{fs::PermissionsExt, net::UnixStream, process::CommandExt},
    process::{Command, Stdio},
};

use common::{
    LIMIT,
    daemon::{BINARY, Daemon, TempDir, client_options, refusal},
    disk::{SECTOR_LEN, expect_pattern, pattern},
    wait_until,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, geteuid},
};
use vhost_user_zram_frontend::{Client, ClientOptions};

/// A command that runs the daemon with a limit, as prlimit(1) says it.
fn limited(limit: &str, binary: &str, dir: &TempDir, more: &[&str]) -> Command {
    let mut command = Command::new("prlimit");
    command.args([limit, binary, "--size", "1M"]);
    command.arg("--socket-path").arg(dir.join("socket")).args(more);
    command
}

/// Soft and hard limit of open files of a process.
fn open_files(pid: u32) -> (String, String) {
    let text = fs::read_to_string(format!("/proc/{pid}/limits")).expect("limits");
    let line = text.lines().find(|line| line.starts_with("Max open files")).expect("open files");
    let mut words = line.split_whitespace().skip(3).map(str::to_owned);
    (words.next().expect("soft"), words.next().expect("hard"))
}

#[test]
fn the_soft_limit_of_open_files_is_raised_to_the_hard_one() {
    let dir = TempDir::new();
    let daemon = Daemon::spawn(limited("--nofile=64:500", BINARY, &dir, &[]), TempDir::new());
    assert_eq!(open_files(daemon.pid()), ("500".into(), "500".into()));
    assert!(!daemon.stderr.all().iter().any(|line| line.contains("RLIMIT_NOFILE")));
}

/// The number that is said suffices for a front end with all queues; one less is said to be too few.
#[test]
fn the_number_of_descriptors_that_is_said_is_enough() {
    const QUEUES: usize = 32;
    let args = ["--num-queues", &QUEUES.to_string(), "--queue-threads", "8"];
    let start = |most: u64| {
        let dir = TempDir::new();
        let command = limited(&format!("--nofile={most}"), BINARY, &dir, &args);
        Daemon::spawn(command, dir)
    };
    let said = |daemon: &Daemon| {
        let lines = daemon.stderr.all();
        let line = lines.into_iter().find(|line| line.contains("RLIMIT_NOFILE"))?;
        let mut words = line.split_whitespace();
        words.find(|word| *word == "and").and_then(|_| words.next())?.parse::<u64>().ok()
    };
    let needed = {
        let daemon = start(50);
        daemon.stderr.wait_for("[", 0, LIMIT).expect("a line");
        said(&daemon).expect("the number that is needed")
    };
    let daemon = start(needed);
    let options = ClientOptions { queues: QUEUES, ..client_options() };
    let mut client = daemon.client_with(&options);
    for queue in 0..QUEUES {
        let sector = queue as u64 * 8;
        client.queues[queue].write(sector, &pattern(sector, 4096 / SECTOR_LEN, 1)).expect("write");
    }
    assert_eq!(said(&daemon), None);
    assert!(daemon.open_fds() as u64 <= needed, "{} of {needed}", daemon.open_fds());
    drop((client, daemon));
    let daemon = start(needed - 1);
    let (_, _, stderr) = daemon.terminate();
    assert!(stderr.iter().any(|line| line.contains(&format!(" {needed} "))), "{stderr:?}");
}

#[test]
fn without_descriptors_there_is_a_line_and_no_daemon() {
    for most in 4..8 {
        let dir = TempDir::new();
        // The log may have more to say than the error.
        let args = ["--log-level", "off"];
        let (code, line) = refusal(limited(&format!("--nofile={most}"), BINARY, &dir, &args));
        // The dynamic loader's code, if there is not even one for the C library.
        assert!(code == 1 || code == 127, "{most}: {code} {line}");
        assert!(code == 127 || line.contains("Too many open files"), "{most}: {line}");
    }
}

/// The kernel counts address space, so a small disk needs a large limit.
#[test]
fn memory_that_may_not_be_locked_is_a_line_with_the_limit_and_the_remedy() {
    let dir = TempDir::new();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let binary = dir.join("daemon");
    fs::copy(BINARY, &binary).unwrap();
    let binary = binary.to_str().unwrap();
    let mut command = limited("--memlock=4194304", binary, &dir, &["--mlock"]);
    if geteuid().is_root() {
        // Root may lock what it likes.
        command.uid(2_000_000_012);
    }
    let (code, line) = refusal(command);
    assert_eq!(code, 1, "{line}");
    for word in ["RLIMIT_MEMLOCK is 4194304 bytes", "ulimit -l", "LimitMEMLOCK=infinity"] {
        assert!(line.contains(word), "{line}");
    }
}

#[test]
fn a_host_that_does_not_say_what_memory_it_has_is_told_of() {
    let is_told = |daemon: Daemon| {
        let (status, _, stderr) = daemon.terminate();
        assert!(status.success(), "{stderr:?}");
        stderr.iter().filter(|line| line.contains("--host-reserve")).count()
    };
    assert_eq!(is_told(Daemon::start("1M", &[])), 0);
    let may_hide = Command::new("unshare").args(["--mount", "true"]).output();
    if !may_hide.is_ok_and(|output| output.status.success()) {
        eprintln!("/proc cannot be hidden here: skipped");
        return;
    }
    for (more, lines) in
        [(&[][..], 1), (&["--host-reserve", "1M"], 1), (&["--host-reserve", "0"], 0)]
    {
        let dir = TempDir::new();
        let mut command = Command::new("unshare");
        let script = "mount -t tmpfs none /proc && exec \"$@\"";
        command.args(["--mount", "sh", "-c", script, "sh", BINARY, "--size", "1M"]);
        command.arg("--socket-path").arg(dir.join("socket")).args(more);
        assert_eq!(is_told(Daemon::spawn(command, dir)), lines, "{more:?}");
    }
}

/// As `--help` says: 8 GiB less than 16 TiB.
#[test]
fn the_largest_disk_is_the_documented_one() {
    const LARGEST: u64 = (16 << 40) - (8 << 30);
    let dir = TempDir::in_memory();
    let state = dir.join("state");
    let with_state = ["--create", "--state-dir", state.to_str().unwrap()];
    for more in [&[][..], &with_state] {
        let mut daemon = Daemon::start(&LARGEST.to_string(), more);
        let mut client = daemon.client();
        let last = LARGEST / 512 - 8;
        client.blk().write(last, &pattern(last, 8, 1)).expect("write");
        expect_pattern(client.blk(), last, 8, 1);
        client.blk().write(last + 1, &pattern(last, 8, 1)).expect_err("behind the end");
        assert_eq!(daemon.stats()["orig_data_size"], 4096);
    }
    let mut command = Command::new(BINARY);
    command.arg("--socket-path").arg(dir.join("socket"));
    command.args(["--size", &(LARGEST + 1).to_string()]);
    let (code, line) = refusal(command);
    assert_eq!(code, 1, "{line}");
    assert!(line.contains(&format!("to {LARGEST} bytes")), "{line}");
    let help = Command::new(BINARY).arg("--help").output().expect("help");
    let help = String::from_utf8(help.stdout).expect("text");
    let words: Vec<_> = help.split_whitespace().collect();
    assert!(words.join(" ").contains(&format!("at most {}G", LARGEST >> 30)), "{help}");
}

/// Each number of threads from none up to where a guest is served.
#[test]
fn without_threads_there_is_a_line_and_no_panic() {
    let dir = TempDir::new();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    // Where any user can run it.
    let binary = dir.join("daemon");
    fs::copy(BINARY, &binary).unwrap();
    let (mut refused, mut half, mut served) = (0, 0, 0);
    for most in 1.. {
        let args = ["--log-level", "error", "--engine-workers", "3"];
        let limit = format!("--nproc={most}");
        let mut command = limited(&limit, binary.to_str().unwrap(), &dir, &args);
        if geteuid().is_root() {
            // The limit is not root's. No other user has this number.
            command.uid(2_000_000_011);
        }
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("daemon starts");
        let mut status = None;
        wait_until("a socket or the end", || {
            status = child.try_wait().expect("wait");
            status.is_some() || UnixStream::connect(dir.join("socket")).is_ok()
        });
        let mut stderr = child.stderr.take().expect("stderr");
        let mut text = String::new();
        if let Some(status) = status {
            stderr.read_to_string(&mut text).expect("text");
            assert_eq!(status.code(), Some(1), "{most}: {text}");
            assert!(text.lines().count() == 1 && text.contains("thread"), "{most}: {text}");
            refused += 1;
            continue;
        }
        // There may be a thread for its queue, and one for the watchdog, or not.
        let client = Client::connect(dir.join("socket"), &client_options());
        let done = client.is_ok_and(|mut client| client.blk().write(0, &[1; 4096]).is_ok());
        kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).expect("signal");
        let status = child.wait().expect("wait");
        stderr.read_to_string(&mut text).expect("text");
        assert_eq!(status.code(), Some(0), "{most}: {text}");
        if done {
            served += 1;
            break;
        }
        half += 1;
    }
    // Not all of these where others run processes of the same user.
    assert_eq!((refused > 0, served), (true, 1), "{refused} {half} {served}");
}
