//! When pages were accessed, and idle marks by that.

use std::sync::Arc;

use super::reopen::Home;
use super::*;

fn aged(pages: u64) -> Arc<Device> {
    let config = DeviceConfig {
        size: pages * PAGE_SIZE as u64,
        block_size: BlockChoice::default(),
        codec: "lz4".parse().unwrap(),
        mem_limit: 0,
        memory: MemoryKind::default(),
        access_times: true,
        engine: EngineConfig { policy: Policy::Inline, ..EngineConfig::default() },
    };
    Device::new(&config).unwrap().into()
}

fn states(device: &Arc<Device>) -> Vec<(u64, SlotState)> {
    let (mut found, mut slots) = (Vec::new(), Slots::new(Arc::clone(device)));
    while slots.visit_some(|index, state| found.push((index, state))) {}
    found
}

fn idle(device: &Arc<Device>) -> Vec<u64> {
    let states = states(device).into_iter();
    states.filter(|(_, state)| state.idle).map(|(index, _)| index).collect()
}

#[test]
fn pages_are_marked_by_their_age_and_younger_ones_are_not_any_more() {
    let device = aged(64);
    let mut context = device.worker_context().unwrap();
    let mut write = |page| run(&device, &mut context, Op::Write, page * 8, text(page, PAGE_SIZE));
    for page in 0..4 {
        write(page).unwrap();
        device.let_pass(100);
    }
    // Now they are 400, 300, 200 and 100 seconds old.
    assert_eq!(device.mark_idle(Some(250), || true), Ok(2));
    assert_eq!(idle(&device), [0, 1]);
    assert_eq!(device.mark_idle(Some(150), || true), Ok(1));
    assert_eq!(idle(&device), [0, 1, 2]);
    // Also those that another call marked.
    assert_eq!(device.mark_idle(None, || true), Ok(1));
    assert_eq!(device.mark_idle(Some(350), || true), Ok(0));
    assert_eq!(idle(&device), [0]);
    assert_eq!(device.mark_idle(Some(0), || true), Ok(3));
    // Any access takes the mark and renews the time: a read, a part, and what fails at its end.
    let mut context = device.worker_context().unwrap();
    read(&device, &mut context, 0, 8);
    run(&device, &mut context, Op::Write, 9, vec![1; 512]).unwrap();
    assert_eq!(idle(&device), [2, 3]);
    device.let_pass(50);
    assert_eq!(device.mark_idle(Some(90), || true), Ok(0));
    assert_eq!(idle(&device), [2, 3]);
    assert_eq!(device.mark_idle(Some(40), || true), Ok(2));
    device.check().unwrap();
}

#[test]
fn an_age_that_no_page_can_have_is_refused() {
    let device = aged(64);
    let most = SlotTable::OLDEST;
    assert_eq!(device.mark_idle(Some(most - 1), || true), Ok(0));
    let refused = device.mark_idle(Some(most), || true);
    assert_eq!(refused, Err(AgeError::TooOld { seconds: most }));
    let without = device_with(64, "lz4", 0);
    assert_eq!(without.mark_idle(Some(1), || true), Err(AgeError::NotKept));
    assert_eq!(without.keep_ages(), None);
    assert_eq!(without.mark_idle(None, || true), Ok(0));
}

/// What upkeep does to pages is no access.
#[test]
fn jobs_leave_times_as_they_are() {
    let device = aged(64);
    device.set_secondary(1, "zstd(level=9)".parse().unwrap()).unwrap();
    let mut context = device.worker_context().unwrap();
    for page in 0..16 {
        run(&device, &mut context, Op::Write, page * 8, text(page, PAGE_SIZE)).unwrap();
    }
    device.let_pass(1000);
    let before = states(&device);
    assert!(before.iter().all(|(_, state)| state.accessed > std::time::Duration::ZERO));
    let wanted = Wanted { pages: Pages::All, threshold: 0, max_pages: None, priority: 1 };
    assert_eq!(device.recompress(wanted, |_| true).unwrap().replaced, 16);
    free(&device, &mut context, Op::Discard, 0, 8);
    compact(&device);
    device.keep_ages().unwrap();
    assert_eq!(device.mark_idle(Some(990), || true), Ok(15));
    let accessed = |states: &[(u64, SlotState)]| -> Vec<_> {
        states.iter().map(|(index, state)| (*index, state.accessed)).collect()
    };
    assert_eq!(accessed(&states(&device)), accessed(&before[1..]));
}

/// The memory of times is there where the table is, and counted.
#[test]
fn ages_take_two_bytes_a_page_where_there_are_pages() {
    const PAGES: u64 = 64 * 512;
    let (device, without) = (aged(PAGES), device_with(PAGES, "lz4", 0));
    let more = |device: &Device| device.report().table_index_bytes;
    let base = more(&without);
    assert_eq!(more(&device), base);
    // What no request of then has stored is of the start.
    device.let_pass(1000);
    let is_of_the_start = |page| device.table.age(page).is_some_and(|age| age > 900);
    let mut context = device.worker_context().unwrap();
    run(&device, &mut context, Op::Write, 0, text(0, PAGE_SIZE)).unwrap();
    assert!(!is_of_the_start(0) && is_of_the_start(1));
    run(&device, &mut context, Op::Write, 40 * 512 * 8, text(0, PAGE_SIZE)).unwrap();
    // A read of what is not there makes nothing exist.
    read(&device, &mut context, 20 * 512 * 8, 8);
    assert_eq!(more(&device), base + 2 * 4096);
    assert!(is_of_the_start(20 * 512), "memory was taken");
    assert_eq!(device.worst_case().notes_bytes, without.worst_case().notes_bytes + 2 * PAGES);
    free(&device, &mut context, Op::Discard, 0, PAGES * 8);
    compact(&device);
    assert_eq!((more(&device), device.report().table_bytes), (base, 0));
    assert!(is_of_the_start(0), "memory is not given back");
    device.check().unwrap();
}

/// Times are of one process; marks are in the words.
#[test]
fn a_disk_that_is_taken_over_counts_as_accessed_at_that_moment() {
    let mut home = Home::new(64, "lz4");
    home.config.access_times = true;
    let device = Arc::new(home.make());
    let mut context = device.worker_context().unwrap();
    for page in 0..4 {
        run(&device, &mut context, Op::Write, page * 8, text(page, PAGE_SIZE)).unwrap();
    }
    device.let_pass(1000);
    read(&device, &mut context, 0, 8);
    assert_eq!(device.mark_idle(Some(500), || true), Ok(3));
    drop(context);
    let device = Arc::new(home.copy().open().unwrap());
    assert_eq!(idle(&device), [1, 2, 3]);
    assert_eq!(device.mark_idle(Some(1), || true), Ok(0));
    assert_eq!(idle(&device), [] as [u64; 0]);
    device.let_pass(100);
    assert_eq!(device.mark_idle(Some(90), || true), Ok(4));
}
