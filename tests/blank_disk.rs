//! A disk that never served a guest refuses the rings of a guest that has used them, by whatever they show of
//! it, and serves a guest that starts anew.

mod common;

use std::{process::Command, sync::Arc};

use common::{
    LIMIT,
    daemon::{BINARY, Daemon, TempDir, client_options, session_options},
    disk::{expect_zeroes, submit, write_pattern},
    raw::{GPA, MEMORY, SIZE},
    wait_until,
};
use nix::sys::signal::Signal;
use vhost_user_zram_frontend::{Client, ClientOptions, Op, Queue, Region, Status};

/// A store that never served has no idea what a running guest has on its disk: it must not show a blank
/// one.
#[test]
fn a_ring_in_use_is_refused_by_a_daemon_that_never_served() {
    for (base, used) in [(5, 5), (0, 5), (5, 0), (0xffff, 0xffff)] {
        let daemon = Daemon::start("16M", &[]);
        let mut session = daemon.session();
        let region = Region::new(GPA, MEMORY).unwrap();
        session.set_mem_table(&[Arc::clone(&region)]).unwrap();
        let queue = Queue::new(0, &region, SIZE, true).unwrap();
        queue.ring().set_used_idx(used).unwrap();
        queue.ring().set_avail_idx(base.max(used)).unwrap();
        let started = session.set_up(&queue, base).and_then(|()| session.enable(0, true));
        if started.is_ok() {
            // Taken, but then it has to be stopped before anything is answered.
            queue.ring().set_avail_idx(base.max(used).wrapping_add(1)).unwrap();
            queue.kick().unwrap();
            wait_until("the ring to be stopped", || {
                queue.err_event().take() > 0
                    || session.wire().wait_closed(std::time::Duration::ZERO).is_ok()
            });
            assert_eq!(queue.ring().used_idx().unwrap(), used);
        }
        drop(session);
        // A new guest is welcome, and after it one that comes back is, too.
        let mut client = daemon.client();
        write_pattern(client.blk(), 0, 8, 1);
    }
}

/// After 65536 requests a ring's indexes are those of a new one.
#[test]
fn a_ring_that_went_all_around_is_refused_by_a_daemon_that_never_served() {
    let lost = Daemon::start("16M", &[]);
    let session = session_options().untracked();
    let options = ClientOptions { session, depth: 64, max_bytes: 512, ..client_options() };
    let mut client = lost.client_with(&options);
    let (mut begun, mut done) = (0, 0);
    while done < 65_536 {
        while begun < 65_536
            && let Some(tag) = client.blk().acquire()
        {
            client.blk().submit(tag, Op::Flush, 0, &[], 0).unwrap();
            begun += 1;
        }
        client.blk().publish().unwrap();
        assert_eq!(client.blk().wait(LIMIT).unwrap().status, Status::Ok);
        done += 1;
    }
    let indexes = |client: &mut Client| {
        let queue = client.blk().queue();
        (queue.ring().used_idx().unwrap(), queue.ring().avail_idx().unwrap())
    };
    assert_eq!(indexes(&mut client), (0, 0));
    // The daemon that served it continues with it.
    client.reconnect(lost.socket()).unwrap();
    lost.end(Signal::SIGKILL);
    let daemon = Daemon::start("16M", &[]);
    for _ in 0..2 {
        assert!(client.reconnect(daemon.socket()).is_err(), "a blank disk is shown");
    }
    daemon.wait_for_log(
        "queue 0: the guest has used it before (base 0, used index 0, each used element",
    );
    // A guest that starts anew on the same memory clears its rings.
    client.blk().queue().ring().clear().unwrap();
    client.reconnect(daemon.socket()).unwrap();
    assert_eq!(indexes(&mut client), (0, 0));
}

/// A guest need not have used all of its queues: one that stands at 0 says nothing of the others.
#[test]
fn a_fresh_ring_does_not_vouch_for_one_in_use() {
    let daemon = Daemon::start("16M", &["--num-queues", "2"]);
    let mut session = daemon.session();
    let region = Region::new(GPA, MEMORY).unwrap();
    session.set_mem_table(&[Arc::clone(&region)]).unwrap();
    let fresh = Queue::new(0, &region, SIZE, true).unwrap();
    session.set_up(&fresh, 0).unwrap();
    let used = Queue::new(1, &region, SIZE, true).unwrap();
    used.ring().set_used_idx(7).unwrap();
    used.ring().set_avail_idx(7).unwrap();
    let started = session
        .set_up(&used, 7)
        .and_then(|()| session.enable(0, true))
        .and_then(|()| session.enable(1, true));
    if started.is_ok() {
        used.ring().set_avail_idx(8).unwrap();
        used.kick().unwrap();
        wait_until("the ring to be stopped", || {
            assert_eq!(used.ring().used_idx().unwrap(), 7, "a blank disk was shown");
            used.err_event().take() > 0
                || session.wire().wait_closed(std::time::Duration::ZERO).is_ok()
        });
    }
}

/// Nor is a ring that was started and not used one that may be in use when it is started again.
#[test]
fn a_start_of_a_fresh_ring_does_not_vouch_for_what_comes_after() {
    let daemon = Daemon::start("16M", &[]);
    let mut session = daemon.session();
    let region = Region::new(GPA, MEMORY).unwrap();
    session.set_mem_table(&[Arc::clone(&region)]).unwrap();
    let queue = Queue::new(0, &region, SIZE, true).unwrap();
    session.set_up(&queue, 0).unwrap();
    queue.ring().set_used_idx(7).unwrap();
    queue.ring().set_avail_idx(8).unwrap();
    assert!(session.set_up(&queue, 7).is_err(), "a blank disk is shown");
    drop(session);
    write_pattern(daemon.client().blk(), 0, 8, 1);
}

/// Nor does what the guest did on it, if its front end enables one queue after the other, and comes back.
#[test]
fn a_ring_that_was_served_does_not_vouch_for_one_that_was_refused() {
    let daemon = Daemon::start("16M", &["--num-queues", "2"]);
    let options = ClientOptions { queues: 1, ..client_options() };
    let mut client = daemon.client_with(&options);
    write_pattern(client.blk(), 0, 8, 1);
    let used = Queue::new(1, &client.region, SIZE, true).unwrap();
    used.ring().set_used_idx(7).unwrap();
    used.ring().set_avail_idx(7).unwrap();
    assert!(client.session.set_up(&used, 7).is_err());
    drop(client);
    let mut session = daemon.session();
    let region = Region::new(GPA, MEMORY).unwrap();
    session.set_mem_table(&[Arc::clone(&region)]).unwrap();
    let used = Queue::new(1, &region, SIZE, true).unwrap();
    used.ring().set_used_idx(7).unwrap();
    used.ring().set_avail_idx(7).unwrap();
    assert!(session.set_up(&used, 7).is_err(), "a blank disk is shown");
}

/// A daemon without the contents must not serve a guest whose ring was used, also if the daemon that
/// used it had not published anything.
#[test]
fn a_ring_whose_region_shows_use_is_refused_by_a_daemon_that_never_served() {
    for step in ["ring.marked:1", "ring.chained:1", "ring.elements:1", "ring.index:1"] {
        let dir = TempDir::new();
        let mut command = Command::new(BINARY);
        command.arg("--socket-path").arg(dir.join("socket")).args(["--size", "16M"]);
        command.env("VUZ_CRASH_AT", step);
        let dying = Daemon::spawn(command, dir);
        let mut client = dying.client();
        submit(client.blk(), 0, 0);
        client.blk().publish().unwrap();
        let (status, ..) = dying.wait();
        assert!(!status.success(), "{step}");
        let used = client.blk().queue().ring().used_idx().unwrap();
        assert_eq!(used, u16::from(step == "ring.index:1"), "{step}");
        assert_eq!(client.left_behind(), (1, 0), "{step}");
        let heads: Vec<u16> = client.blk().outstanding().map(|request| request.head).collect();
        assert_eq!(client.inflight.as_ref().unwrap().in_flight(0), heads, "{step}");
        let daemon = Daemon::start("16M", &[]);
        for _ in 0..2 {
            assert!(client.reconnect(daemon.socket()).is_err(), "{step}");
        }
        assert_eq!(client.blk().queue().ring().used_idx().unwrap(), used, "{step}");
        assert_eq!(client.left_behind(), (1, 0), "{step}");
        daemon.wait_for_log("this disk never served a guest");
        // A new guest is welcome.
        expect_zeroes(daemon.client().blk(), 0, 8);
    }
}

/// A queue that was never used looks the same on a disk that is lost; its neighbour's requests tell.
#[test]
fn a_fresh_ring_is_refused_too_if_the_region_shows_use_of_another() {
    let two = ["--num-queues", "2"];
    let lost = Daemon::start("16M", &two);
    let mut client = lost.client_with(&ClientOptions { queues: 2, ..client_options() });
    assert!(submit(&mut client.queues[1], 3, 1));
    client.queues[1].publish().unwrap();
    assert_eq!(client.queues[1].wait(LIMIT).unwrap().status, Status::Ok);
    lost.end(Signal::SIGKILL);
    let daemon = Daemon::start("16M", &two);
    for _ in 0..2 {
        assert!(client.reconnect(daemon.socket()).is_err());
    }
    daemon.wait_for_log(
        "queue 0: the guest has used it before (base 0, used index 0, its in-flight region shows requests)",
    );
    // A guest that begins anew is served, on both queues, and may set the region again.
    let mut client = daemon.client_with(&ClientOptions { queues: 2, ..client_options() });
    for _ in 0..2 {
        for blk in &mut client.queues {
            expect_zeroes(blk, 8 * 3, 8);
        }
        client.reconnect(daemon.socket()).unwrap();
    }
}
