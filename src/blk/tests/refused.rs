//! Refused requests are counted, and logged: each kind a few times, independently of the others.

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};

use super::rig::{DATA, HEADERS, ROOM, Rig};
use super::{NEXT, TABLE, WRITE, desc, put};

const IOERR: u8 = 1;
const UNSUPPORTED: u8 = 2;
/// Sectors of the rig's disk.
const SECTORS: u64 = (64 << 20) / 512;

/// Has the rig serve request `n`, made to hold `range` as its data.
fn serve(rig: &Rig, n: u16, kind: u32, sector: u64, bytes: u64, range: Option<(u64, u32, u32)>) {
    let memory = rig.map.shared().memory().clone();
    rig.offer(n, kind, sector, bytes);
    if let Some((sector, sectors, flags)) = range {
        let data = DATA + u64::from(n) * ROOM;
        memory.write_obj(sector, GuestAddress(data)).unwrap();
        memory.write_obj(sectors, GuestAddress(data + 8)).unwrap();
        memory.write_obj(flags, GuestAddress(data + 12)).unwrap();
    }
    rig.run_until_idle(&mut rig.server(), &mut rig.worker_context());
}

/// Counters of refused, failed read and failed change requests, and how many went well.
fn counts(rig: &Rig) -> [u64; 4] {
    let report = rig.shared.device.report();
    let well = report.reads + report.writes + report.discards + report.write_zeroes;
    [report.invalid_io, report.failed_reads, report.failed_writes, well]
}

#[test]
fn each_refusal_is_counted_and_leaves_a_line() {
    let far = SECTORS - 1;
    let cases = [
        (VIRTIO_BLK_T_IN, 0, 100, None, IOERR, [1, 1, 0, 0], "not a whole number of sectors"),
        (VIRTIO_BLK_T_OUT, 0, 513, None, IOERR, [1, 0, 1, 0], "not a whole number of sectors"),
        (VIRTIO_BLK_T_IN, 0, 127 << 20, None, IOERR, [1, 1, 0, 0], "more data than"),
        (VIRTIO_BLK_T_IN, 0, 64 << 20, None, IOERR, [1, 1, 0, 0], "lies outside of guest memory"),
        (VIRTIO_BLK_T_OUT, 0, 64 << 20, None, IOERR, [1, 0, 1, 0], "lies outside of guest memory"),
        (VIRTIO_BLK_T_IN, far, 1024, None, IOERR, [1, 1, 0, 0], "do not lie within the disk"),
        (VIRTIO_BLK_T_OUT, far, 1024, None, IOERR, [1, 0, 1, 0], "do not lie within the disk"),
        (VIRTIO_BLK_T_DISCARD, 0, 16, Some((far, 2, 0)), IOERR, [1, 0, 1, 0], "within the disk"),
        (VIRTIO_BLK_T_DISCARD, 0, 15, None, IOERR, [1, 0, 1, 0], "not a whole number of"),
        (VIRTIO_BLK_T_DISCARD, 0, 32, None, UNSUPPORTED, [1, 0, 1, 0], "more ranges than"),
        (VIRTIO_BLK_T_DISCARD, 0, 16, Some((0, 8, 1)), UNSUPPORTED, [1, 0, 1, 0], "flags 0x1"),
        (
            VIRTIO_BLK_T_WRITE_ZEROES,
            0,
            16,
            Some((0, u32::MAX, 0)),
            IOERR,
            [1, 0, 1, 0],
            "more sectors than",
        ),
        (VIRTIO_BLK_T_GET_ID, 0, 64 << 20, None, IOERR, [1, 0, 0, 0], "wrong direction"),
        (99, 0, 512, None, UNSUPPORTED, [1, 0, 0, 0], "type 99 is not offered"),
    ];
    for (at, (kind, sector, bytes, range, status, expected, line)) in cases.into_iter().enumerate()
    {
        let rig = Rig::new();
        serve(&rig, 0, kind, sector, bytes, range);
        assert_eq!((rig.status(0), counts(&rig)), (status, expected), "case {at}: type {kind}");
        let printed = rig.printed.take();
        assert!(printed.len() == 1 && printed[0].contains(line), "case {at}: {printed:?}");
        assert!(printed[0].starts_with("queue 0: request 0 "), "{printed:?}");
    }
}

#[test]
fn framing_that_cannot_be_is_counted_whatever_it_was_meant_to_be() {
    let header = HEADERS;
    let chains = [
        [desc(header, 15, NEXT, 1), desc(header + 16, 1, WRITE, 0)],
        [desc(1 << 40, 16, NEXT, 1), desc(header + 16, 1, WRITE, 0)],
        [desc(header + 16, 1, WRITE | NEXT, 1), desc(header, 16, 0, 0)],
    ];
    for chain in chains {
        let rig = Rig::new();
        rig.offer(0, VIRTIO_BLK_T_OUT, 0, 512);
        put(&rig.map.shared().memory(), TABLE, &chain);
        rig.run_until_idle(&mut rig.server(), &mut rig.worker_context());
        assert_eq!((rig.status(0), counts(&rig)), (IOERR, [1, 0, 0, 0]));
        assert_eq!(rig.printed.take().len(), 1);
    }
}

#[test]
fn changes_of_a_read_only_disk_are_counted_and_said() {
    let rig = Rig::read_only();
    let range = Some((0, 8, 0));
    serve(&rig, 0, VIRTIO_BLK_T_OUT, 0, 512, None);
    serve(&rig, 1, VIRTIO_BLK_T_DISCARD, 0, 16, range);
    serve(&rig, 2, VIRTIO_BLK_T_WRITE_ZEROES, 0, 16, range);
    serve(&rig, 3, VIRTIO_BLK_T_IN, 0, 512, None);
    serve(&rig, 4, VIRTIO_BLK_T_FLUSH, 0, 0, None);
    assert_eq!((0..5).map(|n| rig.status(n)).collect::<Vec<_>>(), [IOERR, IOERR, IOERR, 0, 0]);
    assert_eq!(counts(&rig), [3, 0, 3, 1]);
    let printed = rig.printed.take();
    assert!(printed.len() == 3 && printed.iter().all(|line| line.contains("read-only disk")));
}

/// A guest that errs all the time does not fill the log, and cannot hide other messages.
#[test]
fn a_flood_of_refusals_is_cut_short_and_hides_nothing() {
    let rig = Rig::new();
    for _ in 0..30 {
        serve(&rig, 0, VIRTIO_BLK_T_IN, 0, 100, None);
        serve(&rig, 0, VIRTIO_BLK_T_IN, SECTORS, 512, None);
        serve(&rig, 0, 99, 0, 512, None);
    }
    assert_eq!(counts(&rig), [90, 60, 0, 0]);
    assert_eq!(rig.printed.take().len(), 30, "ten of each kind");
    // The queue is stopped for another reason, which is logged.
    rig.offer(0, VIRTIO_BLK_T_FLUSH, 0, 0);
    put(&rig.map.shared().memory(), TABLE, &[desc(HEADERS, 16, 0, 0)]);
    rig.run_until_idle(&mut rig.server(), &mut rig.worker_context());
    let printed = rig.printed.take();
    assert_eq!(
        printed,
        ["queue 0 is stopped: request 0 cannot be answered: it has no writable byte for a status"]
    );
}
