//! Starting, stopping and notifying rings.

mod common;

use std::{os::fd::AsFd, sync::Arc, thread, time::Duration};

use common::{
    LIMIT,
    daemon::{Daemon, TempDir, client_options, session_options},
    disk::{expect_pattern, pattern, write_pattern},
    raw::{GPA, MEMORY, Outcome, Raw, SIZE},
    wait_until,
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vhost_user_zram_frontend::{
    Blk, Client, ClientOptions, Desc, Op, Options, Place, Queue, Region, Session, Shape, Status,
    queue::Event,
    spec::{T_FLUSH, T_IN, feature},
};

/// Long enough for a daemon that does what it must not to be caught at it, most of the time; a test
/// never fails for its being too short.
const MOMENT: Duration = Duration::from_millis(100);

/// Submits a write of generation `generation` to 8 sectors from each free slot.
fn submit_writes(blk: &mut Blk, generation: u64) -> u64 {
    let mut count = 0;
    while let Some(tag) = blk.acquire() {
        let sector = 8 * count;
        let buffer = blk.buffer(tag);
        blk.region().write(buffer, &pattern(sector, 8, generation)).unwrap();
        blk.submit_shaped(tag, Op::Out, sector, 4096, &Shape::default(), 0).unwrap();
        count += 1;
    }
    count
}

fn reap_all(blk: &mut Blk) {
    while blk.busy() > 0 {
        assert_eq!(blk.wait(LIMIT).unwrap().status, Status::Ok);
    }
}

#[test]
fn stopping_a_ring_finishes_what_was_taken_and_tells_where_it_stands() {
    let daemon = Daemon::start("16M", &[]);
    for generation in 1..=20 {
        let mut client = daemon.client();
        let count = submit_writes(client.blk(), generation);
        client.blk().publish().unwrap();
        let base = client.session.stop(0).unwrap();
        let ring = client.blk().queue().ring().clone();
        assert_eq!(base, ring.used_idx().unwrap());
        // Nothing moves any more.
        client.blk().queue().kick().unwrap();
        thread::sleep(Duration::from_millis(5));
        assert_eq!(base, ring.used_idx().unwrap());
        // The rest is done after a new start from there, without a kick.
        let Client { session, queues, .. } = &mut client;
        session.set_up(queues[0].queue(), base).unwrap();
        session.enable(0, true).unwrap();
        reap_all(&mut queues[0]);
        for i in 0..count {
            expect_pattern(&mut queues[0], 8 * i, 8, generation);
        }
    }
}

/// As a guest's reboot does, and its firmware before Linux.
#[test]
fn a_ring_can_start_over_on_one_connection() {
    let daemon = Daemon::start("16M", &[]);
    let mut client = daemon.client();
    for generation in 1..=10 {
        write_pattern(client.blk(), 0, 800, generation);
        client.session.stop(0).unwrap();
        let Client { session, queues, .. } = &mut client;
        queues[0].reset().unwrap();
        session.start(queues[0].queue()).unwrap();
        expect_pattern(&mut queues[0], 0, 800, generation);
    }
}

#[test]
fn a_stopped_ring_leaves_the_others_running() {
    let daemon = Daemon::start("16M", &["--num-queues", "2"]);
    let mut client = daemon.client_with(&ClientOptions { queues: 2, ..client_options() });
    write_pattern(&mut client.queues[0], 0, 80, 1);
    client.session.stop(0).unwrap();
    expect_pattern(&mut client.queues[1], 0, 80, 1);
    write_pattern(&mut client.queues[1], 0, 80, 2);
    let Client { session, queues, .. } = &mut client;
    session.start(queues[0].queue()).unwrap();
    expect_pattern(&mut queues[0], 0, 80, 2);
}

/// Two queues on one thread, and `count` writes of 1 MiB in the first one, with a codec that takes
/// a good part of a second for each.
fn slow_writes(daemon: &Daemon, count: u64) -> Client {
    let mut client = daemon.client_with(&ClientOptions {
        queues: 2,
        depth: 16,
        max_bytes: 1 << 20,
        ..client_options()
    });
    let blk = &mut client.queues[0];
    for n in 0..count {
        let tag = blk.acquire().unwrap();
        blk.region().write(blk.buffer(tag), &pattern(n * 2048, 2048, 1)).unwrap();
        blk.submit_shaped(tag, Op::Out, n * 2048, 1 << 20, &Shape::default(), 0).unwrap();
    }
    blk.publish().unwrap();
    client
}

const SLOW: [&str; 6] =
    ["--num-queues", "2", "--queue-threads", "1", "--algorithm", "zstd(level=19)"];

#[test]
fn a_queue_with_slow_requests_does_not_hold_up_another_one() {
    let mut daemon = Daemon::start("32M", &SLOW);
    let mut client = slow_writes(&daemon, 16);
    for _ in 0..5 {
        client.queues[1].read_vec(60_000, 4096).unwrap();
    }
    let done = client.queues[0].queue().ring().used_idx().unwrap();
    assert!(done < 16, "the reads waited for all the writes");
    // And its own thread answers messages meanwhile.
    client.session.enable(1, false).unwrap();
    client.session.enable(1, true).unwrap();
    reap_all(&mut client.queues[0]);
    expect_pattern(&mut client.queues[1], 0, 16 * 2048, 1);
    assert_eq!(daemon.stats()["expired_requests"], 0);
}

#[test]
fn a_ring_with_slow_requests_stops_before_it_has_done_them_all() {
    let daemon = Daemon::start("32M", &SLOW);
    let mut client = slow_writes(&daemon, 16);
    let base = client.session.stop(0).unwrap();
    let ring = client.queues[0].queue().ring().clone();
    assert_eq!(base, ring.used_idx().unwrap());
    assert!(base < 16, "all were taken at once");
    let Client { session, queues, .. } = &mut client;
    session.set_up(queues[0].queue(), base).unwrap();
    session.enable(0, true).unwrap();
    reap_all(&mut queues[0]);
    expect_pattern(&mut queues[1], 0, 16 * 2048, 1);
}

#[test]
fn a_disabled_ring_takes_nothing_until_it_is_enabled() {
    let daemon = Daemon::start("16M", &[]);
    let mut client = daemon.client();
    for generation in 1..=5 {
        client.session.enable(0, false).unwrap();
        let before = client.blk().queue().ring().used_idx().unwrap();
        submit_writes(client.blk(), generation);
        client.blk().publish().unwrap();
        client.blk().queue().kick().unwrap();
        thread::sleep(MOMENT);
        assert_eq!(client.blk().queue().ring().used_idx().unwrap(), before);
        // It keeps its place, and looks by itself.
        client.session.enable(0, true).unwrap();
        reap_all(client.blk());
    }
    expect_pattern(client.blk(), 0, 8, 5);
}

#[test]
fn requests_made_before_the_ring_is_enabled_are_seen() {
    let daemon = Daemon::start("16M", &[]);
    for kicked in [false, true] {
        let options = ClientOptions { queues: 0, ..client_options() };
        let client = daemon.client_with(&options);
        let event_idx = client.session.has(feature::EVENT_IDX);
        let queue = Queue::new(0, &client.region, 64, event_idx).unwrap();
        let mut blk = Blk::new(queue, 8, 4096, true).unwrap();
        submit_writes(&mut blk, 1);
        blk.queue_mut().publish_quietly().unwrap();
        if kicked {
            // The descriptor is handed over signalled, as QEMU does it.
            blk.queue().kick().unwrap();
        }
        client.session.start(blk.queue()).unwrap();
        reap_all(&mut blk);
    }
}

#[test]
fn a_new_kick_descriptor_takes_the_place_of_the_old() {
    let daemon = Daemon::start("16M", &[]);
    let mut raw = Raw::new(&daemon).unwritten();
    let flush = |raw: &mut Raw| raw.request(T_FLUSH, 0, &[raw.header_desc(), raw.status_desc()]);
    assert_eq!(flush(&mut raw), Outcome::Used { len: 1, status: Status::Ok });
    for _ in 0..5 {
        let ring = raw.queue.ring().clone();
        let (pushed, used) = (raw.queue.avail_idx(), raw.queue.used_idx());
        assert_eq!(raw.session.stop(0).unwrap(), pushed);
        let event_idx = raw.queue.event_idx();
        raw.queue = Queue::with_ring(0, ring, event_idx).unwrap();
        // A driver that starts over from index 0.
        raw.queue.reset().unwrap();
        assert_eq!(pushed, used);
        raw.session.start(&raw.queue).unwrap();
        assert_eq!(flush(&mut raw), Outcome::Used { len: 1, status: Status::Ok });
    }
}

#[test]
fn the_call_descriptor_is_signalled_once_when_it_is_set() {
    let daemon = Daemon::start("16M", &[]);
    let raw = Raw::new(&daemon);
    // An interrupt may have died with the process before.
    raw.queue.call_event().wait("the first call", LIMIT).unwrap();
}

/// A request at a time, each waited for by its used element.
fn flush_and_look(raw: &mut Raw) {
    raw.set_header(T_FLUSH, 0);
    raw.set_chain(&[raw.header_desc(), raw.status_desc()]);
    raw.queue.push(0).unwrap();
    raw.queue.publish().unwrap();
    raw.queue.kick().unwrap();
    raw.queue.spin_used(LIMIT).unwrap();
    assert!(raw.queue.pop().unwrap().is_some());
}

#[test]
fn used_event_says_when_the_interrupt_comes() {
    let daemon = Daemon::start("16M", &[]);
    let mut raw = Raw::with(&daemon, &session_options());
    assert!(raw.session.has(feature::EVENT_IDX));
    flush_and_look(&mut raw);
    for _ in 0..20 {
        raw.queue.want_no_call().unwrap();
        thread::sleep(Duration::from_millis(1));
        raw.queue.call_event().take();
        raw.queue.want_call_after(3).unwrap();
        for _ in 0..3 {
            flush_and_look(&mut raw);
        }
        thread::sleep(Duration::from_millis(2));
        assert_eq!(raw.queue.call_event().take(), 0, "an interrupt before its time");
        flush_and_look(&mut raw);
        raw.queue.call_event().wait("the interrupt asked for", LIMIT).unwrap();
    }
}

#[test]
fn the_no_interrupt_flag_is_honoured() {
    let daemon = Daemon::start("16M", &[]);
    let options = Options { timeout: LIMIT, ..Options::without(feature::EVENT_IDX) };
    let mut raw = Raw::with(&daemon, &options);
    flush_and_look(&mut raw);
    for _ in 0..20 {
        raw.queue.want_no_call().unwrap();
        thread::sleep(Duration::from_millis(1));
        raw.queue.call_event().take();
        for _ in 0..5 {
            flush_and_look(&mut raw);
        }
        thread::sleep(Duration::from_millis(2));
        assert_eq!(raw.queue.call_event().take(), 0, "an interrupt that the driver does not want");
        raw.queue.want_call().unwrap();
        flush_and_look(&mut raw);
        raw.queue.call_event().wait("the interrupt", LIMIT).unwrap();
    }
}

#[test]
fn a_batch_raises_one_interrupt() {
    let daemon = Daemon::start("16M", &[]);
    for event_idx in [true, false] {
        let mask = if event_idx { 0 } else { feature::EVENT_IDX };
        let session = Options { timeout: LIMIT, ..Options::without(mask) };
        let options = ClientOptions { session, depth: 16, ..client_options() };
        let mut client = daemon.client_with(&options);
        client.blk().flush().unwrap();
        client.session.enable(0, false).unwrap();
        assert_eq!(submit_writes(client.blk(), 1), 16);
        client.blk().queue_mut().publish_quietly().unwrap();
        client.blk().queue().want_call().unwrap();
        client.blk().queue().call_event().take();
        client.session.enable(0, true).unwrap();
        client.blk().queue().call_event().wait("the interrupt", LIMIT).unwrap();
        let ring = client.blk().queue().ring().clone();
        let done = client.blk().queue().avail_idx();
        wait_until("the batch", || ring.used_idx().unwrap() == done);
        // Settled: a message goes there and back behind it.
        client.session.config(0, 60).unwrap();
        let more = client.blk().queue().call_event().take();
        assert!(more <= 1, "{} interrupts for 16 requests", more + 1);
        reap_all(client.blk());
    }
}

/// With EVENT_IDX a daemon that is behind asks for no kick; when it has caught up it does.
#[test]
fn no_kick_is_lost() {
    let daemon = Daemon::start("16M", &[]);
    for mask in [0, feature::EVENT_IDX] {
        let session = Options { timeout: LIMIT, ..Options::without(mask) };
        let options = ClientOptions { session, depth: 4, max_bytes: 4096, ..client_options() };
        let mut client = daemon.client_with(&options);
        let blk = client.blk();
        let mut random = vhost_user_zram_frontend::Random::new(4);
        for _ in 0..20_000 {
            for _ in 0..=random.below(4) {
                let Some(tag) = blk.acquire() else { break };
                blk.submit_shaped(tag, Op::In, 0, 512, &Shape::default(), 0).unwrap();
                // Kicked only if the daemon asks for it, at every moment of its way.
                blk.publish().unwrap();
            }
            for _ in 0..random.below(300) {
                std::hint::spin_loop();
            }
            while blk.reap().unwrap().is_some() {}
        }
        reap_all(blk);
    }
}

#[test]
fn every_framing_of_a_request_is_the_same_request() {
    let daemon = Daemon::start("16M", &[]);
    let mut client = daemon.client();
    let blk = client.blk();
    let cuts: [&[u32]; 7] = [
        &[],
        &[16],
        &[1; 16],
        &[15, 2, 511],
        &[8, 8, 512, 512],
        &[16, 1, 1, 1, 4096],
        &[3, 5, 7, 11, 13, 1000],
    ];
    let places = [Place::Direct, Place::Indirect, Place::Tail(1), Place::Tail(2), Place::Tail(3)];
    let mut generation = 0;
    for readable in cuts {
        for writable in [&[][..], &[4096], &[1, 4095], &[8191], &[511, 513, 1], &[8192]] {
            for place in places {
                for write_flag_on_table in [false, true] {
                    generation += 1;
                    let (readable, writable) = (readable.to_vec(), writable.to_vec());
                    let shape = Shape { readable, writable, place, write_flag_on_table };
                    let data = pattern(24, 16, generation);
                    let done = blk.run_with_shape(Op::Out, 24, &data, &shape).unwrap();
                    assert_eq!((done.status, done.used_len), (Status::Ok, 1), "{shape:?}");
                    let done = blk.run(Op::In, 24, 8192, &shape).unwrap();
                    assert_eq!((done.status, done.used_len), (Status::Ok, 8193), "{shape:?}");
                    let got = blk.region().read_vec(blk.buffer(done.tag), 8192).unwrap();
                    assert!(got == data, "{shape:?}");
                }
            }
        }
    }
}

#[test]
fn used_lengths_count_what_was_written() {
    let daemon = Daemon::start("16M", &[]);
    let mut raw = Raw::new(&daemon).unwritten();
    for len in [512, 4096, 65536] {
        let data = Desc::writable(raw.data, len);
        let done = raw.request(T_IN, 0, &[raw.header_desc(), data, raw.status_desc()]);
        assert_eq!(done, Outcome::Used { len: len + 1, status: Status::Ok });
    }
    // A failed read has written its status, and at most what it was given.
    let data = Desc::writable(raw.data, 512);
    match raw.request(T_IN, 1 << 40, &[raw.header_desc(), data, raw.status_desc()]) {
        Outcome::Used { len: 1..=513, status: Status::IoErr } => {}
        other => panic!("{other:?}"),
    }
}

/// Waits until the daemon has read the kicks so far.
fn wait_read(event: &Event) {
    wait_until("the kick to be read", || {
        let mut fds = [PollFd::new(event.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO).expect("poll") == 0
    });
}

/// As with a QEMU memory backend without share=on: the guest's requests do not show, and it waits for
/// ever. The log says why.
#[test]
fn guest_memory_that_is_not_shared_is_told_of() {
    let mut daemon = Daemon::start("16M", &[]);
    let mut session = daemon.session();
    let memory = Region::not_shared(GPA, MEMORY).unwrap();
    session.set_mem_table(&[Arc::clone(&memory)]).unwrap();
    let mut queue = Queue::new(0, &memory, SIZE, true).unwrap();
    session.start(&queue).unwrap();
    for times in 1..=2 {
        assert_eq!(daemon.stats()["blind_queues"], 0, "after {} kicks", times - 1);
        queue.push(0).unwrap();
        queue.publish_quietly().unwrap();
        queue.kick().unwrap();
        wait_read(queue.kick_event());
    }
    let line = daemon.wait_for_log("kicked 2 times and shows no request");
    assert!(line.contains("share=on") && line.contains("<access mode='shared'/>"), "{line}");
    assert_eq!(daemon.stats()["blind_queues"], 1);
    assert_eq!(queue.ring().used_idx().unwrap(), 0);
    // One whose memory is shared is served, and nothing more is said.
    drop(session);
    let mut client = daemon.client();
    write_pattern(client.blk(), 0, 80, 1);
    expect_pattern(client.blk(), 0, 80, 1);
    assert_eq!(daemon.stats()["blind_queues"], 1);
}

/// A session ends in the middle of a large write, again and again, with and without what tells the next
/// one of it. In the end it is done, whole, and its completion is seen.
#[test]
fn a_large_request_outlives_the_ends_of_sessions() {
    const SECTORS: usize = (3 << 20) / 512;
    for (state, tracked) in [(false, false), (true, false), (false, true)] {
        let dir = TempDir::in_memory();
        let place = dir.join("state");
        let args = ["--algorithm", "zstd(level=19)", "--create", "--state-dir"];
        let mut args = args.to_vec();
        args.push(place.to_str().unwrap());
        let daemon = Daemon::start("32M", if state { &args } else { &args[..2] });
        let options = session_options();
        let mut session = Session::connect(daemon.socket(), &options).unwrap();
        let region = Region::new(GPA, 32 << 20).unwrap();
        let queue = Queue::new(0, &region, 64, session.has(feature::EVENT_IDX)).unwrap();
        let mut blk = Blk::new(queue, 2, 4 << 20, session.has(feature::INDIRECT)).unwrap();
        let inflight = tracked.then(|| session.take_inflight(1, 64).unwrap().expect("offered"));
        for generation in 1..=2 {
            session
                .take_up(&[Arc::clone(&region)], inflight.as_ref(), &[blk.queue().wiring().clone()])
                .unwrap();
            let tag = blk.acquire().unwrap();
            region.write(blk.buffer(tag), &pattern(8, SECTORS, generation)).unwrap();
            blk.submit_shaped(tag, Op::Out, 8, SECTORS as u32 * 512, &Shape::default(), 0).unwrap();
            blk.publish().unwrap();
            for _ in 0..3 {
                // It is taken at some time in this, or not yet.
                thread::sleep(Duration::from_millis(20));
                session.hang_up();
                session = Session::connect(daemon.socket(), &options).unwrap();
                let wiring = [blk.queue().wiring().clone()];
                session.take_up(&[Arc::clone(&region)], inflight.as_ref(), &wiring).unwrap();
            }
            let done = blk.wait(LIMIT).unwrap();
            assert_eq!((done.tag, done.status), (tag, Status::Ok), "{state} {tracked}");
            expect_pattern(&mut blk, 8, SECTORS, generation);
            assert_eq!(blk.busy(), 0);
        }
    }
}
