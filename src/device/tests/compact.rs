//! Compaction beside requests, limits, and a pool made anew from the table.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::pool::{Named, RebuildError};

impl Device {
    /// The same disk with a pool that knows of the old one no more than table and arena say.
    fn rebuilt(mut self) -> Result<Self, RebuildError> {
        let arena = Arena::new(4096, &MemoryKind::default()).unwrap();
        let limit = self.pool.usage().limit;
        let arena = std::mem::replace(&mut self.pool, Pool::new(arena, 1, 0).unwrap()).into_arena();
        self.table = self.table.reopened().unwrap();
        self.figures = Sharded::default();
        let figures = self.figures();
        self.table.for_each(|_, word| figures.replace(Content::Empty, word.content()));
        self.pool = Pool::rebuild(arena, self.table.len(), limit, |visit| {
            self.table.for_each(|_, word| {
                if let Some(object) = word.content().object() {
                    let (place, length) = (object.place, object.length);
                    visit(Named { place, length });
                }
            });
        })?;
        self.pool.adopt_table(self.table.bytes());
        Ok(self)
    }
}

/// A page of one of many lengths when compressed, different for each seed.
fn some_page(seed: u64) -> Vec<u8> {
    match seed % 8 {
        0 => noise(seed, PAGE_SIZE),
        1 => b"12345678".repeat(PAGE_SIZE / 8),
        2 => vec![seed as u8; PAGE_SIZE],
        _ => {
            let mut page = noise(seed, (seed.wrapping_mul(977) % 4000) as usize + 1);
            page.resize(PAGE_SIZE, 7);
            page
        }
    }
}

/// Two threads change and check pages of their own, while a third one compacts all the time; then
/// the pool is made anew, and all continues.
#[test]
fn compaction_beside_requests_loses_and_mixes_up_nothing() {
    const PAGES: u64 = 512;
    const ROUNDS: u64 = if cfg!(debug_assertions) { 6_000 } else { 60_000 };
    let mut device = device_with(2 * PAGES, "lz4", 0);
    let mut moved = 0;
    let mut seeds = vec![[None; PAGES as usize]; 2];
    for epoch in 0..3 {
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let (device, over) = (&device, &over);
            let compactor = scope.spawn(move || {
                let mut compactor = Compactor::default();
                let mut moves = 0;
                for round in 0.. {
                    let effort = if round % 3 == 0 { Effort::Upkeep } else { Effort::Full };
                    moves += device.compact(&mut compactor, effort, |_| true).moves;
                    if over.load(Ordering::Relaxed) {
                        break;
                    }
                }
                moves
            });
            let writers: Vec<_> = (0_u64..)
                .zip(seeds.iter_mut())
                .map(|(thread, seeds)| {
                    scope.spawn(move || {
                        let mut context = device.worker_context().unwrap();
                        for round in 0..ROUNDS {
                            let random = (round ^ epoch << 40 ^ thread << 50)
                                .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                                >> 20;
                            let page = random % PAGES;
                            let sector = (thread * PAGES + page) * 8;
                            let known = &mut seeds[page as usize];
                            match random >> 20 & 7 {
                                0 | 1 => {
                                    free(device, &mut context, Op::Discard, sector, 8);
                                    *known = None;
                                }
                                2..5 => {
                                    let expected =
                                        known.map_or_else(|| vec![0; PAGE_SIZE], some_page);
                                    assert_eq!(read(device, &mut context, sector, 8), expected);
                                }
                                _ => {
                                    run(device, &mut context, Op::Write, sector, some_page(random))
                                        .unwrap();
                                    *known = Some(random);
                                }
                            }
                        }
                    })
                })
                .collect();
            for writer in writers {
                writer.join().unwrap();
            }
            over.store(true, Ordering::Relaxed);
            moved += compactor.join().unwrap();
        });
        compact(&device);
        device.check().unwrap();
        let before = device.report();
        device = device.rebuilt().unwrap();
        device.check().unwrap();
        let after = device.report();
        let kept = |report: &Report| {
            let Report { orig_data_size, compr_data_size, same_pages, .. } = report;
            let Report { huge_pages, mem_used_total, table_bytes, .. } = report;
            [
                *orig_data_size,
                *compr_data_size,
                *same_pages,
                *huge_pages,
                *mem_used_total,
                *table_bytes,
            ]
        };
        assert_eq!(kept(&after), kept(&before));
        let mut context = device.worker_context().unwrap();
        for (sector, seed) in (0_u64..).step_by(8).zip(seeds.iter().flatten()) {
            let expected = seed.map_or_else(|| vec![0; PAGE_SIZE], some_page);
            assert_eq!(read(&device, &mut context, sector, 8), expected);
        }
    }
    assert!(moved > 1000, "{moved} objects moved");
}

/// Objects that no slot names yet, marked with slots that name others: a tag alone moves nothing.
#[test]
fn an_object_that_its_slot_does_not_name_is_not_moved() {
    let device = device(2048);
    let mut context = device.worker_context().unwrap();
    let page = |page: u64| {
        let mut bytes = noise(page, 1500);
        bytes.resize(PAGE_SIZE, 3);
        bytes
    };
    for number in 0..1000 {
        run(&device, &mut context, Op::Write, number * 8, page(number)).unwrap();
    }
    let length = device.table.try_lock(999).unwrap().word().content().object().unwrap().length;
    let strays: Vec<_> =
        (0..500).map(|owner| device.pool.store(&vec![0xee; length], owner).unwrap()).collect();
    free(&device, &mut context, Op::Discard, 500 * 8, 500 * 8);
    compact(&device);
    for number in 0..500 {
        assert_eq!(read(&device, &mut context, number * 8, 8), page(number), "page {number}");
    }
    for stray in strays {
        assert_eq!(stray.bytes(), vec![0xee; length]);
    }
    compact(&device);
    device.check().unwrap();
}

#[test]
fn a_writer_at_the_limit_does_no_more_than_it_needs() {
    let device = device_with(4096, "lz4", 8 << 20);
    let mut context = device.worker_context().unwrap();
    let mut stored = 0;
    while run(&device, &mut context, Op::Write, stored * 8, noise(stored, PAGE_SIZE)).is_ok() {
        stored += 1;
    }
    free(&device, &mut context, Op::Discard, 0, stored * 8);
    let before = device.report().mem_used_total / PAGE_SIZE as u64;
    run(&device, &mut context, Op::Write, 0, text(1, PAGE_SIZE)).unwrap();
    let report = device.report();
    let given = before - report.mem_used_total / PAGE_SIZE as u64;
    assert!((1..=16).contains(&given), "{given} pages given back: {report}");
    assert_eq!(report.pages_compacted, 0, "nothing had to move");
}

/// The table grows with what a guest touches, so what the host can spare bounds it too.
#[test]
fn a_host_without_memory_gives_none_to_the_table_either() {
    let device = device(1 << 20);
    let mut context = device.worker_context().unwrap();
    run(&device, &mut context, Op::Write, 0, vec![7; PAGE_SIZE]).unwrap();
    device.pool.allow_more(100 << 10);
    let spread = (1..1000).map(|number| number * 512 * 8);
    let done = spread
        .filter(|sector| run(&device, &mut context, Op::Write, *sector, vec![7; PAGE_SIZE]).is_ok())
        .count();
    assert!((10..=25).contains(&done), "{done} pages of table in 100 KiB");
    assert!(device.report().table_bytes <= 104 << 10);
    assert_eq!(read(&device, &mut context, 0, 8), vec![7; PAGE_SIZE]);
}

#[test]
fn a_limit_is_met_by_compacting_before_a_write_is_refused() {
    const LIMIT: u64 = 2 << 20;
    let device = device_with(4096, "lz4", LIMIT);
    let mut context = device.worker_context().unwrap();
    let write = |context: &mut WorkerContext, page: u64, seed: u64| {
        run(&device, context, Op::Write, page * 8, text(seed, PAGE_SIZE)).map(|_| ())
    };
    let mut stored = 0;
    while write(&mut context, stored, stored).is_ok() {
        stored += 1;
    }
    assert!(stored > 500, "{stored} pages");
    // Every second page goes, so nearly no host page is bare: only moving objects makes room.
    for page in (0..stored).step_by(2) {
        free(&device, &mut context, Op::Discard, page * 8, 8);
    }
    // Incompressible pages fit into no hole.
    for page in (0..stored / 2).step_by(4) {
        let bytes = noise(page, PAGE_SIZE);
        run(&device, &mut context, Op::Write, page * 8, bytes).unwrap();
    }
    let report = device.report();
    assert!(report.mem_used_max <= LIMIT && report.pages_compacted > 0, "{report}");
    let overwritten = |page: u64| page < stored / 2 && page.is_multiple_of(4);
    for page in (0..stored).filter(|page| overwritten(*page) || page % 2 == 1) {
        let expected =
            if overwritten(page) { noise(page, PAGE_SIZE) } else { text(page, PAGE_SIZE) };
        assert_eq!(read(&device, &mut context, page * 8, 8), expected);
    }
    device.check().unwrap();
}

#[test]
fn at_the_limit_a_refused_write_leaves_the_old_page() {
    // One of them is the table's.
    let device = device_with(64, "lz4", 9 * PAGE_SIZE as u64);
    let mut context = device.worker_context().unwrap();
    let mut refused = 0;
    for page in 0..16 {
        let failed =
            run(&device, &mut context, Op::Write, page * 8, noise(page, PAGE_SIZE)).is_err();
        refused += u64::from(failed);
    }
    assert!((8..=10).contains(&refused), "{refused} of 16 refused");
    for page in 0..16 - refused {
        let again = run(&device, &mut context, Op::Write, page * 8, noise(99, PAGE_SIZE));
        if again.is_err() {
            assert_eq!(read(&device, &mut context, page * 8, 8), noise(page, PAGE_SIZE));
        }
    }
    assert_eq!(device.report().failed_writes, refused + 16 - refused);
    device.check().unwrap();
}

/// Nothing but the object's own bytes is ever read: what was in its place before does not show.
#[test]
fn bytes_of_freed_pages_do_not_come_back() {
    let device = device(64);
    let mut context = device.worker_context().unwrap();
    for page in 0..64 {
        run(
            &device,
            &mut context,
            Op::Write,
            page * 8,
            vec![b's'; PAGE_SIZE - 1].into_iter().chain([b't']).collect(),
        )
        .unwrap();
    }
    free(&device, &mut context, Op::Discard, 0, 64 * 8);
    for page in 0..64 {
        assert_eq!(read(&device, &mut context, page * 8, 8), vec![0; PAGE_SIZE]);
    }
    compact(&device);
    run(&device, &mut context, Op::Write, 0, noise(1, PAGE_SIZE)).unwrap();
    let guard = device.table.try_lock(0).unwrap();
    let object = guard.word().content().object().unwrap();
    drop(guard);
    // The rest of the page that was committed anew is zero.
    let rest = device.pool.bytes_after(object.place, object.length);
    assert!(rest.iter().all(|byte| *byte == 0));
}
