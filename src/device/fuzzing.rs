//! What becomes of a state that was damaged while no process had it: the entry point of a fuzz target,
//! and of a test with random inputs.
//!
//! An input says where a state of known contents is damaged, and how. What the bytes are changed to
//! is not up to it: check sums find damage, and no more than that; a process that can write to a state
//! can also write sums that match.

use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt;
use std::sync::LazyLock;

use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::{Whence, lseek64};

use super::{
    BlockChoice, Device, DeviceConfig, DeviceError, MemoryKind, Op, Payload, PayloadFault, State,
    WorkerContext,
};
use crate::engine::{EngineConfig, Policy};
use crate::store::HOST_PAGE;
use crate::sync;
use crate::units::{PAGE_SIZE, SECTORS_PER_PAGE};

/// Pages of the disk.
const PAGES: u64 = 40;
/// Bytes of a superblock that never change, and that its check sum is of.
const HEADER: u64 = 64;
/// Where its codec table ends, which has entries of 64 bytes.
const TABLE_END: u64 = HEADER + 16 * ENTRY;
const ENTRY: u64 = 64;

/// Where the table's file has the sums.
static SUMS: LazyLock<u64> =
    LazyLock::new(|| config(0).capacity().expect("a size") / PAGE_SIZE as u64 * 8);

/// A file of a state: its length, and what is in it where it is not a hole.
struct Image {
    len: u64,
    extents: Vec<(u64, Vec<u8>)>,
}

static STATE: LazyLock<[Image; 3]> = LazyLock::new(|| {
    let state = State::without_names("a test", &config(0).format().expect("format"), false);
    let mut device = Device::with_state(&config(0), state.expect("state")).expect("device");
    for codec in 0..CODECS.len() as u64 {
        let mut context = device.worker_context().expect("context");
        for page in (0..PAGES).filter(|page| page / 6 % CODECS.len() as u64 == codec) {
            // Every slot has had another content before.
            write(&device, &mut context, page, noise(page + 1000, PAGE_SIZE / 3));
            if kind(page) != 0 {
                write(&device, &mut context, page, contents(page));
            } else {
                free(&device, &mut context, page);
            }
        }
        device.set_complete();
        let image = device.state().expect("state").descriptors().map(|file| Image::of(file));
        drop((context, device));
        let next = (codec as usize + 1) % CODECS.len();
        device = open(image.map(|image| image.file()), next).expect("device");
    }
    device.state().expect("state").descriptors().map(|file| Image::of(file))
});

/// Codecs of the state, the primary one first.
const CODECS: [&str; 2] = ["lz4", "zstd"];

fn open(files: [File; 3], codec: usize) -> Result<Device, DeviceError> {
    let config = config(codec);
    let state = State::from_files(files.into(), "a test", &config.format()?, false)?;
    Device::with_state(&config, state)
}

fn config(codec: usize) -> DeviceConfig {
    DeviceConfig {
        size: PAGES * PAGE_SIZE as u64,
        block_size: BlockChoice::default(),
        codec: CODECS[codec].parse().expect("a codec"),
        mem_limit: 0,
        memory: MemoryKind::default(),
        access_times: codec % 2 == 1,
        engine: EngineConfig { policy: Policy::Inline, ..EngineConfig::default() },
    }
}

fn kind(page: u64) -> u64 {
    page % 6
}

/// What is on a page of the state.
fn contents(page: u64) -> Vec<u8> {
    match kind(page) {
        0 => vec![0; PAGE_SIZE],
        1 => noise(page, PAGE_SIZE),
        2 => [page as u8; PAGE_SIZE].to_vec(),
        3 => page.wrapping_mul(0x0123_4567_89ab_cdef).to_le_bytes().repeat(PAGE_SIZE / 8),
        kind => noise(page, (PAGE_SIZE >> kind) + page as usize),
    }
}

/// A page that begins with so many bytes that do not compress.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let words = (0..).flat_map(|at: u64| hash((seed, at)).to_le_bytes());
    let mut page: Vec<u8> = words.take(length.min(PAGE_SIZE)).collect();
    page.resize(PAGE_SIZE, 0);
    page
}

fn hash(value: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

impl Image {
    fn of(file: BorrowedFd<'_>) -> Self {
        let file = File::from(file.try_clone_to_owned().expect("a descriptor"));
        let len = file.metadata().expect("length").len();
        let (mut extents, mut at) = (Vec::new(), 0);
        while let Ok(start) = lseek64(&file, at, Whence::SeekData) {
            at = lseek64(&file, start, Whence::SeekHole).expect("the end of data");
            let mut bytes = vec![0; (at - start) as usize];
            file.read_exact_at(&mut bytes, start.cast_unsigned()).expect("read");
            extents.push((start.cast_unsigned(), bytes));
        }
        Self { len, extents }
    }

    fn file(&self) -> File {
        let file = File::from(memfd_create("state", MFdFlags::MFD_CLOEXEC).expect("memfd"));
        file.set_len(self.len).expect("length");
        for (offset, bytes) in &self.extents {
            file.write_all_at(bytes, *offset).expect("write");
        }
        file
    }

    /// The place of the byte of this number, if holes are not counted.
    fn offset(&self, number: u64) -> u64 {
        let bytes: u64 = self.extents.iter().map(|(_, bytes)| bytes.len() as u64).sum();
        let mut number = number % bytes;
        for (offset, bytes) in &self.extents {
            if number < bytes.len() as u64 {
                return offset + number;
            }
            number -= bytes.len() as u64;
        }
        unreachable!("there are as many bytes")
    }
}

/// A page in private memory.
struct Buffer(Vec<u8>);

impl Payload for Buffer {
    fn fetch(&mut self, offset: u64, into: &mut [u8]) -> Result<(), PayloadFault> {
        into.copy_from_slice(&self.0[offset as usize..][..into.len()]);
        Ok(())
    }

    fn deliver(&mut self, offset: u64, from: &[u8]) -> Result<(), PayloadFault> {
        self.0[offset as usize..][..from.len()].copy_from_slice(from);
        Ok(())
    }
}

fn write(device: &Device, context: &mut WorkerContext, page: u64, bytes: Vec<u8>) {
    let (sector, length) = (page * SECTORS_PER_PAGE, bytes.len() as u64);
    let mut io = device.request(Op::Write, sector, length, Buffer(bytes)).expect("in range");
    sync::block_on(|cx| io.poll(context, cx)).expect("a write");
}

fn free(device: &Device, context: &mut WorkerContext, page: u64) {
    let sector = page * SECTORS_PER_PAGE;
    let payload = Buffer(Vec::new());
    let mut io = device.request(Op::Discard, sector, PAGE_SIZE as u64, payload).expect("in range");
    sync::block_on(|cx| io.poll(context, cx)).expect("a discard");
}

fn read(device: &Device, context: &mut WorkerContext, page: u64) -> Option<Vec<u8>> {
    let (sector, payload) = (page * SECTORS_PER_PAGE, Buffer(vec![0xee; PAGE_SIZE]));
    let mut io = device.request(Op::Read, sector, PAGE_SIZE as u64, payload).expect("in range");
    let done = sync::block_on(|cx| io.poll(context, cx));
    done.is_ok().then(|| io.into_payload().0)
}

/// Damages a state as `input` says, opens it, and sees that it is refused, or that each of its pages
/// is an error or as it was, and can be written. Returns whether it was opened.
pub fn damaged_state(input: &[u8]) -> bool {
    let mut files = STATE.each_ref().map(Image::file);
    let steps: Vec<[u8; 5]> =
        input.chunks_exact(5).filter_map(|step| step.try_into().ok()).take(64).collect();
    let choice = steps.first().map_or(0, |step| step[4]);
    // An intent says that a slot may have either of two sums: damage of both at once could match. And
    // a slot whose word and sum are both lost is an empty one.
    let intents = choice & 1 == 1;
    let lost = [None, Some(Lost::Words), Some(Lost::Sums), None][usize::from(choice >> 1 & 3)];
    for (number, step) in steps.iter().enumerate() {
        damage(&mut files, *step, hash((input, number)), intents, lost);
    }
    let Ok(device) = open(files, usize::from(choice >> 3 & 1)) else { return false };
    let mut context = device.worker_context().expect("context");
    for page in 0..PAGES {
        if let Some(found) = read(&device, &mut context, page) {
            assert!(found == contents(page), "page {page} is another one: {steps:?}");
        }
    }
    // What is damaged can be replaced, and what is not stays.
    for page in (0..PAGES).step_by(2) {
        write(&device, &mut context, page, noise(page + 2000, PAGE_SIZE / 2));
    }
    for page in 0..PAGES {
        let found = read(&device, &mut context, page);
        match page % 2 {
            0 => assert!(found == Some(noise(page + 2000, PAGE_SIZE / 2)), "page {page} is lost"),
            _ => assert!(found.is_none_or(|found| found == contents(page)), "page {page} is wrong"),
        }
        free(&device, &mut context, page);
        assert!(read(&device, &mut context, page) == Some(vec![0; PAGE_SIZE]), "page {page} stays");
    }
    true
}

/// What part of the table may be lost as a whole.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Lost {
    Words,
    Sums,
}

/// Does one piece of damage.
fn damage(files: &mut [File; 3], step: [u8; 5], random: u64, intents: bool, lost: Option<Lost>) {
    let [what, a, b, c, d] = step;
    let (at, other) =
        (u64::from(u16::from_le_bytes([a, b])), u64::from(u16::from_le_bytes([c, d])));
    let [superblock, table, arena] = files;
    let some = (random as u8).max(1);
    match what % 11 {
        0 => flip(superblock, at % HEADER, some),
        1 => {
            flip(superblock, at % HEADER, some);
            sum_again(superblock);
        }
        2 if intents => flip(superblock, TABLE_END + at % (2 * HOST_PAGE - TABLE_END), some),
        3 if !intents => flip(table, STATE[1].offset(at), some),
        4 if !intents && lost.is_none() => {
            let (first, second) = (at % PAGES, other % PAGES);
            swap(table, first * 8, second * 8, 8);
            let sums = [first, second].map(|page| *SUMS + page * 4);
            // An empty slot has no sum: a slot that gets its word and its sum is an empty one.
            if random & 1 == 1 && !sums.iter().any(|sum| is_zero(table, *sum)) {
                swap(table, sums[0], sums[1], 4);
            }
        }
        5 if !intents => flip(arena, STATE[2].offset(at << 16 | other), some),
        6 => {
            let file = other as usize % 3;
            let page = STATE[file].offset(at << 8) / HOST_PAGE * HOST_PAGE;
            let mode = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            let may_go = match page {
                0 => lost == Some(Lost::Words),
                page if page == *SUMS => lost == Some(Lost::Sums),
                _ => true,
            };
            if file != 1 || may_go {
                let (page, len) = (page.cast_signed(), HOST_PAGE.cast_signed());
                let _ = fallocate(&files[file], mode, page, len);
            }
        }
        7 => {
            let file = &files[other as usize % 3];
            let len = file.metadata().expect("length").len();
            file.set_len(len.saturating_sub(at)).expect("cut");
            if random & 1 == 1 {
                file.set_len(len).expect("stretch");
            }
        }
        // Locks of a process that was killed.
        8 => {
            let mut word = [0; 8];
            if table.read_exact_at(&mut word, at % PAGES * 8).is_ok() {
                word[0] |= some & 3;
                // Marks of upkeep, which an object alone has: what a job claimed and did not end, too.
                if word[0] & 0b1100 == 0b1000 {
                    word[0] |= some & 0b111_0000;
                }
                table.write_all_at(&word, at % PAGES * 8).expect("write");
            }
        }
        9 => flip(superblock, HEADER + at % (TABLE_END - HEADER), some),
        // Anything but the name of an algorithm, which a matching sum would make another one.
        10 => {
            let number = at % 16;
            let entry = HEADER + number * ENTRY;
            flip(superblock, entry + 32 + other % 32, some);
            use_entry(superblock, number, entry);
        }
        _ => {}
    }
}

/// Makes the sum of a codec's entry match; one that was free has a name then.
fn use_entry(superblock: &File, number: u64, entry: u64) {
    let mut bytes = [0; ENTRY as usize];
    if superblock.read_exact_at(&mut bytes, entry).is_err() {
        return;
    }
    if bytes[8] == 0 {
        let name = CODECS[number as usize % CODECS.len()].as_bytes();
        bytes[8..8 + name.len()].copy_from_slice(name);
    }
    let summed = [&[number as u8], &bytes[8..]].concat();
    bytes[..4].copy_from_slice(&crc32fast::hash(&summed).to_le_bytes());
    bytes[4..8].copy_from_slice(b"used");
    superblock.write_all_at(&bytes, entry).expect("write");
}

fn flip(file: &File, at: u64, bits: u8) {
    let mut byte = [0];
    if file.read_exact_at(&mut byte, at).is_ok() {
        file.write_all_at(&[byte[0] ^ bits], at).expect("write");
    }
}

fn swap(file: &File, a: u64, b: u64, len: usize) {
    let (mut first, mut second) = (vec![0; len], vec![0; len]);
    if file.read_exact_at(&mut first, a).is_ok() && file.read_exact_at(&mut second, b).is_ok() {
        file.write_all_at(&first, b).expect("write");
        file.write_all_at(&second, a).expect("write");
    }
}

fn is_zero(file: &File, at: u64) -> bool {
    let mut sum = [0; 4];
    file.read_exact_at(&mut sum, at).is_err() || sum == [0; 4]
}

/// Makes the superblock's check sum match, so that what it says is read.
fn sum_again(superblock: &File) {
    let mut header = vec![0; HEADER as usize];
    if superblock.read_exact_at(&mut header, 0).is_err() {
        return;
    }
    header[12..16].fill(0);
    let sum = crc32fast::hash(&header).to_le_bytes();
    superblock.write_all_at(&sum, 12).expect("write");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_that_is_not_damaged_is_opened() {
        assert!(damaged_state(&[]));
        // Locks alone are not damage.
        assert!(damaged_state(&[8, 7, 0, 0, 0, 8, 9, 0, 0, 0]));
    }

    #[test]
    fn a_damaged_state_shows_nothing_wrong() {
        const INPUTS: u64 = 400;
        let mut opened = 0;
        for seed in 0..INPUTS {
            let steps = 1 + hash(seed) % 6;
            let input: Vec<u8> =
                (0..steps).flat_map(|step| hash((seed, step)).to_le_bytes()).collect();
            opened += u64::from(damaged_state(&input));
        }
        // Both ends of it are of interest.
        assert!((INPUTS / 50..INPUTS).contains(&opened), "{opened} of {INPUTS} opened");
    }
}
