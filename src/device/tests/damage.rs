//! States that were damaged while no process had them: an error, or the right data, never other data.

use std::collections::BTreeSet;
use std::fs::OpenOptions;

use nix::fcntl::{FallocateFlags, fallocate};

use super::reopen::Home;
use super::*;
use crate::store::INTENTS;
use crate::store::scratch::{Image, edit, set_word, word};

/// Kinds of pages: raw, compressed, same-filled by 4 bytes and by 8, zeroes, and none.
const KINDS: u64 = 6;
const EMPTY: u64 = 5;
/// One page for each kind that was overwritten by each kind.
const PAGES: u64 = KINDS * KINDS;
/// Bits of a word that are not content: two of the lock, three flags.
const NO_CONTENT: u64 = 0b111_0011;

fn page_of(kind: u64, seed: u64) -> Vec<u8> {
    match kind {
        0 => noise(seed, PAGE_SIZE),
        1 => text(seed, PAGE_SIZE),
        2 => vec![seed as u8 | 1; PAGE_SIZE],
        3 => (seed | 1 << 40 | 1).to_le_bytes().repeat(PAGE_SIZE / 8),
        _ => vec![0; PAGE_SIZE],
    }
}

fn write(device: &Device, context: &mut WorkerContext, index: u64, kind: u64, seed: u64) {
    if kind == EMPTY {
        free(device, context, Op::Discard, index * 8, 8);
    } else {
        run(device, context, Op::Write, index * 8, page_of(kind, seed)).unwrap();
    }
}

/// A disk whose page `i` is of kind `i % 6`, and was of kind `i / 6` before.
struct Base {
    home: Home,
    image: Image,
    older: Vec<u64>,
}

/// What becomes of a damaged state.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    /// Not opened.
    Refused(String),
    /// Opened, and these pages are errors.
    Opened(BTreeSet<u64>),
}

impl Outcome {
    fn of(damaged: impl IntoIterator<Item = u64>) -> Self {
        Self::Opened(damaged.into_iter().collect())
    }

    /// Whether it is refused, and its user told of damage.
    fn is_damage(&self) -> bool {
        matches!(self, Self::Refused(why) if why.contains("the state is damaged"))
    }
}

impl Base {
    fn new() -> Self {
        let home = Home::new(PAGES, "lz4");
        let device = home.make();
        let mut context = device.worker_context().unwrap();
        for index in 0..PAGES {
            write(&device, &mut context, index, index / KINDS, 1000 + index);
        }
        let older = (0..PAGES).map(|index| home.word(index)).collect();
        for index in 0..PAGES {
            write(&device, &mut context, index, index % KINDS, index);
        }
        drop((context, device));
        let image = Image::of(home.dir.path());
        Self { home, image, older }
    }

    /// Undoes all damage.
    fn restore(&self) {
        self.image.restore(self.home.dir.path());
    }

    fn edit(&self, file: &str, at: u64, length: usize, change: impl FnOnce(&mut [u8])) {
        edit(&self.home.dir.join(file), at, length, change);
    }

    /// Where an object and its tag begin in the arena, and the object's length.
    fn object(&self, index: u64) -> Option<(u64, u64)> {
        let word = self.home.word(index);
        let length = word >> 11 & 0xfff;
        let place = (word >> 23) * 16;
        match word >> 2 & 3 {
            1 if length == 8 => Some((place, 8)),
            2 => Some((place, if length == 0 { 4096 } else { length })),
            _ => None,
        }
    }

    /// Opens the damaged state, reads all of it, and heals what is damaged.
    fn judge(&self) -> Outcome {
        let before = Image::of(self.home.dir.path());
        let device = match self.home.open() {
            Ok(device) => device,
            Err(error) => {
                let unchanged = Image::of(self.home.dir.path()) == before;
                assert!(unchanged, "{error}, and something was changed");
                return Outcome::Refused(error.to_string());
            }
        };
        device.check().unwrap();
        let mut context = device.worker_context().unwrap();
        let mut damaged = BTreeSet::new();
        for index in 0..PAGES {
            match run(&device, &mut context, Op::Read, index * 8, vec![0xee; PAGE_SIZE]) {
                Ok(bytes) => {
                    let right = bytes == page_of(index % KINDS, index);
                    assert!(right, "page {index} has other data");
                }
                Err(IoError::Damaged { index: named }) => {
                    assert_eq!(named, index);
                    damaged.insert(index);
                }
                Err(error) => panic!("page {index}: {error}"),
            }
        }
        self.heal(&device, &mut context, &damaged);
        drop((context, device));
        // All that was good still is, and what was written over it too.
        let device = self.home.open().unwrap();
        let mut context = device.worker_context().unwrap();
        for index in 0..PAGES {
            let got = read(&device, &mut context, index * 8, 8);
            let expected = match damaged.contains(&index) {
                true if index.is_multiple_of(2) => page_of(EMPTY, 0),
                true => page_of(index % 4, 5000 + index),
                false => page_of(index % KINDS, index),
            };
            assert!(got == expected, "page {index} has other data after it was healed");
        }
        device.check().unwrap();
        Outcome::Opened(damaged)
    }

    /// A part of a damaged page cannot be changed; the page can be freed, or overwritten.
    fn heal(&self, device: &Device, context: &mut WorkerContext, damaged: &BTreeSet<u64>) {
        for index in damaged {
            let now = || (self.home.word(*index), self.home.sum(*index));
            let before = now();
            let sector = index * 8;
            for (op, sector, bytes) in [
                (Op::Write, sector + 1, vec![1; SECTOR]),
                (Op::WriteZeroes, sector + 7, vec![0; SECTOR]),
                (Op::Read, sector + 3, vec![0; SECTOR]),
            ] {
                let refused = run(device, context, op, sector, bytes);
                assert!(matches!(refused, Err(IoError::Damaged { .. })), "{op:?}: {refused:?}");
            }
            assert_eq!(now(), before, "page {index} was changed");
            if index.is_multiple_of(2) {
                free(device, context, Op::Discard, sector, 8);
                assert_eq!(read(device, context, sector, 8), page_of(EMPTY, 0));
            } else {
                write(device, context, *index, index % 4, 5000 + index);
                assert_eq!(read(device, context, sector, 8), page_of(index % 4, 5000 + index));
            }
            device.check().unwrap();
        }
    }
}

#[test]
fn any_flipped_bit_of_a_word_is_noticed_if_it_matters() {
    let base = Base::new();
    let (mut refused, mut errors) = (0, 0);
    for index in 12..12 + KINDS {
        let word = base.home.word(index);
        for bit in 0..64 {
            base.restore();
            base.home.set_word(index, word ^ 1 << bit);
            let outcome = base.judge();
            let flag_of_nothing = word == 0 && bit >= 2;
            if NO_CONTENT >> bit & 1 == 1 && !flag_of_nothing {
                assert_eq!(outcome, Outcome::of([]), "page {index}, bit {bit}");
                continue;
            }
            match outcome {
                Outcome::Refused(_) => refused += 1,
                opened => {
                    assert_eq!(opened, Outcome::of([index]), "page {index}, bit {bit}");
                    errors += 1;
                }
            }
        }
    }
    assert!(refused > 50 && errors > 50, "{refused} states refused, {errors} pages");
}

#[test]
fn any_flipped_bit_of_a_sum_or_an_object_is_that_pages_error() {
    let base = Base::new();
    for index in 0..PAGES {
        base.restore();
        let object = base.object(index);
        base.home.set_sum(index, base.home.sum(index) ^ 1 << (index % 32));
        assert_eq!(base.judge(), Outcome::of([index]));
        let Some((place, length)) = object else { continue };
        for at in [0, length / 2, length - 1] {
            base.restore();
            base.edit("arena", place + 4 + at, 1, |byte| byte[0] ^= 1 << (index % 8));
            assert_eq!(base.judge(), Outcome::of([index]), "byte {at} of {length}");
        }
        // The tag that names its owner only serves to move it.
        base.restore();
        base.edit("arena", place + index % 4, 1, |byte| byte[0] ^= 1 << (index % 8));
        assert_eq!(base.judge(), Outcome::of([]));
    }
}

#[test]
fn swapped_and_zeroed_and_older_words_are_noticed() {
    let base = Base::new();
    let notice = |expected: &[u64], what: &str| match base.judge() {
        // Objects of two words overlap, or lie in no place of their class.
        Outcome::Refused(_) => {}
        opened => assert_eq!(opened, Outcome::of(expected.iter().copied()), "{what}"),
    };
    for index in 0..PAGES {
        let word = base.home.word(index);
        let sum = base.home.sum(index);
        if index % KINDS != EMPTY {
            base.home.set_word(index, 0);
            notice(&[index], "a word that is zero");
            base.restore();
        }
        let older = base.older[index as usize];
        if older != word {
            base.home.set_word(index, older);
            notice(&[index], "an older word");
            base.restore();
        }
        // With one of each kind; also with their sums, so that each is good but for its place.
        for other in (0..PAGES).skip(index as usize % 5).step_by(5).filter(|other| *other > index) {
            let (other_word, other_sum) = (base.home.word(other), base.home.sum(other));
            if other_word == word {
                continue;
            }
            for sums in [false, true] {
                if sums && (word == 0 || other_word == 0) {
                    // Nothing with the sum of nothing is a page that was never written.
                    continue;
                }
                base.home.set_word(index, other_word);
                base.home.set_word(other, word);
                if sums {
                    base.home.set_sum(index, other_sum);
                    base.home.set_sum(other, sum);
                }
                notice(&[index, other], "swapped words");
                base.restore();
            }
        }
    }
}

#[test]
fn pages_of_a_state_that_are_gone_are_noticed() {
    let base = Base::new();
    let all: Vec<u64> = (0..PAGES).collect();
    let stored = all.iter().copied().filter(|index| index % KINDS != EMPTY);
    // Words that are zero, and sums that are.
    let sums = base.home.sum_at(0);
    for (at, name) in [(0, "words"), (sums, "sums")] {
        base.restore();
        base.edit("table", at, 4096, |page| page.fill(0));
        assert_eq!(base.judge(), Outcome::of(stored.clone()), "{name}");
    }
    let punch = |file: &str, at: u64| {
        base.restore();
        let file = OpenOptions::new().write(true).open(base.home.dir.join(file)).unwrap();
        let mode = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(&file, mode, at.cast_signed(), 4096).unwrap();
        base.judge()
    };
    for (file, at) in [("table", 0), ("table", sums), ("superblock", 0)] {
        let outcome = punch(file, at);
        assert!(outcome.is_damage(), "{file} {at}: {outcome:?}");
    }
    let mut arena: BTreeSet<u64> =
        base.image.existing("arena").map(|at| at / 4096 * 4096).collect();
    // Pages that only freed objects lie on may be there too.
    let used: BTreeSet<u64> = all
        .iter()
        .filter_map(|index| base.object(*index))
        .flat_map(|(place, length)| [place, place + 3 + length])
        .map(|at| at / 4096 * 4096)
        .collect();
    assert!(used.is_subset(&arena) && used.len() > 10);
    arena.retain(|page| used.contains(page));
    for at in arena {
        let outcome = punch("arena", at);
        assert!(outcome.is_damage(), "arena {at}: {outcome:?}");
    }
    // Nothing was under way.
    assert_eq!(punch("superblock", 4096), Outcome::of([]));
}

/// A place where a byte is changed: a file, and one of its bytes that exist.
fn any_place() -> impl Strategy<Value = (&'static str, prop::sample::Index, u8)> {
    let file = prop_oneof![1 => Just("superblock"), 3 => Just("table"), 3 => Just("arena")];
    (file, any::<prop::sample::Index>(), 1..=255_u8)
}

thread_local! {
    static BASE: Base = Base::new();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 400 } else { 4000 }))]

    #[test]
    fn changed_bytes_anywhere_are_never_other_data(
        places in prop::collection::vec(any_place(), 1..6),
        // Most of a file is not where the table is.
        words in prop::collection::vec((0..PAGES * 12, 1..=255_u8), 0..3),
    ) {
        BASE.with(|base| {
            base.restore();
            for (file, place, flip) in places {
                let existing: Vec<u64> = base.image.existing(file).collect();
                base.edit(file, existing[place.index(existing.len())], 1, |byte| byte[0] ^= flip);
            }
            for (at, flip) in words {
                let sums = PAGES * 8;
                let at = if at < sums { at } else { base.home.sum_at(0) + at - sums };
                base.edit("table", at, 1, |byte| byte[0] ^= flip);
            }
            base.judge();
        });
    }
}

/// The intent of this number as `change` leaves it.
fn intend(home: &Home, number: usize, index: u64, old: u32, new: u32) {
    let at = 4096 + number as u64 * 16;
    let path = home.dir.join("superblock");
    set_word(&path, at, index + 1);
    set_word(&path, at + 8, u64::from(old) | u64::from(new) << 32);
}

fn no_intents(home: &Home) -> bool {
    let path = home.dir.join("superblock");
    (0..INTENTS as u64).all(|number| word(&path, 4096 + number * 16) == 0)
}

#[test]
fn a_change_that_was_cut_short_is_the_old_page_or_the_new_one() {
    const AT: u64 = 5;
    for (old, new) in (0..PAGES).map(|pair| (pair / KINDS, pair % KINDS)) {
        let home = Home::new(16, "lz4");
        let device = home.make();
        let mut context = device.worker_context().unwrap();
        let mut known = Vec::new();
        for (kind, seed) in [(old, 1), (new, 2)] {
            write(&device, &mut context, AT, kind, seed);
            known.push((home.word(AT), home.sum(AT), page_of(kind, seed)));
        }
        drop((context, device));
        // The old object is freed, but its memory is not given back: as if it were still named.
        let image = Image::of(home.dir.path());
        let sums = [known[0].1, known[1].1];
        for (word, sum) in [(0, 0), (0, 1), (1, 1), (1, 0)] {
            let set = || {
                image.restore(home.dir.path());
                home.set_word(AT, known[word].0 | 1);
                home.set_sum(AT, sums[sum]);
            };
            let look = || {
                let device = home.open().unwrap();
                device.check().unwrap();
                assert!(no_intents(&home));
                let mut context = device.worker_context().unwrap();
                let got = run(&device, &mut context, Op::Read, AT * 8, vec![0xee; PAGE_SIZE]);
                drop((context, device));
                match got {
                    Ok(bytes) => {
                        assert!(bytes == known[word].2, "{old} to {new}: other data");
                        true
                    }
                    Err(IoError::Damaged { index: AT }) => false,
                    Err(error) => panic!("{error}"),
                }
            };
            let what = format!("{old} to {new}, word {word}, sum {sum}");
            set();
            intend(&home, (old * 40 + new) as usize, AT, sums[0], sums[1]);
            assert!(look(), "{what}");
            assert!(look(), "{what}, again");
            // Two of them, as a thread leaves that was killed before it took its intent back.
            set();
            intend(&home, 3, AT, 0x1234, sums[0]);
            intend(&home, 9, AT, sums[0], sums[1]);
            assert!(look(), "{what}, and one before");
            // Those of others, or of nothing, vouch for nothing.
            let good = sums[word] == sums[sum];
            set();
            intend(&home, 0, AT + 1, sums[0], sums[1]);
            intend(&home, 1, 1 << 50, sums[0], sums[1]);
            intend(&home, 2, u64::MAX - 1, sums[0], sums[1]);
            intend(&home, 255, AT, !sums[0], !sums[1]);
            assert_eq!(look(), good, "{what}, without its intent");
            // Nor does its own for an object that is neither.
            let length = known[word].0 >> 11 & 0xfff;
            let has_object = known[word].0 >> 2 & 3 == 2 || length == 8;
            if has_object {
                set();
                intend(&home, 7, AT, sums[0], sums[1]);
                let byte = (known[word].0 >> 23) * 16 + 5;
                edit(&home.dir.join("arena"), byte, 1, |byte| byte[0] ^= 0x10);
                assert!(!look(), "{what}, damaged");
            }
        }
    }
}

/// Damage that was not found yet is not lost when the object is moved.
#[test]
fn a_damaged_page_that_is_moved_stays_damaged() {
    let home = Home::new(512, "lz4");
    let device = home.make();
    let mut context = device.worker_context().unwrap();
    for page in 0..512 {
        write(&device, &mut context, page, page % 2, page);
    }
    drop((context, device));
    let damaged = [400, 401, 504, 505];
    for index in damaged {
        let place = (home.word(index) >> 23) * 16;
        edit(&home.dir.join("arena"), place + 100, 1, |byte| byte[0] ^= 4);
    }
    let places = || damaged.map(|index| home.word(index) >> 23);
    let before = places();
    let device = home.open().unwrap();
    let mut context = device.worker_context().unwrap();
    let kept = |index: &u64| index % 8 < 2;
    for index in (0..512).filter(|index| !kept(index)) {
        free(&device, &mut context, Op::Discard, index * 8, 8);
    }
    compact(&device);
    let after = places();
    assert!(before.iter().zip(&after).all(|(before, after)| before != after), "nothing was moved");
    let look = |device: &Device| {
        let mut context = device.worker_context().unwrap();
        for index in (0..512).filter(kept) {
            let got = run(device, &mut context, Op::Read, index * 8, vec![0; PAGE_SIZE]);
            match damaged.contains(&index) {
                true => assert!(matches!(got, Err(IoError::Damaged { .. })), "{index}"),
                false => assert_eq!(got.unwrap(), page_of(index % 2, index)),
            }
        }
        device.check().unwrap();
    };
    look(&device);
    drop((context, device));
    look(&home.open().unwrap());
}

#[test]
fn damage_is_counted_as_a_failure_of_its_request() {
    let base = Base::new();
    base.home.set_sum(6, 1);
    let device = base.home.open().unwrap();
    let mut context = device.worker_context().unwrap();
    // Pages before and after it are fine; what the request had not got to by then is as it was.
    let error = run(&device, &mut context, Op::Read, 0, vec![0; 12 * PAGE_SIZE]).unwrap_err();
    assert_eq!(error.to_string(), "page 6 is damaged: its check sum does not match");
    assert_eq!(device.report().failed_reads, 1);
    read(&device, &mut context, 0, 48);
    read(&device, &mut context, 56, 40);
}

/// A word that no slot can have, which comes while the disk is served, is not an empty page.
#[test]
fn a_word_of_unknown_content_is_that_pages_error() {
    let home = Home::new(8, "lz4");
    let device = home.make();
    let mut context = device.worker_context().unwrap();
    for index in 0..8 {
        run(&device, &mut context, Op::Write, index * 8, text(index, PAGE_SIZE)).unwrap();
    }
    // Written back, a same-filled page with a codec, one of 9 bytes, and nothing with a place.
    for (index, word) in (0..).zip([3 << 2, 1 << 2 | 1 << 7, 1 << 2 | 9 << 11, 1 << 23]) {
        home.set_word(index, word);
        for op in [Op::Read, Op::Write, Op::WriteZeroes] {
            let buffer = Buffer::new(vec![1; SECTOR]);
            let mut io = device.request(op, index * 8 + 1, SECTOR as u64, buffer).unwrap();
            let error = sync::block_on(|cx| io.poll(&mut context, cx)).unwrap_err();
            assert!(matches!(error, IoError::Damaged { index: named } if named == index), "{op:?}");
        }
        assert_eq!(read(&device, &mut context, (index + 4) * 8, 8), text(index + 4, PAGE_SIZE));
        // It can be written, and discarded.
        if index % 2 == 0 {
            run(&device, &mut context, Op::Write, index * 8, text(9, PAGE_SIZE)).unwrap();
            assert_eq!(read(&device, &mut context, index * 8, 8), text(9, PAGE_SIZE));
        } else {
            free(&device, &mut context, Op::Discard, index * 8, 8);
            assert_eq!(home.word(index), 0);
        }
    }
}
