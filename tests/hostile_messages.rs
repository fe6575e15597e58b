//! Messages that no good front end sends, and front ends that leave at the worst moment. Each is refused
//! or ends its session, and after each one the daemon serves a good client with the right data.

mod common;

use std::{
    os::{
        fd::{AsRawFd, RawFd},
        unix::net::UnixStream,
    },
    sync::Arc,
    time::Duration,
};

use common::{
    LIMIT,
    daemon::{Daemon, client_options, session_options},
    disk::{expect_pattern, expect_served, write_pattern},
    raw::{GPA, MEMORY, Outcome, Raw, SIZE},
    victim::{refused, victim},
    wait_until,
};
use vhost::vhost_user::message::FrontendReq;
use vhost_user_zram_frontend::{
    Client, Desc, Error, Op, Queue, Region, Session, Shape, Status,
    queue::Event,
    spec::{T_FLUSH, T_IN},
    wire::{FLAG_REPLY, FLAG_VERSION, Wire, header, memory_region, vring_addr, vring_state},
};

#[test]
fn queue_indexes_out_of_range_are_refused_by_every_message() {
    let mut daemon = victim();
    let states =
        [FrontendReq::SET_VRING_NUM, FrontendReq::SET_VRING_BASE, FrontendReq::SET_VRING_ENABLE];
    for index in [1, 2, 255, 256, 0x8000, 0x8000_0000, u32::MAX] {
        for code in states {
            let session = daemon.session();
            refused(&session, code, &vring_state(index, 1), &[]);
        }
        let session = daemon.session();
        refused(&session, FrontendReq::SET_VRING_ADDR, &vring_addr(index, 0, 0, 0, 0, 0), &[]);
        for code in
            [FrontendReq::SET_VRING_KICK, FrontendReq::SET_VRING_CALL, FrontendReq::SET_VRING_ERR]
        {
            // Bits 0 to 7 are the index; bit 8 says that there is no descriptor.
            let event = Event::new().unwrap();
            let body = u64::from(index).to_le_bytes();
            if index & 0xff != 0 {
                let session = daemon.session();
                refused(&session, code, &body, &[event.fd().as_raw_fd()]);
            }
        }
        let session = daemon.session();
        let code = u32::from(FrontendReq::GET_VRING_BASE);
        session.wire().send_message(code, FLAG_VERSION, &vring_state(index, 0), &[]).unwrap();
        // There is no way to say no but to hang up or to answer with an index that is not the one asked.
        match session.wire().recv_message(LIMIT) {
            Ok(_) | Err(Error::Closed(_)) => {}
            Err(e) => panic!("GET_VRING_BASE {index}: {e}"),
        }
        drop(session);
        expect_served(&mut daemon);
    }
}

#[test]
fn ring_sizes_that_are_no_power_of_two_or_too_large_are_refused() {
    let mut daemon = victim();
    for size in [0, 3, 100, 1023, 32769, 65535, 65536, 65536 + 128, u32::MAX] {
        let session = daemon.session();
        refused(&session, FrontendReq::SET_VRING_NUM, &vring_state(0, size), &[]);
    }
    expect_served(&mut daemon);
}

/// Sets up queue 0 with the ring addresses of `place`, and insists that it does not run: refused, or
/// stopped, or nothing taken.
fn ring_refused(daemon: &mut Daemon, name: &str, place: impl Fn(&Region, &Queue) -> [u64; 3]) {
    eprintln!("case: {name}");
    let mut session = daemon.session();
    let region = Region::new(GPA, MEMORY).unwrap();
    session.set_mem_table(&[Arc::clone(&region)]).unwrap();
    let queue = Queue::new(0, &region, SIZE, true).unwrap();
    let [desc, used, avail] = place(&region, &queue);
    let wire = session.wire();
    let ask = |code, body: &[u8], fds: &[RawFd]| wire.ask(code, body, fds, LIMIT).expect("answer");
    let kick = [queue.kick_event().fd().as_raw_fd()];
    let call = [queue.call_event().fd().as_raw_fd()];
    let err = [queue.err_event().fd().as_raw_fd()];
    let index = 0_u64.to_le_bytes();
    let steps: [(FrontendReq, Vec<u8>, &[RawFd]); 7] = [
        (FrontendReq::SET_VRING_NUM, vring_state(0, u32::from(SIZE)), &[]),
        (FrontendReq::SET_VRING_BASE, vring_state(0, 0), &[]),
        (FrontendReq::SET_VRING_ERR, index.to_vec(), &err),
        (FrontendReq::SET_VRING_ADDR, vring_addr(0, 0, desc, used, avail, 0), &[]),
        (FrontendReq::SET_VRING_CALL, index.to_vec(), &call),
        (FrontendReq::SET_VRING_KICK, index.to_vec(), &kick),
        (FrontendReq::SET_VRING_ENABLE, vring_state(0, 1), &[]),
    ];
    let was_refused = steps.iter().any(|(code, body, fds)| ask(*code, body, fds).is_refusal());
    if !was_refused {
        queue.kick().unwrap();
        wait_until("the error event", || {
            queue.err_event().take() > 0 || wire.wait_closed(Duration::ZERO).is_ok()
        });
    }
    drop(session);
    expect_served(daemon);
}

#[test]
fn rings_outside_memory_never_run() {
    let mut daemon = victim();
    let good = |region: &Region, queue: &Queue| {
        let (desc, avail, used) = queue.ring().addresses();
        [region.to_user(desc), region.to_user(used), region.to_user(avail)]
    };
    for part in 0..3 {
        for addr in [0, 16, u64::MAX - 15, 1 << 47] {
            ring_refused(&mut daemon, "a part nowhere", |region, queue| {
                let mut places = good(region, queue);
                places[part] = addr;
                places
            });
        }
        ring_refused(&mut daemon, "a part at the very end", |region, queue| {
            let mut places = good(region, queue);
            // The first bytes are inside, the last are not.
            places[part] = region.to_user(GPA + MEMORY - 16);
            places
        });
        ring_refused(&mut daemon, "a part before the begin", |region, queue| {
            let mut places = good(region, queue);
            places[part] = region.to_user(GPA - 16);
            places
        });
        ring_refused(&mut daemon, "a part misaligned", |region, queue| {
            let mut places = good(region, queue);
            places[part] += 1;
            places
        });
    }
}

#[test]
fn memory_that_the_file_does_not_have_is_refused() {
    let mut daemon = victim();
    let region = Region::new(GPA, 1 << 20).unwrap();
    let user = region.user_addr();
    let len = 1_u64 << 20;
    let pipe = UnixStream::pair().unwrap().0;
    let event = Event::new().unwrap();
    let (ram, sock, eventfd) =
        (region.file().as_raw_fd(), pipe.as_raw_fd(), event.fd().as_raw_fd());
    let cases: [(&str, [u64; 4], RawFd); 11] = [
        ("file too small", [GPA, len + 4096, user, 0], ram),
        ("file far too small", [GPA, 1 << 40, user, 0], ram),
        ("offset behind the file", [GPA, len, user, len], ram),
        ("offset that overflows", [GPA, len, user, u64::MAX - 4095], ram),
        ("no bytes", [GPA, 0, user, 0], ram),
        ("guest address that overflows", [u64::MAX - 4095, len, user, 0], ram),
        ("user address that overflows", [GPA, len, u64::MAX - 4095, 0], ram),
        ("all of the address space", [0, u64::MAX, 0, 0], ram),
        ("a socket for a file", [GPA, len, user, 0], sock),
        ("an eventfd for a file", [GPA, len, user, 0], eventfd),
        ("no file", [GPA, len, user, 0], -1),
    ];
    for (name, [gpa, size, user, offset], fd) in cases {
        eprintln!("case: {name}");
        let body = memory_region(gpa, size, user, offset);
        let fds: &[RawFd] = if fd < 0 { &[] } else { &[fd] };
        let session = daemon.session();
        refused(
            &session,
            FrontendReq::SET_MEM_TABLE,
            &[&[1, 0, 0, 0, 0, 0, 0, 0], &body[..]].concat(),
            fds,
        );
        drop(session);
        let session = daemon.session();
        refused(&session, FrontendReq::ADD_MEM_REG, &[&[0; 8], &body[..]].concat(), fds);
        drop(session);
        expect_served(&mut daemon);
    }
}

#[test]
fn memory_tables_that_contradict_themselves_are_refused() {
    let mut daemon = victim();
    let region = Region::new(GPA, 1 << 20).unwrap();
    let ram = region.file().as_raw_fd();
    let one = memory_region(GPA, 1 << 20, region.user_addr(), 0);
    let count = |n: u32| [n.to_le_bytes(), [0; 4]].concat();
    let cases: [(&str, Vec<u8>, Vec<RawFd>); 6] = [
        ("no regions", count(0), vec![]),
        ("more regions said than sent", [count(2), one.clone()].concat(), vec![ram, ram]),
        ("more regions sent than said", [count(1), one.clone(), one.clone()].concat(), vec![ram]),
        ("fewer files than regions", [count(2), one.clone(), one.clone()].concat(), vec![ram]),
        ("overlapping regions", [count(2), one.clone(), one.clone()].concat(), vec![ram, ram]),
        ("a count without sense", [count(u32::MAX), one.clone()].concat(), vec![ram]),
    ];
    for (name, body, fds) in cases {
        eprintln!("case: {name}");
        let session = daemon.session();
        refused(&session, FrontendReq::SET_MEM_TABLE, &body, &fds);
        drop(session);
        expect_served(&mut daemon);
    }
    let mut session = daemon.session();
    session.add_mem_region(&region).unwrap();
    refused(&session, FrontendReq::ADD_MEM_REG, &[vec![0; 8], one].concat(), &[ram]);
    drop(session);
    expect_served(&mut daemon);
}

#[test]
fn memory_taken_from_under_a_running_ring_stops_it() {
    let mut daemon = victim();
    // Taken back region by region.
    let mut session = daemon.session();
    let region = Region::new(GPA, MEMORY).unwrap();
    session.add_mem_region(&region).unwrap();
    let mut queue = Queue::new(0, &region, SIZE, true).unwrap();
    session.start(&queue).unwrap();
    // Either answer is right; what counts is that the ring is not touched any more.
    let _ = session.remove_mem_region(&region);
    queue.push(0).unwrap();
    queue.publish_quietly().unwrap();
    queue.kick().unwrap();
    let _ = session.config(0, 60);
    drop(session);
    expect_served(&mut daemon);
    // Replaced by other memory.
    let mut raw = Raw::new(&daemon);
    let other = Region::new(GPA + (1 << 32), MEMORY).unwrap();
    let _ = raw.session.set_mem_table(&[Arc::clone(&other)]);
    raw.queue.push(0).unwrap();
    raw.queue.publish_quietly().unwrap();
    raw.queue.kick().unwrap();
    let _ = raw.session.config(0, 60);
    drop(raw);
    expect_served(&mut daemon);
}

#[test]
fn guest_memory_truncated_in_use_ends_the_session_only() {
    let mut daemon = victim();
    for keep in [0, 4096, MEMORY / 2] {
        let mut raw = Raw::new(&daemon).unwritten();
        let outcome = raw.request(T_FLUSH, 0, &[raw.header_desc(), raw.status_desc()]);
        assert_eq!(outcome, Outcome::Used { len: 1, status: Status::Ok });
        raw.set_header(T_IN, 0);
        let data = Desc::writable(GPA + MEMORY - 4096, 4096);
        raw.set_chain(&[raw.header_desc(), data, raw.status_desc()]);
        raw.queue.push(0).unwrap();
        raw.queue.publish_quietly().unwrap();
        raw.region.truncate(keep).unwrap();
        raw.queue.kick().unwrap();
        if keep == MEMORY / 2 {
            // The ring is still there: an error status is as good as a closed session.
            let outcome = raw.outcome(0);
            assert!(outcome.is_refusal(), "{outcome:?}");
        } else {
            raw.session.wire().wait_closed(LIMIT).expect("a closed session");
        }
        drop(raw);
        expect_served(&mut daemon);
    }
}

#[test]
fn garbage_on_the_socket_ends_the_session_only() {
    let mut daemon = victim();
    let mut random = vhost_user_zram_frontend::Random::new(1);
    let mut noise = vec![0; 4096];
    random.fill(&mut noise);
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("noise", noise),
        ("ones", vec![0xff; 64]),
        ("a huge length", header(1, FLAG_VERSION, u32::MAX).to_vec()),
        ("a length beyond any message", header(25, FLAG_VERSION, 0x2000).to_vec()),
        ("an unknown request", header(200, FLAG_VERSION, 0).to_vec()),
        ("request 0", header(0, FLAG_VERSION, 0).to_vec()),
        ("a reply", header(1, FLAG_VERSION | FLAG_REPLY, 0).to_vec()),
        ("another version", header(1, 2, 0).to_vec()),
    ];
    for (name, bytes) in cases {
        for negotiated in [false, true] {
            eprintln!("case: {name}");
            let session = if negotiated {
                daemon.session()
            } else {
                Session::unnegotiated(daemon.stream(), LIMIT).unwrap()
            };
            // A hang-up in the middle of sending is an answer too.
            let _ = session.wire().send(&bytes, &[]);
            drop(session);
            expect_served(&mut daemon);
        }
    }
}

#[test]
fn bodies_of_a_wrong_length_are_refused() {
    let mut daemon = victim();
    let codes = [
        FrontendReq::SET_FEATURES,
        FrontendReq::SET_VRING_NUM,
        FrontendReq::SET_VRING_ADDR,
        FrontendReq::SET_VRING_BASE,
        FrontendReq::SET_VRING_ENABLE,
        FrontendReq::SET_CONFIG,
        FrontendReq::ADD_MEM_REG,
        FrontendReq::REM_MEM_REG,
    ];
    for code in codes {
        for len in [0, 1, 7, 200] {
            let session = daemon.session();
            match session.wire().ask(code, &vec![0; len], &[], Duration::from_secs(5)) {
                Ok(answer) => assert!(answer.is_refusal(), "{code:?}, {len} bytes: {answer:?}"),
                Err(e) => panic!("{code:?}, {len} bytes: {e}"),
            }
        }
    }
    expect_served(&mut daemon);
}

#[test]
fn a_message_that_never_ends_keeps_no_other_out() {
    let mut daemon = victim();
    let whole = [&header(2, FLAG_VERSION, 8)[..], &[0; 8]].concat();
    for part in [1, 15] {
        let stalled = Wire::new(daemon.stream());
        stalled.send(&whole[..part], &[]).unwrap();
        // Still connected, and silent: the next one is served all the same.
        expect_served(&mut daemon);
        drop(stalled);
        let gone = Wire::new(daemon.stream());
        gone.send(&whole[..part], &[]).unwrap();
        drop(gone);
        expect_served(&mut daemon);
    }
}

#[test]
fn a_front_end_that_reads_no_answers_keeps_no_other_out() {
    let mut daemon = victim();
    let deaf = Wire::new(daemon.stream());
    deaf.socket().set_nonblocking(true).unwrap();
    // Until neither side's buffer has room.
    let ask = header(u32::from(FrontendReq::GET_FEATURES), FLAG_VERSION, 0).repeat(64);
    for _ in 0..10_000 {
        if deaf.send(&ask, &[]).is_err() {
            break;
        }
    }
    expect_served(&mut daemon);
    drop(deaf);
    expect_served(&mut daemon);
}

/// However often front ends come and go, or err, there are at most ten lines of a kind a second.
#[test]
fn a_flood_of_sessions_fills_no_log() {
    let mut daemon = victim();
    let began = std::time::Instant::now();
    for _ in 0..500 {
        drop(daemon.stream());
        let wire = Wire::new(daemon.stream());
        wire.send(&header(1, FLAG_VERSION, 0), &[]).unwrap();
        wire.recv_message(LIMIT).unwrap();
    }
    expect_served(&mut daemon);
    let seconds = began.elapsed().as_secs() as usize + 2;
    let lines = daemon.log();
    for text in [") connects", ") hung up"] {
        let count = lines.iter().filter(|line| line.contains(text)).count();
        assert!((1..=10 * seconds).contains(&count), "{count} times '{text}' in {seconds} s");
    }
}

#[test]
fn rings_that_were_never_set_up_do_nothing() {
    let mut daemon = victim();
    for (code, body) in [
        (FrontendReq::SET_VRING_ENABLE, vring_state(0, 1)),
        (FrontendReq::SET_VRING_ENABLE, vring_state(0, 0)),
        (FrontendReq::SET_VRING_ENABLE, vring_state(0, 7)),
    ] {
        let session = daemon.session();
        // Right or wrong is a matter of taste; alive is not.
        let _ = session.wire().ask(code, &body, &[], LIMIT).unwrap();
        drop(session);
        expect_served(&mut daemon);
    }
    // Stopped before it ran: the index is 0, or a hang-up.
    let session = daemon.session();
    if let Ok(base) = session.stop(0) {
        assert_eq!(base, 0);
    }
    drop(session);
    // A kick descriptor that is signalled, and nothing else.
    let session = daemon.session();
    let event = Event::new().unwrap();
    event.signal().unwrap();
    let fds = [event.fd().as_raw_fd()];
    let _ = session.wire().ask(FrontendReq::SET_VRING_KICK, &0_u64.to_le_bytes(), &fds, LIMIT);
    let _ = session.wire().ask(FrontendReq::SET_VRING_ENABLE, &vring_state(0, 1), &[], LIMIT);
    drop(session);
    expect_served(&mut daemon);
}

#[test]
fn a_second_client_waits_or_is_told_but_never_mixes() {
    let mut daemon = victim();
    let mut first = daemon.client();
    let second = daemon.stream();
    for generation in 5..25 {
        write_pattern(first.blk(), 2000, 64, generation);
        expect_pattern(first.blk(), 2000, 64, generation);
    }
    drop(first);
    // If it was made to wait, it is served now; if it was sent away, the next attempt is.
    match Session::from_stream(second, &session_options()) {
        Ok(session) => drop(session),
        Err(Error::Closed(_) | Error::Vhost { .. }) => {}
        Err(e) => panic!("{e}"),
    }
    expect_pattern(daemon.client().blk(), 2000, 64, 24);
    expect_served(&mut daemon);
}

#[test]
fn configuration_writes_outside_the_writeback_byte_are_refused() {
    let mut daemon = victim();
    let before = daemon.session().config(0, 60).unwrap();
    for (offset, len) in [(0, 1), (0, 8), (31, 1), (31, 2), (32, 2), (33, 1), (59, 1), (60, 4)] {
        let session = daemon.session();
        let body = [
            u32::to_le_bytes(offset).to_vec(),
            u32::to_le_bytes(len).to_vec(),
            u32::to_le_bytes(1).to_vec(),
            vec![1; len as usize],
        ]
        .concat();
        refused(&session, FrontendReq::SET_CONFIG, &body, &[]);
    }
    assert_eq!(daemon.session().config(0, 60).unwrap(), before);
    expect_served(&mut daemon);
}

#[test]
fn a_client_that_dies_under_load_is_forgotten() {
    let mut daemon = victim();
    for _ in 0..20 {
        let mut client = Client::connect(daemon.socket(), &client_options()).unwrap();
        let shape = Shape::default();
        while let Some(tag) = client.blk().acquire() {
            let sector = 4096 + 512 * tag.index() as u64;
            client.blk().submit_shaped(tag, Op::Out, sector, 64 << 10, &shape, 0).unwrap();
        }
        client.blk().publish().unwrap();
        client.session.hang_up();
    }
    expect_served(&mut daemon);
}
