//! Disks that grow: at the start of a daemon, and while a guest uses them.

mod common;

use std::{
    fs,
    io::{ErrorKind, Read},
    os::{
        fd::AsRawFd,
        unix::{fs::PermissionsExt, net::UnixStream},
    },
    path::Path,
    process::Command,
};

use common::{
    LIMIT,
    daemon::{BINARY, Daemon, TempDir, client_options, session_options},
    disk::{expect_pattern, expect_served, expect_zeroes, mark, write_pattern},
    http::{self, Http, api_of},
};
use nix::{sys::signal::Signal, unistd::geteuid};
use vhost::vhost_user::{VhostUserFrontend, message::VhostUserProtocolFeatures};
use vhost_user_zram_frontend::{Client, ClientOptions, Op, Options, Shape, Status};

const MIB: u64 = 1 << 20;
/// Sectors of a MiB.
const SECTORS: u64 = MIB / 512;

fn command(state: &Path, size: &str, dir: &TempDir) -> Command {
    let mut command = Command::new(BINARY);
    command.arg("--socket-path").arg(dir.join("socket")).args(["--size", size, "--create"]);
    command.arg("--state-dir").arg(state);
    command
}

fn start(state: &Path, size: &str) -> Daemon {
    let dir = TempDir::new();
    Daemon::spawn(command(state, size, &dir), dir)
}

/// Bytes that a guest is told of, and that the daemon says.
fn size(daemon: &Daemon) -> u64 {
    let ready = daemon.stdout.wait_for("ready:", 0, LIMIT).expect("ready");
    let size = ready.split_whitespace().find_map(|word| word.strip_prefix("size="));
    let size = size.and_then(|size| size.parse().ok()).expect("a size");
    assert_eq!(daemon.session().blk_config().unwrap().capacity * 512, size);
    size
}

/// A front end that can be told of a growth.
fn options() -> ClientOptions {
    let session = session_options();
    let protocol = session.protocol | VhostUserProtocolFeatures::BACKEND_REQ;
    ClientOptions { session: Options { protocol, ..session }, ..client_options() }
}

/// Hands the daemon a channel; this end of it.
fn channel(client: &Client) -> UnixStream {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_read_timeout(Some(LIMIT)).unwrap();
    client.session.frontend().set_backend_request_fd(&theirs.as_raw_fd()).expect("a channel");
    ours
}

/// Waits until the front end is told that its configuration has changed.
fn expect_told(channel: &mut UnixStream) {
    let mut message = [0; 12];
    channel.read_exact(&mut message).expect("a message");
    // VHOST_USER_BACKEND_CONFIG_CHANGE_MSG, of version 1, without a reply, without a body.
    assert_eq!(message, [2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn a_disk_with_a_state_grows_at_a_start_and_stays_so() {
    let home = TempDir::in_memory();
    let state = home.join("state");
    let daemon = start(&state, "16M");
    assert_eq!(size(&daemon), 16 * MIB);
    write_pattern(daemon.client().blk(), 16 * SECTORS - 64, 64, 1);
    daemon.end(Signal::SIGTERM);

    let daemon = start(&state, "40M");
    assert_eq!((size(&daemon), daemon.origin().as_str()), (40 * MIB, "opened"));
    let mut client = daemon.client();
    expect_pattern(client.blk(), 16 * SECTORS - 64, 64, 1);
    expect_zeroes(client.blk(), 16 * SECTORS, 64);
    write_pattern(client.blk(), 40 * SECTORS - 64, 64, 2);
    drop(client);
    daemon.wait_for_log("has grown from 16777216 to 41943040 bytes");
    daemon.end(Signal::SIGKILL);

    // A unit's command line is the same ever after.
    for asked in ["16M", "40M", "20M"] {
        let daemon = start(&state, asked);
        assert_eq!(size(&daemon), 40 * MIB, "{asked}");
        let mut client = daemon.client();
        expect_pattern(client.blk(), 16 * SECTORS - 64, 64, 1);
        expect_pattern(client.blk(), 40 * SECTORS - 64, 64, 2);
        client.blk().write(40 * SECTORS, &[1; 4096]).expect_err("behind the end");
        drop(client);
        let lines = daemon.log();
        let told = lines.iter().filter(|line| line.contains("has grown")).count();
        assert_eq!(told, usize::from(asked != "40M"), "{lines:?}");
    }
}

/// As QEMU does that has read the size when its device was made, and reconnects.
#[test]
fn a_front_end_that_comes_back_to_a_disk_that_has_grown_is_told() {
    let home = TempDir::in_memory();
    let state = home.join("state");
    let daemon = start(&state, "16M");
    let mut client = daemon.client_with(&options());
    let mut before = channel(&client);
    write_pattern(client.blk(), 0, 64, 1);
    // Not of a disk that is as it was made.
    before.set_nonblocking(true).unwrap();
    assert_eq!(before.read(&mut [0; 12]).unwrap_err().kind(), ErrorKind::WouldBlock);
    daemon.end(Signal::SIGKILL);
    let mut daemon = start(&state, "24M");
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        client.reconnect(daemon.socket()).expect("the front end comes back");
        let mut channel = channel(&client);
        expect_told(&mut channel);
        assert_eq!(client.session.blk_config().unwrap().capacity, 24 * SECTORS);
        expect_pattern(client.blk(), 0, 64, 1);
        write_pattern(client.blk(), 24 * SECTORS - 8, 8, 2);
        // Once for each time that its rings start.
        client.session.stop(0).expect("stopped");
        client.session.start(client.queues[0].queue()).expect("started");
        expect_told(&mut channel);
        daemon.end(signal);
        daemon = start(&state, "16M");
    }
}

/// A guest that is ahead of its disk, or was told of a disk that it does not have.
#[test]
fn sectors_behind_the_old_end_are_refused_before_a_growth_and_served_after_it() {
    let home = TempDir::in_memory();
    let state = home.join("state");
    let mut daemon = start(&state, "16M");
    let mut client = daemon.client();
    for grown in [false, true] {
        let done = client.blk().run(Op::In, 16 * SECTORS, 4096, &Shape::default()).unwrap();
        assert_eq!(done.status, if grown { Status::Ok } else { Status::IoErr });
        let stats = daemon.stats();
        assert_eq!(stats["invalid_io"], u64::from(!grown), "{stats:?}");
        daemon.end(Signal::SIGKILL);
        daemon = start(&state, "17M");
        client.reconnect(daemon.socket()).expect("the front end comes back");
    }
}

#[test]
fn a_disk_grows_while_a_front_end_uses_it_and_does_not_shrink() {
    let home = TempDir::in_memory();
    let state = home.join("state");
    let state = state.to_str().expect("a path of plain letters");
    for more in [&[][..], &["--state-dir", state, "--create"], &["--mlock"]] {
        let daemon = http::start("16M", more);
        let mut client = daemon.client_with(&options());
        let mut channel = channel(&client);
        let patch = |body: &str| Http::connect(&api_of(&daemon)).ask("PATCH", "/v1/disk", body);
        write_pattern(client.blk(), 16 * SECTORS - 64, 64, 1);
        for (size, sectors) in [(20 * MIB, 20 * SECTORS), (20 * MIB + 1, 20 * SECTORS + 8)] {
            let grown = patch(&format!("{{\"size_bytes\":{size}}}")).ok();
            assert_eq!(grown["size_bytes"], sectors * 512);
            // The capacity is there before it is told of.
            expect_told(&mut channel);
            assert_eq!(client.session.blk_config().unwrap().capacity, sectors);
            expect_zeroes(client.blk(), sectors - 8, 8);
            write_pattern(client.blk(), sectors - 8, 8, size);
            expect_pattern(client.blk(), sectors - 8, 8, size);
            client.blk().write(sectors, &[1; 512]).expect_err("behind the end");
            expect_pattern(client.blk(), 16 * SECTORS - 64, 64, 1);
        }
        // What is refused changes nothing, also of what is asked for with it.
        for (size, words) in [(16 * MIB, "does not shrink"), (65 << 30, "room for 68719476736")] {
            let refused = patch(&format!("{{\"size_bytes\":{size},\"mem_limit_bytes\":4096}}"));
            let error = refused.refused(400, "EINVAL");
            assert!(error.contains(words), "{error}");
        }
        let same = patch(&format!("{{\"size_bytes\":{}}}", 20 * MIB + 4096)).ok();
        assert_eq!(same["settings"]["mem_limit_bytes"], 0);
        channel.set_nonblocking(true).unwrap();
        assert_eq!(channel.read(&mut [0; 12]).unwrap_err().kind(), ErrorKind::WouldBlock);
    }
}

/// The kernel counts address space that is locked, so a growth may need more than there was at the start.
#[test]
fn a_growth_that_cannot_be_locked_is_refused_with_the_remedy() {
    let limit = format!("--memlock={}", 3_u64 << 30);
    // Where the limit of the test itself is lower, it takes a capability to raise it.
    let can_be_set = || Command::new("prlimit").args([&limit, "true"]).status().unwrap().success();
    if !geteuid().is_root() || !can_be_set() {
        eprintln!("the limit cannot be set here: skipped");
        return;
    }
    let dir = TempDir::new();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let binary = dir.join("daemon");
    fs::copy(BINARY, &binary).unwrap();
    let mut command = Command::new("prlimit");
    command.arg(limit);
    // Root may lock what it likes. No other user has this number.
    command.args(["setpriv", "--reuid", "2000000013"]).arg(binary);
    command.args(["--size", "16M", "--mlock", "--socket-path"]).arg(dir.join("socket"));
    command.arg("--api-socket").arg(dir.join("api.sock"));
    let api = dir.join("api.sock");
    let mut daemon = Daemon::spawn(command, dir);
    let refused = Http::connect(&api).ask("PATCH", "/v1/disk", "{\"size_bytes\":8589934592}");
    let error = refused.refused(503, "ENOMEM");
    assert!(error.contains("RLIMIT_MEMLOCK is 3221225472"), "{error}");
    assert_eq!(size(&daemon), 16 * MIB);
    mark(&daemon);
    expect_served(&mut daemon);
}

#[test]
fn where_address_space_is_limited_a_disk_is_served_and_does_not_grow() {
    let home = TempDir::in_memory();
    let state = home.join("state");
    let limited = |size: &str, dir: &TempDir| {
        let inner = command(&state, size, dir);
        let mut command = Command::new("prlimit");
        command.arg(format!("--as={}", 8_u64 << 30)).arg(BINARY).args(inner.get_args());
        command
    };
    let dir = TempDir::new();
    let daemon = Daemon::spawn(limited("16M", &dir), dir);
    write_pattern(daemon.client().blk(), 0, 64, 1);
    daemon.end(Signal::SIGTERM);
    let dir = TempDir::new();
    let (code, line) = common::daemon::refusal(limited("32M", &dir));
    assert_eq!(code, 1, "{line}");
    assert!(line.contains("RLIMIT_AS") && line.contains("ulimit -v"), "{line}");
    // It is as it was, and grows where it may.
    let daemon = start(&state, "32M");
    expect_pattern(daemon.client().blk(), 0, 64, 1);
    assert_eq!(size(&daemon), 32 * MIB);
}
