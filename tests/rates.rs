//! Rate limits, from outside: limited disks serve everything, and nothing waits for a limit but requests.

mod common;

use common::{
    LIMIT,
    daemon::{Daemon, TempDir, client_options},
    disk::{expect_pattern, pattern, write_pattern},
    http, wait_until,
};
use nix::sys::signal::Signal;
use vhost_user_zram_frontend::{Blk, Client, ClientOptions, Op, Segment, Status};

/// Sectors of a page.
const PAGE: u64 = 8;

/// Makes writes of generation 1 of the pages `pages` available, and does not wait for them.
fn offer_writes(blk: &mut Blk, pages: std::ops::Range<u64>) {
    for page in pages {
        let tag = blk.acquire().unwrap();
        let (addr, sector) = (blk.buffer(tag), page * PAGE);
        blk.region().write(addr, &pattern(sector, PAGE as usize, 1)).unwrap();
        blk.submit(tag, Op::Out, sector, &[Segment { addr, len: 4096 }], page).unwrap();
    }
    blk.publish().unwrap();
}

/// Waits until `count` requests have come back well.
fn finish(blk: &mut Blk, count: usize) {
    for _ in 0..count {
        assert_eq!(blk.wait(LIMIT).unwrap().status, Status::Ok);
    }
}

/// A disk on which one page can be written, and then none for an hour.
const STUCK: [&str; 2] = ["--write-bps", "1"];

/// Has four writes wait behind one that was done.
fn get_stuck(daemon: &mut Daemon, client: &mut Client) {
    offer_writes(client.blk(), 0..5);
    finish(client.blk(), 1);
    wait_until("a request that waits", || daemon.stats()["throttled_requests"] == 1);
    assert_eq!(client.blk().outstanding().count(), 4);
}

#[test]
fn a_limited_disk_serves_everything() {
    let args = "--num-queues 3 --queue-threads 2 --read-iops 2000 --read-bps 8M --write-iops 1000 --write-bps 8M --rate-burst-ms 20";
    let mut daemon = Daemon::start("16M", &args.split(' ').collect::<Vec<_>>());
    let mut client = daemon.client_with(&ClientOptions { queues: 3, ..client_options() });
    // Each queue has a part of its own, and requests of its own size.
    std::thread::scope(|scope| {
        for (queue, blk) in (0..).zip(&mut client.queues) {
            scope.spawn(move || {
                let start = queue * 4096;
                offer_writes(blk, start / PAGE..start / PAGE + 32);
                finish(blk, 32);
                let sectors = 8 << (2 * queue);
                for round in 0..16 {
                    write_pattern(blk, start + round * sectors, sectors as usize, 2);
                }
                for round in 0..16 {
                    expect_pattern(blk, start + round * sectors, sectors as usize, 2);
                }
                blk.discard(start, 4096).unwrap();
                blk.write_zeroes(start, 8, true).unwrap();
                blk.flush().unwrap();
            });
        }
    });
    let said = "rate limits: read 2000/s 8388608 B/s, write 1000/s 8388608 B/s";
    daemon.wait_for_log(said);
    let stats = daemon.stats();
    assert!(stats["throttled_requests"] > 0 && stats["throttled_us"] > 0, "{stats:?}");
    let done = ["writes", "reads", "discards", "write_zeroes", "flushes"].map(|name| stats[name]);
    assert_eq!(done, [3 * 48, 3 * 16, 3, 3, 3]);
    assert_eq!(stats["failed_writes"] + stats["failed_reads"], 0);
    let (status, ..) = daemon.terminate();
    assert!(status.success());
}

#[test]
fn a_ring_whose_queue_waits_stops_before_what_was_not_begun() {
    let mut daemon = Daemon::start("16M", &STUCK);
    let mut client = daemon.client();
    get_stuck(&mut daemon, &mut client);
    wait_until("nothing in flight", || client.left_behind() == (0, 0));
    assert_eq!(client.session.stop(0).unwrap(), 1);
    // Other requests, of other rings, do not wait.
    drop(client);
    let mut client = daemon.client();
    expect_pattern(client.blk(), 0, 8, 1);
    daemon.end(Signal::SIGTERM);
}

#[test]
fn reads_of_another_queue_do_not_wait_for_writes() {
    let args = [&STUCK[..], &["--num-queues", "2", "--queue-threads", "1"]].concat();
    let mut daemon = Daemon::start("16M", &args);
    let mut client = daemon.client_with(&ClientOptions { queues: 2, ..client_options() });
    get_stuck(&mut daemon, &mut client);
    for _ in 0..100 {
        expect_pattern(&mut client.queues[1], 0, 8, 1);
    }
    assert_eq!(client.queues[0].reap().unwrap(), None);
    daemon.end(Signal::SIGTERM);
}

#[test]
fn a_daemon_whose_queues_wait_ends_and_so_do_its_sessions() {
    let mut daemon = Daemon::start("16M", &STUCK);
    let mut client = daemon.client();
    get_stuck(&mut daemon, &mut client);
    drop(client);
    // The next session has the disk to itself, and owes what the first one did.
    let mut client = daemon.client();
    offer_writes(client.blk(), 0..1);
    wait_until("a request that waits", || daemon.stats()["throttled_requests"] == 2);
    let (status, _, stderr) = daemon.terminate();
    assert!(status.success(), "{stderr:?}");
    assert_eq!(client.blk().reap().unwrap(), None);
}

#[test]
fn a_change_of_the_limits_lets_go_what_waits() {
    let mut daemon = http::start("16M", &STUCK);
    let mut client = daemon.client();
    get_stuck(&mut daemon, &mut client);
    let patch = |body| http::ask(&daemon, "PATCH", "/v1/disk", body).ok();
    patch(r#"{"rates": {"write": {"bytes_per_second": 1073741824}}}"#);
    finish(client.blk(), 4);
    // A limit that comes while the disk is used, and goes.
    patch(r#"{"rates": {"read": {"bytes_per_second": 1}, "write": {"bytes_per_second": 0}}}"#);
    write_pattern(client.blk(), 0, 80, 2);
    expect_pattern(client.blk(), 0, 8, 2);
    let before = daemon.stats()["throttled_requests"];
    let blk = client.blk();
    let tag = blk.acquire().unwrap();
    let data = [Segment { addr: blk.buffer(tag), len: 4096 }];
    blk.submit(tag, Op::In, 0, &data, 0).unwrap();
    blk.publish().unwrap();
    wait_until("a read that waits", || daemon.stats()["throttled_requests"] > before);
    let patch = |body| http::ask(&daemon, "PATCH", "/v1/disk", body).ok();
    patch(r#"{"rates": {"read": {"bytes_per_second": 0}}}"#);
    finish(client.blk(), 1);
    let stats = daemon.stats();
    assert_eq!((stats["reads"], stats["failed_reads"]), (2, 0));
}

/// Nothing that waits is lost with its daemon, or done twice.
#[test]
fn what_waits_is_served_by_the_next_daemon() {
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let home = TempDir::in_memory();
        let state = home.join("disk");
        let state = ["--create", "--state-dir", state.to_str().unwrap()];
        let mut daemon = Daemon::start("16M", &[&STUCK[..], &state].concat());
        let mut client = daemon.client();
        get_stuck(&mut daemon, &mut client);
        daemon.end(signal);
        let mut daemon = Daemon::start("16M", &state);
        client.reconnect(daemon.socket()).unwrap();
        finish(client.blk(), 4);
        expect_pattern(client.blk(), 0, 40, 1);
        assert_eq!(daemon.stats()["writes"], 4, "{signal}");
    }
}

/// A request that waits for a limit is not one that is stuck.
#[test]
fn the_watchdog_does_not_mind_waiting_for_limits() {
    let args = ["--write-bps", "1K", "--watchdog", "1", "--watchdog-fail", "2"];
    let mut daemon = Daemon::start("16M", &args);
    let mut client = daemon.client();
    offer_writes(client.blk(), 0..2);
    // The second one begins four seconds after the first.
    finish(client.blk(), 2);
    let stats = daemon.stats();
    let names = ["throttled_requests", "stalled_requests", "expired_requests", "failed_writes"];
    assert_eq!(names.map(|name| stats[name]), [1, 0, 0, 0]);
}

#[test]
fn limits_that_make_no_sense_are_refused() {
    let output = |args: &[&str]| {
        let mut command = std::process::Command::new(common::daemon::BINARY);
        command.args(["--socket-path", "/nonexistent/s", "--size", "1M"]).args(args);
        common::daemon::refusal(command)
    };
    for args in [
        ["--read-iops", "1K"],
        ["--write-iops", "1.5"],
        ["--read-bps", "1X"],
        ["--rate-burst-ms", "0"],
    ] {
        let (code, line) = output(&args);
        assert_eq!(code, 2, "{line}");
        assert!(line.contains(args[0]), "{line}");
    }
}
