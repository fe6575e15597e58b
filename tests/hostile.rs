//! Chains and requests that no good driver makes. Each ends in an error status or, where none can be
//! written, in a visibly stopped queue, and after each one the daemon serves a good client with the right
//! data.

mod common;

use common::{
    daemon::{Daemon, TempDir, session_options},
    disk::{MARK_AT, expect_served, expect_zeroes, mark},
    raw::{GPA, IOERR, MEMORY, Outcome, Raw, SIZE, UNSUPP, UNWRITTEN},
    victim::Victim,
};
use nix::sys::signal::Signal;
use vhost_user_zram_frontend::{
    Desc, Status,
    client::range,
    spec::{DESC_WRITE, SECTOR, T_DISCARD, T_FLUSH, T_GET_ID, T_IN, T_OUT, T_WRITE_ZEROES},
};

/// Sectors of the disk.
const SECTORS: u64 = (16 << 20) / SECTOR;
const MARK_SECTOR: u64 = MARK_AT + 8;

#[test]
fn malformed_chains_stop_the_queue() {
    let mut victim = Victim::new();
    victim.stops("descriptors in a loop", |raw| {
        raw.set_header(T_OUT, MARK_SECTOR);
        let data = Desc::readable(raw.data, 512);
        raw.set_descs(&[raw.header_desc().then(1), data.then(1)]);
        raw.offer(0)
    });
    victim.stops("a long loop of writable descriptors", |raw| {
        raw.set_header(T_IN, 0);
        let mut descs = vec![raw.header_desc()];
        descs.resize(usize::from(SIZE), Desc::writable(raw.data, 512));
        raw.set_chain(&descs);
        let last = descs[1].then(1);
        raw.queue.ring().set_desc(SIZE - 1, last).unwrap();
        raw.offer(0)
    });
    for next in [SIZE, SIZE + 1, 0x7fff, 0xffff] {
        victim.stops("next out of range", |raw| {
            raw.set_header(T_OUT, MARK_SECTOR);
            raw.set_descs(&[raw.header_desc().then(next)]);
            raw.offer(0)
        });
    }
    for len in [0, 1, 8, 17, 40, 0xffff_fff0, 0xffff_ffff] {
        victim.stops("indirect table of a wrong length", |raw| {
            raw.set_header(T_OUT, MARK_SECTOR);
            raw.set_table(&[raw.header_desc(), Desc::readable(raw.data, 512), raw.status_desc()]);
            raw.set_descs(&[Desc::indirect(raw.table, len)]);
            raw.offer(0)
        });
    }
    victim.stops("nested indirect tables", |raw| {
        raw.set_header(T_OUT, MARK_SECTOR);
        let len = raw.set_table(&[
            raw.header_desc(),
            Desc::indirect(raw.table + 4096, 32),
            raw.status_desc(),
        ]);
        raw.set_descs(&[Desc::indirect(raw.table, len)]);
        raw.offer(0)
    });
    victim.stops("an indirect table that is its own entry", |raw| {
        let len = raw.set_table(&[Desc::indirect(raw.table, 16)]);
        raw.set_descs(&[Desc::indirect(raw.table, len)]);
        raw.offer(0)
    });
    victim.stops("indirect with next", |raw| {
        raw.set_header(T_OUT, MARK_SECTOR);
        let len = raw.set_table(&[raw.header_desc(), Desc::readable(raw.data, 512)]);
        raw.set_descs(&[Desc::indirect(raw.table, len).then(1), raw.status_desc()]);
        raw.offer(0)
    });
    victim.stops("next out of range in an indirect table", |raw| {
        raw.set_header(T_OUT, MARK_SECTOR);
        let bytes =
            [raw.header_desc().then(1).bytes(), Desc::readable(raw.data, 512).then(9).bytes()];
        raw.region.write(raw.table, &bytes.concat()).unwrap();
        raw.set_descs(&[Desc::indirect(raw.table, 48)]);
        raw.offer(0)
    });
    victim.stops("a loop in an indirect table", |raw| {
        raw.set_header(T_OUT, MARK_SECTOR);
        let bytes =
            [raw.header_desc().then(1).bytes(), Desc::readable(raw.data, 512).then(0).bytes()];
        raw.region.write(raw.table, &bytes.concat()).unwrap();
        raw.set_descs(&[Desc::indirect(raw.table, 32)]);
        raw.offer(0)
    });
    for addr in [0, GPA - 16, GPA + MEMORY - 16, GPA + MEMORY, u64::MAX - 15] {
        victim.stops("indirect table outside memory", |raw| {
            raw.set_descs(&[Desc::indirect(addr, 48)]);
            raw.offer(0)
        });
    }
    victim.stops("indirect table longer than any queue", |raw| {
        raw.set_header(T_OUT, MARK_SECTOR);
        // 4096 entries, of which the last is the status: a driver must not exceed the queue size.
        let mut descs = vec![Desc::readable(raw.data, 1); 4096];
        descs[0] = raw.header_desc();
        descs[4095] = raw.status_desc();
        let len = raw.set_table(&descs);
        raw.set_descs(&[Desc::indirect(raw.table, len)]);
        raw.offer(0)
    });
}

#[test]
fn headers_and_statuses_that_are_missing_or_unreachable_are_refused() {
    let mut victim = Victim::new();
    victim.refused("no header", |raw| {
        raw.set_chain(&[raw.status_desc()]);
        raw.offer(0)
    });
    for len in [0, 1, 15] {
        victim.refused("a short header", |raw| {
            raw.request(T_IN, 0, &[Desc::readable(raw.header, len), raw.status_desc()])
        });
    }
    victim.stops("no writable byte after a header", |raw| {
        raw.request(T_FLUSH, 0, &[raw.header_desc()])
    });
    victim.stops("no writable byte after data", |raw| {
        raw.request(T_OUT, MARK_SECTOR, &[raw.header_desc(), Desc::readable(raw.data, 512)])
    });
    victim.stops("a writable descriptor of length 0", |raw| {
        raw.request(T_FLUSH, 0, &[raw.header_desc(), Desc::writable(raw.status, 0)])
    });
    victim.stops("an empty chain", |raw| {
        raw.set_chain(&[Desc::readable(raw.data, 0)]);
        raw.offer(0)
    });
    for addr in [0, GPA - 1, GPA + MEMORY, u64::MAX] {
        victim.stops("status outside memory", |raw| {
            raw.request(T_FLUSH, 0, &[raw.header_desc(), Desc::writable(addr, 1)])
        });
        for op in [T_OUT, T_DISCARD, T_WRITE_ZEROES] {
            // All but the status is right: what cannot be answered is not done.
            victim.stops("a change whose status lies outside memory", |raw| {
                raw.region.write(raw.data, &range(MARK_SECTOR, 8, 0)).unwrap();
                let data = Desc::readable(raw.data, if op == T_OUT { 512 } else { 16 });
                raw.request(op, MARK_SECTOR, &[raw.header_desc(), data, Desc::writable(addr, 1)])
            });
        }
    }
    for addr in [0, GPA - 8, GPA + MEMORY - 8, GPA + MEMORY, u64::MAX - 8] {
        victim.refused("header outside memory", |raw| {
            raw.request(T_FLUSH, 0, &[Desc::readable(addr, 16), raw.status_desc()])
        });
    }
    victim.answers("readable after writable", IOERR, |raw| {
        let data = Desc::readable(raw.data, 512);
        raw.request(T_OUT, MARK_SECTOR, &[raw.header_desc(), raw.status_desc(), data])
    });
    victim.refused("header behind the status", |raw| {
        raw.request(T_FLUSH, 0, &[raw.status_desc(), raw.header_desc()])
    });
}

/// The queue stands before the request that cannot be answered, whatever says where a queue stands. So
/// a stop, a new start, a new session and the daemon's end have nothing to wait for.
#[test]
fn a_queue_that_was_stopped_can_be_started_again_and_ended() {
    for (state, tracked) in [(false, false), (true, false), (false, true), (true, true)] {
        let dir = TempDir::in_memory();
        let place = dir.join("state");
        let args = ["--create", "--state-dir", place.to_str().unwrap()];
        let mut daemon = Daemon::start("16M", if state { &args } else { &[] });
        mark(&daemon);
        let mut raw = Raw::new(&daemon);
        if tracked {
            let region = raw.session.take_inflight(1, SIZE).unwrap().expect("offered");
            raw.session.give_inflight(&region).unwrap();
        }
        let data = Desc::readable(raw.data, 512);
        for mended in [false, true] {
            assert_eq!(
                raw.request(T_OUT, MARK_SECTOR, &[raw.header_desc(), data]),
                Outcome::Stopped
            );
            for _ in 0..3 {
                let base = raw.session.stop(0).unwrap();
                assert_eq!(base, raw.queue.ring().used_idx().unwrap());
                // It is met again, without a kick.
                raw.session.set_up(&raw.queue, base).unwrap();
                raw.session.enable(0, true).unwrap();
                assert_eq!(raw.outcome(0), Outcome::Stopped);
            }
            if mended {
                let base = raw.session.stop(0).unwrap();
                raw.region.write(raw.status, &[UNWRITTEN]).unwrap();
                raw.set_header(T_FLUSH, 0);
                raw.set_chain(&[raw.header_desc(), raw.status_desc()]);
                raw.session.set_up(&raw.queue, base).unwrap();
                raw.session.enable(0, true).unwrap();
                assert_eq!(raw.outcome(0), Outcome::Used { len: 1, status: Status::Ok });
            } else {
                // As a guest's reset does.
                raw.session.stop(0).unwrap();
                raw.queue.reset().unwrap();
                raw.session.start(&raw.queue).unwrap();
            }
        }
        assert_eq!(raw.request(T_OUT, MARK_SECTOR, &[raw.header_desc(), data]), Outcome::Stopped);
        assert_eq!(daemon.stats()["broken_queues"], 9);
        drop(raw);
        expect_served(&mut daemon);
        let mut raw = Raw::new(&daemon);
        assert_eq!(raw.request(T_OUT, MARK_SECTOR, &[raw.header_desc(), data]), Outcome::Stopped);
        daemon.end(Signal::SIGTERM);
    }
}

#[test]
fn sectors_and_lengths_out_of_range_move_nothing() {
    let mut victim = Victim::new();
    let far = [SECTORS, SECTORS + 1, u64::MAX, u64::MAX - 1, u64::MAX / 512, 1 << 55, 1 << 63];
    for (op, flags) in [(T_IN, DESC_WRITE), (T_OUT, 0)] {
        for sector in far {
            victim.answers("sector out of range", IOERR, |raw| {
                let data = Desc::readable(raw.data, 512).with(flags);
                raw.request(op, sector, &[raw.header_desc(), data, raw.status_desc()])
            });
        }
        victim.answers("the second sector out of range", IOERR, |raw| {
            let data = Desc::readable(raw.data, 1024).with(flags);
            raw.request(op, SECTORS - 1, &[raw.header_desc(), data, raw.status_desc()])
        });
        for len in [1, 511, 513, 4095] {
            victim.answers("length not in sectors", IOERR, |raw| {
                let data = Desc::readable(raw.data, len).with(flags);
                raw.request(op, MARK_SECTOR, &[raw.header_desc(), data, raw.status_desc()])
            });
        }
        for addr in [0, GPA - 256, GPA + MEMORY - 256, GPA + MEMORY, u64::MAX - 255] {
            victim.answers("data outside memory", IOERR, |raw| {
                // The first half is good, and must not be written either.
                let first = Desc::readable(raw.data, 512).with(flags);
                let data = Desc::readable(addr, 512).with(flags);
                let status = raw.status_desc();
                raw.request(op, MARK_SECTOR, &[raw.header_desc(), first, data, status])
            });
        }
        victim.refused("data that is larger than memory", |raw| {
            let data = Desc::readable(GPA, 0xffff_fe00).with(flags);
            raw.request(op, 0, &[raw.header_desc(), data, raw.status_desc()])
        });
        victim.refused("more than 4 GiB in one chain", |raw| {
            raw.set_header(op, 0);
            let mut descs = vec![Desc::readable(GPA, MEMORY as u32).with(flags); 300];
            descs[0] = raw.header_desc();
            descs.push(raw.status_desc());
            let len = raw.set_table(&descs);
            raw.set_descs(&[Desc::indirect(raw.table, len)]);
            raw.offer(0)
        });
    }
    victim.case("the end of the disk itself is in range", |raw| {
        raw.preset = UNWRITTEN;
        let data = Desc::writable(raw.data, 512);
        let outcome = raw.request(T_IN, SECTORS - 1, &[raw.header_desc(), data, raw.status_desc()]);
        assert_eq!(outcome, Outcome::Used { len: 513, status: Status::Ok });
    });
}

/// No partial transfer: pages before the one whose data is out of reach keep what they hold.
#[test]
fn a_write_whose_last_page_is_out_of_reach_changes_nothing() {
    let mut victim = Victim::new();
    for addr in [0, GPA + MEMORY - 2048, GPA + MEMORY, u64::MAX - 4095] {
        victim.answers("the last of 17 pages out of reach", IOERR, |raw| {
            raw.region.write(raw.data, &[0x55; 65536]).unwrap();
            let (good, bad) = (Desc::readable(raw.data, 65536), Desc::readable(addr, 4096));
            raw.request(T_OUT, MARK_AT, &[raw.header_desc(), good, bad, raw.status_desc()])
        });
    }
}

#[test]
fn data_in_the_wrong_direction_is_an_error() {
    let mut victim = Victim::new();
    victim.answers("a read into readable data", IOERR, |raw| {
        let data = Desc::readable(raw.data, 512);
        raw.request(T_IN, MARK_SECTOR, &[raw.header_desc(), data, raw.status_desc()])
    });
    victim.answers("a serial into readable data", IOERR, |raw| {
        let data = Desc::readable(raw.data, 20);
        raw.request(T_GET_ID, 0, &[raw.header_desc(), data, raw.status_desc()])
    });
    for op in [T_OUT, T_DISCARD, T_WRITE_ZEROES] {
        victim.case("a write from writable data", |raw| {
            raw.region.write(raw.data, &range(MARK_SECTOR, 8, 0)).unwrap();
            let data = Desc::writable(raw.data, 512);
            match raw.request(op, MARK_SECTOR, &[raw.header_desc(), data, raw.status_desc()]) {
                Outcome::Used { status: Status::IoErr, len: 1..=513 } => {}
                other => panic!("{op}: {other:?}"),
            }
        });
    }
}

#[test]
fn discards_and_write_zeroes_that_are_wrong_change_nothing() {
    let mut victim = Victim::new();
    let good = range(MARK_SECTOR, 8, 0);
    for op in [T_DISCARD, T_WRITE_ZEROES] {
        let mut case = |name: &str, right: Outcome, data: &[u8]| {
            victim.answers(name, right, |raw| {
                raw.region.write(raw.data, data).unwrap();
                let desc = Desc::readable(raw.data, data.len() as u32);
                raw.request(op, 0, &[raw.header_desc(), desc, raw.status_desc()])
            });
        };
        case("two segments", UNSUPP, &[good, good].concat());
        case("no segment", IOERR, &[]);
        case("a piece of a segment", IOERR, &good[..15]);
        case("a segment and a piece", IOERR, &[&good[..], &good[..8]].concat());
        for flags in [2, 4, 0x8000_0000, 0xffff_fffe] {
            case("unknown flags", UNSUPP, &range(MARK_SECTOR, 8, flags));
        }
        for sector in [SECTORS - 7, SECTORS, u64::MAX, u64::MAX - 7] {
            case("range beyond the end", IOERR, &range(sector, 8, 0));
        }
        case("more sectors than the disk has", IOERR, &range(0, SECTORS as u32 + 1, 0));
        case("more sectors than any request may have", IOERR, &range(0, u32::MAX, 0));
    }
    victim.answers("unmap on a discard", UNSUPP, |raw| {
        raw.region.write(raw.data, &range(MARK_SECTOR, 8, 1)).unwrap();
        let desc = Desc::readable(raw.data, 16);
        raw.request(T_DISCARD, 0, &[raw.header_desc(), desc, raw.status_desc()])
    });
    victim.case("no sectors at all is nothing to do", |raw| {
        raw.preset = UNWRITTEN;
        for op in [T_DISCARD, T_WRITE_ZEROES] {
            raw.region.write(raw.data, &range(MARK_SECTOR, 0, 0)).unwrap();
            let desc = Desc::readable(raw.data, 16);
            let outcome = raw.request(op, 0, &[raw.header_desc(), desc, raw.status_desc()]);
            assert_eq!(outcome, Outcome::Used { len: 1, status: Status::Ok });
        }
    });
}

#[test]
fn unknown_request_types_are_unsupported() {
    let mut victim = Victim::new();
    for op in [2, 3, 5, 9, 10, 14, 15, 16, 24, 0x7fff_ffff, u32::MAX] {
        victim.answers("unknown type", UNSUPP, |raw| {
            raw.request(op, 0, &[raw.header_desc(), raw.status_desc()])
        });
    }
    victim.case("a legacy barrier", |raw| {
        raw.preset = UNWRITTEN;
        let outcome = raw.request(
            T_IN | 0x8000_0000,
            0,
            &[raw.header_desc(), Desc::writable(raw.data, 512), raw.status_desc()],
        );
        let fits = matches!(outcome, Outcome::Used { status: Status::Ok | Status::Unsupp, .. });
        assert!(fits, "{outcome:?}");
    });
}

#[test]
fn a_read_only_disk_refuses_every_change() {
    for take_ro in [true, false] {
        let mut daemon = Daemon::start("16M", &["--read-only"]);
        let mut options = session_options();
        if !take_ro {
            options.features &= !vhost_user_zram_frontend::spec::feature::RO;
        }
        let mut raw = Raw::with(&daemon, &options);
        raw.region.write(raw.data, &[0xa5; 512]).unwrap();
        let data = Desc::readable(raw.data, 512);
        let outcome = raw.request(T_OUT, 0, &[raw.header_desc(), data, raw.status_desc()]);
        assert_eq!(outcome, IOERR);
        for op in [T_DISCARD, T_WRITE_ZEROES] {
            raw.region.write(raw.data, &range(0, 8, 0)).unwrap();
            let data = Desc::readable(raw.data, 16);
            let outcome = raw.request(op, 0, &[raw.header_desc(), data, raw.status_desc()]);
            // IOERR for a disk that is read-only, UNSUPP where the feature is not offered with it.
            assert!(matches!(outcome, IOERR | UNSUPP), "{outcome:?}");
        }
        drop(raw);
        expect_zeroes(daemon.client().blk(), 0, 64);
        assert!(daemon.is_alive());
    }
}

#[test]
fn odd_but_legal_chains_are_served() {
    let mut victim = Victim::new();
    let ok = |len| Outcome::Used { len, status: Status::Ok };
    victim.answers("descriptors of length 0 between the others", ok(513), |raw| {
        let (none, data) = (Desc::readable(raw.data, 0), Desc::writable(raw.data, 512));
        let empty = Desc::writable(raw.data, 0);
        raw.request(T_IN, MARK_SECTOR, &[raw.header_desc(), none, data, empty, raw.status_desc()])
    });
    victim.answers("no data at all", ok(1), |raw| {
        raw.request(T_IN, MARK_SECTOR, &[raw.header_desc(), raw.status_desc()])
    });
    victim.answers("an indirect table at an odd address with the WRITE flag", ok(1), |raw| {
        raw.set_header(T_FLUSH, 0);
        let entries = [raw.header_desc().then(1).bytes(), raw.status_desc().bytes()].concat();
        raw.region.write(raw.table + 3, &entries).unwrap();
        raw.set_descs(&[Desc::indirect(raw.table + 3, 32).with(DESC_WRITE)]);
        raw.offer(0)
    });
    victim.case("a status far longer than a byte", |raw| {
        // The status is the last writable byte, wherever the descriptor began.
        raw.preset = UNWRITTEN;
        raw.region.write(raw.table, &[0xee; 100]).unwrap();
        raw.set_header(T_FLUSH, 0);
        raw.set_chain(&[raw.header_desc(), Desc::writable(raw.table, 100)]);
        match raw.offer(0) {
            Outcome::Used { len: 1..=100, .. } => {}
            other => panic!("{other:?}"),
        }
        assert_eq!(raw.region.read_vec(raw.table + 99, 1).unwrap(), [0]);
    });
}
