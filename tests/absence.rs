//! A daemon that was not there for a while: stopped, frozen, or asleep with its host.

mod common;

use std::{thread, time::Duration};

use common::{daemon::Daemon, disk::pattern, wait_until};
use nix::sys::signal::Signal;
use vhost_user_zram_frontend::{Op, Segment};

/// How long a request has waited, by its report. It is reported after a second, at one of four looks a
/// second, which may be one late.
#[test]
fn a_request_is_not_as_old_as_the_daemon_was_away() {
    let model = "hang=100%,timeout=1000s";
    let args = ["--watchdog", "1", "--watchdog-fail", "3600", "--engine-model", model];
    let mut daemon = Daemon::start("16M", &args);
    let mut client = daemon.client();
    let blk = client.blk();
    let tag = blk.acquire().expect("a free slot");
    let data = [Segment { addr: blk.buffer(tag), len: 4096 }];
    blk.region().write(data[0].addr, &pattern(0, 8, 1)).expect("data");
    blk.submit(tag, Op::Out, 0, &data, 0).expect("room");
    blk.publish().expect("publish");
    wait_until("the engine to have it", || daemon.stats()["engine_jobs"] > 0);
    daemon.signal(Signal::SIGSTOP);
    thread::sleep(Duration::from_secs(4));
    daemon.signal(Signal::SIGCONT);
    let is_report = |line: &String| line.contains("has waited for");
    wait_until("a report", || daemon.stderr.all().iter().any(is_report));
    let lines = daemon.stderr.all();
    let line = lines.iter().find(|line| is_report(line)).expect("a report");
    let mut words = line.split_whitespace().skip_while(|word| *word != "for");
    let age: f64 = words.nth(1).expect("seconds").parse().expect("a number");
    assert!((1.0..=1.6).contains(&age), "{line}");
    assert_eq!(daemon.stats()["expired_requests"], 0);
    daemon.end(Signal::SIGKILL);
}
