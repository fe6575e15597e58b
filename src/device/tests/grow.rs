//! Disks that grow while they are used, and what a later process finds of them.

use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, Ordering};

use super::reopen::Home;
use super::*;

const PAGE: u64 = PAGE_SIZE as u64;
const GIB: u64 = 1 << 30;

fn size_error(grown: Result<u64, GrowError>) -> String {
    let error = grown.unwrap_err().to_string();
    assert!(!error.contains('\n'), "{error}");
    error
}

#[test]
fn a_disk_grows_and_keeps_what_it_has() {
    let device = device(100);
    let mut context = device.worker_context().unwrap();
    assert!(!device.has_grown());
    run(&device, &mut context, Op::Write, 0, text(1, 100 * PAGE_SIZE)).unwrap();
    let end = 100 * SECTORS_PER_PAGE;
    for op in [Op::Read, Op::Write] {
        let refused = run(&device, &mut context, op, end - 1, vec![0; 2 * SECTOR]);
        assert!(matches!(refused, Err(IoError::OutOfRange { .. })));
    }
    // Within the same page of the table, to the next one, and far beyond.
    for pages in [101, 512, 513, 5_000, 1 << 20] {
        assert_eq!(device.check_size(pages * PAGE - 1).unwrap(), pages * PAGE);
        assert_eq!(device.grow(pages * PAGE - 1).unwrap(), pages * PAGE);
        assert_eq!((device.size(), device.has_grown()), (pages * PAGE, true));
        let last = pages - 1;
        assert_eq!(read(&device, &mut context, last * 8, 8), vec![0; PAGE_SIZE]);
        run(&device, &mut context, Op::Write, last * 8, text(last, PAGE_SIZE)).unwrap();
        run(&device, &mut context, Op::Write, last * 8 + 1, vec![0; PAGE_SIZE]).unwrap_err();
        assert_eq!(read(&device, &mut context, last * 8, 8), text(last, PAGE_SIZE));
        assert_eq!(read(&device, &mut context, 0, end as usize), text(1, 100 * PAGE_SIZE));
        device.check().unwrap();
    }
    free(&device, &mut context, Op::Discard, 0, device.sectors());
    compact(&device);
    let report = device.report();
    assert_eq!((report.orig_data_size, report.mem_used_total, report.table_bytes), (0, 0, 0));
    device.check().unwrap();
}

#[test]
fn a_disk_neither_shrinks_nor_outgrows_its_room() {
    let device = device(100);
    let size = device.size();
    let error = size_error(device.check_size(size - PAGE));
    assert!(error.contains("does not shrink") && error.contains("409600"), "{error}");
    assert_eq!(size_error(device.grow(0)), size_error(device.check_size(0)));
    for wanted in [64 * GIB + 1, 16 << 40, u64::MAX] {
        let error = size_error(device.grow(wanted));
        assert!(error.contains("room for 68719476736 bytes"), "{error}");
        assert!(error.contains(&wanted.to_string()), "{error}");
    }
    // The same size is one that it can have.
    assert_eq!((device.grow(size).unwrap(), device.grow(size - 1).unwrap()), (size, size));
    assert!(!device.has_grown());
    assert_eq!(device.grow(64 * GIB).unwrap(), 64 * GIB);
    // A larger one has more room.
    let large = device_with(2 * GIB / PAGE, "lz4", 0);
    assert_eq!(large.check_size(128 * GIB).unwrap(), 128 * GIB);
    size_error(large.check_size(128 * GIB + 1));
    assert_eq!(device_with(MAX_SIZE / PAGE, "lz4", 0).check_size(MAX_SIZE).unwrap(), MAX_SIZE);
}

#[test]
fn room_for_a_growth_takes_no_memory() {
    // Room for 64 GiB each, and as many notes for what there is.
    for size in [PAGE, GIB] {
        let report = device_with(size / PAGE, "lz4", 0).report();
        assert_eq!(report.table_index_bytes, size.div_ceil(512 * PAGE).div_ceil(64) * 16, "{size}");
        assert_eq!((report.table_bytes, report.mem_used_total), (0, 0));
    }
}

/// Threads that write and read while the disk grows, and one that has parts of its table go.
#[test]
fn a_disk_grows_under_the_threads_that_use_it() {
    const STEP: u64 = 300;
    const STEPS: u64 = 12;
    for home in [None, Some(Home::new(STEP, "lz4"))] {
        let device = home.as_ref().map_or_else(|| device(STEP), Home::make);
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for worker in 0..2_u64 {
                let (device, done) = (&device, &done);
                scope.spawn(move || {
                    let mut context = device.worker_context().unwrap();
                    let mut round = 0;
                    while round < 3 || !done.load(Ordering::Relaxed) {
                        round += 1;
                        // Pages of its own, from the end of the disk as it is now.
                        let pages = device.size() / PAGE;
                        for page in (0..pages).rev().filter(|page| page % 2 == worker).take(200) {
                            let bytes = text(page ^ round << 32, PAGE_SIZE);
                            run(device, &mut context, Op::Write, page * 8, bytes.clone()).unwrap();
                            assert_eq!(read(device, &mut context, page * 8, 8), bytes);
                            if page % 3 > 0 {
                                free(device, &mut context, Op::Discard, page * 8, 8);
                            }
                        }
                    }
                });
            }
            let taker = scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    compact(&device);
                }
            });
            for step in 2..=STEPS {
                assert_eq!(device.grow(step * STEP * PAGE).unwrap(), step * STEP * PAGE);
                std::thread::yield_now();
            }
            done.store(true, Ordering::Relaxed);
            taker.join().unwrap();
        });
        let mut context = device.worker_context().unwrap();
        run(&device, &mut context, Op::Write, 0, text(3, (STEP * STEPS) as usize * PAGE_SIZE))
            .unwrap();
        device.check().unwrap();
        free(&device, &mut context, Op::Discard, 0, device.sectors());
        compact(&device);
        device.check().unwrap();
        assert_eq!(device.report().mem_used_total, 0);
    }
}

#[test]
fn a_state_is_opened_in_the_size_that_it_has_grown_to() {
    let mut home = Home::new(100, "lz4");
    let device = home.make();
    let mut context = device.worker_context().unwrap();
    device.grow(700 * PAGE).unwrap();
    run(&device, &mut context, Op::Write, 0, text(1, 700 * PAGE_SIZE)).unwrap();
    drop((context, device));
    // As it was made, as it was at some time, and as it is.
    for asked in [100, 101, 699, 700] {
        home.config.size = asked * PAGE;
        let device = home.open().unwrap();
        assert_eq!((device.size(), device.has_grown()), (700 * PAGE, true), "{asked}");
        let mut context = device.worker_context().unwrap();
        assert!(read(&device, &mut context, 0, 5600) == text(1, 700 * PAGE_SIZE), "{asked}");
        device.check().unwrap();
    }
    // More is what it grows to, and a disk was never less.
    home.config.size = 5_000 * PAGE;
    let device = home.open().unwrap();
    assert_eq!(device.size(), 5_000 * PAGE);
    let mut context = device.worker_context().unwrap();
    run(&device, &mut context, Op::Write, 39_992, text(2, PAGE_SIZE)).unwrap();
    drop((context, device));
    home.config.size = 99 * PAGE;
    let error = home.open().map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("does not shrink"), "{error}");
    home.config.size = 64 * GIB + 1;
    let error = home.open().map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("room for 68719476736"), "{error}");
    home.config.size = 100 * PAGE;
    let device = home.open().unwrap();
    let mut context = device.worker_context().unwrap();
    assert!(read(&device, &mut context, 39_992, 8) == text(2, PAGE_SIZE));
    assert!(read(&device, &mut context, 0, 5600) == text(1, 700 * PAGE_SIZE));
}

/// A process that took the last page of the table away locked all of its words, also those that are no slots
/// yet.
#[test]
fn locks_behind_the_end_that_a_process_left_are_cleared() {
    let mut home = Home::new(100, "lz4");
    let device = home.make();
    let mut context = device.worker_context().unwrap();
    run(&device, &mut context, Op::Write, 0, text(1, PAGE_SIZE)).unwrap();
    drop((context, device));
    home = home.died();
    for index in 100..512 {
        home.set_word(index, 1);
    }
    let device = home.open().unwrap();
    device.grow(512 * PAGE).unwrap();
    let mut context = device.worker_context().unwrap();
    run(&device, &mut context, Op::Write, 8, text(2, 511 * PAGE_SIZE)).unwrap();
    assert_eq!(read(&device, &mut context, 0, 8), text(1, PAGE_SIZE));
    device.check().unwrap();
}

/// It would be a page of the disk once that grows; and the note of a growth may have been lost.
#[test]
fn content_behind_the_end_is_damage() {
    let home = Home::new(100, "lz4");
    let device = home.make();
    let mut context = device.worker_context().unwrap();
    run(&device, &mut context, Op::Write, 0, text(1, PAGE_SIZE)).unwrap();
    drop((context, device));
    // Of the page of the table that has the last slot, and of one that has none.
    for index in [100, 511, 10 * 512] {
        let home = home.copy();
        // A same-filled page.
        home.set_word(index, 4);
        let error = home.open().map(|_| ()).unwrap_err();
        assert!(matches!(error, DeviceError::Slot { index: found } if found == index), "{error}");
    }
    // A page of the table that has nothing goes back.
    home.set_word(10 * 512, 0);
    let before = home.dir.join("table").metadata().unwrap().blocks();
    let device = home.open().unwrap();
    assert_eq!(home.dir.join("table").metadata().unwrap().blocks(), before - 8);
    device.check().unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    /// A disk against a plain vector, with growths and deaths in between.
    #[test]
    fn a_random_walk_with_growths_agrees_with_a_plain_model(
        steps in prop::collection::vec((0..12_u8, any::<u64>(), 1..40_usize, 0..4_u8, any::<u64>()), 1..80),
    ) {
        let mut home = Home::new(30, "lz4");
        let mut device = home.make();
        let mut context = device.worker_context().unwrap();
        let mut model = vec![0; 30 * PAGE_SIZE];
        for (op, sector, sectors, kind, seed) in steps {
            let first = (sector % (model.len() / SECTOR) as u64) as usize;
            let sectors = sectors.min(model.len() / SECTOR - first);
            let range = first * SECTOR..(first + sectors) * SECTOR;
            match op {
                0..=6 => change(&device, &mut context, first as u64, &mut model[range], (op, kind, seed)),
                7..=8 => prop_assert_eq!(
                    read(&device, &mut context, first as u64, sectors), &model[range]
                ),
                9 => {
                    let pages = (model.len() / PAGE_SIZE + sectors * 9).min(1200);
                    prop_assert_eq!(device.grow(pages as u64 * PAGE).unwrap(), pages as u64 * PAGE);
                    model.resize(pages * PAGE_SIZE, 0);
                }
                10 => compact(&device),
                _ => {
                    drop((context, device));
                    home = home.died();
                    device = home.open().unwrap();
                    context = device.worker_context().unwrap();
                }
            }
            prop_assert_eq!(device.check(), Ok(()));
        }
        let sectors = model.len() / SECTOR;
        prop_assert_eq!(device.sectors(), sectors as u64);
        prop_assert!(read(&device, &mut context, 0, sectors) == model);
    }
}
