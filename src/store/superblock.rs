//! The superblock of a state: what its other files are, by which codecs its pages are compressed, and
//! what has become of it.
//!
//! ```text
//! page 0     0  magic "vuzstate"
//!            8  le32 version, 2
//!           12  le32 CRC-32 of bytes 0..64, with these four as zero
//!           16  16 bytes that tell this disk from all others
//!           32  le64 most bytes that the disk can have: table and arena have room for it
//!           40  le64 pages of the disk when it was made, from which the pool's classes follow
//!           48  le64 bytes of the arena's address space
//!           56  le64 features that a reader has to know: bit 0 is set if the disk's logical block
//!               has 512 bytes, and not if it has 4096
//!           64  the codec table: 16 entries of 64 bytes
//!                0  le64 0 if the entry is free; "used" and le32 CRC-32 of its number (a byte) and its
//!                   other bytes
//!                8  24 bytes: name of the algorithm, ends in NULs
//!               32  le32 level, signed: that of the algorithm, lz4's acceleration, 0 if there is none
//!               36  le32 parameters: deflate's winbits, signed; 0 for all others
//!               40  le64 id of a dictionary, 0 (reserved)
//!               48  16 bytes of zero
//!         3072  le64 stage: "making..", "complete", or "emptying" while the disk is reset
//!         3080  le64 served: 0, or "served.." once a guest was
//!         3088  le64 grown: 0 if the disk is as large as it was made, else le32 its pages, and le32 CRC-32 of the
//!               state's 16 bytes and those four
//! page 1     0  256 intents of two le64 (see `slot/sums.rs`)
//! ```
//!
//! Bytes 0..64 are written once, before the file has its name. Every other field is a word of its own,
//! changed in one step, and so is a codec: its entry is free until the last store makes it used, which
//! comes before any slot names it. A change of anything here, or of how the table and the arena are
//! read, needs a new version.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::mapping::{Extent, Mapping};
use super::{HOST_PAGE, StateError};
use crate::failpoint;
use crate::sync::{AtomicU64, Ordering};
use crate::units::{BlockSize, PAGE_SIZE};

/// The version that this program writes and reads.
pub const VERSION: u32 = 2;
/// Entries of the codec table: a slot word has four bits for the number of one.
pub const CODECS: usize = 16;
/// Records of changes under way.
pub const INTENTS: usize = 256;

/// Feature: the logical block of the disk has 512 bytes. A reader that does not know it would tell a
/// guest that runs on the disk another block size than before.
const SMALL_BLOCKS: u64 = 1 << 0;

const MAGIC: [u8; 8] = *b"vuzstate";
/// Bytes that never change.
const HEADER: usize = 64;
const CODEC_TABLE: u64 = HEADER as u64 / 8;
/// Words of an entry of the codec table.
const CODEC_WORDS: usize = 8;
/// Most bytes of an algorithm's name, with a NUL.
const NAME: usize = 24;
/// Upper half of the first word of an entry that is used.
const USED: u32 = u32::from_le_bytes(*b"used");
const STAGE: u64 = 3072 / 8;
const SERVED: u64 = STAGE + 1;
const GROWN: u64 = STAGE + 2;
const MAKING: u64 = u64::from_le_bytes(*b"making..");
const COMPLETE: u64 = u64::from_le_bytes(*b"complete");
const EMPTYING: u64 = u64::from_le_bytes(*b"emptying");
const HAS_SERVED: u64 = u64::from_le_bytes(*b"served..");
/// Bytes of the file.
const LENGTH: u64 = 2 * HOST_PAGE;

/// What a superblock says of its disk. All but the size is fixed for the life of a state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Format {
    /// Size of the disk in bytes when the state was opened; a multiple of a page.
    pub size: u64,
    /// The greatest size that it can grow to; a multiple of a page.
    pub capacity: u64,
    /// Pages of the disk when it was made.
    pub pool_pages: u64,
    /// Address space of the arena in bytes.
    pub arena_bytes: u64,
    /// Logical block of the disk.
    pub block_size: BlockSize,
}

/// A codec in a superblock.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CodecEntry {
    /// Name of the algorithm, 1 to 23 bytes.
    pub algorithm: String,
    /// Its level, in the algorithm's own terms.
    pub level: i32,
    /// Other parameters: deflate's winbits, signed; 0 for all others.
    pub parameters: u32,
    /// The dictionary; none is defined, and it is 0.
    pub dictionary: u64,
}

/// The codec table of a state: slot words name its entries.
pub type CodecEntries = [Option<CodecEntry>; CODECS];

/// A superblock, mapped.
#[derive(Debug)]
pub(super) struct Superblock {
    mapping: Mapping,
    id: Id,
}

/// What tells a state's files from those of others.
pub(super) type Id = [u8; 16];

impl CodecEntry {
    /// The words of the entry of this number, the one that makes it used first.
    fn encode(&self, number: usize) -> [u64; CODEC_WORDS] {
        debug_assert!((1..NAME).contains(&self.algorithm.len()));
        let mut bytes = [0; CODEC_WORDS * 8];
        let name = &self.algorithm.as_bytes()[..self.algorithm.len().min(NAME - 1)];
        bytes[8..8 + name.len()].copy_from_slice(name);
        bytes[32..36].copy_from_slice(&self.level.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.parameters.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.dictionary.to_le_bytes());
        let used = used(number, &bytes);
        bytes[..8].copy_from_slice(&used.to_le_bytes());
        std::array::from_fn(|at| le64(&bytes, at * 8).unwrap_or(0))
    }

    /// What the words of the entry of this number say; `None` if it is free.
    fn decode(number: usize, words: [u64; CODEC_WORDS]) -> Result<Option<Self>, StateError> {
        if words[0] == 0 {
            return Ok(None);
        }
        let damaged = StateError::Damaged {
            what: "an entry of the superblock's codec table does not match its check sum",
        };
        let mut bytes = [0; CODEC_WORDS * 8];
        for (to, word) in bytes.chunks_exact_mut(8).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        let name = bytes[8..8 + NAME].split(|byte| *byte == 0).next().unwrap_or_default();
        let entry = Self {
            algorithm: String::from_utf8_lossy(name).into_owned(),
            level: le32(&bytes, 32).unwrap_or(0).cast_signed(),
            parameters: le32(&bytes, 36).unwrap_or(0),
            dictionary: le64(&bytes, 40).unwrap_or(0),
        };
        let is_whole = words[0] == used(number, &bytes)
            && (1..NAME).contains(&entry.algorithm.len())
            && entry.encode(number) == words;
        if is_whole { Ok(Some(entry)) } else { Err(damaged) }
    }
}

/// The word that makes the entry of this number used, whose other bytes are those of `bytes`.
fn used(number: usize, bytes: &[u8; CODEC_WORDS * 8]) -> u64 {
    let mut sum = crc32fast::Hasher::new();
    sum.update(&[number as u8]);
    sum.update(&bytes[8..]);
    u64::from(USED) << 32 | u64::from(sum.finalize())
}

impl Format {
    /// The size of the disk when it was made, in bytes.
    pub(super) fn made_size(&self) -> u64 {
        self.pool_pages * PAGE_SIZE as u64
    }

    /// The bytes of a superblock of a state that is being made.
    pub(super) fn encode(&self, id: &Id) -> Vec<u8> {
        let mut bytes = vec![0; LENGTH as usize];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[16..32].copy_from_slice(id);
        let features = match self.block_size {
            BlockSize::Sector => SMALL_BLOCKS,
            BlockSize::Page => 0,
        };
        let fields =
            [(32, self.capacity), (40, self.pool_pages), (48, self.arena_bytes), (56, features)];
        for (at, value) in fields {
            bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        let sum = crc32fast::hash(&bytes[..HEADER]);
        bytes[12..16].copy_from_slice(&sum.to_le_bytes());
        let stage = STAGE as usize * 8;
        bytes[stage..stage + 8].copy_from_slice(&MAKING.to_le_bytes());
        bytes
    }

    /// What the bytes of a superblock say of a disk that did not grow, and the state they belong to.
    pub(super) fn decode(bytes: &[u8]) -> Result<(Self, Id), StateError> {
        let damaged = |what| StateError::Damaged { what };
        if !is_superblock(bytes) {
            return Err(damaged("the superblock does not begin like one"));
        }
        // First: what follows may be different in another version.
        let version = le32(bytes, 8).unwrap_or(0);
        if version != VERSION {
            return Err(StateError::Version { found: version });
        }
        let (Some(header), true) = (bytes.get(..HEADER), bytes.len() as u64 >= LENGTH) else {
            return Err(damaged("the superblock is cut short"));
        };
        let mut summed = header.to_vec();
        summed[12..16].fill(0);
        if le32(header, 12) != Some(crc32fast::hash(&summed)) {
            return Err(damaged("the superblock's check sum does not match"));
        }
        let field = |at| le64(header, at).unwrap_or(0);
        let features = field(56);
        if features & !SMALL_BLOCKS != 0 {
            return Err(StateError::Features { unknown: features & !SMALL_BLOCKS });
        }
        let small = features & SMALL_BLOCKS != 0;
        let block_size = if small { BlockSize::Sector } else { BlockSize::Page };
        let mut id = Id::default();
        id.copy_from_slice(&header[16..32]);
        let (capacity, pool_pages, arena_bytes) = (field(32), field(40), field(48));
        let size = pool_pages.checked_mul(PAGE_SIZE as u64).filter(|size| *size <= capacity);
        let size = size.ok_or(damaged("the disk is larger than there is room for"))?;
        Ok((Self { size, capacity, pool_pages, arena_bytes, block_size }, id))
    }
}

/// The word that says that the disk of this state has so many bytes now, a multiple of a page.
fn grown(id: &Id, size: u64) -> u64 {
    let pages = (size / PAGE_SIZE as u64) as u32;
    let mut sum = crc32fast::Hasher::new();
    sum.update(id);
    sum.update(&pages.to_le_bytes());
    u64::from(pages) | u64::from(sum.finalize()) << 32
}

/// Whether a file begins like a superblock, of whatever version.
pub(super) fn is_superblock(bytes: &[u8]) -> bool {
    bytes.starts_with(&MAGIC)
}

pub(super) fn le32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

pub(super) fn le64(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

impl Superblock {
    /// Reads a superblock, and maps what of it may change.
    pub(super) fn open(file: &Arc<File>, locked: bool) -> Result<(Self, Format, Id), StateError> {
        let io = |source| StateError::File { what: "superblock", source };
        let length = file.metadata().map_err(io)?.len();
        let mut bytes = vec![0; length.min(LENGTH) as usize];
        file.read_exact_at(&mut bytes, 0).map_err(io)?;
        let (mut format, id) = Format::decode(&bytes)?;
        let mapping = Mapping::over(file, "superblock", 0, Extent::fixed(LENGTH), locked)?;
        let this = Self { mapping, id };
        // Neither may be guessed: one makes a disk that was lost look new, the other the reverse.
        let damaged = |what| StateError::Damaged { what };
        if ![MAKING, COMPLETE, EMPTYING].contains(&this.word(STAGE).load(Ordering::Acquire)) {
            return Err(damaged("the superblock's stage is none that there is"));
        }
        if ![0, HAS_SERVED].contains(&this.word(SERVED).load(Ordering::Acquire)) {
            return Err(damaged("the superblock's note of guests is neither none nor served"));
        }
        if this.codecs()?.iter().all(Option::is_none) && this.is_complete() {
            return Err(damaged("the superblock's codec table is empty"));
        }
        match this.word(GROWN).load(Ordering::Acquire) {
            0 => {}
            word => {
                let size = (word & u64::from(u32::MAX)) * PAGE_SIZE as u64;
                if word != grown(&id, size) || size < format.size || size > format.capacity {
                    return Err(damaged("the superblock's note of the disk's growth is no size"));
                }
                format.size = size;
            }
        }
        Ok((this, format, id))
    }

    /// The disk has `size` bytes from now on, for every process to come.
    pub(super) fn set_size(&self, size: u64) {
        self.word(GROWN).store(grown(&self.id, size), Ordering::Release);
    }

    /// Makes all of it exist that may change: a copy of a state may have holes where it was zero.
    pub(super) fn populate(&self) -> Result<(), StateError> {
        Ok(self.mapping.populate(0, LENGTH)?)
    }

    /// Whether the state was made whole. Whatever was in it may be gone: see [`Self::is_resetting`].
    pub(super) fn is_complete(&self) -> bool {
        [COMPLETE, EMPTYING].contains(&self.word(STAGE).load(Ordering::Acquire))
    }

    /// Whether a reset began and is not over.
    pub(super) fn is_resetting(&self) -> bool {
        self.word(STAGE).load(Ordering::Acquire) == EMPTYING
    }

    /// A reset begins; it is over with [`Self::set_complete`].
    pub(super) fn set_resetting(&self) {
        self.word(STAGE).store(EMPTYING, Ordering::Release);
    }

    pub(super) fn set_complete(&self) {
        self.word(STAGE).store(COMPLETE, Ordering::Release);
    }

    pub(super) fn has_served(&self) -> bool {
        self.word(SERVED).load(Ordering::Acquire) == HAS_SERVED
    }

    pub(super) fn set_served(&self, served: bool) {
        self.word(SERVED).store(if served { HAS_SERVED } else { 0 }, Ordering::Release);
    }

    /// The two words of an intent, 0..[`INTENTS`].
    pub(super) fn intent(&self, number: usize) -> [&AtomicU64; 2] {
        assert!(number < INTENTS, "intent {number}");
        let first = (HOST_PAGE + number as u64 * 16) / 8;
        [self.word(first), self.word(first + 1)]
    }

    /// The codec table.
    pub(super) fn codecs(&self) -> Result<CodecEntries, StateError> {
        let mut entries = CodecEntries::default();
        for (number, entry) in entries.iter_mut().enumerate() {
            let words = self.codec_words(number).map(|word| word.load(Ordering::Acquire));
            *entry = CodecEntry::decode(number, words)?;
        }
        Ok(entries)
    }

    /// Makes the entry of this number say this codec. No slot may name it before that, nor until this
    /// is done: a process that dies meanwhile leaves a free entry.
    pub(super) fn set_codec(&self, number: usize, entry: &CodecEntry) {
        let [used, rest @ ..] = self.codec_words(number);
        let [new_used, new_rest @ ..] = entry.encode(number);
        used.store(0, Ordering::Release);
        failpoint::reach("codec.freed");
        for (word, new) in rest.into_iter().zip(new_rest) {
            // Released, so that the compiler leaves it behind the store above.
            word.store(new, Ordering::Release);
        }
        failpoint::reach("codec.written");
        used.store(new_used, Ordering::Release);
        failpoint::reach("codec.used");
    }

    fn codec_words(&self, number: usize) -> [&AtomicU64; CODEC_WORDS] {
        assert!(number < CODECS, "codec {number}");
        let first = CODEC_TABLE + (number * CODEC_WORDS) as u64;
        std::array::from_fn(|at| self.word(first + at as u64))
    }

    /// Bytes of the file that exist.
    pub(super) fn file_bytes(&self) -> u64 {
        self.mapping.file_bytes()
    }

    fn word(&self, number: u64) -> &AtomicU64 {
        self.mapping.word(number)
    }
}
