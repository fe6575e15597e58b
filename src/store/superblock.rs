//! The superblock of a state: what its other files are, and what has become of them.
//!
//! ```text
//! page 0     0  magic "vuzstate"
//!            8  le32 version, 1
//!           12  le32 CRC-32 of bytes 0..3072, with these four as zero
//!           16  16 bytes that tell this disk from all others
//!           32  le64 size of the disk in bytes
//!           40  le64 pages of the disk when it was made, from which the pool's classes follow
//!           48  le64 bytes of the arena's address space
//!           56  le64 features that a reader has to know: bit 0 is set if the disk's logical block
//!               has 512 bytes, and not if it has 4096
//!           64  16 codecs of 96 bytes: name (64, ends in NULs), le32 bytes of its dictionary,
//!               le32 CRC-32 of that, le64 offset of that in this file, 16 bytes of zero
//!         3072  le64 stage: "making.." or "complete"
//!         3080  le64 served: 0, or "served.." once a guest was
//! page 1     0  256 intents of two le64 (see `slot/sums.rs`)
//! page 2...     dictionaries
//! ```
//!
//! All up to byte 3072 is written once, before the file has its name. Every other field is a word of
//! its own, changed in one step. A change of anything here, or of how the table and the arena are
//! read, needs a new version.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::mapping::Mapping;
use super::{HOST_PAGE, StateError};
use crate::sync::{AtomicU64, Ordering};
use crate::units::BlockSize;

/// The version that this program writes and reads.
pub const VERSION: u32 = 1;
/// Most codecs of a disk: a slot word has four bits for them.
const CODECS: usize = 16;
/// Most bytes of a codec's name.
const NAME: usize = 64;
/// Most bytes of a dictionary.
const DICTIONARY: usize = 1 << 20;
/// Records of changes under way.
pub const INTENTS: usize = 256;

/// Feature: the logical block of the disk has 512 bytes. A reader that does not know it would tell a
/// guest that runs on the disk another block size than before.
const SMALL_BLOCKS: u64 = 1 << 0;

const MAGIC: [u8; 8] = *b"vuzstate";
/// Bytes that never change.
const HEADER: usize = 3072;
const CODEC_TABLE: usize = 64;
const CODEC_ENTRY: usize = 96;
const STAGE: u64 = 3072 / 8;
const SERVED: u64 = STAGE + 1;
const MAKING: u64 = u64::from_le_bytes(*b"making..");
const COMPLETE: u64 = u64::from_le_bytes(*b"complete");
const HAS_SERVED: u64 = u64::from_le_bytes(*b"served..");
/// Bytes of the pages before the dictionaries.
const FIXED: u64 = 2 * HOST_PAGE;

/// What is fixed for the life of a state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Format {
    /// Size of the disk in bytes; a multiple of a page.
    pub size: u64,
    /// Pages of the disk when it was made.
    pub pool_pages: u64,
    /// Address space of the arena in bytes.
    pub arena_bytes: u64,
    /// Logical block of the disk.
    pub block_size: BlockSize,
    /// The codecs by which its pages are compressed, 1 to 16; a slot word has the index.
    pub codecs: Vec<CodecEntry>,
}

/// A codec in a superblock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CodecEntry {
    /// Its name and parameters as a user writes them, 1 to 63 bytes.
    pub name: String,
    /// What it was trained with; at most 1 MiB.
    pub dictionary: Vec<u8>,
}

/// A superblock, mapped.
#[derive(Debug)]
pub(super) struct Superblock {
    mapping: Mapping,
}

/// What tells a state's files from those of others.
pub(super) type Id = [u8; 16];

impl Format {
    /// The bytes of a superblock of a state that is being made.
    pub(super) fn encode(&self, id: &Id) -> Vec<u8> {
        debug_assert!((1..=CODECS).contains(&self.codecs.len()));
        let mut bytes = vec![0; FIXED as usize];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[16..32].copy_from_slice(id);
        let features = match self.block_size {
            BlockSize::Sector => SMALL_BLOCKS,
            BlockSize::Page => 0,
        };
        let fields =
            [(32, self.size), (40, self.pool_pages), (48, self.arena_bytes), (56, features)];
        for (at, value) in fields {
            bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        for (number, codec) in self.codecs.iter().enumerate() {
            debug_assert!(codec.name.len() < NAME && codec.dictionary.len() <= DICTIONARY);
            let offset = bytes.len() as u64;
            let entry = &mut bytes[CODEC_TABLE + number * CODEC_ENTRY..][..CODEC_ENTRY];
            entry[..codec.name.len()].copy_from_slice(codec.name.as_bytes());
            let (len, sum) = (codec.dictionary.len() as u32, crc32fast::hash(&codec.dictionary));
            entry[64..68].copy_from_slice(&len.to_le_bytes());
            entry[68..72].copy_from_slice(&sum.to_le_bytes());
            entry[72..80].copy_from_slice(&offset.to_le_bytes());
            bytes.extend_from_slice(&codec.dictionary);
        }
        let sum = crc32fast::hash(&bytes[..HEADER]);
        bytes[12..16].copy_from_slice(&sum.to_le_bytes());
        let stage = STAGE as usize * 8;
        bytes[stage..stage + 8].copy_from_slice(&MAKING.to_le_bytes());
        bytes.resize(bytes.len().next_multiple_of(HOST_PAGE as usize), 0);
        bytes
    }

    /// What the bytes of a superblock say, and whose they are.
    pub(super) fn decode(bytes: &[u8]) -> Result<(Self, Id), StateError> {
        let damaged = |what| StateError::Damaged { what };
        if !is_superblock(bytes) {
            return Err(damaged("the superblock is not one"));
        }
        // First: what follows may be different in another version.
        let version = le32(bytes, 8).unwrap_or(0);
        if version != VERSION {
            return Err(StateError::Version { found: version });
        }
        let (Some(header), true) = (bytes.get(..HEADER), bytes.len() as u64 >= FIXED) else {
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
        let codecs: Option<Vec<CodecEntry>> = header[CODEC_TABLE..]
            .chunks_exact(CODEC_ENTRY)
            .take(CODECS)
            .take_while(|entry| entry[0] != 0)
            .map(|entry| decode_codec(entry, bytes))
            .collect();
        let codecs = codecs.filter(|codecs| !codecs.is_empty());
        let codecs = codecs.ok_or(damaged("the superblock's codecs do not make sense"))?;
        let mut id = Id::default();
        id.copy_from_slice(&header[16..32]);
        let (size, pool_pages, arena_bytes) = (field(32), field(40), field(48));
        Ok((Self { size, pool_pages, arena_bytes, block_size, codecs }, id))
    }
}

fn decode_codec(entry: &[u8], file: &[u8]) -> Option<CodecEntry> {
    let name = entry[..NAME].split(|byte| *byte == 0).next()?;
    let name = String::from_utf8(name.to_vec()).ok().filter(|name| name.len() < NAME)?;
    let (len, offset) = (le32(entry, 64)? as usize, usize::try_from(le64(entry, 72)?).ok()?);
    let dictionary = file.get(offset..offset.checked_add(len)?)?.to_vec();
    (crc32fast::hash(&dictionary) == le32(entry, 68)?).then_some(CodecEntry { name, dictionary })
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
        let most = FIXED + (CODECS * DICTIONARY) as u64 + HOST_PAGE;
        let mut bytes = vec![0; length.min(most) as usize];
        file.read_exact_at(&mut bytes, 0).map_err(io)?;
        let (format, id) = Format::decode(&bytes)?;
        let mapping = Mapping::over(file, "superblock", 0, FIXED, locked)?;
        let this = Self { mapping };
        // Neither may be guessed: one makes a disk that was lost look new, the other the reverse.
        if ![MAKING, COMPLETE].contains(&this.word(STAGE).load(Ordering::Acquire)) {
            return Err(StateError::Damaged { what: "the superblock's stage is none" });
        }
        if ![0, HAS_SERVED].contains(&this.word(SERVED).load(Ordering::Acquire)) {
            return Err(StateError::Damaged { what: "the superblock's note of guests is none" });
        }
        Ok((this, format, id))
    }

    /// Makes all of it exist that may change: a copy of a state may have holes where it was zero.
    pub(super) fn populate(&self) -> Result<(), StateError> {
        Ok(self.mapping.populate(0, FIXED)?)
    }

    /// Whether the state was made whole.
    pub(super) fn is_complete(&self) -> bool {
        self.word(STAGE).load(Ordering::Acquire) == COMPLETE
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

    /// Bytes of the file that exist.
    pub(super) fn file_bytes(&self) -> u64 {
        self.mapping.file_bytes()
    }

    fn word(&self, number: u64) -> &AtomicU64 {
        self.mapping.word(number)
    }
}
