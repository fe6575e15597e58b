use std::fs::OpenOptions;

use nix::fcntl::{FallocateFlags, fallocate};

use super::scratch::{Image, Scratch, edit};
use super::*;
use crate::sync::Ordering;
use crate::units::BlockSize;

const MIB: u64 = 1 << 20;

#[test]
fn looking_at_words_that_do_not_exist_allocates_nothing() {
    let words = Words::new(64 * MIB, &MemoryKind::default()).unwrap();
    let before = words.resident_bytes();
    for index in (0..words.len()).step_by(511) {
        assert!(words.get(index).is_none());
    }
    assert_eq!(words.next_existing(0), words.len());
    assert_eq!(words.resident_bytes(), before);
}

#[test]
fn a_word_exists_from_ensure_on_with_its_neighbours_of_the_page() {
    let words = Words::new(10_000, &MemoryKind::default()).unwrap();
    words.ensure(5000).unwrap();
    words.get(5000).unwrap().store(7, Ordering::Relaxed);
    let first = 5000 / 512 * 512;
    assert_eq!(words.next_existing(0), first);
    assert_eq!(words.next_existing(first + 3), first + 3);
    assert_eq!(words.get(first).unwrap().load(Ordering::Relaxed), 0);
    assert!(words.get(first - 1).is_none());
    assert_eq!(words.next_existing(first + 512), words.len());
    words.ensure(5000).unwrap();
    assert_eq!(words.get(5000).unwrap().load(Ordering::Relaxed), 7);
}

#[test]
fn a_table_that_is_filled_in_order_grows_in_batches_and_one_that_is_not_does_not() {
    let words = Words::new(512 * 4096, &MemoryKind::default()).unwrap();
    let grown: Vec<u64> = (0..64).map(|page| words.ensure(page * 512).unwrap()).collect();
    assert_eq!(grown.iter().sum::<u64>(), words.resident_bytes());
    assert_eq!(grown[..9], [4096; 9]);
    assert!(grown.contains(&0) && grown.iter().all(|bytes| *bytes <= 8 * 4096));
    let ahead = words.resident_bytes() - 64 * 4096;
    assert!(ahead <= 8 * 4096, "{ahead} bytes ahead");
    assert_eq!(words.ensure(512 * 2000).unwrap(), 4096);
}

#[test]
fn which_words_exist_is_found_again_in_the_file() {
    let words = Words::new(512 * 4096, &MemoryKind::default()).unwrap();
    for page in [0, 1, 63, 64, 700, 4095] {
        words.ensure(page * 512).unwrap();
        words.get(page * 512 + 3).unwrap().store(page + 1, Ordering::Relaxed);
    }
    let before = words.resident_bytes();
    let words = words.reopened().unwrap();
    assert_eq!(words.resident_bytes(), before);
    let mut found = Vec::new();
    let mut index = words.next_existing(0);
    while index < words.len() {
        found.push(index / 512);
        index = words.next_existing((index / 512 + 1) * 512);
    }
    assert_eq!(found, [0, 1, 63, 64, 700, 4095]);
    assert_eq!(words.get(700 * 512 + 3).unwrap().load(Ordering::Relaxed), 701);
}

#[test]
fn the_last_page_of_words_ends_at_len() {
    let words = Words::new(513, &MemoryKind::default()).unwrap();
    words.ensure(512).unwrap();
    assert_eq!(words.next_existing(0), 512);
    assert_eq!(words.next_existing(513), 513);
}

#[test]
fn words_whose_page_is_gone_are_not_taken_for_empty_ones() {
    let dir = Scratch::new();
    let (size, pool_pages, arena_bytes) = (4096 * 2048, 2048, 32 * MIB);
    let (capacity, block_size) = (size, BlockSize::Page);
    let wanted = Format { size, capacity, pool_pages, arena_bytes, block_size };
    let state = State::in_directory(dir.path(), true, &wanted, false, None).unwrap();
    state.set_codec(0, &CodecEntry { algorithm: "lz4".into(), ..CodecEntry::default() });
    state.set_complete();
    let words = Words::of(&state, 2048).unwrap();
    for index in [3, 600, 1500] {
        words.ensure(index).unwrap();
        words.get(index).unwrap().store(4, Ordering::Relaxed);
        words.sum(index).unwrap().store(index as u32, Ordering::Relaxed);
    }
    drop((words, state));
    let open = || {
        let state = State::in_directory(dir.path(), false, &wanted, false, None).unwrap();
        Words::of(&state, 2048).map(|words| words.next_existing(0))
    };
    assert_eq!(open().unwrap(), 0);
    let punch = |page: i64| {
        let table = OpenOptions::new().write(true).open(dir.join("table")).unwrap();
        let mode = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(&table, mode, page * 4096, 4096).unwrap();
    };
    let whole = Image::of(dir.path());
    punch(1);
    assert!(matches!(open(), Err(StateError::NoWords { index: 600 })));
    whole.restore(dir.path());
    punch(4);
    assert!(matches!(open(), Err(StateError::NoSums { index: 0 })));
    whole.restore(dir.path());
    // Sums that were made and never used are what a death leaves before their words are.
    edit(&dir.join("table"), 4 * 4096 + 4 * 600, 4, |sum| sum.fill(0));
    punch(1);
    open().unwrap();
}

#[test]
fn a_state_that_cannot_be_looked_at_is_not_one_that_is_not_there() {
    let path = format!("/dev/shm/vhost-user-zram-unit-file.{}", std::process::id());
    std::fs::File::create(&path).unwrap();
    let (pool_pages, block_size) = (MIB / 4096, BlockSize::Page);
    let wanted = Format { size: MIB, capacity: MIB, pool_pages, arena_bytes: MIB, block_size };
    for create in [false, true] {
        let refused = State::in_directory(path.as_ref(), create, &wanted, false, None).unwrap_err();
        assert!(!matches!(refused, StateError::None { .. }), "{refused:?}");
    }
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn words_grow_in_place_and_what_is_new_is_zero() {
    let words = Words::with_room(600, 512 * 4096, &MemoryKind::default()).unwrap();
    assert_eq!(words.room(), 512 * 4096);
    words.ensure(599).unwrap();
    words.get(599).unwrap().store(7, Ordering::Relaxed);
    let before = std::ptr::from_ref(words.get(599).unwrap());
    for len in [600, 601, 1024, 1025, 512 * 4096] {
        words.prepare(len).unwrap();
        words.grow(len);
        assert_eq!(words.len(), len);
        words.ensure(len - 1).unwrap();
        let expected = if len == 600 { 7 } else { 0 };
        assert_eq!(words.get(len - 1).unwrap().load(Ordering::Relaxed), expected);
        assert_eq!(words.next_existing(len), len);
        assert_eq!(words.existing_bytes(), words.resident_bytes());
    }
    assert_eq!(std::ptr::from_ref(words.get(599).unwrap()), before);
    assert_eq!(words.get(599).unwrap().load(Ordering::Relaxed), 7);
}

/// Nothing is populated ahead that is behind the end.
#[test]
fn a_table_with_room_is_not_populated_behind_its_end() {
    let words = Words::with_room(512 * 64 + 1, 512 * 4096, &MemoryKind::default()).unwrap();
    for page in 0..65 {
        words.ensure(page * 512).unwrap();
    }
    assert_eq!(words.resident_bytes(), 65 * 4096);
}

#[test]
fn notes_are_zero_and_words_apart() {
    let notes = Notes::new(1 << 20).unwrap();
    for number in [0, 1, 511, 512, (1 << 20) - 1] {
        let note = notes.get(number).unwrap();
        assert_eq!(note.swap(number as u64 + 1, Ordering::Relaxed), 0);
    }
    assert_eq!(notes.get(511).unwrap().load(Ordering::Relaxed), 512);
    assert!(notes.get(1 << 20).is_none());
    assert!(Notes::new(0).unwrap().get(0).is_none());
}
