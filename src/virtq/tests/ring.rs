use std::collections::VecDeque;

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};

use super::TABLE;
use crate::virtq::elem::Head;
use crate::virtq::memory::{Memory, for_tests};
use crate::virtq::ring::{
    BATCH, Heads, RingError, put_back, put_batch, take_batch, wants_interrupt,
};

const AVAIL: u64 = 0x10000;
const USED: u64 = 0x20000;
const SIZE: u16 = 64;

fn queue() -> Queue {
    let mut queue = Queue::new(SIZE).unwrap();
    queue.set_desc_table_address(Some(TABLE as u32), Some(0));
    queue.set_avail_ring_address(Some(AVAIL as u32), Some(0));
    queue.set_used_ring_address(Some(USED as u32), Some(0));
    queue.set_ready(true);
    queue
}

fn offer(memory: &Memory, at: u16, heads: &[u16]) {
    for (n, head) in (0_u16..).zip(heads) {
        let slot = u64::from(at.wrapping_add(n) % SIZE);
        memory.write_obj(*head, GuestAddress(AVAIL + 4 + slot * 2)).unwrap();
    }
    let index = at.wrapping_add(heads.len() as u16);
    memory.write_obj(index, GuestAddress(AVAIL + 2)).unwrap();
}

fn take(
    queue: &mut Queue,
    memory: &Memory,
    heads: &mut Heads,
) -> (Vec<u16>, Result<(), RingError>) {
    let mut batch = VecDeque::new();
    let outcome = take_batch(queue, memory, heads, BATCH, &mut batch);
    let numbers = batch.into_iter().map(|taken| taken.finish(1).head).collect();
    (numbers, outcome)
}

fn used_index(memory: &Memory) -> u16 {
    memory.read_obj(GuestAddress(USED + 2)).unwrap()
}

#[test]
fn heads_are_taken_in_batches_and_published_with_one_index() {
    let map = for_tests(0, 1 << 20);
    let shared = map.shared();
    let memory = shared.memory();
    let (mut queue, mut heads) = (queue(), Heads::new(SIZE));
    // Near the wrap of both the ring and the index.
    let start = u16::MAX - 10;
    queue.set_next_avail(start);
    queue.set_next_used(start);
    let all: Vec<u16> = (0..40).rev().collect();
    offer(&memory, start, &all);
    let mut batch = VecDeque::new();
    take_batch(&mut queue, &memory, &mut heads, BATCH, &mut batch).unwrap();
    assert_eq!(batch.len(), BATCH);
    let mut finished: Vec<_> = batch.drain(..).map(|taken| taken.finish(513)).collect();
    memory.write_obj(start, GuestAddress(USED + 2)).unwrap();
    put_batch(&mut queue, &memory, &mut heads, None, &mut finished).unwrap();
    assert_eq!(used_index(&memory), start.wrapping_add(BATCH as u16));
    for (n, head) in (0_u16..).zip(&all[..BATCH]) {
        let slot = u64::from(start.wrapping_add(n) % SIZE);
        let element: [u32; 2] = memory.read_obj(GuestAddress(USED + 4 + slot * 8)).unwrap();
        assert_eq!(element, [u32::from(*head), 513]);
    }
    let (rest, outcome) = take(&mut queue, &memory, &mut heads);
    outcome.unwrap();
    assert_eq!(rest, all[BATCH..]);
}

#[test]
fn a_ring_that_makes_no_sense_is_an_error() {
    let map = for_tests(0, 1 << 20);
    let shared = map.shared();
    let memory = shared.memory();
    let mut queue = queue();

    memory.write_obj(SIZE + 1, GuestAddress(AVAIL + 2)).unwrap();
    let (none, outcome) = take(&mut queue, &memory, &mut Heads::new(SIZE));
    assert_eq!((none, outcome), (vec![], Err(RingError::AvailableIndex)));

    offer(&memory, 0, &[3, SIZE, 4]);
    let (taken, outcome) = take(&mut queue, &memory, &mut Heads::new(SIZE));
    assert_eq!((taken, outcome), (vec![3], Err(RingError::HeadOutOfRange(SIZE))));

    queue.set_next_avail(0);
    offer(&memory, 0, &[3, 5, 3]);
    let (taken, outcome) = take(&mut queue, &memory, &mut Heads::new(SIZE));
    assert_eq!((taken, outcome), (vec![3, 5], Err(RingError::HeadInFlight(3))));
}

#[test]
fn what_is_put_back_is_taken_again_in_order() {
    let map = for_tests(0, 1 << 20);
    let shared = map.shared();
    let memory = shared.memory();
    let (mut queue, mut heads) = (queue(), Heads::new(SIZE));
    let start = u16::MAX - 2;
    queue.set_next_avail(start);
    queue.set_next_used(start);
    offer(&memory, start, &[9, 8, 7, 6, 5]);
    let mut batch = VecDeque::new();
    take_batch(&mut queue, &memory, &mut heads, BATCH, &mut batch).unwrap();
    let mut finished: Vec<_> = batch.drain(..2).map(|taken| taken.finish(1)).collect();
    put_batch(&mut queue, &memory, &mut heads, None, &mut finished).unwrap();
    put_back(&mut queue, &mut heads, &mut batch);
    assert_eq!((batch.len(), queue.next_avail()), (0, queue.next_used()));
    let (resubmit, outcome) = take(&mut queue, &memory, &mut heads);
    assert_eq!((resubmit, outcome), (vec![7, 6, 5], Ok(())));
}

#[test]
fn a_head_can_be_taken_again_once_it_was_given_back() {
    let map = for_tests(0, 1 << 20);
    let shared = map.shared();
    let memory = shared.memory();
    let (mut queue, mut heads) = (queue(), Heads::new(SIZE));
    for round in 0..200 {
        offer(&memory, round, &[7]);
        let mut batch = VecDeque::new();
        take_batch(&mut queue, &memory, &mut heads, BATCH, &mut batch).unwrap();
        let mut finished = batch.drain(..).map(|taken: Head| taken.finish(1)).collect();
        put_batch(&mut queue, &memory, &mut heads, None, &mut finished).unwrap();
        assert_eq!(used_index(&memory), round + 1);
    }
}

#[test]
fn interrupts_are_raised_when_the_event_index_is_passed() {
    let map = for_tests(0, 1 << 20);
    let shared = map.shared();
    let memory = shared.memory();
    let mut queue = queue();
    queue.set_event_idx(true);
    let event = |value: u16| {
        memory.write_obj(value, GuestAddress(AVAIL + 4 + 2 * u64::from(SIZE))).unwrap();
    };
    let mut ask = |old: u16, new: u16| {
        queue.set_next_used(new);
        wants_interrupt(&queue, &memory, &mut { old }).unwrap()
    };
    event(9);
    assert!(!ask(5, 5), "nothing new");
    assert!(!ask(5, 9));
    assert!(ask(5, 10), "passed");
    assert!(ask(9, 10), "passed");
    assert!(!ask(10, 20), "passed before");
    event(u16::MAX);
    assert!(ask(u16::MAX - 1, 3), "passed at the wrap");
    assert!(!ask(0, 3));
}

#[test]
fn without_event_index_the_flag_decides() {
    let map = for_tests(0, 1 << 20);
    let shared = map.shared();
    let memory = shared.memory();
    let mut queue = queue();
    queue.set_next_used(4);
    assert!(wants_interrupt(&queue, &memory, &mut 3).unwrap());
    memory.write_obj(1_u16, GuestAddress(AVAIL)).unwrap();
    assert!(!wants_interrupt(&queue, &memory, &mut 3).unwrap());
    let mut signalled = 3;
    wants_interrupt(&queue, &memory, &mut signalled).unwrap();
    assert_eq!(signalled, 4);
}
