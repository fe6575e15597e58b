//! Rings and buffers that no good driver makes: they change while they are read, or hold garbage. A queue may
//! stop, visibly; the daemon serves a good client with the right data after each one.

mod common;

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use common::{
    daemon::Daemon,
    disk::{MARK_AT, expect_pattern, expect_served, mark},
    raw::{GPA, MEMORY, Outcome, Raw, SIZE, UNWRITTEN},
    victim::Victim,
};
use vhost_user_zram_frontend::{
    Desc, Random, Status,
    spec::{DESC_INDIRECT, DESC_NEXT, DESC_WRITE, SECTOR, T_FLUSH, T_IN, T_OUT},
};

/// Sectors of the disk.
const SECTORS: u64 = (16 << 20) / SECTOR;
const MARK_SECTOR: u64 = MARK_AT + 8;

/// What a guest can change is read once: a page that changes while it is written is stored as it was at
/// some moment, and stays so.
#[test]
fn data_that_changes_while_it_is_written_is_stored_whole() {
    let mut victim = Victim::new();
    victim.case("payload under change", |raw| {
        raw.preset = UNWRITTEN;
        let (region, data) = (Arc::clone(&raw.region), raw.data);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let changer = std::thread::spawn(move || {
            let mut random = Random::new(9);
            let mut page = [0; 4096];
            while !stopped.load(Ordering::Relaxed) {
                let len = random.below(4097) as usize;
                page.fill(random.next_u64() as u8);
                random.fill(&mut page[..len]);
                region.write(data, &page).unwrap();
            }
        });
        let sector = SECTORS / 2;
        let read = |raw: &mut Raw| {
            let into = Desc::writable(raw.data + 8192, 4096);
            let outcome = raw.request(T_IN, sector, &[raw.header_desc(), into, raw.status_desc()]);
            assert_eq!(outcome, Outcome::Used { len: 4097, status: Status::Ok });
            raw.region.read_vec(raw.data + 8192, 4096).unwrap()
        };
        for _ in 0..2000 {
            let from = Desc::readable(raw.data, 4096);
            let outcome = raw.request(T_OUT, sector, &[raw.header_desc(), from, raw.status_desc()]);
            assert_eq!(outcome, Outcome::Used { len: 1, status: Status::Ok });
            assert!(read(raw) == read(raw), "a page that is not the same twice");
        }
        stop.store(true, Ordering::Relaxed);
        changer.join().unwrap();
    });
}

/// Descriptors, header and avail ring change all the time under the device's eyes.
#[test]
fn chains_that_change_while_they_are_read_do_no_harm() {
    let mut victim = Victim::new();
    victim.case("chain under change", |raw| {
        let (ring, region, table) = (raw.queue.ring().clone(), Arc::clone(&raw.region), raw.table);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let (header, data, status) = (raw.header_desc(), raw.data, raw.status_desc());
        let changer = std::thread::spawn(move || {
            let mut random = Random::new(10);
            while !stopped.load(Ordering::Relaxed) {
                let len = [0, 1, 512, 4096, 65536, u32::MAX][random.below(6) as usize];
                let addr = [data, 0, u64::MAX - 100, GPA + MEMORY - 1][random.below(4) as usize];
                let middle =
                    Desc::writable(addr, len).then([2, 2, 1, 0, 999][random.below(5) as usize]);
                ring.set_desc(1, middle).unwrap();
                let first = [header.then(1), Desc::indirect(table, len), header.then(2)];
                ring.set_desc(0, first[random.below(3) as usize]).unwrap();
                ring.set_desc(2, status).unwrap();
                region.write(table, &middle.bytes()).unwrap();
            }
        });
        raw.set_header(T_IN, 0);
        for _ in 0..5000 {
            raw.queue.push(0).unwrap();
            raw.queue.publish_quietly().unwrap();
            raw.queue.kick().unwrap();
            // Whatever comes back does; a queue that was stopped stays so.
            for _ in 0..200 {
                if raw.queue.pop().unwrap().is_some() {
                    break;
                }
                std::hint::spin_loop();
            }
            if raw.queue.in_flight() >= SIZE {
                // The stop may come at any moment, also after a look.
                let mut stopped = false;
                common::wait_until("chains to come back, or the queue to be stopped", || {
                    stopped = raw.queue.err_event().take() > 0;
                    stopped || raw.queue.spin_used(std::time::Duration::ZERO).is_ok()
                });
                if stopped {
                    break;
                }
            }
        }
        stop.store(true, Ordering::Relaxed);
        changer.join().unwrap();
    });
}

#[test]
fn a_broken_avail_ring_stops_the_queue_visibly() {
    let mut victim = Victim::new();
    for head in [SIZE, SIZE + 1, 0x8000, 0xffff] {
        victim.case("head out of range", |raw| {
            raw.queue.push(head).unwrap();
            raw.queue.publish().unwrap();
            raw.queue.kick().unwrap();
            assert_eq!(raw.outcome(u32::from(head)), Outcome::Stopped);
        });
    }
    for ahead in [SIZE + 1, 1000, 0x7fff, 0x8000, 0xffff] {
        victim.case("avail index far ahead", |raw| {
            raw.set_header(T_FLUSH, 0);
            raw.set_chain(&[raw.header_desc(), raw.status_desc()]);
            raw.queue.ring().set_avail_idx(ahead).unwrap();
            raw.queue.kick().unwrap();
            common::wait_until("the error event", || {
                raw.queue.err_event().take() > 0 || raw.is_closed()
            });
            assert_eq!(raw.queue.ring().used_idx().unwrap(), 0);
        });
    }
    victim.case("avail index going back", |raw| {
        raw.preset = UNWRITTEN;
        for _ in 0..4 {
            let outcome = raw.request(T_FLUSH, 0, &[raw.header_desc(), raw.status_desc()]);
            assert_eq!(outcome, Outcome::Used { len: 1, status: Status::Ok });
        }
        raw.queue.ring().set_avail_idx(2).unwrap();
        raw.queue.kick().unwrap();
        common::wait_until("the error event", || {
            raw.queue.err_event().take() > 0 || raw.is_closed()
        });
    });
}

#[test]
fn one_head_twice_in_the_ring_does_no_harm() {
    let mut victim = Victim::new();
    victim.case("the same head in every entry", |raw| {
        raw.set_header(T_IN, MARK_SECTOR);
        let data = Desc::writable(raw.data, 4096);
        raw.set_chain(&[raw.header_desc(), data, raw.status_desc()]);
        for _ in 0..SIZE {
            raw.queue.push(0).unwrap();
        }
        raw.queue.publish().unwrap();
        raw.queue.kick().unwrap();
        let mut back = 0;
        common::wait_until("the chains", || {
            while raw.queue.pop().unwrap().is_some() {
                back += 1;
            }
            back == SIZE || raw.queue.err_event().take() > 0 || raw.is_closed()
        });
    });
}

/// Rings full of random bytes, a few thousand times: whatever comes of it, the next client is served.
#[test]
fn random_bytes_in_the_rings_do_no_harm() {
    let mut daemon = Daemon::start("16M", &[]);
    mark(&daemon);
    let mut random = Random::new(0x7a72_616d);
    for _ in 0..40 {
        let mut raw = Raw::new(&daemon);
        for _ in 0..100 {
            for index in 0..SIZE {
                // Mostly plausible: addresses inside, flags of meaning, so that it gets past the first check.
                let desc = Desc {
                    addr: (GPA + random.below(MEMORY + 4096)) & !(random.below(2) * 511),
                    len: [16, 1, 512, 4096, random.next_u64() as u32][random.below(5) as usize],
                    flags: [0, DESC_NEXT, DESC_NEXT | DESC_WRITE, DESC_WRITE, DESC_INDIRECT, 7]
                        [random.below(6) as usize],
                    next: random.below(u64::from(SIZE) + 2) as u16,
                };
                raw.queue.ring().set_desc(index, desc).unwrap();
            }
            let mut header = [0; 16];
            random.fill(&mut header);
            // Types without OUT, DISCARD and WRITE_ZEROES: the mark must survive.
            header[..4].copy_from_slice(&[[0, 4, 8, 99][random.below(4) as usize], 0, 0, 0]);
            header[10..].fill(0);
            raw.region.write(raw.header, &header).unwrap();
            raw.queue.push(random.below(u64::from(SIZE) + 1) as u16).unwrap();
            raw.queue.publish_quietly().unwrap();
            raw.queue.kick().unwrap();
            while let Some(used) = raw.queue.pop().unwrap_or(None) {
                assert!(used.len > 0, "a chain came back without a status");
            }
            if raw.queue.err_event().take() > 0 {
                // Most chains stop the queue; the next one is to be checked all the same.
                raw.session.stop(0).unwrap();
                raw.queue.reset().unwrap();
                raw.session.start(&raw.queue).unwrap();
            }
        }
    }
    // Random descriptors can form a write after all, so only a fresh mark is to be found.
    assert!(daemon.is_alive());
    mark(&daemon);
    expect_served(&mut daemon);
    let mut client = daemon.client();
    expect_pattern(client.blk(), MARK_AT, 8, 1);
}
