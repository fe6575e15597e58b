use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, VolatileSlice};

use std::time::Duration;

use crate::blk::config::GuestOptions;
use crate::blk::config::StallLimits;
use crate::blk::reply::Status;
use crate::blk::request::{GuestBytes, Request, deliver_id};
use crate::device::{Op, Payload, PayloadFault};
use crate::virtq::chain::{Chain, Segment};
use crate::virtq::elem::{Head, Unanswerable};
use crate::virtq::memory::{Memory, MemoryMap, for_tests};

const HEADER: u64 = 0x4000;
const DATA: u64 = 0x8000;
const STATUS: u64 = 0x6000;

fn options(read_only: bool) -> GuestOptions {
    GuestOptions {
        num_queues: 1,
        max_queue_size: 128,
        threads: 1,
        serial: "serial".into(),
        read_only,
        stall_limits: StallLimits::default(),
        poll: Duration::ZERO,
        latency: false,
    }
}

fn seg(addr: u64, len: u32) -> Segment {
    Segment { addr: GuestAddress(addr), len }
}

struct Guest {
    map: MemoryMap,
    read_only: bool,
}

impl Guest {
    fn new() -> Self {
        Self { map: for_tests(0, 1 << 20), read_only: false }
    }

    fn memory(&self) -> impl std::ops::Deref<Target = Memory> {
        self.map.shared().memory()
    }

    fn header(&self, kind: u32, sector: u64) {
        let memory = self.memory();
        memory.write_obj(kind, GuestAddress(HEADER)).unwrap();
        memory.write_obj(sector, GuestAddress(HEADER + 8)).unwrap();
    }

    fn parse(&self, readable: &[Segment], writable: &[Segment]) -> Result<Request, Unanswerable> {
        let mut chain = Chain::default();
        chain.readable = readable.to_vec();
        chain.writable = writable.to_vec();
        Request::parse(&self.memory(), &mut chain, &options(self.read_only))
    }

    /// A request whose status can be written.
    fn answerable(&self, readable: &[Segment], writable: &[Segment]) -> Request {
        self.parse(readable, writable).unwrap()
    }

    fn status_of(&self, readable: &[Segment], writable: &[Segment]) -> Option<Status> {
        match self.answerable(readable, writable) {
            Request::Refused { refused, .. } => Some(refused.why.status()),
            _ => None,
        }
    }
}

#[test]
fn a_read_is_found_whatever_descriptors_it_is_in() {
    let guest = Guest::new();
    guest.header(0, 77);
    let layouts = [
        (vec![seg(HEADER, 16)], vec![seg(DATA, 1024), seg(STATUS, 1)]),
        (vec![seg(HEADER, 16)], vec![seg(DATA, 1025)]),
        (vec![seg(HEADER, 3), seg(HEADER + 3, 13)], vec![seg(DATA, 7), seg(DATA + 7, 1018)]),
        (vec![seg(HEADER, 16), seg(0, 0)], vec![seg(DATA, 1024), seg(STATUS, 1), seg(0, 0)]),
    ];
    for (readable, writable) in layouts {
        let request = guest.answerable(&readable, &writable);
        let Request::Io { op: Op::Read, sector: 77, bytes: 1024, reply, .. } = request else {
            panic!("{request:?}");
        };
        let finished = reply.finish(&guest.memory(), Head::new(5), Status::Ok).unwrap();
        assert_eq!((finished.head, finished.written), (5, 1025));
        let failed = reply.finish(&guest.memory(), Head::new(5), Status::IoErr).unwrap();
        assert_eq!(failed.written, 1);
    }
}

#[test]
fn a_write_may_share_a_descriptor_with_its_header() {
    let guest = Guest::new();
    guest.header(1, 3);
    let request = guest.answerable(&[seg(HEADER, 16 + 512)], &[seg(STATUS, 1)]);
    let Request::Io { op: Op::Write, sector: 3, bytes: 512, data, reply } = request else {
        panic!("{request:?}");
    };
    assert_eq!(data, [seg(HEADER + 16, 512)]);
    let finished = reply.finish(&guest.memory(), Head::new(0), Status::Ok).unwrap();
    assert_eq!(finished.written, 1);
    let status: u8 = guest.memory().read_obj(GuestAddress(STATUS)).unwrap();
    assert_eq!(status, 0);
}

#[test]
fn a_status_that_cannot_be_written_is_no_answer() {
    let guest = Guest::new();
    guest.header(1, 0);
    let why = |writable: &[Segment]| guest.parse(&[seg(HEADER, 528)], writable).unwrap_err();
    for writable in [vec![], vec![seg(STATUS, 0)], vec![seg(1 << 30, 0)]] {
        assert_eq!(why(&writable), Unanswerable::NoStatus);
    }
    for addr in [1 << 20, 1 << 40, u64::MAX] {
        assert_eq!(why(&[seg(addr, 1)]), Unanswerable::Outside);
    }
    assert_eq!(why(&[seg(DATA, 512), seg((1 << 20) - 1, 2)]), Unanswerable::Outside);
    // The last byte alone counts.
    guest.parse(&[seg(HEADER, 528)], &[seg((1 << 20) - 1, 1)]).unwrap();
}

#[test]
fn mistakes_have_a_status() {
    let guest = Guest::new();
    let head = || seg(HEADER, 16);
    let status = || seg(STATUS, 1);
    let check = |kind, readable: &[Segment], writable: &[Segment], expected| {
        guest.header(kind, 0);
        let found = guest.status_of(readable, writable);
        assert_eq!(found, Some(expected), "type {kind}: {readable:?} {writable:?}");
    };
    // A header that is short, or out of reach.
    check(0, &[seg(HEADER, 15)], &[status()], Status::IoErr);
    check(0, &[], &[status()], Status::IoErr);
    check(0, &[seg(1 << 30, 16)], &[status()], Status::IoErr);
    // Lengths that are not whole sectors, and more than a request may have.
    check(0, &[head()], &[seg(DATA, 100), status()], Status::IoErr);
    check(1, &[head(), seg(DATA, 513)], &[status()], Status::IoErr);
    check(0, &[head()], &[seg(DATA, 127 << 20), status()], Status::IoErr);
    // Data in the wrong direction.
    check(0, &[head(), seg(DATA, 512)], &[status()], Status::IoErr);
    check(1, &[head()], &[seg(DATA, 512), status()], Status::IoErr);
    // Types that are not offered: SCSI, lifetime, secure erase, zones, barriers.
    for kind in [2, 3, 6, 7, 10, 12, 14, 15, 16, 24, 0x8000_0000, 0x8000_0001, u32::MAX] {
        check(kind, &[head()], &[status()], Status::Unsupported);
    }
}

#[test]
fn discard_and_write_zeroes_are_checked_in_the_order_that_qemu_has() {
    let guest = Guest::new();
    let put = |sector: u64, sectors: u32, flags: u32| {
        let memory = guest.memory();
        memory.write_obj(sector, GuestAddress(DATA)).unwrap();
        memory.write_obj(sectors, GuestAddress(DATA + 8)).unwrap();
        memory.write_obj(flags, GuestAddress(DATA + 12)).unwrap();
    };
    let free = |kind, bytes| {
        guest.header(kind, 0);
        guest.answerable(&[seg(HEADER, 16), seg(DATA, bytes)], &[seg(STATUS, 1)])
    };
    let status = |kind, bytes| match free(kind, bytes) {
        Request::Refused { refused, .. } => Some(refused.why.status()),
        _ => None,
    };
    for kind in [11, 13] {
        put(8, 16, 0);
        let Request::Io { sector: 8, bytes: 8192, .. } = free(kind, 16) else { panic!() };
        assert_eq!(status(kind, 0), Some(Status::IoErr));
        assert_eq!(status(kind, 15), Some(Status::IoErr));
        assert_eq!(status(kind, 32), Some(Status::Unsupported), "two segments");
        put(0, (1 << 21) + 1, 2);
        assert_eq!(status(kind, 16), Some(Status::IoErr), "length before flags");
        put(0, 8, 2);
        assert_eq!(status(kind, 16), Some(Status::Unsupported));
        put(0, 0, 0);
        assert!(matches!(free(kind, 16), Request::Io { bytes: 0, .. }));
    }
    put(0, 8, 1);
    assert_eq!(status(11, 16), Some(Status::Unsupported), "discard has no unmap flag");
    assert!(matches!(free(13, 16), Request::Io { op: Op::WriteZeroes, .. }));
}

#[test]
fn a_read_only_disk_refuses_all_that_would_change_it() {
    let guest = Guest { read_only: true, ..Guest::new() };
    for (kind, bytes) in [(1, 512), (11, 16), (13, 16)] {
        guest.header(kind, 0);
        let found = guest.status_of(&[seg(HEADER, 16), seg(DATA, bytes)], &[seg(STATUS, 1)]);
        assert_eq!(found, Some(Status::IoErr));
    }
    guest.header(4, 0);
    assert!(matches!(
        guest.answerable(&[seg(HEADER, 16)], &[seg(STATUS, 1)]),
        Request::Flush { .. }
    ));
}

#[test]
fn the_serial_fills_as_much_as_there_is() {
    let guest = Guest::new();
    let id = options(false).id();
    guest.memory().write_slice(&[9; 32], GuestAddress(DATA)).unwrap();
    let split = [seg(DATA, 3), seg(DATA + 3, 20)];
    assert_eq!(deliver_id(&guest.memory(), &split, &id), Status::Ok);
    let mut bytes = [0; 24];
    guest.memory().read_slice(&mut bytes, GuestAddress(DATA)).unwrap();
    assert_eq!(&bytes[..20], b"serial\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    assert_eq!(&bytes[20..], [9; 4]);
    assert_eq!(deliver_id(&guest.memory(), &[seg(DATA, 2)], &id), Status::Ok);
    assert_eq!(deliver_id(&guest.memory(), &[seg(1 << 40, 20)], &id), Status::IoErr);
}

#[test]
fn bytes_move_over_segment_borders_in_both_directions() {
    let guest = Guest::new();
    let segments = vec![seg(DATA, 100), seg(0, 0), seg(DATA + 200, 1), seg(DATA + 300, 500)];
    let mut bytes = GuestBytes::new(guest.map.shared().memory().into(), segments);
    let pattern: Vec<u8> = (0..601_u32).map(|at| (at * 7) as u8).collect();
    bytes.deliver(0, &pattern[..50]).unwrap();
    bytes.deliver(50, &pattern[50..300]).unwrap();
    bytes.deliver(300, &pattern[300..]).unwrap();
    // Back to front: each access starts anew.
    let mut back = vec![0; 601];
    bytes.fetch(300, &mut back[300..]).unwrap();
    bytes.fetch(0, &mut back[..300]).unwrap();
    assert_eq!(back, pattern);
    assert_eq!(bytes.fetch(600, &mut [0; 2]), Err(PayloadFault), "there are 601 bytes");
}

#[test]
fn memory_out_of_reach_is_a_fault() {
    let guest = Guest::new();
    for segment in [seg(1 << 20, 16), seg((1 << 20) - 8, 16), seg(u64::MAX - 7, 16)] {
        let mut bytes = GuestBytes::new(guest.map.shared().memory().into(), vec![segment]);
        assert_eq!(bytes.fetch(0, &mut [0; 16]), Err(PayloadFault));
        assert_eq!(bytes.deliver(0, &[0; 16]), Err(PayloadFault));
    }
}

#[test]
fn a_page_is_filled_in_place_where_it_is_one_piece() {
    let guest = Guest::new();
    let segments = vec![seg(DATA, 100), seg(DATA + 200, 60), seg(1 << 40, 8)];
    let mut bytes = GuestBytes::new(guest.map.shared().memory().into(), segments);
    let filled = bytes.fill(100, 60, |place| {
        place.copy_from(&[7_u8; 60]);
        place.len()
    });
    assert_eq!(filled, Ok(Some(60)));
    let mut found = [0; 62];
    guest.memory().read_slice(&mut found, GuestAddress(DATA + 199)).unwrap();
    assert_eq!((found[0], found[61]), (0, 0));
    assert_eq!(found[1..61], [7; 60]);
    let called = |_: VolatileSlice<'_>| panic!("it is in two pieces");
    assert_eq!(bytes.fill(50, 60, called), Ok(None));
    assert_eq!(bytes.fill(160, 8, called), Ok(None), "it is out of reach");
    assert_eq!(bytes.fill(160, 9, called), Err(PayloadFault), "it is beyond the end");
}
