//! A queue thread that dies: the session ends, the daemon lives, and a front end that comes back continues,
//! if it can be told what was done.
//!
//! The thread is told where to die by `src/failpoint.rs`, which is there in debug builds only.
#![cfg(debug_assertions)]

mod common;

use std::process::Command;

use common::{
    LIMIT,
    daemon::{BINARY, Daemon, TempDir, client_options},
    disk::{expect_pattern, pattern},
};
use nix::sys::signal::Signal;
use vhost_user_zram_frontend::{Blk, Client, ClientOptions, Op, Options, Segment, Status};

/// Pages that are in flight when the thread dies.
const PAGES: u64 = 24;
/// Bytes of a page, and its sectors.
const PAGE: usize = 4096;
const SECTORS: u64 = 8;

/// A daemon whose queue thread dies when it comes to `step` for the `count`-th time.
fn start(step: &str, count: u64, with_state: bool) -> Daemon {
    let dir = TempDir::in_memory();
    let mut command = Command::new(BINARY);
    command.arg("--socket-path").arg(dir.join("socket")).args(["--size", "16M"]);
    if with_state {
        command.arg("--state-dir").arg(dir.join("state")).arg("--create");
    }
    command.env("VUZ_PANIC_AT", format!("{step}:{count}"));
    Daemon::spawn(command, dir)
}

fn client(daemon: &Daemon, tracked: bool) -> Client {
    let session = Options { timeout: LIMIT, ..Options::default() };
    let session = if tracked { session } else { session.untracked() };
    daemon.client_with(&ClientOptions { session, ..client_options() })
}

/// Makes a write of each page available, as generation `generation`.
fn submit(blk: &mut Blk, generation: u64) {
    for page in 0..PAGES {
        let tag = blk.acquire().expect("a free slot");
        let (addr, sector) = (blk.buffer(tag), page * SECTORS);
        blk.region().write(addr, &pattern(sector, SECTORS as usize, generation)).expect("data");
        let data = [Segment { addr, len: PAGE as u32 }];
        blk.submit(tag, Op::Out, sector, &data, page).expect("room");
    }
    blk.publish().expect("publish");
}

#[test]
fn a_queue_that_is_accounted_for_continues_after_its_threads_death() {
    let steps = [
        "write.fetched",
        "store.written",
        "write.prepared",
        "write.published",
        "ring.marked",
        "ring.chained",
        "ring.elements",
        "ring.index",
        "ring.cleared",
        "ring.synced",
    ];
    for step in steps {
        for tracked in [true, false] {
            // Where an untracked queue never comes to.
            let of_region = ["ring.marked", "ring.chained", "ring.cleared", "ring.synced"];
            if !tracked && of_region.contains(&step) {
                continue;
            }
            let in_rings = step.starts_with("ring.");
            let mut daemon = start(step, if in_rings { 1 } else { 9 }, true);
            let mut client = client(&daemon, tracked);
            submit(client.blk(), 1);
            let closed = client.session.wire().wait_closed(LIMIT);
            closed.unwrap_or_else(|error| panic!("{step}: no thread dies: {error}"));
            client.reconnect(daemon.socket()).expect("another session");
            while client.blk().busy() > 0 {
                let done =
                    client.blk().wait(LIMIT).unwrap_or_else(|error| panic!("{step}: {error}"));
                assert_eq!(done.status, Status::Ok, "{step}");
            }
            assert!(daemon.is_alive(), "{step}: the daemon is dead");
            expect_pattern(client.blk(), 0, (PAGES * SECTORS) as usize, 1);
            daemon.end(Signal::SIGTERM);
        }
    }
}

/// Without a state and without a region completions come in any order, so no process can tell.
#[test]
fn a_queue_that_is_not_accounted_for_is_refused_after_its_threads_death() {
    // In the second batch, when the first one is in the used ring.
    let mut daemon = start("write.prepared", PAGES + 9, false);
    let mut client = client(&daemon, false);
    submit(client.blk(), 1);
    while client.blk().busy() > 0 {
        assert_eq!(client.blk().wait(LIMIT).expect("the first batch").status, Status::Ok);
    }
    submit(client.blk(), 2);
    client.session.wire().wait_closed(LIMIT).expect("closed");
    let used = client.blk().queue().ring().used_idx().expect("used index");
    assert!(u64::from(used) >= PAGES, "used index {used}");
    for _ in 0..2 {
        assert!(client.reconnect(daemon.socket()).is_err(), "it continues");
    }
    daemon.wait_for_log("queue 0: the guest has used it before");
    assert!(daemon.is_alive());
    // A guest that starts anew is served.
    let mut client = self::client(&daemon, false);
    submit(client.blk(), 3);
    while client.blk().busy() > 0 {
        assert_eq!(client.blk().wait(LIMIT).expect("a new guest").status, Status::Ok);
    }
    expect_pattern(client.blk(), 0, (PAGES * SECTORS) as usize, 3);
}
