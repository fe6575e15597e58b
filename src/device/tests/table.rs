//! What the slot table takes: it counts against the limit, and comes back.

use super::revive::Home;
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
    lane: &mut Lane,
    pages: impl Iterator<Item = u64>,
    bytes: impl Fn(u64) -> Vec<u8>,
) -> Vec<u64> {
    let done = |page: &u64| run(device, lane, Op::Write, page * 8, bytes(*page)).is_ok();
    pages.filter(done).collect()
}

/// 4,000 same-filled pages all over 1 TiB take a page of table each, and no arena.
#[test]
fn the_limit_counts_the_table() {
    let device = device_with(1 << 28, "lz4", MIB);
    let mut lane = device.lane().unwrap();
    let spread = |number: u64| number * ((1 << 28) / 4_000);
    let done = stored(&device, &mut lane, (0..4_000).map(spread), same);
    assert_eq!(done.len() as u64, MIB / 4096);
    assert_eq!(device.report().table_bytes, MIB);
    assert_eq!(device.report().failed_writes, 4_000 - MIB / 4096);
    // What is there can be changed, and its neighbours are had for nothing.
    for page in [done[0], done[0] + 1, done[255], done[255] + 1] {
        run(&device, &mut lane, Op::Write, page * 8, same(page + 7)).unwrap();
        assert_eq!(read(&device, &mut lane, page * 8, 8), same(page + 7));
    }
    // Nor is there room for an object.
    assert!(run(&device, &mut lane, Op::Write, 0, noise(1, PAGE_SIZE)).is_err());
    device.check().unwrap();
}

/// On a disk with a state each page of table has one of check sums beside it, where those of two
/// neighbours are not both there.
#[test]
fn the_limit_counts_the_sums_of_a_state() {
    let mut home = Home::new(1 << 20, "lz4");
    home.config.mem_limit = MIB;
    let device = home.make();
    let mut lane = device.lane().unwrap();
    let done = stored(&device, &mut lane, (0..512).map(|number| number * 2 * GROUP), same);
    assert_eq!(done.len() as u64, MIB / 8192);
    assert_eq!(device.report().table_bytes, MIB + 4096, "with the seal");
    device.check().unwrap();
}

#[test]
fn a_state_that_was_opened_with_more_than_the_limit_takes_no_more() {
    let mut home = Home::new(1 << 20, "lz4");
    let device = home.make();
    let mut lane = device.lane().unwrap();
    for page in 0..64 {
        run(&device, &mut lane, Op::Write, page * GROUP * 8, same(page)).unwrap();
    }
    drop((lane, device));
    home.config.mem_limit = MIB / 8;
    let device = home.open().unwrap();
    let mut lane = device.lane().unwrap();
    let before = device.report();
    assert!(before.table_bytes > MIB / 4, "{before}");
    let done = stored(&device, &mut lane, (64..128).map(|page| page * GROUP), same);
    assert!(done.is_empty(), "{done:?}");
    assert!(run(&device, &mut lane, Op::Write, 0, noise(1, PAGE_SIZE)).is_err());
    for page in 0..64 {
        assert_eq!(read(&device, &mut lane, page * GROUP * 8, 8), same(page));
        run(&device, &mut lane, Op::Write, page * GROUP * 8, same(page + 1)).unwrap();
    }
    let after = device.report();
    assert_eq!((after.table_bytes, after.mem_used_total), (before.table_bytes, 0));
    device.check().unwrap();
}

/// The kernel takes same-filled pages at any limit; here one takes 16 bytes if its pattern is wide.
#[test]
fn at_the_limit_a_wide_same_filled_page_is_taken_where_it_needs_no_new_page() {
    let device = device_with(1 << 16, "lz4", 64 * PAGE_SIZE as u64);
    let mut lane = device.lane().unwrap();
    run(&device, &mut lane, Op::Write, 0, wide(0)).unwrap();
    let full = stored(&device, &mut lane, 1..100, |page| noise(page, PAGE_SIZE));
    // The table has one, the wide pattern another, and those objects are a little more than a page.
    assert_eq!(full.len(), 61);
    // 256 of them lie in a page.
    let done = stored(&device, &mut lane, 200..GROUP, wide);
    assert_eq!(done, (200..455).collect::<Vec<_>>());
    for page in done {
        assert_eq!(read(&device, &mut lane, page * 8, 8), wide(page));
    }
    // A narrow one lies in its slot.
    run(&device, &mut lane, Op::Write, 500 * 8, same(1)).unwrap();
    for page in full {
        assert_eq!(read(&device, &mut lane, page * 8, 8), noise(page, PAGE_SIZE));
    }
    device.check().unwrap();
}
