//! What the daemon says, where nothing reads it, and the signals that make it speak or end.

mod common;

use std::{
    io::{PipeReader, PipeWriter, Write, pipe},
    os::{fd::OwnedFd, unix::net::UnixDatagram},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use common::{
    LIMIT,
    daemon::{BINARY, Daemon, TempDir, client_options, refusal},
    disk::{expect_pattern, pattern, write_pattern},
    wait_until,
};
use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use vhost_user_zram_frontend::{Client, Op, Segment};

/// Sets whether writes to a pipe block. It concerns all processes that share it.
fn set_blocking(pipe: &PipeWriter, blocking: bool) {
    let flags = if blocking { OFlag::empty() } else { OFlag::O_NONBLOCK };
    fcntl(pipe, FcntlArg::F_SETFL(flags)).expect("fcntl");
}

/// A pipe into which not one byte goes any more.
fn full_pipe() -> (PipeReader, PipeWriter) {
    let (reader, mut writer) = pipe().expect("pipe");
    set_blocking(&writer, false);
    while writer.write(&[0; 4096]).is_ok() {}
    while writer.write(&[0]).is_ok() {}
    set_blocking(&writer, true);
    (reader, writer)
}

/// Whether what shares this pipe blocks in writes.
fn is_blocking(pipe: &PipeWriter) -> bool {
    let flags = fcntl(pipe, FcntlArg::F_GETFL).map(OFlag::from_bits_retain).expect("fcntl");
    !flags.contains(OFlag::O_NONBLOCK)
}

/// A daemon that is ready, of whose streams nothing is read; killed when dropped.
struct Mute {
    child: Child,
    dir: TempDir,
}

impl Mute {
    fn start(args: &[&str], stdout: impl Into<Stdio>, stderr: impl Into<Stdio>) -> Self {
        let dir = TempDir::new();
        let mut command = Command::new(BINARY);
        command.arg("--socket-path").arg(dir.join("socket")).args(["--size", "16M"]).args(args);
        Self::spawn(command, dir, stdout, stderr)
    }

    fn spawn(
        mut command: Command,
        dir: TempDir,
        stdout: impl Into<Stdio>,
        stderr: impl Into<Stdio>,
    ) -> Self {
        let child = command
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(stderr)
            .spawn()
            .expect("daemon starts");
        Self { child, dir }
    }

    fn client(&self) -> Client {
        let socket = self.dir.join("socket");
        vhost_user_zram_frontend::session::connect_socket(&socket, LIMIT).expect("a socket");
        Client::connect(socket, &client_options()).expect("client")
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).expect("signal");
    }

    fn wait(mut self) -> ExitStatus {
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(status) = self.child.try_wait().expect("wait") {
                return status;
            }
            assert!(Instant::now() < deadline, "the daemon does not end");
            thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Mute {
    fn drop(&mut self) {
        // Already ended is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The log is at its loudest, so that queue threads, the session and the accept loop all write to
/// it; the guest's writes fail for want of memory.
#[test]
fn a_log_that_nothing_reads_stops_neither_disk_nor_daemon() {
    let (_reader, stderr) = full_pipe();
    let keep = stderr.try_clone().expect("clone");
    let args = ["--log-level", "trace", "--mem-limit", "1M"];
    let daemon = Mute::start(&args, Stdio::null(), OwnedFd::from(stderr));
    write_pattern(daemon.client().blk(), 0, 80, 1);
    for _ in 0..3 {
        let mut client = daemon.client();
        let chunk = pattern(0, 1024, 9);
        let failed = (1..30).filter(|i| client.blk().write(i * 1024, &chunk).is_err()).count();
        assert!(failed > 0, "the limit holds nothing back");
        expect_pattern(client.blk(), 0, 80, 1);
    }
    assert!(is_blocking(&keep), "others write to that pipe too");
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait().code(), Some(0));
}

#[test]
fn lines_that_nothing_reads_keep_no_signal_from_its_work() {
    let (_reader, stdout) = full_pipe();
    let keep = stdout.try_clone().expect("clone");
    let daemon = Mute::start(&[], OwnedFd::from(stdout), Stdio::null());
    let mut client = daemon.client();
    for _ in 0..200 {
        daemon.signal(Signal::SIGUSR1);
        daemon.signal(Signal::SIGUSR2);
        write_pattern(client.blk(), 0, 8, 1);
    }
    expect_pattern(client.blk(), 0, 8, 1);
    assert!(is_blocking(&keep), "others write to that pipe too");
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait().code(), Some(0));
}

/// Makes a write available of which the queue thread dies.
#[cfg(debug_assertions)]
fn write_and_be_left(client: &mut Client) {
    let blk = client.blk();
    let tag = blk.acquire().expect("a free slot");
    let data = [Segment { addr: blk.buffer(tag), len: 4096 }];
    blk.region().write(data[0].addr, &pattern(16, 8, 1)).expect("data");
    blk.submit(tag, Op::Out, 16, &data, 0).expect("room");
    blk.publish().expect("publish");
    client.session.wire().wait_closed(LIMIT).expect("the session ends");
}

/// The standard library would write the panic's message to stderr, and wait.
#[cfg(debug_assertions)]
#[test]
fn a_thread_that_panics_needs_no_reader() {
    let (_reader, stderr) = full_pipe();
    let dir = TempDir::new();
    let mut command = Command::new(BINARY);
    command.arg("--socket-path").arg(dir.join("socket")).args(["--size", "16M"]);
    command.env("VUZ_PANIC_AT", "write.prepared:3");
    let daemon = Mute::spawn(command, dir, Stdio::null(), OwnedFd::from(stderr));
    let mut client = daemon.client();
    write_pattern(client.blk(), 0, 16, 1);
    write_and_be_left(&mut client);
    drop(client);
    expect_pattern(daemon.client().blk(), 0, 16, 1);
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait().code(), Some(0));
}

#[cfg(debug_assertions)]
#[test]
fn a_panic_is_in_the_log() {
    let dir = TempDir::new();
    let mut command = Command::new(BINARY);
    command.arg("--socket-path").arg(dir.join("socket")).args(["--size", "16M"]);
    command.env("VUZ_PANIC_AT", "write.prepared:1");
    let daemon = Daemon::spawn(command, dir);
    write_and_be_left(&mut daemon.client());
    let is_there = |line: &String| {
        line.contains("ERROR") && line.contains("queue-0") && line.contains("write.prepared")
    };
    wait_until("the panic", || daemon.stderr.all().iter().any(is_there));
}

#[test]
fn a_terminal_that_goes_ends_the_daemon_with_a_summary() {
    let dir = TempDir::new();
    // The tests themselves may run under nohup, which their daemons would inherit.
    let mut command = Command::new("env");
    command.args(["--default-signal=HUP", BINARY, "--size", "16M"]);
    command.arg("--socket-path").arg(dir.join("socket"));
    let daemon = Daemon::spawn(command, dir);
    let socket = daemon.socket();
    daemon.signal(Signal::SIGHUP);
    let (status, stdout, stderr) = daemon.wait();
    assert_eq!(status.code(), Some(0), "{stdout:?} {stderr:?}");
    assert_eq!(stdout.iter().filter(|line| line.starts_with("summary: ")).count(), 1, "{stdout:?}");
    assert!(!socket.exists());
}

#[test]
fn under_nohup_a_terminal_may_go() {
    let dir = TempDir::new();
    let mut command = Command::new("nohup");
    command.arg(BINARY).arg("--socket-path").arg(dir.join("socket")).args(["--size", "16M"]);
    let mut daemon = Daemon::spawn(command, dir);
    daemon.signal(Signal::SIGHUP);
    write_pattern(daemon.client().blk(), 0, 8, 1);
    assert!(daemon.is_alive());
    // Signals are taken one after the other, so that one had its turn.
    daemon.stats();
    assert!(daemon.is_alive());
    let (status, stdout, _) = daemon.terminate();
    assert!(status.success(), "{stdout:?}");
}

/// A full socket of the manager holds what it holds, and no more.
#[test]
fn a_service_manager_that_does_not_read_keeps_no_daemon_from_ending() {
    let dir = TempDir::new();
    let manager = UnixDatagram::bind(dir.join("notify")).unwrap();
    let mut command = Command::new(BINARY);
    command.arg("--socket-path").arg(dir.join("socket")).args(["--size", "1M"]);
    command.env("NOTIFY_SOCKET", dir.join("notify"));
    let notify = dir.join("notify");
    let daemon = Daemon::spawn(command, dir);
    write_pattern(daemon.client().blk(), 0, 8, 1);
    let mut text = [0; 64];
    let length = manager.recv(&mut text).unwrap();
    assert!(text[..length].starts_with(b"READY=1"));
    let others = UnixDatagram::unbound().unwrap();
    others.set_nonblocking(true).unwrap();
    while others.send_to(b"X=1", &notify).is_ok() {}
    let (status, stdout, stderr) = daemon.terminate();
    assert_eq!(status.code(), Some(0), "{stdout:?} {stderr:?}");
}

/// RLIMIT_FSIZE is for files of all kinds, also those in memory.
#[test]
fn a_file_that_may_not_be_large_enough_is_one_line() {
    let dir = TempDir::new();
    let mut command = Command::new("sh");
    // In blocks of 512 or 1024 bytes, as shells differ.
    command.args(["-c", "ulimit -f 8; exec \"$@\"", "sh", BINARY, "--size", "1T"]);
    command.arg("--socket-path").arg(dir.join("socket"));
    let (code, line) = refusal(command);
    assert_eq!(code, 1, "{line}");
    assert!(line.contains("File too large"), "{line}");
}
