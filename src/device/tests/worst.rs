//! The worst case beside real disks.

use vhost_user_zram_frontend::Random;

use super::reopen::Home;
use super::*;

const PAGES: u64 = 4096;

fn check(device: &Device, what: &str) {
    let (worst, report) = (device.worst_case(), device.report());
    assert!(report.mem_used_max <= worst.arena_bytes, "{what}: {worst:?} {report}");
    assert!(report.table_bytes <= worst.table_bytes, "{what}: {worst:?} {report}");
    let notes = report.metadata_bytes - report.table_bytes;
    assert!(notes <= worst.notes_bytes, "{what}: {worst:?} {report}");
}

/// Fills the disk, and goes on with pages that compress more or less.
fn fill(device: &Device) {
    let mut context = device.worker_context().unwrap();
    let mut write = |page: u64, bytes| {
        run(device, &mut context, Op::Write, page * SECTORS_PER_PAGE, bytes).unwrap();
    };
    for page in 0..PAGES {
        write(page, noise(page, PAGE_SIZE));
    }
    check(device, "filled");
    let (worst, report) = (device.worst_case(), device.report());
    // No more beyond than what may lie in caches, be populated ahead, and be left in each of 65 classes.
    let beyond = (worst.arena_bytes - report.mem_used_total) / PAGE_SIZE as u64;
    assert!((16 * 8 + 16 + 65 * 3..).take(3).any(|pages| pages == beyond), "{beyond} {report}");
    assert_eq!(worst.table_bytes, report.table_bytes, "{worst:?} {report}");
    let mut random = Random::new(5);
    for round in 0..PAGES {
        write(random.below(PAGES), noise(round, PAGE_SIZE));
    }
    check(device, "overwritten");
    for round in 0..4 * PAGES {
        let noisy = random.below(PAGE_SIZE as u64 + 1) as usize;
        write(round % PAGES, [noise(round, noisy), vec![0; PAGE_SIZE - noisy]].concat());
        // As upkeep does in the time that a guest needs for this.
        if round % 64 == 0 {
            compact(device);
        }
    }
    check(device, "in all classes");
}

#[test]
fn a_disk_full_of_incompressible_pages_takes_no_more() {
    fill(&device_with(PAGES, "lz4", 0));
    let home = Home::new(PAGES, "lz4");
    let device = home.make();
    fill(&device);
    assert_eq!(home.config.worst_case(true).unwrap(), device.worst_case());
    drop(device);
    // Whose notes also say which pages are still to be verified.
    check(&home.open().unwrap(), "opened");
}

#[test]
fn the_limit_bounds_table_and_arena() {
    let free = device_with(PAGES, "lz4", 0).worst_case();
    let sum = free.table_bytes + free.arena_bytes;
    assert_eq!(free.total_bytes, sum + free.notes_bytes);
    for limit in [4096, 1 << 20, sum] {
        let worst = device_with(PAGES, "lz4", limit).worst_case();
        assert_eq!(worst, WorstCase { total_bytes: limit + free.notes_bytes, ..free });
    }
    assert_eq!(device_with(PAGES, "lz4", sum + 4096).worst_case(), free);
}

#[test]
fn the_largest_disk_has_a_worst_case() {
    let Home { mut config, .. } = Home::new(1, "lz4");
    config.size = MAX_SIZE;
    let worst = config.worst_case(true).unwrap();
    assert!(worst.total_bytes > config.size && worst.total_bytes < config.size * 102 / 100);
    config.size += 1;
    config.worst_case(true).unwrap_err();
}
