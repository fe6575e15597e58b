//! The codec table of a superblock.

use proptest::prelude::*;

use super::scratch::{Image, edit};
use super::state_tests::{format, lz4, made, open, refused};
use super::superblock::CodecEntries;
use super::*;

fn any_entry() -> impl Strategy<Value = CodecEntry> {
    let parts = ("[ -~]{1,23}", any::<i32>(), any::<u32>(), any::<u64>());
    parts.prop_map(|(algorithm, level, parameters, dictionary)| CodecEntry {
        algorithm,
        level,
        parameters,
        dictionary,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn codecs_come_back_and_others_stay_where_they_are(
        steps in prop::collection::vec((0..CODECS, any_entry()), 1..40),
    ) {
        let dir = made();
        let mut expected = CodecEntries::default();
        expected[0] = Some(lz4());
        for (number, entry) in steps {
            let state = open(dir.path(), false).unwrap();
            prop_assert_eq!(&state.codecs().unwrap(), &expected);
            state.set_codec(number, &entry);
            expected[number] = Some(entry);
            prop_assert_eq!(&state.codecs().unwrap(), &expected);
        }
    }

    #[test]
    fn any_bytes_are_a_codec_table_or_damage(
        bytes in prop::collection::vec(any::<u8>(), 1024),
        free in 0..=u16::MAX,
    ) {
        let dir = made();
        edit(&dir.join("superblock"), 64, 1024, |table| {
            table.copy_from_slice(&bytes);
            // Else an entry that is free would hardly be seen.
            for number in (0..CODECS).filter(|number| free >> number & 1 == 1) {
                table[number * 64..][..8].fill(0);
            }
        });
        let text = refused(dir.path()).to_string();
        prop_assert!(text.starts_with("the state is damaged"), "{}", text);
    }
}

#[test]
fn an_entry_is_damaged_in_another_ones_place_or_by_any_flipped_bit() {
    let dir = made();
    let good = Image::of(dir.path());
    for bit in 0..64 * 8 {
        edit(&dir.join("superblock"), 64 + bit / 8, 1, |byte| byte[0] ^= 1 << (bit % 8));
        let text = refused(dir.path()).to_string();
        assert!(text.contains("codec table"), "bit {bit}: {text}");
        good.restore(dir.path());
    }
    edit(&dir.join("superblock"), 64, 128, |entries| entries.copy_within(..64, 64));
    let text = refused(dir.path()).to_string();
    assert!(text.contains("codec table"), "{text}");
}

#[test]
fn a_complete_state_has_a_codec() {
    let dir = made();
    edit(&dir.join("superblock"), 64, 8, |used| used.fill(0));
    let text = refused(dir.path()).to_string();
    assert_eq!(text, "the state is damaged: the superblock's codec table is empty");
    // One that is being made has none yet.
    let state = State::without_names("hands", &format(), false).unwrap();
    assert_eq!(state.codecs().unwrap(), CodecEntries::default());
}
