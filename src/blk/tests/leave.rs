//! What parked requests take, and large ones when their queue stops.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use virtio_bindings::virtio_blk::VIRTIO_BLK_T_IN;
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::resume::{inflight_log, left, marked};
use super::rig::{AVAIL, DATA, HEADERS, ROOM, Rig, SIZE};
use super::{INDIRECT_FLAG, NEXT, TABLE, WRITE, desc, put};
use crate::blk::config::StallLimits;
use crate::blk::mailbox::Command;
use crate::blk::parked::Bound;
use crate::blk::watchdog::Watch;
use crate::blk::worker::Worker;
use crate::virtq::inflight::Inflight;
use crate::virtq::inflight_log::InflightLog;
use crate::virtq::order::Order;

/// Bytes of a request that takes more than one poll: four times what one does at most.
const LARGE: u64 = 4 << 20;
/// Where indirect tables lie: 32 KiB each, from here on.
const TABLES: u64 = DATA + 24 * ROOM;

/// Has request `n` read the first page into so many segments.
fn offer_pieces(rig: &Rig, n: u16, pieces: u16) {
    let memory = rig.map.shared().memory().clone();
    let table = TABLES + u64::from(n) * 0x8000;
    rig.offer(n, VIRTIO_BLK_T_IN, 0, 4096);
    let header = HEADERS + u64::from(n) * 32;
    let mut chain = vec![desc(header, 16, NEXT, 1)];
    for piece in 0..pieces {
        // All but the last are empty: they take room and move nothing.
        let len = if piece + 1 == pieces { 4096 } else { 0 };
        chain.push(desc(DATA, len, NEXT | WRITE, piece + 2));
    }
    chain.push(desc(header + 16, 1, WRITE, 0));
    put(&memory, table, &chain);
    let bytes = (chain.len() * 16) as u32;
    put(&memory, TABLE + u64::from(n) * 48, &[desc(table, bytes, INDIRECT_FLAG, 0)]);
}

/// Requests of many segments are parked by the memory that they take, and not by their number alone.
#[test]
fn parked_requests_of_a_session_have_a_bound_of_memory() {
    let rig = Rig::new();
    rig.write(0, 0, 4096);
    let (mut server, mut context) = (rig.server(), rig.worker_context());
    rig.run_until_idle(&mut server, &mut context);
    let held = rig.shared.device.hold(0);
    // A request of 1022 segments takes 16 KiB for them, and 16 KiB for pages that it may have in the
    // engine.
    server.set_bound(Bound { session: 100 << 10, ..Bound::default() });
    (0..16).for_each(|n| offer_pieces(&rig, n, 1000));
    rig.run_until_idle(&mut server, &mut context);
    assert_eq!(rig.next_avail(), 1 + 4, "three are below the bound, the fourth is above");
    let taken = rig.shared.parked.load(Ordering::Relaxed);
    assert!((128 << 10..136 << 10).contains(&taken), "{taken}");
    drop(held);
    rig.run_until_idle(&mut server, &mut context);
    assert_eq!((rig.used().len(), server.is_drained()), (17, true));
    assert_eq!(rig.shared.parked.load(Ordering::Relaxed), 0);
}

/// The requests that other queues have parked count, but never keep a queue from its only request: no
/// thread would wake it when there is room.
#[test]
fn a_queue_with_nothing_parked_may_always_begin_one() {
    let rig = Rig::new();
    let held = rig.offer_to_held(3);
    let (mut server, mut context) = (rig.server(), rig.worker_context());
    rig.shared.parked.store(1 << 30, Ordering::Relaxed);
    rig.run_until_idle(&mut server, &mut context);
    assert_eq!(rig.next_avail(), 3 + 1);
    drop(held);
    rig.run_until_idle(&mut server, &mut context);
    assert_eq!((rig.used().len(), server.is_drained()), (6, true));
    assert_eq!(rig.shared.parked.load(Ordering::Relaxed), 1 << 30);
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    None,
    Ordered,
    Tracked,
}

pub(super) fn log_of(rig: &Rig, mode: Mode, region: &Inflight) -> InflightLog {
    match mode {
        Mode::None => InflightLog::None,
        Mode::Ordered => InflightLog::Order(Order::new(SIZE)),
        Mode::Tracked => inflight_log(rig, region),
    }
}

/// A rig in which a small read and then a large write wait for slots, whose holders come with it.
fn waiting(rig: &Rig) -> Vec<crate::slot::SlotGuard<'_>> {
    rig.write(0, 0, 4096);
    rig.write(1, 1, 4096);
    rig.run_until_idle(&mut rig.server(), &mut rig.worker_context());
    let held = [0, 1].map(|page| rig.shared.device.hold(page).unwrap());
    rig.offer(0, VIRTIO_BLK_T_IN, 0, 4096);
    // Its buffer extends into those of the requests behind it.
    rig.write(1, 1, LARGE);
    held.into()
}

/// A session that ends does not wait for requests that the next one does again.
#[test]
fn a_large_request_is_left_to_the_next_session_and_a_small_one_is_finished() {
    for mode in [Mode::None, Mode::Ordered, Mode::Tracked] {
        let rig = Rig::new();
        let mut held = waiting(&rig);
        let region = left(&[], 2);
        let mut context = rig.worker_context();
        let mut server = rig.server_on(log_of(&rig, mode, &region));
        rig.run_until_idle(&mut server, &mut context);
        assert_eq!((rig.used().len(), rig.next_avail()), (2, 4), "{mode:?}");
        server.leave();
        drop(held.remove(0));
        rig.run_until_idle(&mut server, &mut context);
        assert_eq!((&rig.used()[2..], server.is_drained()), (&[0][..], true), "{mode:?}");
        let (still, stands) = if mode == Mode::Tracked { (vec![3], 4) } else { (vec![], 3) };
        assert_eq!((marked(&region), rig.next_avail()), (still, stands), "{mode:?}");
        assert_eq!(rig.status(1), 0xff, "{mode:?}");
        drop(held);
        // The next session starts at the used index and at what is marked.
        check_large_is_done(&rig, mode, &region);
    }
}

/// Starts the ring again, which does the large request.
fn check_large_is_done(rig: &Rig, mode: Mode, region: &Inflight) {
    let (mut server, mut context) =
        (rig.server_on(log_of(rig, mode, region)), rig.worker_context());
    rig.run_until_idle(&mut server, &mut context);
    assert!(server.is_drained());
    assert_eq!((rig.used(), rig.status(1)), (vec![0, 1, 0, 1], 0), "{mode:?}");
    assert_eq!(marked(region), [0_u16; 0]);
    assert_eq!(rig.page(1), rig.bytes(DATA + ROOM, 4096));
    assert_eq!(rig.page(1024), rig.bytes(DATA + ROOM + 1023 * 4096, 4096));
}

/// A request that is resumed while the session ends, and turns out to be large, is left as well.
#[test]
fn a_large_request_that_is_taken_again_at_the_end_stays_in_the_region() {
    let rig = Rig::new();
    let _held = waiting(&rig);
    let region = left(&[3], 2);
    let (mut server, mut context) =
        (rig.server_on(inflight_log(&rig, &region)), rig.worker_context());
    server.leave();
    rig.run_until_idle(&mut server, &mut context);
    assert_eq!((server.is_drained(), marked(&region)), (true, vec![3]));
}

/// A ring that a message stops has nothing in flight, whatever back end starts it next, and does not
/// wait for the large request: its base goes back before it.
#[test]
fn a_ring_that_is_stopped_puts_a_large_request_back_and_finishes_a_small_one() {
    for mode in [Mode::None, Mode::Ordered, Mode::Tracked] {
        let rig = Rig::new();
        let mut held = waiting(&rig);
        let region = left(&[], 2);
        let mut context = rig.worker_context();
        let mut server = rig.server_on(log_of(&rig, mode, &region));
        rig.run_until_idle(&mut server, &mut context);
        server.stop();
        rig.run_until_idle(&mut server, &mut context);
        assert_eq!((server.is_drained(), rig.next_avail()), (false, 3), "{mode:?}");
        drop(held.remove(0));
        rig.run_until_idle(&mut server, &mut context);
        assert!(server.is_drained(), "{mode:?}");
        assert_eq!((rig.used(), rig.next_avail()), (vec![0, 1, 0], 3), "{mode:?}");
        assert_eq!((marked(&region), rig.status(1)), (vec![], 0xff), "{mode:?}");
        drop(held);
        check_large_is_done(&rig, mode, &region);
    }
}

/// The base can go back before a large request only if all that was taken after it goes back, too.
#[test]
fn a_stop_waits_for_a_large_request_only_if_a_later_one_was_completed() {
    for mode in [Mode::None, Mode::Ordered, Mode::Tracked] {
        for later_is_done in [false, true] {
            let case = format!("{mode:?}, {later_is_done}");
            let rig = Rig::new();
            let mut held = waiting(&rig);
            // It waits for the slot that the large one waits for, or for none.
            rig.offer(6, VIRTIO_BLK_T_IN, if later_is_done { 2000 * 8 } else { 8 }, 4096);
            let region = left(&[], 2);
            let mut context = rig.worker_context();
            let mut server = rig.server_on(log_of(&rig, mode, &region));
            // By default nothing is begun behind a request of 4 MiB.
            server.set_bound(Bound { bytes: 2 * LARGE, ..Bound::default() });
            rig.run_until_idle(&mut server, &mut context);
            assert_eq!(rig.next_avail(), 5, "{case}");
            server.stop();
            rig.run_until_idle(&mut server, &mut context);
            // In order, a later one that is finished is not completed.
            let waits = later_is_done && mode != Mode::Ordered;
            assert_eq!(rig.next_avail(), if waits { 5 } else { 3 }, "{case}");
            drop(held.remove(0));
            rig.run_until_idle(&mut server, &mut context);
            assert_eq!((server.is_drained(), rig.status(1)), (!waits, 0xff), "{case}");
            drop(held);
            rig.run_until_idle(&mut server, &mut context);
            assert!(server.is_drained(), "{case}");
            let used = if waits { &[6, 0, 1][..] } else { &[0] };
            let mut done = rig.used().split_off(2);
            if waits {
                done.sort_unstable_by_key(|n| *n != 6);
            }
            assert_eq!((&*done, marked(&region)), (used, vec![]), "{case}");
            let mut server = rig.server_on(log_of(&rig, mode, &region));
            rig.run_until_idle(&mut server, &mut context);
            assert_eq!((server.is_drained(), rig.used().len()), (true, 5), "{case}");
            assert_eq!([rig.status(0), rig.status(1), rig.status(6)], [0; 3], "{case}");
        }
    }
}

/// A head whose first request was completed, and whose second one goes back.
#[test]
fn a_stop_does_not_put_back_what_was_completed_with_the_same_head() {
    for mode in [Mode::None, Mode::Tracked] {
        let rig = Rig::new();
        let mut held = waiting(&rig);
        let region = left(&[], 2);
        let mut context = rig.worker_context();
        let mut server = rig.server_on(log_of(&rig, mode, &region));
        drop(held.pop());
        rig.run_until_idle(&mut server, &mut context);
        assert_eq!((rig.used(), rig.next_avail()), (vec![0, 1, 1], 4), "{mode:?}");
        held.push(rig.shared.device.hold(1).unwrap());
        rig.write(1, 1, LARGE);
        rig.run_until_idle(&mut server, &mut context);
        assert_eq!(rig.next_avail(), 5, "{mode:?}");
        server.stop();
        rig.run_until_idle(&mut server, &mut context);
        assert_eq!(rig.next_avail(), 4, "{mode:?}");
        drop(held);
        rig.run_until_idle(&mut server, &mut context);
        assert_eq!((server.is_drained(), rig.used()), (true, vec![0, 1, 1, 0]), "{mode:?}");
    }
}

/// A guest that changes its available ring after requests were taken does no harm.
#[test]
fn a_guest_that_rewrites_taken_entries_does_not_confuse_a_stop() {
    for mode in [Mode::None, Mode::Ordered, Mode::Tracked] {
        for entries in [[3_u16, 3], [0, 0], [3, 9], [60000, 3], [3, 60000]] {
            let rig = Rig::new();
            let held = waiting(&rig);
            let region = left(&[], 2);
            let mut context = rig.worker_context();
            let mut server = rig.server_on(log_of(&rig, mode, &region));
            rig.run_until_idle(&mut server, &mut context);
            let memory = rig.map.shared().memory().clone();
            memory.write_obj(entries, GuestAddress(AVAIL + 4 + 2 * 2)).unwrap();
            server.stop();
            rig.run_until_idle(&mut server, &mut context);
            drop(held);
            rig.run_until_idle(&mut server, &mut context);
            assert!(server.is_drained(), "{mode:?} {entries:?}");
        }
    }
}

/// A queue thread, and the slot that its large request waits for.
struct Waiting<'r> {
    worker: Worker,
    held: Vec<crate::slot::SlotGuard<'r>>,
}

impl<'r> Waiting<'r> {
    /// Waits until the small request is done and the large one is parked.
    fn new(rig: &'r Rig, inflight_log: InflightLog) -> Self {
        let mut held = waiting(rig);
        let watch = Watch::new(1, StallLimits::default());
        let event = EventFd::new(EFD_NONBLOCK).unwrap();
        let flags = nix::sys::eventfd::EfdFlags::EFD_NONBLOCK;
        let kick = nix::sys::eventfd::EventFd::from_flags(flags).unwrap();
        let kick = File::from(OwnedFd::from(kick));
        let rings = vec![(0, rig.vring.clone())];
        let shared = Arc::clone(&rig.shared);
        let worker = Worker::spawn(0, rings, shared, rig.worker_context(), event, watch).unwrap();
        // The small one has nothing to wait for.
        drop(held.remove(0));
        worker.send(Command::Start { ring: 0, kick, error_event: None, inflight_log });
        until(|| rig.next_avail() == 4 && rig.used().len() == 3);
        Self { worker, held }
    }
}

fn until(condition: impl Fn() -> bool) {
    let began = std::time::Instant::now();
    while !condition() {
        assert!(began.elapsed() < Duration::from_secs(60), "not within a minute");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The same by a thread that quits: it ends while the slot is still held.
#[test]
fn a_thread_that_quits_does_not_wait_for_large_requests() {
    let rig = Rig::new();
    let region = left(&[], 2);
    let Waiting { mut worker, held } = Waiting::new(&rig, inflight_log(&rig, &region));
    worker.send(Command::Quit);
    let (stopped, wait) = channel();
    worker.send(Command::Stop { ring: 0, stopped });
    // Answered, or dropped with the thread.
    let ended = wait.recv_timeout(Duration::from_secs(60));
    let in_time = !matches!(ended, Err(RecvTimeoutError::Timeout));
    drop(held);
    assert!(in_time && worker.join());
    assert_eq!((rig.used(), marked(&region)), (vec![0, 1, 0], vec![3]));
}

/// A pause for a change of guest memory begins while the slot is still held, and the queue resumes by
/// taking the request again.
#[test]
fn a_pause_puts_a_large_request_back_and_the_queue_takes_it_again() {
    for mode in [Mode::None, Mode::Ordered, Mode::Tracked] {
        let rig = Rig::new();
        let region = left(&[], 2);
        let Waiting { mut worker, held } = Waiting::new(&rig, log_of(&rig, mode, &region));
        let (paused, wait) = channel();
        let (keep, resume) = channel();
        worker.send(Command::Pause { finish: false, paused, resume });
        let in_time = wait.recv_timeout(Duration::from_secs(60)).is_ok();
        let stands = (rig.next_avail(), rig.used().len(), marked(&region));
        drop((held, keep));
        assert!(in_time, "{mode:?}");
        assert_eq!(stands, (3, 3, vec![]), "{mode:?}");
        until(|| rig.used().len() == 4);
        worker.send(Command::Quit);
        assert!(worker.join());
        assert_eq!((rig.used(), rig.status(1)), (vec![0, 1, 0, 1], 0), "{mode:?}");
        assert_eq!(rig.page(1024), rig.bytes(DATA + ROOM + 1023 * 4096, 4096));
    }
}

/// Before memory is removed, the large request is finished: taken again, it might not find its buffer.
#[test]
fn a_pause_before_memory_goes_finishes_a_large_request() {
    for mode in [Mode::None, Mode::Ordered, Mode::Tracked] {
        let rig = Rig::new();
        let region = left(&[], 2);
        let Waiting { mut worker, held } = Waiting::new(&rig, log_of(&rig, mode, &region));
        let (paused, wait) = channel();
        let (keep, resume) = channel();
        worker.send(Command::Pause { finish: true, paused, resume });
        drop(held);
        let in_time = wait.recv_timeout(Duration::from_secs(60)).is_ok();
        let stands = (rig.next_avail(), rig.used().len(), marked(&region));
        drop(keep);
        worker.send(Command::Quit);
        assert!(worker.join() && in_time, "{mode:?}");
        assert_eq!((stands, rig.status(1)), ((4, 4, vec![]), 0), "{mode:?}");
    }
}

/// A queue that broke takes nothing again before its next start, so a pause has it finish what it began.
#[test]
fn a_pause_of_a_broken_queue_finishes_a_large_request() {
    for mode in [Mode::None, Mode::Ordered, Mode::Tracked] {
        let rig = Rig::new();
        let held = waiting(&rig);
        let region = left(&[], 2);
        let mut context = rig.worker_context();
        let mut server = rig.server_on(log_of(&rig, mode, &region));
        rig.run_until_idle(&mut server, &mut context);
        let memory = rig.map.shared().memory().clone();
        memory.write_obj([60000_u16], GuestAddress(AVAIL + 4 + 4 * 2)).unwrap();
        memory.write_obj(5_u16, GuestAddress(AVAIL + 2)).unwrap();
        server.set_bound(Bound { bytes: 2 * LARGE, ..Bound::default() });
        rig.run_until_idle(&mut server, &mut context);
        server.pause();
        assert_eq!((server.is_at_rest(), rig.next_avail()), (false, 4), "{mode:?}");
        server.resume();
        rig.run_until_idle(&mut server, &mut context);
        drop(held);
        rig.run_until_idle(&mut server, &mut context);
        assert_eq!((rig.used(), server.is_drained()), (vec![0, 1, 0, 1], true), "{mode:?}");
        assert_eq!((rig.status(1), marked(&region)), (0, vec![]), "{mode:?}");
        assert!(rig.printed.take().iter().any(|line| line.contains("is stopped")));
    }
}
