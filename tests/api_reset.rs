//! Resets by the control API: the disk is blank afterwards, and no guest sees anything in between.

mod common;

use std::{
    fs,
    net::Shutdown,
    os::unix::process::ExitStatusExt,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use common::{
    LIMIT,
    daemon::{Daemon, TempDir},
    disk::{expect_pattern, expect_zeroes, write_pattern},
    http::{Http, Listener, api_of, ask, command, disk, start},
    wait_until,
};
use nix::sys::signal::Signal;
use serde_json::json;

#[test]
fn a_disk_in_use_is_not_reset() {
    let daemon = start("16M", &[]);
    let mut client = daemon.client();
    write_pattern(client.blk(), 0, 64, 1);
    let error = ask(&daemon, "POST", "/v1/disk/reset", "").refused(409, "EBUSY");
    assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
    expect_pattern(client.blk(), 0, 64, 1);
    write_pattern(client.blk(), 64, 64, 1);
    // A front end that has said nothing of a disk yet is one, too.
    drop(client);
    let _session = daemon.session();
    ask(&daemon, "POST", "/v1/disk/reset", "").refused(409, "EBUSY");
}

#[test]
fn a_read_only_disk_is_not_reset() {
    let daemon = start("16M", &["--read-only"]);
    ask(&daemon, "POST", "/v1/disk/reset", "").refused(403, "EROFS");
}

/// Waits until no front end is served, and resets.
fn reset(daemon: &Daemon) -> serde_json::Value {
    wait_until("the session to end", || disk(daemon)["session"]["connected"] == false);
    ask(daemon, "POST", "/v1/disk/reset", "").ok()
}

#[test]
fn a_reset_disk_is_a_new_one() {
    let args = ["--mem-limit", "12M", "--host-reserve", "3M", "--engine", "offload"];
    let mut daemon = start("16M", &args);
    let mut listener = Listener::new(&api_of(&daemon));
    let blank = disk(&daemon);
    let mut client = daemon.client();
    write_pattern(client.blk(), 0, 2048, 1);
    client.blk().discard(0, 8).expect("discard");
    expect_pattern(client.blk(), 8, 64, 1);
    drop(client);
    ask(&daemon, "PATCH", "/v1/disk", r#"{"mem_limit_bytes":0,"host_reserve_bytes":0}"#).ok();
    assert!(disk(&daemon)["pages"]["stored"].as_u64() > Some(200));
    let answer = reset(&daemon);
    listener.wait_for("disk_reset");
    for key in ["settings", "requests", "engine", "pages"] {
        assert_eq!(answer[key], blank[key], "{key}");
    }
    // What it took is given back by a job that begins then.
    wait_until("all memory to be given back", || {
        let memory = &disk(&daemon)["memory"];
        memory["arena_bytes"] == 0 && memory["table_bytes"] == 0
    });
    let memory = disk(&daemon)["memory"].clone();
    for key in ["pages_bytes", "objects_bytes"] {
        assert_eq!(memory[key], 0, "{key}");
    }
    let stats = daemon.stats();
    assert_eq!((stats["reads"], stats["writes"], stats["notify_free"]), (0, 0, 0), "{stats:?}");
    let mut client = daemon.client();
    expect_zeroes(client.blk(), 0, 2048);
    write_pattern(client.blk(), 0, 2048, 2);
    expect_pattern(client.blk(), 0, 2048, 2);
    assert_eq!(daemon.stats()["failed_writes"], 0);
}

/// A guest that still runs has a file system in its head, and the disk is blank.
#[test]
fn a_guest_that_used_the_disk_is_refused_after_a_reset() {
    let daemon = start("16M", &[]);
    let mut client = daemon.client();
    write_pattern(client.blk(), 0, 64, 1);
    client.reconnect(daemon.socket()).expect("it is known");
    expect_pattern(client.blk(), 0, 64, 1);
    let _ = client.session.wire().socket().shutdown(Shutdown::Both);
    reset(&daemon);
    assert!(client.reconnect(daemon.socket()).is_err(), "a blank disk is shown");
    daemon.wait_for_log("the guest has used it before");
    drop(client);
    // One that starts anew is not.
    expect_zeroes(daemon.client().blk(), 0, 64);
}

/// A directory for a state, and the command of a daemon with it.
fn with_state(dir: &TempDir, state: &TempDir) -> Command {
    let mut command = command(dir, "16M", &["--create", "--state-dir"]);
    command.arg(state.join("state"));
    command
}

#[test]
fn a_disk_with_a_state_stays_blank() {
    let state = TempDir::in_memory();
    let start = || {
        let dir = TempDir::new();
        Daemon::spawn(with_state(&dir, &state), dir)
    };
    let daemon = start();
    write_pattern(daemon.client().blk(), 0, 2048, 1);
    reset(&daemon);
    write_pattern(daemon.client().blk(), 64, 64, 2);
    daemon.end(Signal::SIGKILL);
    let daemon = start();
    assert_eq!(daemon.origin(), "opened");
    let mut client = daemon.client();
    expect_zeroes(client.blk(), 0, 64);
    expect_pattern(client.blk(), 64, 64, 2);
    expect_zeroes(client.blk(), 128, 1920);
    drop(client);
    reset(&daemon);
    daemon.end(Signal::SIGTERM);
    expect_zeroes(start().client().blk(), 0, 2048);
}

/// Starts a daemon that dies at a step, and waits for its death.
#[cfg(debug_assertions)]
fn dies(mut command: Command, step: &str, act: impl FnOnce(&TempDir), dir: TempDir) {
    command.env("VUZ_CRASH_AT", step);
    let (out, err) = (dir.join("out"), dir.join("err"));
    command.stdout(fs::File::create(&out).expect("file"));
    command.stderr(fs::File::create(&err).expect("file"));
    let mut child = command.spawn().expect("daemon starts");
    act(&dir);
    let deadline = Instant::now() + LIMIT;
    let status = loop {
        if let Some(status) = child.try_wait().expect("wait") {
            break status;
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            panic!("{step} is not reached: {}", fs::read_to_string(&err).expect("text"));
        }
        thread::sleep(Duration::from_millis(2));
    };
    let said = fs::read_to_string(&err).expect("text");
    assert_eq!(status.signal(), Some(Signal::SIGKILL as i32), "{step}: {status:?} {said}");
}

/// Whenever the daemon dies, the disk is blank afterwards, and whole.
#[cfg(debug_assertions)]
#[test]
fn a_daemon_that_dies_during_a_reset_leaves_a_blank_disk() {
    let ask_for_reset = |dir: &TempDir| {
        wait_until("the API", || std::os::unix::net::UnixStream::connect(dir.join("api")).is_ok());
        let mut http = Http::connect(&dir.join("api"));
        wait_until("the disk to be loaded", || http.ask("GET", "/readyz", "").status == 200);
        http.send("POST", "/v1/disk/reset", "");
        // It dies, and does not answer.
        while http.answer().is_some() {}
    };
    let steps = vhost_user_zram::internals::RESETS;
    assert_eq!(steps.len(), 8);
    for (step, at_opening) in steps.iter().map(|step| {
        (step, ["found", "table", "arena", "noted"].iter().any(|end| step.ends_with(end)))
    }) {
        let state = TempDir::in_memory();
        let dir = TempDir::new();
        let daemon = Daemon::spawn(with_state(&dir, &state), dir);
        // Objects of many lengths, same-filled pages, and a slot table of several parts.
        let mut client = daemon.client();
        write_pattern(client.blk(), 0, 2048, 1);
        client.blk().write(20000, &[7; 65536]).expect("write");
        drop(client);
        daemon.end(Signal::SIGTERM);
        // The second piece: a part of the disk is gone by then.
        let first = if at_opening { "reset.freed:2" } else { step };
        let dir = TempDir::new();
        dies(with_state(&dir, &state), first, ask_for_reset, dir);
        if at_opening {
            let dir = TempDir::new();
            dies(with_state(&dir, &state), step, |_| (), dir);
        }
        let dir = TempDir::new();
        let daemon = Daemon::spawn(with_state(&dir, &state), dir);
        let found = disk(&daemon);
        assert_eq!((&found["origin"], &found["pages"]["stored"]), (&json!("opened"), &json!(0)));
        let mut client = daemon.client();
        expect_zeroes(client.blk(), 0, 32768);
        write_pattern(client.blk(), 0, 2048, 3);
        drop(client);
        daemon.end(Signal::SIGKILL);
        let dir = TempDir::new();
        let daemon = Daemon::spawn(with_state(&dir, &state), dir);
        expect_pattern(daemon.client().blk(), 0, 2048, 3);
        assert_eq!(disk(&daemon)["pages"]["stored"], 256, "{step}");
    }
}

/// A session that begins while the disk is reset waits, and finds it blank; the API answers meanwhile.
#[cfg(debug_assertions)]
#[test]
fn a_front_end_waits_for_a_reset() {
    let dir = TempDir::new();
    let mut command = command(&dir, "16M", &[]);
    let hold = dir.join("hold");
    command.env("VUZ_HOLD_AT", "reset.freed").env("VUZ_HOLD_FILE", &hold);
    let daemon = Daemon::spawn(command, dir);
    write_pattern(daemon.client().blk(), 0, 2048, 1);
    wait_until("the session to end", || disk(&daemon)["session"]["connected"] == false);
    let begun = disk(&daemon)["session"]["begun"].clone();
    let mut resets = Http::connect(&api_of(&daemon));
    resets.send("POST", "/v1/disk/reset", "");
    wait_until("the reset", || hold.exists());
    thread::scope(|scope| {
        let client = scope.spawn(|| expect_zeroes(daemon.client().blk(), 0, 2048));
        // Others are served: the reset has a thread of its own.
        for _ in 0..20 {
            assert_eq!(disk(&daemon)["session"]["begun"], begun);
            ask(&daemon, "POST", "/v1/disk/reset", "").refused(409, "EBUSY");
        }
        assert!(!client.is_finished());
        fs::remove_file(&hold).expect("it is held");
        resets.answer().expect("an answer").ok();
    });
}

/// SIGTERM ends a reset, and the next daemon finishes it.
#[cfg(debug_assertions)]
#[test]
fn a_daemon_that_is_to_end_does_not_wait_for_all_of_a_reset() {
    let state = TempDir::in_memory();
    let dir = TempDir::new();
    let mut command = with_state(&dir, &state);
    let hold = dir.join("hold");
    command.env("VUZ_HOLD_AT", "reset.freed").env("VUZ_HOLD_FILE", &hold);
    let daemon = Daemon::spawn(command, dir);
    let mut client = daemon.client();
    write_pattern(client.blk(), 0, 2048, 1);
    client.blk().write(20000, &[7; 65536]).expect("write");
    drop(client);
    wait_until("the session to end", || disk(&daemon)["session"]["connected"] == false);
    let mut resets = Http::connect(&api_of(&daemon));
    resets.send("POST", "/v1/disk/reset", "");
    wait_until("the reset", || hold.exists());
    daemon.signal(Signal::SIGTERM);
    // The API ends, while the reset is still held.
    assert!(resets.is_hung_up());
    fs::remove_file(&hold).expect("it is held");
    let (status, _, said) = daemon.wait();
    assert!(status.success(), "{said:?}");
    assert!(!said.iter().any(|line| line.contains("the disk was reset")), "{said:?}");
    let dir = TempDir::new();
    let daemon = Daemon::spawn(with_state(&dir, &state), dir);
    daemon.wait_for_log("the reset of the disk that an earlier daemon began is finished");
    expect_zeroes(daemon.client().blk(), 0, 32768);
}
