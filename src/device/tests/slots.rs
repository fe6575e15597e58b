//! What each slot holds, for reports.

use super::*;

fn all(slots: &mut Slots) -> Vec<(u64, SlotState)> {
    let mut found = Vec::new();
    while slots.visit_some(|index, state| found.push((index, state))) {}
    found
}

#[test]
fn a_walk_shows_what_is_stored_and_waits_for_nobody() {
    let device = Arc::new(device(1 << 20));
    let mut context = device.worker_context().unwrap();
    let wide = 0x0102_0304_0506_0708_u64.to_le_bytes().repeat(PAGE_SIZE / 8);
    let mut write = |page: u64, bytes| {
        run(&device, &mut context, Op::Write, page * SECTORS_PER_PAGE, bytes).unwrap();
    };
    write(0, vec![0; PAGE_SIZE]);
    write(3, wide);
    write(4, noise(1, PAGE_SIZE));
    write(5, text(2, PAGE_SIZE));
    write(6, text(3, PAGE_SIZE));
    write((1 << 20) - 1, vec![7; PAGE_SIZE]);
    free(&device, &mut context, Op::Discard, 6 * SECTORS_PER_PAGE, SECTORS_PER_PAGE);
    let held = device.hold(4).unwrap();
    let (none, same) = (SlotState::default(), SlotState { same: true, ..SlotState::default() });
    let expected = [
        (0, same),
        (3, same),
        (4, SlotState { huge: true, ..none }),
        (5, none),
        ((1 << 20) - 1, same),
    ];
    assert_eq!(all(&mut Slots::new(Arc::clone(&device))), expected);
    drop(held);
}

#[test]
fn a_walk_has_parts_of_bounded_length_and_shows_each_slot_once() {
    const PAGES: u64 = 5000;
    let device = Arc::new(device(PAGES));
    let mut context = device.worker_context().unwrap();
    for page in 0..PAGES {
        run(&device, &mut context, Op::Write, page * SECTORS_PER_PAGE, vec![7; PAGE_SIZE]).unwrap();
    }
    let mut slots = Slots::new(Arc::clone(&device));
    let mut found = Vec::new();
    loop {
        let before = found.len();
        let more = slots.visit_some(|index, _| found.push(index));
        assert!(found.len() - before <= 1024, "{} at once", found.len() - before);
        if !more {
            break;
        }
        // Between two parts the table may lose pages.
        free(&device, &mut context, Op::Discard, 0, 512 * SECTORS_PER_PAGE);
        compact(&device);
    }
    assert_eq!(found, Vec::from_iter(0..PAGES));
    assert_eq!(all(&mut Slots::new(device)).len() as u64, PAGES - 512);
}

#[test]
fn the_most_memory_there_was_can_be_forgotten() {
    let device = device(1024);
    let mut context = device.worker_context().unwrap();
    run(&device, &mut context, Op::Write, 0, noise(1, 64 * PAGE_SIZE)).unwrap();
    let full = device.report().mem_used_max;
    free(&device, &mut context, Op::Discard, 0, 64 * SECTORS_PER_PAGE);
    compact(&device);
    assert_eq!((device.report().mem_used_total, device.report().mem_used_max), (0, full));
    device.forget_max();
    assert_eq!(device.report().mem_used_max, 0);
    run(&device, &mut context, Op::Write, 0, noise(1, PAGE_SIZE)).unwrap();
    let report = device.report();
    assert_eq!(report.mem_used_max, report.mem_used_total);
    assert!(report.mem_used_total > 0);
}
