//! What the load writes: every sector says where it belongs and which change it is of.

use vhost_user_zram_frontend::Random;

use crate::common::disk::SECTOR_LEN;

/// Sectors of a page.
pub const PAGE: usize = 8;
/// Pages that a disk has at most: a same-filled page says in 12 bits which one it is.
pub const MOST_PAGES: usize = 1 << 12;
/// Changes that are told apart: it says so in 20 bits.
pub const MOST_CHANGES: u32 = 1 << 20;

const ZEROES: [u8; SECTOR_LEN] = [0; SECTOR_LEN];

/// One of the kinds that the daemon stores in ways of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Zeroes,
    /// A pattern of 4 bytes, which needs no object.
    Narrow,
    /// A pattern of 8 bytes, which takes the smallest one.
    Wide,
    /// So many bytes of each sector are noise: all of them are a page that is stored raw.
    Noisy(usize),
}

fn kind(page: usize, change: u32) -> Kind {
    let mut random = Random::new((page as u64) << 32 | u64::from(change));
    match random.below(16) {
        0 => Kind::Zeroes,
        1 | 2 => Kind::Narrow,
        3 | 4 => Kind::Wide,
        5..8 => Kind::Noisy(SECTOR_LEN - HEADER),
        _ => Kind::Noisy(random.below((SECTOR_LEN / 8 - 1) as u64) as usize * 8),
    }
}

/// Bytes that say which sector this is, and of which change.
const HEADER: usize = 16;

/// The bytes of the sector `sector` as the change number `change` writes them. A pure function, so
/// that a model need not keep them.
pub fn bytes(sector: usize, change: u32) -> [u8; SECTOR_LEN] {
    let mut bytes = ZEROES;
    let page = sector / PAGE;
    match kind(page, change) {
        Kind::Zeroes => {}
        Kind::Narrow => {
            let word = ((page as u32) << 20 | change).to_le_bytes();
            bytes.chunks_exact_mut(4).for_each(|at| at.copy_from_slice(&word));
        }
        Kind::Wide => {
            let word = (WIDE | (page as u64) << 32 | u64::from(change)).to_le_bytes();
            bytes.chunks_exact_mut(8).for_each(|at| at.copy_from_slice(&word));
        }
        Kind::Noisy(noise) => {
            let (plain, noisy) = bytes.split_at_mut(SECTOR_LEN - noise);
            for words in plain.chunks_mut(HEADER) {
                let header = header(sector, change);
                words.copy_from_slice(&header[..words.len()]);
            }
            let seed = (sector as u64) << 32 | u64::from(change);
            Random::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)).fill(noisy);
        }
    }
    bytes
}

/// Makes the two halves of a word differ.
const WIDE: u64 = 1 << 63;

fn header(sector: usize, change: u32) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[..8].copy_from_slice(&(sector as u64).to_le_bytes());
    header[8..].copy_from_slice(&u64::from(change).to_le_bytes());
    header
}

/// Says whose bytes these are, for a message.
pub fn describe(got: &[u8]) -> String {
    if got.iter().all(|byte| *byte == 0) {
        return "zeroes".into();
    }
    let word = |at: usize| {
        let bytes = got.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
        bytes.map_or(0, u64::from_le_bytes)
    };
    let narrow = word(0) as u32;
    // The three ways in which a sector can name itself.
    let guesses = [
        (word(0) as usize, word(8) as u32),
        ((narrow >> 20) as usize * PAGE, narrow & (MOST_CHANGES - 1)),
        ((word(0) >> 32 & !(1 << 31)) as usize * PAGE, word(0) as u32),
    ];
    for (sector, change) in guesses {
        if sector < MOST_PAGES * PAGE && change < MOST_CHANGES && bytes(sector, change) == got {
            return format!("what change {change} wrote to sector {sector}, or its page");
        }
    }
    format!("bytes that no change wrote: {:02x?}...", &got[..got.len().min(32)])
}

#[test]
fn all_kinds_occur_and_differ_by_place_and_change() {
    let mut seen = std::collections::BTreeSet::new();
    for change in 1..100 {
        let page = (change * 7 % 512) as usize;
        seen.insert(match kind(page, change) {
            Kind::Zeroes => 0,
            Kind::Narrow => 1,
            Kind::Wide => 2,
            Kind::Noisy(noise) => 3 + noise / (SECTOR_LEN - HEADER),
        });
        let sector = page * PAGE + 3;
        let mine = bytes(sector, change);
        if kind(page, change) == Kind::Zeroes {
            assert_eq!(describe(&mine), "zeroes");
            continue;
        }
        assert!(describe(&mine).contains(&format!("change {change} ")), "{}", describe(&mine));
        assert_ne!(mine, ZEROES);
        assert_ne!(mine, bytes(sector + PAGE, change));
        assert_ne!(mine, bytes(sector, change + 1));
    }
    assert_eq!(seen.len(), 5);
    assert!(describe(&[1; SECTOR_LEN]).contains("no change"));
}
