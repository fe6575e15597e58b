//! What outlives a session and what does not: contents, configuration, memory, identity.

mod common;

use std::{
    collections::HashSet,
    fs,
    os::unix::net::{UnixListener, UnixStream},
    process::Command,
    sync::Arc,
};

use common::{
    LIMIT,
    daemon::{BINARY, Daemon, TempDir, client_options, session_options},
    disk::{
        expect_pattern, expect_same, expect_served, expect_zeroes, mark, pattern, write_pattern,
    },
    raw::{GPA, MEMORY, Outcome, Raw, SIZE},
    wait_until,
};
use nix::sys::signal::Signal;
use vhost::vhost_user::message::FrontendReq;
use vhost_user_zram_frontend::{
    Blk, ClientOptions, Desc, Error, Op, Options, Queue, Region, Session, Shape, Status,
    spec::{CONFIG_LEN, SECTOR, T_GET_ID, T_IN, T_OUT, feature},
    wire::{Answer, vring_state},
};

const GENERATIONS: u64 = 5;

#[test]
fn contents_outlive_the_session() {
    let daemon = Daemon::start("16M", &["--num-queues", "2"]);
    for generation in 1..=GENERATIONS {
        let mut client = daemon.client();
        if generation > 1 {
            expect_pattern(client.blk(), 100, 500, generation - 1);
        }
        write_pattern(client.blk(), 100, 500, generation);
        if generation % 2 == 0 {
            client.session.hang_up();
        }
    }
    expect_pattern(daemon.client().blk(), 100, 500, GENERATIONS);
    expect_zeroes(daemon.client().blk(), 0, 100);
}

#[test]
fn every_set_of_features_is_served() {
    let daemon = Daemon::start("16M", &["--num-queues", "2"]);
    let sets = [
        feature::ALL,
        feature::VERSION_1,
        feature::VERSION_1 | feature::EVENT_IDX,
        feature::VERSION_1 | feature::INDIRECT,
        feature::VERSION_1 | feature::DISCARD | feature::WRITE_ZEROES,
        feature::ALL & !feature::EVENT_IDX,
        feature::ALL & !feature::INDIRECT,
        feature::ALL & !(feature::FLUSH | feature::CONFIG_WCE),
        feature::ALL & !feature::MQ,
    ];
    for (generation, features) in (1..).zip(sets) {
        for mem_slots in [false, true] {
            let session = Options { timeout: LIMIT, ..Options::only(features) };
            let options = ClientOptions { session, mem_slots, queues: 2, ..client_options() };
            let mut client = daemon.client_with(&options);
            write_pattern(&mut client.queues[0], 8, 300, generation);
            expect_pattern(&mut client.queues[1], 8, 300, generation);
            client.queues[1].flush().unwrap();
        }
    }
}

#[test]
fn features_are_those_of_the_design() {
    let daemon = Daemon::start("16M", &[]);
    let session = daemon.session();
    let offered = session.offered();
    assert_eq!(offered & (feature::ALL & !feature::RO), feature::ALL & !feature::RO);
    assert_eq!(offered & feature::RO, 0);
    assert_eq!(offered & (feature::IN_ORDER | feature::RING_PACKED), 0);
    drop(session);
    let daemon = Daemon::start("16M", &["--read-only"]);
    assert_ne!(daemon.session().offered() & feature::RO, 0);
}

#[test]
fn every_ring_size_is_served() {
    let daemon = Daemon::start("64M", &[]);
    for (generation, shift) in (1..).zip(2..=15) {
        let queue_size = 1 << shift;
        let depth = (queue_size / 4).clamp(1, 64);
        let options = ClientOptions { queue_size, depth, max_bytes: 8192, ..client_options() };
        let mut client = daemon.client_with(&options);
        // Twice around the ring, at least.
        let sectors = (16 * usize::from(queue_size)).min(64 << 10);
        write_pattern(client.blk(), 0, sectors, generation);
        expect_pattern(client.blk(), 0, sectors, generation);
    }
}

/// QEMU asks for a queue for each vCPU, and does not start with fewer.
#[test]
fn many_queues_are_offered_and_cost_no_thread_until_they_are_used() {
    let daemon = Daemon::start("16M", &["--queue-threads", "3"]);
    let session = daemon.session();
    assert_eq!((session.queue_num().unwrap(), session.blk_config().unwrap().num_queues), (64, 64));
    assert_eq!(daemon.queue_threads(), [""; 0]);
    drop(session);
    let started = [(1, 1), (2, 2), (3, 3), (8, 3), (64, 3)];
    for (generation, (queues, threads)) in (1..).zip(started) {
        let options = ClientOptions { queues, depth: 4, max_bytes: 4096, ..client_options() };
        let mut client = daemon.client_with(&options);
        let names: Vec<String> = (0..threads).map(|thread| format!("queue-{thread}")).collect();
        // A thread gives itself its name, when it first runs.
        wait_until("threads to run", || daemon.queue_threads() == names);
        for (queue, blk) in (0..).zip(&mut client.queues) {
            write_pattern(blk, 8 * queue, 8, generation);
        }
        for queue in 0..queues as u64 {
            expect_pattern(client.blk(), 8 * queue, 8, generation);
        }
        drop(client);
        // Of a session that has ended nothing is left.
        drop(daemon.session());
        wait_until("threads to end", || daemon.queue_threads().is_empty());
    }
}

/// What an operator sets is a bound.
#[test]
fn a_ring_larger_than_the_operator_allows_is_refused() {
    let daemon = Daemon::start("16M", &["--queue-size", "256"]);
    let set_num = |size| {
        let session = daemon.session();
        let body = vring_state(0, size);
        session.wire().ask(FrontendReq::SET_VRING_NUM, &body, &[], LIMIT).unwrap()
    };
    assert_eq!(set_num(256), Answer::Ack);
    assert!(set_num(512).is_refusal());
}

#[test]
fn the_configuration_space_is_right_at_every_offset() {
    let daemon = Daemon::start("16M", &["--num-queues", "2"]);
    let session = daemon.session();
    let config = session.blk_config().unwrap();
    assert_eq!(config.capacity, (16 << 20) / SECTOR);
    assert_eq!(config.blk_size, 4096);
    assert_eq!(config.num_queues, 2);
    assert_eq!(session.queue_num().unwrap(), 2);
    assert!(config.seg_max >= 1 && config.size_max >= 4096);
    assert_eq!(config.writeback, 0);
    assert!(config.max_discard_sectors > 0 && config.max_write_zeroes_sectors > 0);
    assert_eq!((config.max_discard_seg, config.max_write_zeroes_seg), (1, 1));
    assert_eq!(config.discard_sector_alignment, 8);
    assert_eq!(config.write_zeroes_may_unmap, 1);
    let whole = session.config(0, CONFIG_LEN).unwrap();
    for offset in 0..CONFIG_LEN {
        for len in [1, 2, 4, 8, CONFIG_LEN - offset] {
            let len = len.min(CONFIG_LEN - offset);
            let part = session.config(offset, len).unwrap();
            assert_eq!(part, whole[offset as usize..(offset + len) as usize], "{offset}+{len}");
        }
    }
    // What lies behind the fields of today reads as zeroes.
    let more = session.config(0, 256).unwrap();
    assert_eq!((&more[..60], more[60..].iter().all(|b| *b == 0)), (&whole[..], true));
}

#[test]
fn images_are_shown_in_blocks_of_512_bytes_and_other_disks_in_pages() {
    let dir = TempDir::new();
    let image = dir.join("image");
    fs::write(&image, pattern(0, 100, 1)).unwrap();
    let image = image.to_str().unwrap();
    let cases: [(&[&str], u32); 5] = [
        (&[], 4096),
        (&["--block-size", "4096"], 4096),
        (&["--block-size", "512"], 512),
        (&["--load", image], 512),
        (&["--load", image, "--block-size", "4096"], 4096),
    ];
    for (options, bytes) in cases {
        let daemon = Daemon::start("16M", options);
        let mut client = daemon.client();
        let config = client.session.blk_config().unwrap();
        assert_eq!(config.blk_size, bytes, "{options:?}");
        assert_eq!(config.capacity, (16 << 20) / SECTOR, "{options:?}");
        // Whatever it is, a page is what a discard frees, and the physical block.
        assert_eq!(config.discard_sector_alignment, 8, "{options:?}");
        let exponent = client.session.config(24, 1).unwrap()[0];
        assert_eq!(bytes << exponent, 4096, "{options:?}");
        // Requests are in sectors with either.
        write_pattern(client.blk(), 1, 300, 2);
        write_pattern(client.blk(), 13, 1, 3);
        client.blk().discard(14, 1).unwrap();
        client.blk().write_zeroes(15, 1, true).unwrap();
        expect_pattern(client.blk(), 1, 12, 2);
        expect_pattern(client.blk(), 13, 1, 3);
        expect_zeroes(client.blk(), 15, 1);
        expect_pattern(client.blk(), 16, 285, 2);
    }
}

#[test]
fn sizes_are_rounded_up_to_a_page() {
    for (size, sectors) in [("1", 8), ("4097", 16), ("5000K", 10000), ("1M", 2048)] {
        let daemon = Daemon::start(size, &[]);
        assert_eq!(daemon.session().blk_config().unwrap().capacity, sectors, "{size}");
    }
}

#[test]
fn the_cache_mode_can_be_toggled() {
    let daemon = Daemon::start("16M", &[]);
    let mut client = daemon.client();
    for on in [true, false, true] {
        client.session.set_writeback(on).unwrap();
        assert_eq!(client.session.blk_config().unwrap().writeback, u8::from(on));
        client.blk().flush().unwrap();
    }
}

#[test]
fn the_serial_is_padded_and_cut_as_asked() {
    for (serial, padded) in [("disk-7", "disk-7"), ("a-serial-of-20-bytes", "a-serial-of-20-bytes")]
    {
        let daemon = Daemon::start("16M", &["--serial", serial]);
        let id = daemon.client().blk().get_id().unwrap();
        let mut expected = [0; 20];
        expected[..padded.len()].copy_from_slice(padded.as_bytes());
        assert_eq!(id, expected);
        for len in [1, 5, 19, 20, 21, 64] {
            let mut raw = Raw::new(&daemon).unwritten();
            raw.region.write(raw.data, &[0xee; 64]).unwrap();
            let data = Desc::writable(raw.data, len);
            let outcome = raw.request(T_GET_ID, 0, &[raw.header_desc(), data, raw.status_desc()]);
            match outcome {
                Outcome::Used { status: Status::Ok, len: used } => assert!(used <= len + 1),
                other => panic!("{len} bytes: {other:?}"),
            }
            let got = raw.region.read_vec(raw.data, 64).unwrap();
            let n = len.min(20) as usize;
            assert_eq!(got[..n], expected[..n], "{len} bytes");
            assert!(got[len as usize..].iter().all(|b| *b == 0xee), "{len} bytes");
        }
    }
}

#[test]
fn memory_slots_come_and_go() {
    let daemon = Daemon::start("16M", &[]);
    let mut raw = Raw::new(&daemon).unwritten();
    assert!(raw.session.max_mem_slots().unwrap() >= 8);
    let extra = Region::new(GPA + (4 << 30), 1 << 20).unwrap();
    let through = |raw: &mut Raw, op: u32, addr: u64| {
        let mut data = Desc::readable(addr, 4096);
        if op == T_IN {
            data = Desc::writable(addr, 4096);
        }
        raw.request(op, 80, &[raw.header_desc(), data, raw.status_desc()])
    };
    for generation in 1..4 {
        assert!(through(&mut raw, T_OUT, extra.gpa()).is_refusal());
        raw.session.add_mem_region(&extra).unwrap();
        let data = pattern(80, 8, generation);
        extra.write(extra.gpa(), &data).unwrap();
        let done = through(&mut raw, T_OUT, extra.gpa());
        assert_eq!(done, Outcome::Used { len: 1, status: Status::Ok });
        let address = raw.data;
        let done = through(&mut raw, T_IN, address);
        assert_eq!(done, Outcome::Used { len: 4097, status: Status::Ok });
        expect_same(80, &raw.region.read_vec(raw.data, 4096).unwrap(), &data);
        raw.session.remove_mem_region(&extra).unwrap();
    }
    let unknown = Region::new(GPA + (8 << 30), 1 << 20).unwrap();
    assert!(raw.session.remove_mem_region(&unknown).is_err());
}

/// QEMU changes a region by taking it away and giving it back, and says nothing more of the rings.
#[test]
fn a_ring_continues_when_its_memory_was_away() {
    let daemon = Daemon::start("16M", &[]);
    let mut raw = Raw::new(&daemon).unwritten();
    for generation in 1..4 {
        let (region, data) = (Arc::clone(&raw.region), raw.data);
        region.write(data, &pattern(8, 8, generation)).unwrap();
        let write = [raw.header_desc(), Desc::readable(data, 4096), raw.status_desc()];
        let done = raw.request(T_OUT, 8, &write);
        assert_eq!(done, Outcome::Used { len: 1, status: Status::Ok });
        raw.queue.err_event().take();
        raw.session.remove_mem_region(&region).unwrap();
        assert!(raw.queue.err_event().take() > 0, "the stop is to be seen");
        raw.session.add_mem_region(&region).unwrap();
        region.write(data, &[0xee; 4096]).unwrap();
        let read = [raw.header_desc(), Desc::writable(data, 4096), raw.status_desc()];
        let done = raw.request(T_IN, 8, &read);
        assert_eq!(done, Outcome::Used { len: 4097, status: Status::Ok });
        expect_same(8, &region.read_vec(data, 4096).unwrap(), &pattern(8, 8, generation));
    }
}

/// The same for a region without rings, which holds the buffer of a write that takes its time.
#[test]
fn a_write_is_finished_before_its_memory_goes() {
    let args = ["--engine", "offload", "--engine-workers", "1", "--engine-model", "latency=1ms"];
    let mut daemon = Daemon::start("16M", &args);
    let mut raw = Raw::new(&daemon).unwritten();
    let buffer = Region::new(GPA + (4 << 30), 2 << 20).unwrap();
    raw.session.add_mem_region(&buffer).unwrap();
    let data = pattern(0, 4096, 1);
    buffer.write(buffer.gpa(), &data).unwrap();
    let write = [
        raw.header_desc(),
        Desc::readable(buffer.gpa(), 1 << 20),
        Desc::readable(buffer.gpa() + (1 << 20), 1 << 20),
        raw.status_desc(),
    ];
    raw.set_header(T_OUT, 0);
    raw.set_chain(&write);
    raw.queue.push(0).unwrap();
    raw.queue.publish().unwrap();
    raw.queue.kick().unwrap();
    wait_until("it is begun", || daemon.stats()["engine_jobs"] > 0);
    raw.session.remove_mem_region(&buffer).unwrap();
    raw.session.add_mem_region(&buffer).unwrap();
    assert_eq!(raw.outcome(0), Outcome::Used { len: 1, status: Status::Ok });
    drop(raw);
    expect_pattern(daemon.client().blk(), 0, 4096, 1);
}

/// What a guest does all the time with `-o discard`; each used to leave a little behind.
#[test]
fn discards_between_reads_take_no_memory() {
    let daemon = Daemon::start("16M", &[]);
    let mut client = daemon.client();
    let resident = || {
        let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("RssAnon")).unwrap().to_owned();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    let mut rounds = |count| {
        for _ in 0..count {
            client.blk().discard(0, 8).unwrap();
            client.blk().read_vec(0, 4096).unwrap();
        }
    };
    rounds(2_000);
    let before = resident();
    rounds(20_000);
    assert!(resident() < before + 1024, "{before} KiB became {} KiB", resident());
}

#[test]
fn a_buffer_may_cross_from_one_region_to_the_next() {
    let daemon = Daemon::start("16M", &[]);
    let mut raw = Raw::new(&daemon).unwritten();
    let next = Region::new(GPA + MEMORY, 1 << 20).unwrap();
    raw.session.add_mem_region(&next).unwrap();
    let data = pattern(0, 16, 3);
    let (first, second) = data.split_at(5000);
    raw.region.write(raw.region.end() - 5000, first).unwrap();
    next.write(next.gpa(), second).unwrap();
    let across = Desc::readable(raw.region.end() - 5000, data.len() as u32);
    let done = raw.request(T_OUT, 0, &[raw.header_desc(), across, raw.status_desc()]);
    assert_eq!(done, Outcome::Used { len: 1, status: Status::Ok });
    raw.region.write(raw.region.end() - 5000, &[0; 5000]).unwrap();
    next.write(next.gpa(), &vec![0; second.len()]).unwrap();
    let across = across.with(vhost_user_zram_frontend::spec::DESC_WRITE);
    let done = raw.request(T_IN, 0, &[raw.header_desc(), across, raw.status_desc()]);
    assert_eq!(done, Outcome::Used { len: data.len() as u32 + 1, status: Status::Ok });
    let mut got = raw.region.read_vec(raw.region.end() - 5000, 5000).unwrap();
    got.extend(next.read_vec(next.gpa(), second.len()).unwrap());
    expect_same(0, &got, &data);
}

/// As when the firmware's ring lay where the kernel is about to clear its own.
#[test]
fn a_ring_that_the_guest_clears_after_its_start_is_served() {
    let mut daemon = Daemon::start("16M", &[]);
    mark(&daemon);
    let mut session = daemon.session();
    let region = Region::new(GPA, MEMORY).unwrap();
    session.set_mem_table(&[Arc::clone(&region)]).unwrap();
    let queue = Queue::new(0, &region, 128, session.has(feature::EVENT_IDX)).unwrap();
    queue.ring().set_used_idx(1000).unwrap();
    queue.ring().set_avail_idx(1000).unwrap();
    session.start(&queue).unwrap();
    queue.ring().clear().unwrap();
    let mut blk = Blk::new(queue, 16, 4096, session.has(feature::INDIRECT)).unwrap();
    write_pattern(&mut blk, 4096, 64, 3);
    expect_pattern(&mut blk, 4096, 64, 3);
    drop(session);
    expect_served(&mut daemon);
}

/// Twenty front ends in a row die under load, each with the ring of the one before, and nothing that was
/// asked is lost or done in a mix: the rings' memory lives on, as with QEMU's `reconnect`.
#[test]
fn requests_of_a_lost_session_are_finished_in_the_next() {
    let daemon = Daemon::start("64M", &[]);
    let options = session_options();
    let mut session = Session::connect(daemon.socket(), &options).unwrap();
    let region = Region::new(GPA, 64 << 20).unwrap();
    let queue = Queue::new(0, &region, 128, session.has(feature::EVENT_IDX)).unwrap();
    let mut blk = Blk::new(queue, 64, 16 << 10, session.has(feature::INDIRECT)).unwrap();
    let mut random = vhost_user_zram_frontend::Random::new(20);
    let mut expected = vec![0; 1024];
    for round in 1..=20_u64 {
        session.set_mem_table(&[Arc::clone(&region)]).unwrap();
        // QEMU sends an index read at the moment of the hang-up, which may be older than the ring's.
        let stale = blk.queue().used_idx();
        session.set_up(blk.queue(), stale).unwrap();
        session.enable(0, true).unwrap();
        // First what the last round left behind.
        while blk.busy() > 0 {
            assert_eq!(blk.wait(LIMIT).unwrap().status, Status::Ok);
        }
        for (at, generation) in expected.iter().enumerate().filter(|(_, g)| **g > 0).take(50) {
            expect_pattern(&mut blk, at as u64 * 32, 32, *generation);
        }
        let mut taken = HashSet::new();
        for _ in 0..random.below(400) + 50 {
            let Some(tag) = blk.acquire() else {
                let done = blk.wait(LIMIT).unwrap();
                assert_eq!(done.status, Status::Ok);
                taken.remove(&done.user);
                continue;
            };
            let place = random.below(expected.len() as u64);
            // Two writes to one place may be done in either order.
            if !taken.insert(place) {
                blk.release(tag);
                continue;
            }
            expected[place as usize] = round;
            let buffer = blk.buffer(tag);
            region.write(buffer, &pattern(place * 32, 32, round)).unwrap();
            blk.submit_shaped(tag, Op::Out, place * 32, 16 << 10, &Shape::default(), place)
                .unwrap();
            blk.publish().unwrap();
        }
        session.hang_up();
        session = Session::connect(daemon.socket(), &options).unwrap();
    }
    session.set_mem_table(&[Arc::clone(&region)]).unwrap();
    session.start(blk.queue()).unwrap();
    while blk.busy() > 0 {
        assert_eq!(blk.wait(LIMIT).unwrap().status, Status::Ok);
    }
    for (at, generation) in expected.iter().enumerate() {
        match generation {
            0 => expect_zeroes(&mut blk, at as u64 * 32, 32),
            _ => expect_pattern(&mut blk, at as u64 * 32, 32, *generation),
        }
    }
}

/// SIGTERM under load: what was taken is finished and published, then the socket closes.
#[test]
fn a_daemon_that_ends_finishes_what_it_took() {
    for _ in 0..5 {
        let daemon = Daemon::start("64M", &[]);
        let mut client = daemon.client();
        let mut submitted = 0;
        while let Some(tag) = client.blk().acquire() {
            let sector = 256 * tag.index() as u64;
            client
                .blk()
                .submit_shaped(tag, Op::Out, sector, 64 << 10, &Shape::default(), 0)
                .unwrap();
            submitted += 1;
        }
        client.blk().publish().unwrap();
        let (status, stdout, _) = daemon.terminate();
        assert!(status.success(), "{status:?}");
        assert!(stdout.iter().any(|line| line.starts_with("summary:")), "{stdout:?}");
        client.session.wire().wait_closed(LIMIT).unwrap();
        let mut back = 0;
        while let Some(done) = client.blk().reap().unwrap() {
            assert_eq!(done.status, Status::Ok);
            back += 1;
        }
        assert!(back <= submitted);
    }
}

/// A front end that comes back at once must not be let in by a daemon that is about to end.
#[test]
fn a_daemon_that_ends_lets_no_front_end_in_when_it_closes_the_session() {
    let daemon = Daemon::start("16M", &[]);
    let client = daemon.client();
    daemon.signal(Signal::SIGTERM);
    client.session.wire().wait_closed(LIMIT).expect("closed");
    UnixStream::connect(daemon.socket()).expect_err("a daemon that ends lets a front end in");
    let (status, _, _) = daemon.wait();
    assert!(status.success());
}

/// The next daemon's start need not wait until the one before is gone.
#[test]
fn the_socket_of_a_daemon_that_goes_is_waited_for_where_there_is_a_state() {
    let dir = TempDir::new();
    let state = TempDir::in_memory();
    let listener = UnixListener::bind(dir.join("socket")).unwrap();
    // It goes when it has been seen.
    let going = std::thread::spawn(move || drop(listener.accept().unwrap()));
    let mut command = Command::new(BINARY);
    command.arg("--socket-path").arg(dir.join("socket"));
    command.args(["--size", "16M", "--create", "--state-dir"]).arg(state.path());
    let daemon = Daemon::spawn(command, dir);
    going.join().unwrap();
    expect_zeroes(daemon.client().blk(), 0, 8);
}

#[test]
fn statistics_count_what_was_done() {
    let mut daemon = Daemon::start("16M", &[]);
    let before = daemon.stats();
    assert!(!before.is_empty());
    let mut client = daemon.client();
    write_pattern(client.blk(), 0, 2048, 1);
    let after = daemon.stats();
    assert!(after.keys().all(|key| before.contains_key(key)), "{before:?} {after:?}");
    assert_ne!(before, after);
}

#[test]
fn an_idle_session_may_end_at_any_message() {
    let daemon = Daemon::start("16M", &[]);
    write_pattern(daemon.client().blk(), 0, 8, 1);
    for step in 0..6 {
        let mut session = Session::unnegotiated(daemon.stream(), LIMIT).unwrap();
        let region = Region::new(GPA, MEMORY).unwrap();
        let queue = Queue::new(0, &region, SIZE, true).unwrap();
        let done = (|| -> Result<(), Error> {
            if step > 0 {
                session.negotiate(&session_options())?;
            }
            if step > 1 {
                session.set_mem_table(&[Arc::clone(&region)])?;
            }
            if step > 2 {
                session.set_up(&queue, 0)?;
            }
            if step > 3 {
                session.enable(0, true)?;
            }
            if step > 4 {
                session.stop(0)?;
            }
            Ok(())
        })();
        done.unwrap();
        session.hang_up();
        expect_pattern(daemon.client().blk(), 0, 8, 1);
    }
}
