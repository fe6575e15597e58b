//! A ring and its part of the in-flight region, killed at every store.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use proptest::prelude::*;
use proptest::sample::Index;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};

use super::TABLE;
use crate::virtq::elem::Head;
use crate::virtq::inflight::Inflight;
use crate::virtq::inflight::tests::{overwrite, region, watch_stores};
use crate::virtq::inflight_log::{InflightLog, Record};
use crate::virtq::memory::{MemoryMap, for_tests};
use crate::virtq::part::{Contents, Entry};
use crate::virtq::position;
use crate::virtq::recovery::{RecoveryError, Standing};
use crate::virtq::ring::{Heads, put_back, put_batch, take_batch, used_index};

const AVAIL: u64 = 0x10000;
const USED: u64 = 0x20000;
const SIZE: u16 = 8;
/// Near the wrap of the index.
const START: u16 = u16::MAX - 20;

/// What a process leaves if it dies at one moment.
type State = (Contents, u16);

/// A driver, a ring, and a device that takes and gives back by hand.
struct World {
    map: MemoryMap,
    region: Inflight,
    queue: Queue,
    heads: Heads,
    inflight_log: InflightLog,
    running: Vec<Head>,
    /// Heads by the place at which they were made available, from [`START`] on.
    offered: Vec<u16>,
    /// Heads that the driver may use.
    free: Vec<u16>,
    /// Whether the request at a place was given back.
    done: Vec<bool>,
    /// Used index up to which the driver has read.
    seen: u16,
    states: Rc<RefCell<Vec<State>>>,
}

impl World {
    fn new() -> Self {
        let map = for_tests(0, 1 << 20);
        let mut queue = Queue::new(SIZE).unwrap();
        queue.set_desc_table_address(Some(TABLE as u32), Some(0));
        queue.set_avail_ring_address(Some(AVAIL as u32), Some(0));
        queue.set_used_ring_address(Some(USED as u32), Some(0));
        queue.set_ready(true);
        let memory = map.shared().memory().clone();
        for index in [AVAIL + 2, USED + 2] {
            memory.write_obj(START, GuestAddress(index)).unwrap();
        }
        let mut world = Self {
            map,
            region: region(1, SIZE),
            queue,
            heads: Heads::default(),
            inflight_log: InflightLog::default(),
            running: Vec::new(),
            offered: Vec::new(),
            free: (0..SIZE).collect(),
            done: Vec::new(),
            seen: START,
            states: Rc::default(),
        };
        world.start();
        world
    }

    fn used(&self) -> u16 {
        used_index(&self.queue, &self.map.shared().memory()).unwrap()
    }

    fn available(&self) -> u16 {
        START.wrapping_add(self.offered.len() as u16)
    }

    fn contents(&self) -> Contents {
        self.region.part(0).unwrap().read(0).unwrap()
    }

    /// Does something, and records every state on the way.
    fn recorded(&mut self, act: impl FnOnce(&mut Self)) {
        let (states, part) = (Rc::clone(&self.states), self.region.part(0).unwrap());
        let memory = self.map.shared();
        watch_stores(Some(Box::new(move || {
            let used = memory.memory().read_obj(GuestAddress(USED + 2)).unwrap();
            states.borrow_mut().push((part.read(0).unwrap(), used));
        })));
        act(self);
        watch_stores(None);
        let end = (self.contents(), self.used());
        self.states.borrow_mut().push(end);
    }

    /// A new process starts the ring.
    fn start(&mut self) {
        self.recorded(|world| {
            let parts = world.region.parts(0);
            let memory = world.map.shared();
            let shown = position::read(&world.queue, &memory.memory(), parts).unwrap();
            let found = shown.begin(Record::Region).unwrap();
            world.queue.set_next_avail(found.next_avail);
            world.queue.set_next_used(found.next_used);
            world.heads = Heads::new(SIZE);
            world.inflight_log = found.inflight_log;
        });
        while let Some(head) = self.inflight_log.region_log().unwrap().next_resubmit() {
            assert!(self.heads.take(head));
            self.running.push(Head::new(head));
        }
    }

    /// Makes up to `count` requests available.
    fn offer(&mut self, count: usize) {
        let memory = self.map.shared().memory().clone();
        for _ in 0..count.min(self.free.len()) {
            // Not in ascending order.
            let head = self.free.remove(self.free.len() / 2);
            let slot = u64::from(self.available() % SIZE);
            memory.write_obj(head, GuestAddress(AVAIL + 4 + slot * 2)).unwrap();
            self.offered.push(head);
            self.done.push(false);
        }
        self.recorded(|world| {
            memory.write_obj(world.available(), GuestAddress(AVAIL + 2)).unwrap();
        });
    }

    /// Takes up to `limit`, and puts all but `keep` of them back.
    fn take(&mut self, limit: usize, keep: usize) {
        self.recorded(|world| {
            let memory = world.map.shared();
            let memory = memory.memory();
            let mut batch = VecDeque::new();
            take_batch(&mut world.queue, &memory, &mut world.heads, limit, &mut batch).unwrap();
            world.inflight_log.take(&batch);
            world.running.extend(batch.drain(..keep.min(batch.len())));
            world.inflight_log.put_back(&batch);
            put_back(&mut world.queue, &mut world.heads, &mut batch);
        });
    }

    /// Gives back those that are picked out of what is running.
    fn finish(&mut self, picks: &[usize]) {
        let mut batch = Vec::new();
        for pick in picks {
            if !self.running.is_empty() {
                batch.push(self.running.remove(pick % self.running.len()).finish(1));
            }
        }
        self.recorded(|world| {
            let memory = world.map.shared();
            let (queue, region_log) = (&mut world.queue, world.inflight_log.region_log());
            put_batch(queue, &memory.memory(), &mut world.heads, region_log, &mut batch).unwrap();
        });
    }

    /// The process dies, and left `state`.
    fn die(&mut self, state: State) {
        self.running.drain(..).for_each(|taken| {
            taken.put_back();
        });
        overwrite(&self.region.part(0).unwrap(), &state.0);
        let memory = self.map.shared();
        memory.memory().write_obj(state.1, GuestAddress(USED + 2)).unwrap();
    }

    fn used_head(&self, index: u16) -> u16 {
        let slot = u64::from(index % SIZE);
        let memory = self.map.shared();
        let head: u32 = memory.memory().read_obj(GuestAddress(USED + 4 + slot * 8)).unwrap();
        head as u16
    }

    /// The place of the request that has `head` now.
    fn place_of(&self, head: u16) -> usize {
        self.offered.iter().rposition(|offered| *offered == head).unwrap()
    }

    /// Each state that was seen tells exactly what is still to be done.
    fn check(&self) {
        for (contents, used) in self.states.borrow().iter() {
            let ring = Standing { size: SIZE, used: *used, available: self.available() };
            let recovery = contents.recover(ring).unwrap();
            let mut done = self.done.clone();
            for index in 0..used.wrapping_sub(self.seen) {
                let place = self.place_of(self.used_head(self.seen.wrapping_add(index)));
                assert!(!std::mem::replace(&mut done[place], true), "done twice");
            }
            let taken = used.wrapping_sub(START) as usize + recovery.resubmit.len();
            let owed: Vec<u16> =
                (0..taken).filter(|at| !done[*at]).map(|at| self.offered[at]).collect();
            assert_eq!(recovery.resubmit, owed, "{contents:?}");
            assert!(!done[taken..].contains(&true), "it would be taken again");
        }
    }

    /// The driver reads the used ring.
    fn reap(&mut self) {
        while self.seen != self.used() {
            let head = self.used_head(self.seen);
            let place = self.place_of(head);
            assert!(!std::mem::replace(&mut self.done[place], true), "done twice");
            self.free.push(head);
            self.seen = self.seen.wrapping_add(1);
        }
    }
}

#[derive(Debug, Clone)]
enum Act {
    Offer(usize),
    Take { limit: usize, keep: usize },
    Finish(Vec<usize>),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        (1..6_usize).prop_map(Act::Offer),
        (1..8_usize, 0..8_usize).prop_map(|(limit, keep)| Act::Take { limit, keep }),
        prop::collection::vec(any::<usize>(), 1..6).prop_map(Act::Finish),
    ]
}

proptest! {
    /// Whatever is taken, put back and given back, and at whatever stores the process dies, each
    /// request is done exactly once.
    #[test]
    fn a_death_at_any_store_loses_and_repeats_nothing(
        steps in prop::collection::vec((act(), prop::option::weighted(0.3, any::<Index>())), 1..60)
    ) {
        let mut world = World::new();
        for (act, death) in steps {
            match act {
                Act::Offer(count) => world.offer(count),
                Act::Take { limit, keep } => world.take(limit, keep),
                Act::Finish(picks) => world.finish(&picks),
            }
            world.check();
            if let Some(moment) = death {
                let state = world.states.borrow()[moment.index(world.states.borrow().len())].clone();
                world.die(state);
                world.states.borrow_mut().clear();
                world.reap();
                world.start();
                world.check();
            }
            world.reap();
            world.states.borrow_mut().clear();
        }
        while world.done.contains(&false) {
            world.take(8, 8);
            let all = vec![0; world.running.len()];
            world.finish(&all);
            world.check();
            world.reap();
            world.states.borrow_mut().clear();
        }
        prop_assert_eq!(world.contents().entries.iter().filter(|entry| entry.in_flight != 0).count(), 0);
    }
}

/// A part of a ring of eight at 100, with heads 2, 5 and 3 in flight, taken in this order; 6 was
/// taken after 2 and is done.
fn plain() -> Contents {
    let mut entries = vec![Entry::default(); 8];
    for (head, counter, in_flight) in [(5, 11, 1), (2, 9, 1), (3, 12, 1), (6, 10, 0), (0, 8, 0)] {
        entries[head] = Entry { in_flight, next: 0, counter };
    }
    Contents { features: 0, version: 1, size: 8, last_head: 6, used_index: 100, entries }
}

const RING: Standing = Standing { size: 8, used: 100, available: 105 };

#[test]
fn what_is_in_flight_is_taken_up_in_its_order() {
    let recovery = plain().recover(RING).unwrap();
    assert_eq!((recovery.resubmit, recovery.later), (vec![2, 5, 3], 1));
}

#[test]
fn a_batch_that_was_published_is_finished() {
    // 5 and then 2 were chained and published; 2 is unmarked already.
    let mut contents = plain();
    contents.last_head = 2;
    contents.entries[2] = Entry { in_flight: 0, next: 5, counter: 9 };
    contents.entries[5].next = 6;
    let recovery = contents.recover(Standing { used: 102, ..RING }).unwrap();
    assert_eq!((recovery.resubmit, recovery.later), (vec![3], 0));
    // Before the index was published they are in flight; 2 is still marked then.
    contents.entries[2].in_flight = 1;
    assert_eq!(contents.recover(RING).unwrap().resubmit, [2, 5, 3]);
}

#[test]
fn counters_may_be_anything() {
    let mut contents = plain();
    contents.entries[1].counter = u64::MAX;
    contents.entries[3].counter = 9;
    assert_eq!(contents.recover(RING).unwrap().resubmit, [2, 3, 5]);
}

#[test]
fn what_cannot_be_of_the_ring_is_refused() {
    let refused = |change: &dyn Fn(&mut Contents), ring| {
        let mut contents = plain();
        change(&mut contents);
        contents.recover(ring).unwrap_err()
    };
    let error = refused(&|c| c.features = 1, RING);
    assert_eq!(error, RecoveryError::Features(1));
    for version in [2, 0xffff] {
        let error = refused(&|c| c.version = version, RING);
        assert_eq!(error, RecoveryError::Version(version));
    }
    assert_eq!(refused(&|c| c.version = 0, RING), RecoveryError::NotFresh);
    for size in [0, 4, 16, 0xffff] {
        let error = refused(&|c| c.size = size, RING);
        assert_eq!(error, RecoveryError::Entries { found: size, expected: 8 });
    }
    let error = refused(&|_| {}, Standing { size: 16, ..RING });
    assert_eq!(error, RecoveryError::RingSize { ring: 16 });
    for region in [101, 91, 0, 0xffff] {
        let error = refused(&|c| c.used_index = region, RING);
        assert_eq!(error, RecoveryError::UsedIndex { region, ring: 100 });
    }
    // Chains that lead outside, or in a circle.
    for (last, next) in [(8, 0), (0xffff, 0), (1, 8), (1, 1)] {
        let change = |c: &mut Contents| {
            (c.used_index, c.last_head) = (98, last);
            c.entries[1].next = next;
        };
        let error = refused(&change, RING);
        assert_eq!(error, RecoveryError::Batch(if last == 1 { next } else { last }));
    }
    for mark in [2, 0xff] {
        let error = refused(&|c| c.entries[0].in_flight = mark, RING);
        assert_eq!(error, RecoveryError::Mark { head: 0, mark });
    }
    // The region has more entries than the ring, and that does not make it invalid.
    let small = Standing { size: 4, ..RING };
    assert_eq!(refused(&|_| {}, small), RecoveryError::Head(5));
    let clear = |c: &mut Contents| c.entries[5].in_flight = 0;
    let mut contents = plain();
    clear(&mut contents);
    assert_eq!(
        contents.recover(small).unwrap_err(),
        RecoveryError::TooMany { in_flight: 2, waiting: 5 }
    );
    assert_eq!(contents.recover(Standing { available: 104, ..small }).unwrap().resubmit, [2, 3]);
    for available in [102, 109, 99] {
        let error = refused(&|_| {}, Standing { available, ..RING });
        let waiting = available.wrapping_sub(100);
        assert_eq!(error, RecoveryError::TooMany { in_flight: 3, waiting });
    }
}

/// Front ends other than QEMU may keep a region when the guest starts the device anew.
#[test]
fn a_ring_that_was_reset_begins_anew() {
    let reset = Standing { size: 8, used: 0, available: 3 };
    let mut contents = plain();
    assert!(contents.recover(reset).is_err(), "something is in flight");
    contents.entries.iter_mut().for_each(|entry| entry.in_flight = 0);
    let recovery = contents.recover(reset).unwrap();
    assert_eq!((recovery.resubmit.len(), recovery.later), (0, 0));
    assert!(contents.recover(Standing { used: 200, ..reset }).is_err(), "it stands elsewhere");
}

/// A part that no ring was started with begins at the used index of now, not at 0.
#[test]
fn a_fresh_part_begins_where_the_ring_stands() {
    let world = World::new();
    let contents = world.contents();
    assert_eq!((contents.version, contents.size), (1, SIZE));
    assert_eq!((contents.used_index, contents.shows_use()), (START, false));
    assert_eq!(world.queue.next_avail(), START);
}

#[test]
fn a_ring_in_use_is_told_by_its_indexes_and_by_its_part() {
    let map = for_tests(0, 1 << 20);
    let shared = map.shared();
    let region = region(1, SIZE);
    let mut queue = World::new().queue;
    let read = |queue: &Queue| position::read(queue, &shared.memory(), region.parts(0)).unwrap();
    queue.set_next_avail(0);
    let shown = read(&queue);
    assert_eq!((shown.base, shown.used, shown.region_shows_use()), (0, 0, false));
    queue.set_next_avail(3);
    assert_eq!(read(&queue).base, 3);
    queue.set_next_avail(0);
    // A daemon took one request and died before it published anything.
    let mut contents = region.part(0).unwrap().read(0).unwrap();
    for entry in [
        Entry { in_flight: 1, next: 0, counter: 1 },
        Entry { in_flight: 0, next: 0, counter: 1 },
        Entry { in_flight: 1, next: 0, counter: 0 },
    ] {
        contents.entries[4] = entry;
        overwrite(&region.part(0).unwrap(), &contents);
        assert!(read(&queue).region_shows_use());
    }
    contents.version = 1;
    contents.size = SIZE;
    overwrite(&region.part(0).unwrap(), &contents);
    shared.memory().write_obj(1_u16, GuestAddress(AVAIL + 2)).unwrap();
    let found = read(&queue).begin(Record::Region).unwrap();
    assert_eq!((found.next_avail, found.next_used, found.resubmit), (1, 0, 1));
}

/// Indexes that were counted around to 0 are those of a new ring; the elements of the used ring are not.
#[test]
fn a_used_ring_that_was_written_all_around_was_in_use() {
    let map = for_tests(0, 1 << 20);
    let shared = map.shared();
    let mut queue = World::new().queue;
    queue.set_next_avail(0);
    let read = || position::read(&queue, &shared.memory(), None).unwrap();
    // The last request of each element was one of head 0 or of another one.
    for at in 0..u64::from(SIZE) {
        assert!(!read().wrapped, "{at} elements are of a ring that was cleared by halves");
        let element = at << 32 | 1;
        shared
            .memory()
            .write_obj(element.rotate_left(32), GuestAddress(USED + 4 + 8 * at))
            .unwrap();
    }
    assert!(read().wrapped);
    assert_eq!(read().begin(Record::Order).unwrap().next_avail, 0);
}

#[test]
fn a_record_in_a_region_needs_a_part_of_it() {
    let map = for_tests(0, 1 << 20);
    let queue = World::new().queue;
    let shown = || position::read(&queue, &map.shared().memory(), None).unwrap();
    assert!(matches!(shown().begin(Record::Order).unwrap().inflight_log, InflightLog::Order(_)));
    assert!(matches!(shown().begin(Record::None).unwrap().inflight_log, InflightLog::None));
    let error = shown().begin(Record::Region).unwrap_err();
    assert_eq!(error, RecoveryError::RingSize { ring: SIZE });
}
