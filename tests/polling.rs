//! Polling of empty rings, from outside: it saves kicks while requests come, and ends when none come.

mod common;

use std::{fs, thread, time::Duration};

use common::{
    daemon::Daemon,
    disk::{expect_pattern, write_pattern},
    wait_until,
};

/// Time in which an idle thread is to be seen not to wake up.
const MOMENT: Duration = Duration::from_secs(1);

/// How often each queue thread has gone to sleep.
fn sleeps(daemon: &Daemon) -> Vec<u64> {
    let tasks = fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap();
    let texts = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("status")).ok());
    let queues = texts.filter(|text| text.starts_with("Name:\tqueue-"));
    let count = |text: String| {
        let line = text.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        line.unwrap().trim().parse().unwrap()
    };
    queues.map(count).collect()
}

#[test]
fn polls_find_requests_while_they_come_and_end_when_none_come() {
    let mut daemon = Daemon::start("16M", &["--poll-us", "100000"]);
    let mut client = daemon.client();
    let mut generation = 0;
    wait_until("a request that a poll finds", || {
        generation += 1;
        write_pattern(client.blk(), 0, 80, generation);
        expect_pattern(client.blk(), 0, 80, generation);
        daemon.stats()["poll_hits"] > 0
    });
    // The client hangs up much later: the thread that served it is still there, and idle.
    wait_until("a poll in vain", || daemon.stats()["poll_misses"] > 0);
    let state = |daemon: &mut Daemon| {
        let sleeps = sleeps(daemon);
        assert!(!sleeps.is_empty());
        let stats = daemon.stats();
        // One that polls without an end does not go to sleep either.
        (sleeps, stats["poll_us"], stats["poll_misses"])
    };
    let mut before = state(&mut daemon);
    wait_until("a thread that stays asleep", || {
        thread::sleep(MOMENT);
        let now = state(&mut daemon);
        std::mem::replace(&mut before, now.clone()) == now
    });
    // It was asked for kicks before that.
    write_pattern(client.blk(), 0, 80, 0);
    expect_pattern(client.blk(), 0, 80, 0);
    assert!(daemon.stats()["poll_us"] > 0);
    let (status, _, stderr) = daemon.terminate();
    assert!(status.success(), "{stderr:?}");
}

#[test]
fn with_a_limit_of_zero_no_ring_is_polled() {
    let mut daemon = Daemon::start("16M", &["--poll-us", "0"]);
    let mut client = daemon.client();
    for generation in 0..100 {
        write_pattern(client.blk(), 0, 80, generation);
        expect_pattern(client.blk(), 0, 80, generation);
    }
    let stats = daemon.stats();
    assert_eq!([stats["poll_hits"], stats["poll_misses"], stats["poll_us"]], [0; 3]);
}
