//! What the slot table takes: it counts against the limit, and comes back.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::ScopedJoinHandle;

use super::reopen::Home;
use super::*;

/// Slots of a page of table.
const GROUP: u64 = 512;
const MIB: u64 = 1 << 20;

fn same(seed: u64) -> Vec<u8> {
    vec![seed as u8 | 1; PAGE_SIZE]
}

/// A repeated word of 8 bytes that does not fit into a slot word.
fn wide(seed: u64) -> Vec<u8> {
    (seed << 32 | 0xabcd).to_le_bytes().repeat(PAGE_SIZE / 8)
}

/// Pages for which a write succeeds.
fn stored(
    device: &Device,
    context: &mut WorkerContext,
    pages: impl Iterator<Item = u64>,
    bytes: impl Fn(u64) -> Vec<u8>,
) -> Vec<u64> {
    let done = |page: &u64| run(device, context, Op::Write, page * 8, bytes(*page)).is_ok();
    pages.filter(done).collect()
}

/// 4,000 same-filled pages all over 1 TiB take a page of table each, and no arena.
#[test]
fn the_limit_counts_the_table() {
    let device = device_with(1 << 28, "lz4", MIB);
    let mut context = device.worker_context().unwrap();
    let spread = |number: u64| number * ((1 << 28) / 4_000);
    let done = stored(&device, &mut context, (0..4_000).map(spread), same);
    assert_eq!(done.len() as u64, MIB / 4096);
    assert_eq!(device.report().table_bytes, MIB);
    assert_eq!(device.report().failed_writes, 4_000 - MIB / 4096);
    // What is there can be changed, and its neighbours are had for nothing.
    for page in [done[0], done[0] + 1, done[255], done[255] + 1] {
        run(&device, &mut context, Op::Write, page * 8, same(page + 7)).unwrap();
        assert_eq!(read(&device, &mut context, page * 8, 8), same(page + 7));
    }
    // Nor is there room for an object.
    assert!(run(&device, &mut context, Op::Write, 0, noise(1, PAGE_SIZE)).is_err());
    device.check().unwrap();
}

/// On a disk with a state each page of table has one of check sums beside it, where those of two
/// neighbours are not both there.
#[test]
fn the_limit_counts_the_sums_of_a_state() {
    let mut home = Home::new(1 << 20, "lz4");
    home.config.mem_limit = MIB;
    let device = home.make();
    let mut context = device.worker_context().unwrap();
    let done = stored(&device, &mut context, (0..512).map(|number| number * 2 * GROUP), same);
    assert_eq!(done.len() as u64, MIB / 8192);
    assert_eq!(device.report().table_bytes, MIB + 4096, "with the seal");
    device.check().unwrap();
}

#[test]
fn a_state_that_was_opened_with_more_than_the_limit_takes_no_more() {
    let mut home = Home::new(1 << 20, "lz4");
    let device = home.make();
    let mut context = device.worker_context().unwrap();
    for page in 0..64 {
        run(&device, &mut context, Op::Write, page * GROUP * 8, same(page)).unwrap();
    }
    drop((context, device));
    home.config.mem_limit = MIB / 8;
    let device = home.open().unwrap();
    let mut context = device.worker_context().unwrap();
    let before = device.report();
    assert!(before.table_bytes > MIB / 4, "{before}");
    let done = stored(&device, &mut context, (64..128).map(|page| page * GROUP), same);
    assert!(done.is_empty(), "{done:?}");
    assert!(run(&device, &mut context, Op::Write, 0, noise(1, PAGE_SIZE)).is_err());
    for page in 0..64 {
        assert_eq!(read(&device, &mut context, page * GROUP * 8, 8), same(page));
        run(&device, &mut context, Op::Write, page * GROUP * 8, same(page + 1)).unwrap();
    }
    let after = device.report();
    assert_eq!((after.table_bytes, after.mem_used_total), (before.table_bytes, 0));
    device.check().unwrap();
}

/// The kernel takes same-filled pages at any limit; here one takes 16 bytes if its pattern is wide.
#[test]
fn at_the_limit_a_wide_same_filled_page_is_taken_where_it_needs_no_new_page() {
    let device = device_with(1 << 16, "lz4", 64 * PAGE_SIZE as u64);
    let mut context = device.worker_context().unwrap();
    run(&device, &mut context, Op::Write, 0, wide(0)).unwrap();
    let full = stored(&device, &mut context, 1..100, |page| noise(page, PAGE_SIZE));
    // The table has one, the wide pattern another, and those objects are a little more than a page.
    assert_eq!(full.len(), 61);
    // 256 of them lie in a page.
    let done = stored(&device, &mut context, 200..GROUP, wide);
    assert_eq!(done, (200..455).collect::<Vec<_>>());
    for page in done {
        assert_eq!(read(&device, &mut context, page * 8, 8), wide(page));
    }
    // A narrow one lies in its slot.
    run(&device, &mut context, Op::Write, 500 * 8, same(1)).unwrap();
    for page in full {
        assert_eq!(read(&device, &mut context, page * 8, 8), noise(page, PAGE_SIZE));
    }
    device.check().unwrap();
}

#[test]
fn parts_of_the_table_without_content_go_back() {
    let mut home = Home::new(1 << 20, "lz4");
    home.config.mem_limit = 0;
    // With sums of a state beside, and without.
    for device in [home.make(), device(1 << 20)] {
        let mut context = device.worker_context().unwrap();
        let seal = if device.state().is_some() { 4096 } else { 0 };
        // Far apart; a run, of which more is made than is used; and a page beside another.
        let far = (0..64).map(|number| 1000 * GROUP + number * 3 * GROUP);
        let run = 0..20 * GROUP;
        let pages: Vec<_> = far.chain(run).chain([500 * GROUP, 501 * GROUP]).collect();
        for page in &pages {
            run_one(&device, &mut context, *page);
        }
        compact(&device);
        device.check().unwrap();
        assert!(device.report().table_bytes >= 86 * 4096 + seal);
        // What has content stays, also where all others go.
        free(&device, &mut context, Op::Discard, 8, device.sectors() - 8);
        compact(&device);
        device.check().unwrap();
        let sums = if seal > 0 { 4096 } else { 0 };
        assert_eq!(device.report().table_bytes, 4096 + sums + seal);
        assert_eq!(read(&device, &mut context, 0, 8), same(0));
        free(&device, &mut context, Op::Discard, 0, 8);
        compact(&device);
        let report = device.report();
        assert_eq!((report.table_bytes, report.mem_used_total), (seal, 0));
        // Reading makes nothing exist, writing does.
        for page in &pages {
            assert_eq!(read(&device, &mut context, page * 8, 8), vec![0; PAGE_SIZE]);
        }
        assert_eq!(device.report().table_bytes, seal);
        for page in &pages {
            run_one(&device, &mut context, *page);
            assert_eq!(read(&device, &mut context, page * 8, 8), same(*page));
        }
        device.check().unwrap();
    }
}

fn run_one(device: &Device, context: &mut WorkerContext, page: u64) {
    run(device, context, Op::Write, page * 8, same(page)).unwrap();
}

/// Without upkeep, which would have to come first: the writer that needs the room takes it.
#[test]
fn at_the_limit_what_was_discarded_makes_room_at_once() {
    let device = device_with(1 << 20, "lz4", MIB);
    let mut context = device.worker_context().unwrap();
    let spread = |number: u64| number * 4 * GROUP;
    let done = stored(&device, &mut context, (0..300).map(spread), same);
    assert_eq!(done.len(), 256);
    free(&device, &mut context, Op::Discard, 0, spread(200) * 8);
    let done = stored(&device, &mut context, (300..600).map(spread), same);
    assert_eq!(done.len(), 200);
    device.check().unwrap();
    // For objects too, which need a page of table and another two.
    free(&device, &mut context, Op::Discard, 0, device.sectors());
    let done = stored(&device, &mut context, 0..300, |page| noise(page, PAGE_SIZE));
    assert!(done.len() > 240, "{} pages", done.len());
    device.check().unwrap();
}

#[test]
fn a_write_that_fails_leaves_no_table() {
    let device = device_with(1 << 20, "lz4", 4 * PAGE_SIZE as u64);
    let mut context = device.worker_context().unwrap();
    let mut io = device.request(Op::Write, 0, PAGE_SIZE as u64, Gone).unwrap();
    sync::block_on(|cx| io.poll(&mut context, cx)).unwrap_err();
    drop(io);
    run(&device, &mut context, Op::Write, 5 * GROUP * 8, noise(1, PAGE_SIZE)).unwrap();
    for page in 6..100 {
        run(&device, &mut context, Op::Write, page * GROUP * 8, noise(1, PAGE_SIZE)).unwrap_err();
    }
    compact(&device);
    device.check().unwrap();
    assert_eq!(device.report().table_bytes, 4096);
}

/// Slots that are held, or whose lock a task waits for, keep their part of the table, empty or not.
#[test]
fn slots_in_use_keep_their_part_of_the_table() {
    let device = device(1 << 20);
    let mut context = device.worker_context().unwrap();
    run_one(&device, &mut context, 7);
    free(&device, &mut context, Op::Discard, 0, GROUP * 8);
    let held = device.hold(9).unwrap();
    let mut compactor = Compactor::default();
    let done = device.compact(&mut compactor, Effort::Full, |_| true);
    assert_eq!((done.pages, done.more), (0, true));
    // A writer that waits, and one that comes while the part is there.
    let mut io = device.request(Op::Write, 9 * 8, 4096, Buffer::new(same(1))).unwrap();
    let cx = Context::from_waker(Waker::noop());
    assert!(io.poll(&mut context, &cx).is_pending());
    drop(held);
    let done = device.compact(&mut compactor, Effort::Full, |_| true);
    assert_eq!((done.pages, done.more), (0, true), "it was woken, and has not looked yet");
    assert!(io.poll(&mut context, &cx).is_ready());
    drop(io);
    let done = device.compact(&mut compactor, Effort::Full, |_| true);
    assert_eq!((done.pages, done.more), (0, false));
    assert_eq!(read(&device, &mut context, 9 * 8, 8), same(1));
    free(&device, &mut context, Op::Discard, 0, GROUP * 8);
    let done = device.compact(&mut compactor, Effort::Full, |_| true);
    assert_eq!((done.pages, done.more), (1, false));
    device.check().unwrap();
}

/// Threads write, discard and read pages of a few parts of the table, most of them empty at most times,
/// while two others take the parts away; all that they know of is there. It continues until some went.
fn beside_each_other(device: &Device, rounds: u64) {
    const PARTS: u64 = 8;
    const ENOUGH: u64 = 100;
    let gone = AtomicU64::new(0);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let takers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let mut compactor = Compactor::default();
                    while !over.load(Ordering::Relaxed) {
                        let done = device.compact(&mut compactor, Effort::Full, |_| true);
                        gone.fetch_add(done.pages, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        let users: Vec<_> = (0..2_u64)
            .map(|thread| {
                let gone = &gone;
                scope.spawn(move || {
                    let mut context = device.worker_context().unwrap();
                    let mut known = [const { None }; PARTS as usize];
                    let more = |round| round < rounds || gone.load(Ordering::Relaxed) < ENOUGH;
                    for round in (0..).take_while(|round| more(*round)) {
                        let random = (round ^ thread << 50).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                        let part = random >> 40 & (PARTS - 1);
                        // Each thread has a slot of its own in each part, and they share the part.
                        let page = part * 2 * GROUP + 100 + thread;
                        let known = &mut known[part as usize];
                        match random >> 50 & 3 {
                            0 => {
                                free(device, &mut context, Op::Discard, page * 8, 8);
                                *known = None;
                            }
                            1 => {
                                // With the neighbours, which are not used.
                                free(device, &mut context, Op::WriteZeroes, page * 8 + 2, 1);
                                if let Some(bytes) = known.as_mut() {
                                    let bytes: &mut Vec<u8> = bytes;
                                    bytes[2 * SECTOR..3 * SECTOR].fill(0);
                                }
                            }
                            2 => {
                                let bytes =
                                    if random & 1 == 0 { same(random) } else { wide(random) };
                                if run(device, &mut context, Op::Write, page * 8, bytes.clone())
                                    .is_ok()
                                {
                                    *known = Some(bytes);
                                }
                            }
                            _ => {
                                let zeroes = || vec![0; PAGE_SIZE];
                                let expected = known.clone().unwrap_or_else(zeroes);
                                assert_eq!(read(device, &mut context, page * 8, 8), expected);
                            }
                        }
                    }
                })
            })
            .collect();
        let users: Vec<_> = users.into_iter().map(ScopedJoinHandle::join).collect();
        // Also if one of them failed.
        over.store(true, Ordering::Relaxed);
        users.into_iter().for_each(|user| user.unwrap());
        takers.into_iter().for_each(|taker| taker.join().unwrap());
    });
}

#[test]
fn parts_of_the_table_go_beside_requests_and_nothing_is_lost() {
    const ROUNDS: u64 = if cfg!(debug_assertions) { 10_000 } else { 200_000 };
    let home = Home::new(1 << 14, "lz4");
    for device in [home.make(), device(1 << 14)] {
        let seal = if device.state().is_some() { 4096 } else { 0 };
        beside_each_other(&device, ROUNDS);
        device.check().unwrap();
        let mut context = device.worker_context().unwrap();
        free(&device, &mut context, Op::Discard, 0, device.sectors());
        compact(&device);
        device.check().unwrap();
        let report = device.report();
        assert_eq!((report.table_bytes, report.mem_used_total), (seal, 0), "{report}");
    }
}

#[test]
fn what_an_earlier_process_left_without_content_goes_back() {
    let home = Home::new(1 << 14, "lz4");
    let device = home.make();
    let mut context = device.worker_context().unwrap();
    for page in [0, 3 * GROUP, 4 * GROUP, 9 * GROUP] {
        run_one(&device, &mut context, page);
    }
    free(&device, &mut context, Op::Discard, 0, 9 * GROUP * 8);
    drop((context, device));
    let device = home.open().unwrap();
    device.check().unwrap();
    compact(&device);
    device.check().unwrap();
    // The last one with its sums, and the seal.
    assert_eq!(device.report().table_bytes, 3 * 4096);
    let mut context = device.worker_context().unwrap();
    assert_eq!(read(&device, &mut context, 9 * GROUP * 8, 8), same(9 * GROUP));
}

/// A slot whose word was lost reads as damaged, and not as empty, also when all others are empty.
#[test]
fn damage_keeps_its_part_of_the_table() {
    let home = Home::new(1 << 14, "lz4");
    let device = home.make();
    let mut context = device.worker_context().unwrap();
    run_one(&device, &mut context, 0);
    run_one(&device, &mut context, 7);
    drop((context, device));
    home.set_word(7, 0);
    let device = home.open().unwrap();
    let mut context = device.worker_context().unwrap();
    free(&device, &mut context, Op::Discard, 0, 8);
    compact(&device);
    device.check().unwrap();
    let damaged = run(&device, &mut context, Op::Read, 7 * 8, vec![0; PAGE_SIZE]);
    assert!(matches!(damaged, Err(IoError::Damaged { index: 7 })), "{damaged:?}");
    free(&device, &mut context, Op::Discard, 7 * 8, 8);
    assert_eq!(read(&device, &mut context, 7 * 8, 8), vec![0; PAGE_SIZE]);
    compact(&device);
    device.check().unwrap();
    assert_eq!(device.report().table_bytes, 4096, "the seal");
}
