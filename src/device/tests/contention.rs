//! Many requests on a handful of slots: the kernel's bug ce4be9e4307c, in which two writes of one
//! page met and the loser's object was lost, and whatever else may meet there.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::task::Wake;

use super::*;
use crate::slot::SlotGuard;

const THREADS: u64 = 4;
/// Pages of the disk. The last one is written in parts only, a sector for each thread.
const PAGES: u64 = 4;
/// Requests that each thread has under way at once; the first place is that of its own sector.
const PLACES: usize = 6;
/// What a read's buffer has at first; no sector is filled with it.
const UNTOUCHED: u8 = 0xee;
/// Steps of each thread.
const ROUNDS: u64 = 6_000;

/// Says which of a thread's requests can continue.
struct Bell(usize, Sender<usize>);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        let _ = self.1.send(self.0);
    }
}

/// What a thread did, to be compared with the disk's counters.
#[derive(Debug, Default, PartialEq, Eq)]
struct Tally {
    reads: u64,
    writes: u64,
    discards: u64,
    write_zeroes: u64,
    freed: u64,
    /// Requests that had to wait.
    slept: u64,
    /// Requests that were abandoned while they waited.
    dropped: u64,
}

/// A request and what is to be done at its end.
struct Request<'d> {
    io: Io<'d, Buffer>,
    op: Op,
    sector: u64,
    sectors: u64,
}

/// One thread: requests of all kinds, several at a time.
struct Actor<'d> {
    device: &'d Device,
    thread: u64,
    context: WorkerContext,
    random: Random,
    /// How often its own sector was written.
    version: u64,
    places: Vec<Option<Request<'d>>>,
    wakers: Vec<Waker>,
    woken: Receiver<usize>,
    tally: Tally,
}

impl<'d> Actor<'d> {
    fn new(device: &'d Device, thread: u64) -> Self {
        let (says, woken) = channel();
        let bell = |place| Waker::from(Arc::new(Bell(place, says.clone())));
        Self {
            device,
            thread,
            context: device.worker_context().unwrap(),
            random: Random::new(thread),
            version: 0,
            places: (0..PLACES).map(|_| None).collect(),
            wakers: (0..PLACES).map(bell).collect(),
            woken,
            tally: Tally::default(),
        }
    }

    fn run(mut self) -> Tally {
        let mut held: VecDeque<SlotGuard<'_>> = VecDeque::new();
        for _ in 0..ROUNDS {
            // Now and then it holds a slot over other work, as an owner that sleeps does.
            if self.random.below(4) == 0 {
                let index = self.random.below(PAGES);
                held.extend(self.device.table.try_lock(index));
            }
            match self.places.iter().position(Option::is_none) {
                Some(place) => self.begin(place),
                // All wait: for another thread, or for what is held here.
                None => {
                    held.clear();
                    let place = self.woken.recv().unwrap();
                    self.poll(place);
                }
            }
            while let Ok(place) = self.woken.try_recv() {
                self.poll(place);
            }
            if held.len() > 1 || self.random.below(2) == 0 {
                held.pop_front();
            }
        }
        drop(held);
        while self.places.iter().any(Option::is_some) {
            let place = self.woken.recv().unwrap();
            self.poll(place);
        }
        self.tally
    }

    fn begin(&mut self, place: usize) {
        let (op, sector, sectors) = if place == 0 {
            // A new version, or whether the last one is still there.
            let op = if self.random.below(2) == 0 { Op::Write } else { Op::Read };
            (op, (PAGES - 1) * 8 + self.thread, 1)
        } else {
            let end = (PAGES - 1) * 8;
            match self.random.below(8) {
                0 => (Op::Discard, self.random.below(PAGES - 1) * 8, 8),
                1 | 2 => (Op::Read, self.random.below(PAGES - 1) * 8, 8),
                3 | 4 => (Op::Write, self.random.below(PAGES - 1) * 8, 8),
                kind => {
                    // Parts of a page or two.
                    let (sector, most) = (self.random.below(end), self.random.below(11) + 1);
                    let op = [Op::Write, Op::WriteZeroes, Op::Discard][kind as usize - 5];
                    (op, sector, most.min(end - sector))
                }
            }
        };
        let bytes = self.bytes(place, op, sectors);
        let io = self.device.request(op, sector, sectors * SECTOR_SIZE, Buffer::new(bytes));
        self.places[place] = Some(Request { io: io.unwrap(), op, sector, sectors });
        self.poll(place);
    }

    /// Data of which each sector ends with 64 times the same byte, so that a mix of two shows. Of
    /// all kinds, by length when compressed.
    fn bytes(&mut self, place: usize, op: Op, sectors: u64) -> Vec<u8> {
        if op != Op::Write {
            return vec![UNTOUCHED; sectors as usize * SECTOR];
        }
        if place == 0 {
            self.version += 1;
            return stamp(self.thread, self.version);
        }
        let kind = self.random.below(4);
        (0..sectors)
            .flat_map(|_| {
                let mut sector = vec![self.random.below(200) as u8 + 1; SECTOR];
                let seed = self.random.below(u64::MAX);
                match kind {
                    0 => sector.fill(3),
                    1 => sector[..SECTOR / 2].copy_from_slice(&text(seed, SECTOR / 2)),
                    2 => sector[..SECTOR - 64].copy_from_slice(&noise(seed, SECTOR - 64)),
                    _ => {}
                }
                sector
            })
            .collect()
    }

    fn poll(&mut self, place: usize) {
        let Some(request) = &mut self.places[place] else { return };
        let waker = self.wakers[place].clone();
        match request.io.poll(&mut self.context, &Context::from_waker(&waker)) {
            Poll::Ready(result) => {
                result.unwrap();
                let request = self.places[place].take().unwrap();
                self.end(place, request);
            }
            Poll::Pending => {
                self.tally.slept += 1;
                // What a discard did before it was dropped is not known here.
                let may_drop = matches!(request.op, Op::Read | Op::Write) && place != 0;
                if may_drop && self.random.below(4) == 0 {
                    self.places[place] = None;
                    self.tally.dropped += 1;
                }
            }
        }
    }

    fn end(&mut self, place: usize, request: Request<'_>) {
        let Request { io, op, sector, sectors } = request;
        let bytes = io.into_payload().bytes;
        let pages = ((sector + sectors) / 8).saturating_sub(sector.div_ceil(8));
        match op {
            Op::Read => {
                self.tally.reads += 1;
                if place == 0 && self.version > 0 {
                    let expected = stamp(self.thread, self.version);
                    assert!(bytes == expected, "a part that was written is lost");
                }
                for sector in bytes.chunks(SECTOR).filter(|_| place != 0) {
                    let tail = &sector[SECTOR - 64..];
                    assert!(tail.iter().all(|byte| *byte == tail[0]), "two writes in a sector");
                    assert!(tail[0] != UNTOUCHED, "a sector was not delivered");
                }
            }
            Op::Write => self.tally.writes += 1,
            Op::Discard => self.tally.discards += 1,
            Op::WriteZeroes => self.tally.write_zeroes += 1,
        }
        if matches!(op, Op::Discard | Op::WriteZeroes) {
            self.tally.freed += pages;
        }
    }
}

/// The `version`th content of a thread's own sector.
fn stamp(thread: u64, version: u64) -> Vec<u8> {
    (version << 8 | thread).to_le_bytes().repeat(SECTOR / 8)
}

/// Requests of all kinds, whole pages and parts, several of each thread at a time, some of them
/// abandoned while they wait, with owners that keep a slot for long, and compaction beside.
#[test]
fn many_requests_on_few_slots_leak_nothing_lose_nothing_and_are_counted() {
    contend(&device(PAGES));
}

/// The same with an engine that does all codec work, so that owners of slots sleep; with one that
/// fails; and with a queue in which hardly anything finds room.
#[test]
fn the_same_where_owners_sleep_on_the_engine() {
    let failing = "reorder=4,refuse=10%,fail=2%,corrupt=2%,die=0.1%,seed=9";
    for (depth, model) in [(256, ""), (256, failing), (1, "")] {
        let device = sleepers::offloading(PAGES, depth, 2, model);
        contend(&device);
        let engine = device.report().engine;
        assert!(engine.jobs > 100 && (depth > 1 || engine.fallbacks > 10), "{engine:?}");
    }
}

fn contend(device: &Device) {
    let over = AtomicBool::new(false);
    let tallies: Vec<Tally> = std::thread::scope(|scope| {
        let compactor = scope.spawn(|| {
            let mut compactor = Compactor::default();
            while !over.load(Ordering::Relaxed) {
                device.compact(&mut compactor, Effort::Full, |_| true);
            }
        });
        let actors: Vec<_> = (0..THREADS)
            .map(|thread| scope.spawn(move || Actor::new(device, thread).run()))
            .collect();
        // All of them, before the compactor is told: one that fails must not leave it running.
        let tallies: Vec<_> = actors.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        over.store(true, Ordering::Relaxed);
        compactor.join().unwrap();
        tallies.into_iter().map(|tally| tally.expect("an actor failed")).collect()
    });
    device.check().unwrap();
    // The counters are what the threads did, to the last request.
    let sum = |count: fn(&Tally) -> u64| tallies.iter().map(count).sum::<u64>();
    let report = device.report();
    assert_eq!(report.reads, sum(|tally| tally.reads));
    assert_eq!(report.writes, sum(|tally| tally.writes));
    assert_eq!(report.discards, sum(|tally| tally.discards));
    assert_eq!(report.write_zeroes, sum(|tally| tally.write_zeroes));
    assert_eq!(report.notify_free, sum(|tally| tally.freed));
    assert_eq!((report.failed_reads, report.failed_writes), (0, 0));
    // It was what it says: requests met, and some were abandoned.
    assert!(sum(|tally| tally.slept) > 0 && sum(|tally| tally.dropped) > 0, "{tallies:?}");
    // No slot is locked or waited for, and no object is there that no slot names.
    let mut context = device.worker_context().unwrap();
    for index in 0..PAGES {
        assert!(device.table.try_lock(index).is_some(), "slot {index} is still locked");
    }
    free(device, &mut context, Op::Discard, 0, PAGES * 8);
    compact(device);
    let report = device.report();
    assert_eq!((report.orig_data_size, report.compr_data_size), (0, 0));
    assert_eq!((report.same_pages, report.huge_pages), (0, 0));
    assert_eq!(report.mem_used_total, 0, "an object was lost");
    device.check().unwrap();
}
