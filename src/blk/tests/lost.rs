//! Guest memory whose file is truncated under a running queue: no request whose data did not arrive is OK.

use std::fs::File;
use std::os::fd::AsFd;
use std::time::Duration;

use nix::sys::memfd::{MFdFlags, memfd_create};
use vhost_user_backend::VringT;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};

use vhost_user_zram_frontend::Random;

use super::resume::{contents, inflight_log, left, marked};
use super::rig::{AVAIL, DATA, HEADERS, ROOM, Rig, USED};
use super::{NEXT, TABLE, WRITE, desc, put};
use crate::virtq::inflight_log::InflightLog;
use crate::virtq::memory::Layout;
use crate::virtq::position::{self, PositionError};

const OK: u8 = 0;
const IOERR: u8 = 1;
/// A second region of guest memory, whose file may be cut.
const SECOND: u64 = 1 << 40;
const SECOND_BYTES: u64 = 1 << 20;

/// A rig whose guest has a second region.
fn rig() -> (Rig, File) {
    let mut rig = Rig::new();
    let file = File::from(memfd_create("second", MFdFlags::MFD_CLOEXEC).unwrap());
    file.set_len(SECOND_BYTES).unwrap();
    let kept = File::from(file.as_fd().try_clone_to_owned().unwrap());
    let layout =
        Layout { guest_addr: SECOND, user_addr: SECOND, size: SECOND_BYTES, file_offset: 0 };
    rig.map.add(layout, file).unwrap();
    (rig, kept)
}

/// Cuts the second region off.
fn cut(file: &File) {
    file.set_len(0).unwrap();
}

/// Offers request `n` with its data and its status at these addresses; the status is `preset` before.
fn offer_at(rig: &Rig, n: u16, kind: u32, page: u64, data: u64, status: u64, preset: u8) {
    rig.offer(n, kind, page * 8, 4096);
    let memory = rig.map.shared().memory().clone();
    let head = 3 * n;
    let way = if kind == VIRTIO_BLK_T_OUT { 0 } else { WRITE };
    let chain = [
        desc(HEADERS + u64::from(n) * 32, 16, NEXT, head + 1),
        desc(data, 4096, NEXT | way, head + 2),
        desc(status, 1, WRITE, 0),
    ];
    put(&memory, TABLE + u64::from(head) * 16, &chain);
    memory.write_obj(preset, GuestAddress(status)).unwrap();
}

fn own_status(n: u16) -> u64 {
    HEADERS + u64::from(n) * 32 + 16
}

/// Fills page 1 with an object, page 2 with one byte again and again and page 3 with noise.
fn fill(rig: &Rig) {
    let mut noisy = [0; 4096];
    Random::new(1).fill(&mut noisy);
    let memory = rig.map.shared().memory().clone();
    rig.write(0, 1, 4096);
    rig.write(1, 2, 4096);
    memory.write_slice(&[7; 4096], GuestAddress(DATA + ROOM)).unwrap();
    rig.write(2, 3, 4096);
    memory.write_slice(&noisy, GuestAddress(DATA + 2 * ROOM)).unwrap();
    rig.run_until_idle(&mut rig.server(), &mut rig.worker_context());
    assert_eq!(rig.used().len(), 3);
    assert_eq!(rig.shared.device.report().huge_pages, 1);
}

#[test]
fn a_read_whose_bytes_did_not_arrive_is_an_error() {
    for page in 0..4 {
        let (rig, file) = rig();
        fill(&rig);
        let (mut server, mut context) = (rig.server(), rig.worker_context());
        offer_at(&rig, 3, VIRTIO_BLK_T_IN, page, SECOND, own_status(3), OK);
        cut(&file);
        rig.run_until_idle(&mut server, &mut context);
        assert_eq!((rig.used().len(), rig.status(3)), (4, IOERR), "page {page}");
        assert_eq!(rig.shared.device.report().failed_reads, 1);
    }
}

#[test]
fn a_serial_that_did_not_arrive_is_an_error() {
    let (rig, file) = rig();
    offer_at(&rig, 0, VIRTIO_BLK_T_GET_ID, 0, SECOND, own_status(0), OK);
    cut(&file);
    rig.run_until_idle(&mut rig.server(), &mut rig.worker_context());
    assert_eq!((rig.used().len(), rig.status(0)), (1, IOERR));
}

#[test]
fn a_read_that_waited_while_memory_was_lost_is_an_error() {
    let (rig, file) = rig();
    fill(&rig);
    let (mut server, mut context) = (rig.server(), rig.worker_context());
    let held = rig.shared.device.hold(1);
    offer_at(&rig, 3, VIRTIO_BLK_T_IN, 1, SECOND, own_status(3), OK);
    rig.run_until_idle(&mut server, &mut context);
    assert!(!server.is_drained());
    cut(&file);
    drop(held);
    rig.run_until_idle(&mut server, &mut context);
    assert_eq!((rig.used().len(), rig.status(3)), (4, IOERR));
}

#[test]
fn a_write_from_lost_memory_changes_nothing() {
    let (rig, file) = rig();
    fill(&rig);
    offer_at(&rig, 3, VIRTIO_BLK_T_OUT, 1, SECOND, own_status(3), OK);
    cut(&file);
    rig.run_until_idle(&mut rig.server(), &mut rig.worker_context());
    assert_eq!((rig.used().len(), rig.status(3)), (4, IOERR));
    let report = rig.shared.device.report();
    // As `fill` left it: the request would have made a same-filled page of an object.
    assert_eq!((report.failed_writes, report.same_pages, report.orig_data_size), (1, 1, 3 * 4096));
}

/// A status that is written to the zeroes in place of lost memory is never read. Nor may a status be written
/// to memory that is known to be lost.
#[test]
fn a_status_in_lost_memory_completes_nothing() {
    let (rig, file) = rig();
    fill(&rig);
    let region = left(&[], 3);
    let (mut server, mut context) =
        (rig.server_on(inflight_log(&rig, &region)), rig.worker_context());
    offer_at(&rig, 3, VIRTIO_BLK_T_IN, 1, DATA, SECOND + 8, OK);
    cut(&file);
    rig.run_until_idle(&mut server, &mut context);
    assert_eq!(rig.used().len(), 3);
    assert_eq!((marked(&region), server.is_drained()), (vec![9], true));
    assert_eq!(rig.shared.device.report().broken_queues, 1);
    server.stop();
    rig.run_until_idle(&mut server, &mut context);
    assert!(server.is_drained());
    // The next start of the ring finds it in flight, and the memory lost before anything is done.
    let mut server = rig.server_on(inflight_log(&rig, &region));
    rig.run_until_idle(&mut server, &mut context);
    assert_eq!((rig.used().len(), marked(&region)), (3, vec![9]));
    assert_eq!(rig.shared.device.report().broken_queues, 2);
    assert_eq!(rig.shared.device.report().reads, 1, "the first time, before its status was lost");
}

/// Completions that the guest does not see do not count: the region keeps what is in flight.
#[test]
fn a_used_ring_in_lost_memory_gives_nothing_back() {
    let (rig, file) = rig();
    let held = rig.offer_to_held(2);
    let memory = rig.map.shared().memory().clone();
    memory.write_obj(2_u16, GuestAddress(SECOND + 2)).unwrap();
    rig.vring.set_queue_info(TABLE, AVAIL, SECOND).unwrap();
    let region = left(&[], 2);
    let (mut server, mut context) =
        (rig.server_on(inflight_log(&rig, &region)), rig.worker_context());
    rig.run_until_idle(&mut server, &mut context);
    assert_eq!((marked(&region), server.is_drained()), (vec![0, 3], false));
    cut(&file);
    drop(held);
    rig.run_until_idle(&mut server, &mut context);
    assert_eq!((marked(&region), server.is_drained()), (vec![0, 3], true));
    assert_eq!(rig.shared.device.report().broken_queues, 1);
    assert_eq!(region.part(0).unwrap().read(0).unwrap().used_index, 2);
}

/// The indexes of a ring that is lost read as those of a new one. The region, which is not lost, keeps
/// what it records of the ring.
#[test]
fn a_ring_in_lost_memory_is_not_taken_for_a_new_one_at_its_start() {
    for (used_ring, available_ring) in [(SECOND, AVAIL), (USED, SECOND)] {
        let (rig, file) = rig();
        let memory = rig.map.shared().memory().clone();
        for ring in [used_ring, available_ring] {
            memory.write_obj(3_u16, GuestAddress(ring + 2)).unwrap();
        }
        rig.vring.set_queue_info(TABLE, available_ring, used_ring).unwrap();
        let region = left(&[], 3);
        cut(&file);
        rig.vring.set_queue_next_avail(0);
        let shown = position::read(rig.vring.get_ref().get_queue(), &memory, region.parts(0));
        assert_eq!(shown.map(|_| ()), Err(PositionError::Unreadable));
        assert_eq!(contents(&region).used_index, 3);
    }
}

/// The same when the ring is lost after its start, before the first head.
#[test]
fn a_ring_in_lost_memory_is_not_taken_for_one_that_the_guest_has_cleared() {
    let (rig, file) = rig();
    let memory = rig.map.shared().memory().clone();
    for ring in [SECOND, AVAIL] {
        memory.write_obj(3_u16, GuestAddress(ring + 2)).unwrap();
    }
    rig.vring.set_queue_info(TABLE, AVAIL, SECOND).unwrap();
    let region = left(&[], 3);
    let (mut server, mut context) =
        (rig.server_on(inflight_log(&rig, &region)), rig.worker_context());
    cut(&file);
    rig.run_until_idle(&mut server, &mut context);
    assert_eq!((contents(&region).used_index, rig.next_avail()), (3, 3));
    assert_eq!(rig.shared.device.report().broken_queues, 1);
}

/// A lost available ring reads as zeroes: head 0, which the guest did not offer again.
#[test]
fn an_available_ring_in_lost_memory_offers_nothing() {
    let (rig, file) = rig();
    let (mut server, mut context) = (rig.server_on(InflightLog::None), rig.worker_context());
    rig.write(0, 1, 4096);
    rig.run_until_idle(&mut server, &mut context);
    let memory = rig.map.shared().memory().clone();
    rig.vring.set_queue_info(TABLE, SECOND, USED).unwrap();
    // Something else under the old chain of head 0.
    memory.write_slice(&[9; 4096], GuestAddress(DATA)).unwrap();
    cut(&file);
    // A read of the index finds the loss. The index is then such that a head is offered.
    let _: u16 = memory.read_obj(GuestAddress(SECOND + 2)).unwrap();
    memory.write_obj(2_u16, GuestAddress(SECOND + 2)).unwrap();
    rig.run_until_idle(&mut server, &mut context);
    assert_eq!(rig.used(), [0]);
    assert_eq!(rig.shared.device.report().broken_queues, 1);
    assert_eq!((server.is_drained(), rig.next_avail()), (true, 1));
    assert_eq!(rig.shared.device.report().writes, 1);
}

#[test]
fn nothing_is_ok_once_memory_is_known_to_be_lost() {
    let (rig, file) = rig();
    fill(&rig);
    let region = left(&[], 3);
    let mut context = rig.worker_context();
    let mut server = rig.server_on(inflight_log(&rig, &region));
    // All in one turn: the next one would find the loss before it takes a head.
    server.set_time_slice(Duration::from_secs(3600));
    let held = rig.shared.device.hold(1);
    // One that waits, and a flush and a read of nothing behind one that finds the loss.
    offer_at(&rig, 3, VIRTIO_BLK_T_IN, 2, SECOND, own_status(3), OK);
    rig.offer(4, VIRTIO_BLK_T_FLUSH, 0, 0);
    rig.offer(5, VIRTIO_BLK_T_IN, 0, 0);
    cut(&file);
    rig.run_until_idle(&mut server, &mut context);
    assert_eq!([rig.status(3), rig.status(4), rig.status(5)], [IOERR; 3]);
    assert_eq!(rig.used().len(), 6);
    drop(held);
}
