//! States are made, opened, and refused.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::stat::Mode;
use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use nix::unistd::mkfifo;
use proptest::prelude::*;

use super::scratch::{Image, Scratch, edit, set_word, word};
use super::superblock::Id;
use super::*;
use crate::sync::Ordering;
use crate::units::BlockSize;

const FILES: [&str; 3] = ["superblock", "table", "arena"];
const STAGE: u64 = 3072;
const SERVED: u64 = 3080;
const GROWN: u64 = 3088;

pub(super) fn lz4() -> CodecEntry {
    CodecEntry { algorithm: "lz4".into(), level: 1, ..CodecEntry::default() }
}

pub(super) fn format() -> Format {
    let (size, capacity, block_size) = (64 * 4096, 2000 * 4096, BlockSize::Page);
    Format { size, capacity, pool_pages: 64, arena_bytes: 32 << 20, block_size }
}

/// What makes a new state a whole one.
fn complete(state: &State) {
    state.set_codec(0, &lz4());
    state.set_complete();
}

pub(super) fn open(dir: &Path, create: bool) -> Result<State, StateError> {
    State::in_directory(dir, create, &format(), false, None)
}

/// A directory with a state that was made whole.
pub(super) fn made() -> Scratch {
    let dir = Scratch::new();
    complete(&open(dir.path(), true).unwrap());
    dir
}

/// Insists that the state is refused, with --create and without, and is as it was.
fn refused_as(dir: &Path, wanted: &Format) -> StateError {
    let before = Image::of(dir);
    let error = State::in_directory(dir, true, wanted, false, None).unwrap_err();
    let again = State::in_directory(dir, false, wanted, false, None).unwrap_err();
    assert_eq!(error.to_string(), again.to_string());
    assert!(!error.to_string().contains('\n'));
    assert!(Image::of(dir) == before, "{error}, and something was changed");
    error
}

pub(super) fn refused(dir: &Path) -> StateError {
    refused_as(dir, &format())
}

/// Changes the part of a superblock that never changes, and makes its check sum right again.
fn edit_header(dir: &Path, change: impl FnOnce(&mut [u8])) {
    edit(&dir.join("superblock"), 0, 64, |header| {
        change(header);
        header[12..16].fill(0);
        let sum = crc32fast::hash(header);
        header[12..16].copy_from_slice(&sum.to_le_bytes());
    });
}

#[test]
fn a_state_is_made_once_and_opened_ever_after() {
    let dir = Scratch::new();
    let home = dir.join("state");
    let state = open(&home, true).unwrap();
    assert!(state.is_new() && !state.has_served());
    assert_eq!(*state.format(), format());
    complete(&state);
    drop(state);
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&home), 0o700);
    for name in FILES {
        assert_eq!(mode(&home.join(name)), 0o600, "{name}");
    }
    for create in [false, true, false] {
        let state = open(&home, create).unwrap();
        assert!(!state.is_new());
        assert_eq!(*state.format(), format());
    }
}

#[test]
fn what_is_noted_is_found_again() {
    let dir = made();
    for round in 0..3_u64 {
        let state = open(dir.path(), false).unwrap();
        assert_eq!(state.has_served(), round == 2);
        state.set_served(round == 1);
        for number in [0, 7, INTENTS - 1] {
            let [what, sums] = state.intent(number);
            let before = round * 1000 + number as u64;
            if round > 0 {
                assert_eq!(what.load(Ordering::Relaxed), before);
                assert_eq!(sums.load(Ordering::Relaxed), !before);
            }
            what.store(before + 1000, Ordering::Relaxed);
            sums.store(!(before + 1000), Ordering::Relaxed);
        }
    }
}

#[test]
fn nothing_is_made_unless_it_is_said() {
    let dir = Scratch::new();
    let missing = dir.join("missing");
    for home in [dir.path(), &missing] {
        assert!(matches!(open(home, false), Err(StateError::None { .. })));
    }
    assert!(!missing.exists());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    // What is above it is not ours to make.
    assert!(matches!(open(&missing.join("x"), true), Err(StateError::Directory { .. })));
    // A file that is not a directory is refused, and not waited for either.
    File::create(dir.join("file")).unwrap();
    mkfifo(&dir.join("pipe"), Mode::S_IRWXU).unwrap();
    for name in ["file", "pipe"] {
        for create in [false, true] {
            let error = open(&dir.join(name), create).unwrap_err();
            assert!(matches!(error, StateError::Directory { .. }), "{name}: {error}");
        }
    }
}

#[test]
fn only_a_tmpfs_will_do() {
    for create in [false, true] {
        let refused = open(Path::new("/proc"), create);
        assert!(matches!(refused, Err(StateError::NotTmpfs(path)) if path == Path::new("/proc")));
    }
    let temp = std::env::temp_dir();
    if statfs(&temp).unwrap().filesystem_type() != TMPFS_MAGIC {
        let home = temp.join(format!("vhost-user-zram-unit.{}.disk", std::process::id()));
        assert!(matches!(open(&home, true), Err(StateError::NotTmpfs(_))));
        assert!(!home.exists(), "the directory was left behind");
    }
}

#[test]
fn what_was_lost_is_not_made_anew() {
    for lost in 1..7 {
        let dir = made();
        for (_, name) in FILES.iter().enumerate().filter(|(number, _)| lost >> number & 1 == 1) {
            fs::remove_file(dir.join(name)).unwrap();
        }
        let first = FILES[(lost as u32).trailing_zeros() as usize];
        let error = refused(dir.path());
        assert!(matches!(error, StateError::Lost { what, .. } if what == first), "{error}");
    }
    // All of it: as if there had been none.
    let dir = made();
    for name in FILES {
        fs::remove_file(dir.join(name)).unwrap();
    }
    assert!(matches!(open(dir.path(), false), Err(StateError::None { .. })));
    assert!(open(dir.path(), true).unwrap().is_new());
}

#[test]
fn a_file_cut_short_is_refused_also_if_it_has_its_length_again() {
    let mut opened = 0;
    for name in FILES {
        let dir = made();
        let whole = Image::of(dir.path());
        let length = dir.join(name).metadata().unwrap().len();
        for left in [length - 1, length - 4096, 4096, 2048, 47, 8, 0] {
            whole.restore(dir.path());
            let file = OpenOptions::new().write(true).open(dir.join(name)).unwrap();
            file.set_len(left).unwrap();
            let error = refused(dir.path());
            let right = match error {
                StateError::Damaged { .. } => true,
                StateError::Version { .. } => name == "superblock" && left == 8,
                _ => false,
            };
            assert!(right, "{name} of {left} bytes: {error}");
            file.set_len(length).unwrap();
            // Zeroes may have been cut off, and are back.
            if Image::of(dir.path()).reads_like(&whole) {
                open(dir.path(), false).unwrap();
                opened += 1;
            } else {
                refused(dir.path());
            }
        }
        // Nor may it be longer, where the length says where things are.
        if name != "superblock" {
            whole.restore(dir.path());
            let file = OpenOptions::new().write(true).open(dir.join(name)).unwrap();
            file.set_len(length + 4096).unwrap();
            refused(dir.path());
        }
    }
    assert!(opened < 9, "{opened} cuts were of zeroes");
}

#[test]
fn a_file_of_another_state_is_refused() {
    let (dir, other) = (made(), made());
    let whole = Image::of(dir.path());
    for name in FILES {
        whole.restore(dir.path());
        fs::copy(other.join(name), dir.join(name)).unwrap();
        let error = refused(dir.path());
        assert!(matches!(error, StateError::Foreign { .. }), "{name}: {error}");
    }
    // And one of the same state in place of another.
    for (from, to) in [("arena", "table"), ("table", "arena"), ("table", "superblock")] {
        whole.restore(dir.path());
        fs::copy(dir.join(from), dir.join(to)).unwrap();
        let error = refused(dir.path());
        assert!(matches!(error, StateError::Damaged { .. }), "{from} as {to}: {error}");
    }
}

#[test]
fn another_version_is_refused_by_its_number() {
    for version in [0, 1, 3, u32::MAX] {
        let dir = made();
        edit_header(dir.path(), |header| header[8..12].copy_from_slice(&version.to_le_bytes()));
        let error = refused(dir.path());
        assert!(matches!(error, StateError::Version { found } if found == version), "{error}");
        let text = error.to_string();
        assert!(
            text.contains(&format!("version {version},")) && text.contains("version 2"),
            "{text}"
        );
    }
    for name in ["table", "arena"] {
        let dir = made();
        let at = dir.join(name).metadata().unwrap().len() - 4096;
        edit(&dir.join(name), at, 48, |seal| {
            seal[8] = 1;
            seal[12..16].fill(0);
            let sum = crc32fast::hash(seal);
            seal[12..16].copy_from_slice(&sum.to_le_bytes());
        });
        let error = refused(dir.path());
        assert!(matches!(error, StateError::Version { found: 1 }), "{error}");
    }
}

#[test]
fn what_a_reader_has_to_know_and_does_not_is_refused() {
    for bit in [1, 17, 63] {
        let dir = made();
        edit_header(dir.path(), |header| header[56 + bit / 8] |= 1 << (bit % 8));
        let error = refused(dir.path());
        assert!(
            matches!(error, StateError::Features { unknown } if unknown == 1 << bit),
            "{error}"
        );
    }
}

#[test]
fn the_state_of_another_disk_is_refused() {
    let dir = made();
    let size = Format { size: 63 * 4096, ..format() };
    let error = refused_as(dir.path(), &size);
    assert!(matches!(error, StateError::Size { found: 0x4_0000, wanted: 0x3_f000 }), "{error}");
    // Those are fixed when a state is made, and are taken from it later. A larger disk is what it is to grow to.
    let (size, capacity, block_size) = (100 * 4096, 100 * 4096, BlockSize::Sector);
    let later = Format { size, capacity, pool_pages: 1, arena_bytes: 4096, block_size };
    let state = State::in_directory(dir.path(), false, &later, false, None).unwrap();
    assert_eq!(*state.format(), format());
    drop(state);
    for arena_bytes in [0, 100, (32 << 20) - 4096_u64] {
        let dir = made();
        edit_header(dir.path(), |header| {
            header[48..56].copy_from_slice(&arena_bytes.to_le_bytes());
        });
        let error = refused(dir.path());
        assert!(matches!(error, StateError::Damaged { .. }), "{error}");
    }
    // Room that is less than the disk, or no room for whole pages, and a disk of nothing.
    for (at, value) in [(32, 63 * 4096_u64), (32, 2000 * 4096 - 1), (40, 0), (40, 2001)] {
        let dir = made();
        edit_header(dir.path(), |header| {
            header[at..at + 8].copy_from_slice(&value.to_le_bytes());
        });
        let error = refused(dir.path());
        assert!(matches!(error, StateError::Damaged { .. }), "{at} {value}: {error}");
    }
}

#[test]
fn a_size_that_was_noted_is_found_again() {
    let dir = made();
    for pages in [65, 66, 1999, 2000] {
        open(dir.path(), false).unwrap().set_size(pages * 4096);
        for asked in [64, 65, pages, 2000] {
            let asked = Format { size: asked * 4096, ..format() };
            let state = State::in_directory(dir.path(), false, &asked, false, None).unwrap();
            assert_eq!(*state.format(), Format { size: pages * 4096, ..format() });
            assert_eq!(state.made_size(), 64 * 4096);
        }
        let less = Format { size: 63 * 4096, ..format() };
        assert!(matches!(refused_as(dir.path(), &less), StateError::Size { .. }));
        let more = Format { size: 2001 * 4096, ..format() };
        let error = refused_as(dir.path(), &more);
        assert!(matches!(error, StateError::Room { room: 0x7d_0000, .. }), "{error}");
    }
    let superblock = dir.join("superblock");
    let good = word(&superblock, GROWN);
    for bit in 0..64 {
        set_word(&superblock, GROWN, good ^ 1 << bit);
        let error = refused(dir.path());
        assert!(matches!(error, StateError::Damaged { .. }), "bit {bit}: {error}");
    }
    // The note of another disk is none, nor is one of less than there was, or of more than there is room for.
    let other = made();
    open(other.path(), false).unwrap().set_size(2000 * 4096);
    set_word(&superblock, GROWN, word(&other.join("superblock"), GROWN));
    assert!(matches!(refused(dir.path()), StateError::Damaged { .. }));
    for pages in [63_u32, 2001] {
        let id = fs::read(&superblock).unwrap()[16..32].to_vec();
        let sum = crc32fast::hash(&[&id, &pages.to_le_bytes()[..]].concat());
        set_word(&superblock, GROWN, u64::from(pages) | u64::from(sum) << 32);
        assert!(matches!(refused(dir.path()), StateError::Damaged { .. }));
    }
}

/// As all states were before disks could grow.
#[test]
fn a_state_without_room_is_opened() {
    let dir = Scratch::new();
    let fixed = Format { capacity: format().size, ..format() };
    complete(&State::in_directory(dir.path(), true, &fixed, false, None).unwrap());
    assert_eq!(dir.join("table").metadata().unwrap().len(), 3 * 4096);
    let state = open(dir.path(), false).unwrap();
    assert_eq!(*state.format(), fixed);
}

#[test]
fn any_flipped_bit_of_what_never_changes_is_found() {
    let good = format().encode(&[7; 16]);
    Format::decode(&good).unwrap();
    let mut bytes = good.clone();
    for at in 0..64 {
        for bit in 0..8 {
            bytes[at] ^= 1 << bit;
            Format::decode(&bytes).unwrap_err();
            bytes[at] ^= 1 << bit;
        }
    }
    assert_eq!(bytes, good);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_changed_byte_of_header_or_codec_is_refused(at in 0..128_u64, flip in 1..=255_u8) {
        let dir = made();
        edit(&dir.join("superblock"), at, 1, |byte| byte[0] ^= flip);
        let error = refused(dir.path());
        let right = matches!(error, StateError::Damaged { .. })
            || matches!(error, StateError::Version { .. }) && (8..12).contains(&at);
        prop_assert!(right, "byte {}: {}", at, error);
    }

    #[test]
    fn any_changed_byte_of_a_seal_is_refused(which in 1..3_usize, at in 0..48_u64, flip: u8) {
        let dir = made();
        let path = dir.join(FILES[which]);
        let seal = path.metadata().unwrap().len() - 4096;
        edit(&path, seal + at, 1, |byte| byte[0] ^= flip | 1);
        refused(dir.path());
    }

    #[test]
    fn a_stage_or_note_that_is_none_is_refused(note: bool, value: u64, bit in 0..64) {
        let at = if note { SERVED } else { STAGE };
        let dir = made();
        let path = dir.join("superblock");
        let good = word(&path, at);
        for value in [value | 1 << 63, good ^ 1_u64 << bit] {
            set_word(&path, at, value);
            let error = refused(dir.path());
            prop_assert!(matches!(error, StateError::Damaged { .. }), "{:#x}: {}", value, error);
        }
    }

    #[test]
    fn what_is_fixed_comes_back_from_its_bytes(
        pool_pages in 0..1_u64 << 52,
        more in 0..1_u64 << 52,
        arena_bytes: u64,
        small_blocks: bool,
        id: Id,
    ) {
        let block_size = if small_blocks { BlockSize::Sector } else { BlockSize::Page };
        let size = pool_pages * 4096;
        let capacity = size.saturating_add(more);
        let format = Format { size, capacity, pool_pages, arena_bytes, block_size };
        let bytes = format.encode(&id);
        prop_assert!(bytes.len().is_multiple_of(HOST_PAGE as usize));
        let decoded = Format::decode(&bytes);
        prop_assert_eq!(decoded.unwrap(), (format, id));
    }
}

#[test]
fn a_state_that_was_never_finished_is_made_anew_if_it_may_be() {
    // What a death at each step of its making leaves.
    let leave = |dir: &Path, files: usize| {
        drop(open(dir, true).unwrap());
        for name in &FILES[files..] {
            fs::remove_file(dir.join(name)).unwrap();
        }
    };
    for files in 1..=3 {
        for empty in [false, true] {
            let dir = Scratch::new();
            leave(dir.path(), files);
            if empty && files > 1 {
                File::create(dir.join(FILES[files - 1])).unwrap();
            }
            let before = Image::of(dir.path());
            let error = open(dir.path(), false).unwrap_err();
            assert!(matches!(error, StateError::Unfinished { .. }), "{error}");
            assert!(error.to_string().contains("--create"), "{error}");
            assert!(Image::of(dir.path()) == before);
            // Anew: of any size, and with nothing of the old one.
            let wanted = Format { size: 128 * 4096, pool_pages: 128, ..format() };
            let state = State::in_directory(dir.path(), true, &wanted, false, None).unwrap();
            assert!(state.is_new());
            complete(&state);
            drop(state);
            let state = State::in_directory(dir.path(), false, &wanted, false, None).unwrap();
            assert_eq!(state.format().size, 128 * 4096);
        }
    }
    // A superblock that has no name yet is nothing.
    let dir = Scratch::new();
    File::create(dir.join("superblock.new")).unwrap();
    assert!(matches!(open(dir.path(), false), Err(StateError::None { .. })));
    assert!(open(dir.path(), true).unwrap().is_new());
    assert!(!dir.join("superblock.new").exists());
    // One that is damaged as well might have been finished.
    edit(&dir.join("superblock"), 40, 1, |byte| byte[0] ^= 1);
    assert!(matches!(refused(dir.path()), StateError::Damaged { .. }));
}

#[test]
fn a_state_in_use_cannot_be_opened() {
    let dir = Scratch::new();
    for finished in [false, true] {
        let state = open(dir.path(), true).unwrap();
        if finished {
            complete(&state);
        }
        let before = Image::of(dir.path());
        let error = open(dir.path(), true).unwrap_err();
        assert!(matches!(error, StateError::InUse { .. }), "{error}");
        assert!(Image::of(dir.path()) == before);
        drop(state);
    }
    assert!(!open(dir.path(), false).unwrap().is_new());
}

/// As a service manager hands them out: descriptors of the same open files again and again.
fn copies(state: &State) -> Vec<File> {
    let copies = state.descriptors().map(|fd| File::from(fd.try_clone_to_owned().unwrap()));
    copies.into()
}

#[test]
fn a_state_without_names_goes_from_hand_to_hand() {
    let again = |files: Vec<File>| State::from_files(files, "hands", &format(), false);
    let state = State::without_names("hands", &format(), false).unwrap();
    assert!(state.is_new());
    let mut held = copies(&state);
    drop(state);
    assert!(matches!(again(held), Err(StateError::Unfinished { .. })));

    let state = State::without_names("hands", &format(), false).unwrap();
    complete(&state);
    state.set_served(true);
    held = copies(&state);
    // The same open files, and it is known nonetheless that they are in use.
    assert!(matches!(again(copies(&state)), Err(StateError::InUse { .. })));
    drop(state);
    for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0], [2, 0, 1]] {
        let files = order.map(|number: usize| held[number].try_clone().unwrap());
        let state = again(files.into()).unwrap();
        assert!(!state.is_new() && state.has_served());
        assert_eq!(*state.format(), format());
    }
    // No process can cut it short.
    for file in &held {
        file.set_len(4096).unwrap_err();
    }
}

#[test]
fn hands_that_dropped_something_are_noticed() {
    let state = State::without_names("hands", &format(), false).unwrap();
    complete(&state);
    let held = copies(&state);
    drop(state);
    let with = |numbers: &[usize]| {
        let files = numbers.iter().map(|number| held[*number].try_clone().unwrap()).collect();
        State::from_files(files, "hands", &format(), false)
    };
    for (missing, name) in FILES.into_iter().enumerate() {
        let rest: Vec<usize> = (0..3).filter(|number| *number != missing).collect();
        let error = with(&rest).unwrap_err();
        assert!(matches!(error, StateError::Lost { what, .. } if what == name));
        let double: Vec<usize> = (0..3).chain([missing]).collect();
        assert!(matches!(with(&double), Err(StateError::Damaged { .. })));
    }
    let other = State::without_names("hands", &format(), false).unwrap();
    complete(&other);
    let theirs = copies(&other);
    drop(other);
    for foreign in 0..3 {
        let mut files: Vec<File> = held.iter().map(|file| file.try_clone().unwrap()).collect();
        files[foreign] = theirs[foreign].try_clone().unwrap();
        let error = State::from_files(files, "hands", &format(), false).unwrap_err();
        assert!(matches!(error, StateError::Foreign { .. }), "{error}");
    }
    let strange = File::open("/dev/null").unwrap();
    let files = vec![strange, held[1].try_clone().unwrap(), held[2].try_clone().unwrap()];
    State::from_files(files, "hands", &format(), false).unwrap_err();
    with(&[0, 1, 2]).unwrap();
}

#[test]
fn what_the_guest_stored_does_not_make_a_file_another_one() {
    let state = State::without_names("hands", &format(), false).unwrap();
    complete(&state);
    let held = copies(&state);
    // An arena that begins like a superblock.
    state.arena().write_all_at(b"vuzstate\x01\0\0\0", 0).unwrap();
    drop(state);
    State::from_files(held, "hands", &format(), false).unwrap();
}

#[test]
fn symbolic_links_are_not_followed() {
    for name in FILES {
        let (dir, other) = (made(), Scratch::new());
        fs::rename(dir.join(name), other.join(name)).unwrap();
        symlink(other.join(name), dir.join(name)).unwrap();
        let error = open(dir.path(), true).unwrap_err();
        assert!(matches!(error, StateError::File { what, .. } if what == name), "{name}: {error}");
        // Nor is one that leads nowhere a place to make anything.
        fs::remove_file(other.join(name)).unwrap();
        open(dir.path(), true).unwrap_err();
        assert!(!other.join(name).exists());
    }
    // The directory itself may be one: that is up to the user that names it.
    let (dir, other) = (made(), Scratch::new());
    symlink(dir.path(), other.join("link")).unwrap();
    open(&other.join("link"), false).unwrap();
}

#[test]
fn pipes_in_place_of_files_are_not_waited_for() {
    for name in FILES {
        let dir = made();
        fs::remove_file(dir.join(name)).unwrap();
        mkfifo(&dir.join(name), Mode::S_IRWXU).unwrap();
        for create in [false, true] {
            let error = open(dir.path(), create).unwrap_err();
            assert!(matches!(error, StateError::Damaged { .. }), "{name}: {error}");
        }
    }
}

/// A store to a hole of a full tmpfs is a SIGBUS.
#[test]
fn what_will_be_written_exists_in_a_copy_with_holes_too() {
    let dir = made();
    let path = dir.join("superblock");
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    let mode = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(&file, mode, 4096, 4096).unwrap();
    let bytes = || path.metadata().unwrap().blocks() * 512;
    assert_eq!(bytes(), 4096);
    let state = open(dir.path(), false).unwrap();
    assert_eq!((bytes(), state.bytes_beside()), (8192, 8192 + HOST_PAGE));
}
