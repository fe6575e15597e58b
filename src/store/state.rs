//! A state: the files of a disk that outlives its process, opened by one daemon at a time.
//!
//! Three files, named `superblock`, `table` and `arena` in a directory on a tmpfs, or without names
//! and handed from one process to the next as descriptors. The last page of table and arena is their
//! *seal*, which says which state they belong to:
//!
//! ```text
//!    0  magic "vuztable" or "vuzarena"
//!    8  le32 version, 2
//!   12  le32 CRC-32 of the 48 bytes, with these four as zero
//!   16  16 bytes, as in the superblock
//!   32  le64 bytes of the file before this page
//!   40  8 bytes of zero
//! ```
//!
//! The superblock comes first when a state is made, and says that it is being made until all of it is
//! there; so a superblock that is missing was lost, and one that says so was never served from.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, Flock, FlockArg, SealFlag, fallocate, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};

use super::home::Home;
use super::superblock::{
    self, CodecEntries, CodecEntry, Format, Id, Superblock, VERSION, le32, le64,
};
use super::words;
use super::{HOST_PAGE, StateError};
use crate::failpoint;
use crate::sync::{AtomicU64, Ordering};
use crate::units::PAGE_SIZE;

const SUPERBLOCK: &str = "superblock";
const TABLE: &str = "table";
const ARENA: &str = "arena";
const SEAL_BYTES: usize = 48;

/// An open state. While it lives no other process can open it: that fails at once, with
/// [`StateError::InUse`].
#[derive(Debug)]
pub struct State {
    superblock: Superblock,
    files: [Arc<File>; 3],
    format: Format,
    new: bool,
    locked: bool,
    /// On a description of the file that is ours alone: those of handed descriptors are shared with
    /// every process that keeps them.
    _lock: Flock<File>,
}

impl State {
    /// Opens the state in the directory `dir`; if `create`, makes it if it does not exist, and the
    /// directory too. If `locked`, its pages never leave memory once they exist. Directory and files
    /// belong to the process's user, or to the user with the number `owner`.
    ///
    /// # Errors
    /// See [`StateError`]: a state that is not whole, or not the one that is wanted, is refused.
    pub fn in_directory(
        dir: &Path,
        create: bool,
        wanted: &Format,
        locked: bool,
        owner: Option<u32>,
    ) -> Result<Self, StateError> {
        let home = Home::open(dir, create, owner)?;
        let name = home.name();
        // Until all is open: two daemons may want to make it.
        let turn = lock(home.handle()?, "directory", &name)?;
        let state = match [SUPERBLOCK, TABLE, ARENA].map(|what| home.has(what)) {
            [false, false, false] if create => Self::make(&home, wanted, locked),
            [false, false, false] => Err(StateError::None { home: name }),
            [false, ..] => Err(StateError::Lost { home: name, what: SUPERBLOCK }),
            [true, ..] => {
                let lost = || StateError::Lost { home: name.clone(), what: SUPERBLOCK };
                let superblock = home.file(SUPERBLOCK)?.ok_or_else(lost)?;
                let claimed = Claimed::new(superblock, &name, locked)?;
                if claimed.superblock.is_complete() {
                    let others = [home.file(TABLE)?, home.file(ARENA)?];
                    claimed.complete(others, &name, wanted, locked)
                } else if create {
                    Self::make(&home, wanted, locked)
                } else {
                    Err(StateError::Unfinished { home: name })
                }
            }
        };
        drop(turn);
        state
    }

    /// Opens a state from its files, in any order, as another process left them.
    ///
    /// # Errors
    /// See [`StateError`].
    pub fn from_files(
        files: Vec<File>,
        home: &str,
        wanted: &Format,
        locked: bool,
    ) -> Result<Self, StateError> {
        let mut found = [None, None, None];
        for file in files {
            let role = role_of(&file)?;
            let what = [SUPERBLOCK, TABLE, ARENA][role];
            // A memfd is a file of a tmpfs that is mounted nowhere.
            let kind =
                fstatfs(&file).map_err(|errno| StateError::File { what, source: errno.into() })?;
            if kind.filesystem_type() != TMPFS_MAGIC {
                return Err(StateError::NotMemory { what });
            }
            if found[role].replace(file).is_some() {
                return Err(StateError::Damaged { what: "two of its files are of the same kind" });
            }
        }
        let [superblock, table, arena] = found;
        let lost = StateError::Lost { home: home.into(), what: SUPERBLOCK };
        let claimed = Claimed::new(superblock.ok_or(lost)?, home, locked)?;
        if !claimed.superblock.is_complete() {
            return Err(StateError::Unfinished { home: home.into() });
        }
        claimed.complete([table, arena], home, wanted, locked)
    }

    /// A new state in files without names, which live as long as any process has their descriptors.
    ///
    /// # Errors
    /// See [`StateError`].
    pub fn without_names(home: &str, wanted: &Format, locked: bool) -> Result<Self, StateError> {
        let make = |what: &'static str| {
            let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
            let file = memfd_create(format!("zram-{what}").as_str(), flags);
            file.map(File::from).map_err(|errno| StateError::File { what, source: errno.into() })
        };
        let files = [make(SUPERBLOCK)?, make(TABLE)?, make(ARENA)?];
        Self::fill(files, home, wanted, locked)
    }

    fn make(home: &Home, wanted: &Format, locked: bool) -> Result<Self, StateError> {
        const NEW: &str = "superblock.new";
        let id = new_id()?;
        let superblock = home.make_file(NEW, SUPERBLOCK)?;
        write(&superblock, &wanted.encode(&id), 0, SUPERBLOCK)?;
        home.rename(NEW, SUPERBLOCK)?;
        failpoint::reach("create.superblock");
        let table = home.make_file(TABLE, TABLE)?;
        failpoint::reach("create.table");
        let arena = home.make_file(ARENA, ARENA)?;
        failpoint::reach("create.arena");
        Self::fill_others([superblock, table, arena], id, &home.name(), wanted, locked)
    }

    fn fill(
        files: [File; 3],
        home: &str,
        wanted: &Format,
        locked: bool,
    ) -> Result<Self, StateError> {
        let id = new_id()?;
        write(&files[0], &wanted.encode(&id), 0, SUPERBLOCK)?;
        let state = Self::fill_others(files, id, home, wanted, locked)?;
        for file in &state.files {
            // Another process that has the file cannot take pages away from this one by its length.
            let _ = fcntl(&**file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK));
        }
        Ok(state)
    }

    fn fill_others(
        files: [File; 3],
        id: Id,
        home: &str,
        wanted: &Format,
        locked: bool,
    ) -> Result<Self, StateError> {
        let [superblock, table, arena] = files;
        seal(&table, TABLE, &id, table_bytes(wanted)?)?;
        seal(&arena, ARENA, &id, wanted.arena_bytes)?;
        failpoint::reach("create.sealed");
        let claimed = Claimed::new(superblock, home, locked)?;
        let mut state = claimed.complete([Some(table), Some(arena)], home, wanted, locked)?;
        state.new = true;
        Ok(state)
    }

    /// Whether it was made just now, so that nothing is in it.
    pub fn is_new(&self) -> bool {
        self.new
    }

    /// What was fixed when it was made, and the size of its disk when it was opened.
    pub fn format(&self) -> &Format {
        &self.format
    }

    /// From now on it counts as made; before, it is made anew the next time.
    pub fn set_complete(&self) {
        self.superblock.set_complete();
    }

    /// From now on it is empty when it is opened again, until [`Self::set_complete`].
    pub fn set_resetting(&self) {
        self.superblock.set_resetting();
    }

    /// The size of the disk when it was made, in bytes.
    pub fn made_size(&self) -> u64 {
        self.format.made_size()
    }

    /// The disk has `size` bytes from now on, a multiple of a page and at most [`Format::capacity`]: the next
    /// process finds it so, even if this one dies at once.
    pub fn set_size(&self, size: u64) {
        debug_assert!(size >= self.format.size && size <= self.format.capacity);
        self.superblock.set_size(size);
    }

    /// Whether a guest was ever served from it.
    pub fn has_served(&self) -> bool {
        self.superblock.has_served()
    }

    /// Says whether a guest was served from it.
    pub fn set_served(&self, served: bool) {
        self.superblock.set_served(served);
    }

    /// The codec table: slot words name its entries.
    ///
    /// # Errors
    /// An entry is damaged.
    pub fn codecs(&self) -> Result<CodecEntries, StateError> {
        self.superblock.codecs()
    }

    /// Makes the entry of this number, below [`super::CODECS`] and named by no slot, say this codec.
    /// From then on slots may name it.
    pub fn set_codec(&self, number: usize, entry: &CodecEntry) {
        self.superblock.set_codec(number, entry);
    }

    /// The two words of an intent, 0..[`super::INTENTS`].
    pub fn intent(&self, number: usize) -> [&AtomicU64; 2] {
        self.superblock.intent(number)
    }

    /// Its descriptors, to be kept for the next process.
    pub fn descriptors(&self) -> [BorrowedFd<'_>; 3] {
        self.files.each_ref().map(|file| file.as_fd())
    }

    /// Bytes of the superblock and of the arena's seal. The table's seal is counted with the table.
    pub fn bytes_beside(&self) -> u64 {
        self.superblock.file_bytes() + HOST_PAGE
    }

    pub(super) fn table(&self) -> &Arc<File> {
        &self.files[1]
    }

    pub(super) fn arena(&self) -> &Arc<File> {
        &self.files[2]
    }

    pub(super) fn is_locked(&self) -> bool {
        self.locked
    }
}

/// A superblock whose file lock this process has.
struct Claimed {
    file: Arc<File>,
    lock: Flock<File>,
    superblock: Superblock,
    format: Format,
    id: Id,
}

impl Claimed {
    fn new(file: File, home: &str, locked: bool) -> Result<Self, StateError> {
        let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        let again = OpenOptions::new().read(true).write(true).open(path);
        let again = again.map_err(|source| StateError::File { what: SUPERBLOCK, source })?;
        let lock = lock(again, SUPERBLOCK, home)?;
        let file = Arc::new(file);
        let (superblock, format, id) = Superblock::open(&file, locked)?;
        Ok(Self { file, lock, superblock, format, id })
    }

    /// Opens the rest, which has to be whole.
    fn complete(
        self,
        others: [Option<File>; 2],
        home: &str,
        wanted: &Format,
        locked: bool,
    ) -> Result<State, StateError> {
        let Self { file, lock, superblock, format, id } = self;
        // A command line outlives a growth, so all sizes since the disk was made are its own; and a larger one
        // is what it is to grow to.
        if wanted.size < format.made_size() {
            return Err(StateError::Size { found: format.size, wanted: wanted.size });
        }
        if wanted.size > format.capacity {
            let (found, room) = (format.size, format.capacity);
            return Err(StateError::Room { found, room, wanted: wanted.size });
        }
        if !format.capacity.is_multiple_of(PAGE_SIZE as u64) || format.size == 0 {
            return Err(StateError::Damaged {
                what: "the size of the disk is 0, or its room not a multiple of a page",
            });
        }
        if !format.arena_bytes.is_multiple_of(HOST_PAGE) || format.arena_bytes == 0 {
            return Err(StateError::Damaged {
                what: "the size of the arena is 0, or not a multiple of a page",
            });
        }
        let [table, arena] = others;
        let lost = |what| StateError::Lost { home: home.into(), what };
        let (table, arena) = (table.ok_or(lost(TABLE))?, arena.ok_or(lost(ARENA))?);
        check_seal(&table, TABLE, &id, table_bytes(&format)?)?;
        check_seal(&arena, ARENA, &id, format.arena_bytes)?;
        superblock.populate()?;
        if superblock.is_resetting() {
            log::info!("the reset of the disk that an earlier daemon began is finished");
            empty(&superblock, &table, table_bytes(&format)?, &arena, format.arena_bytes)?;
        }
        let files = [file, Arc::new(table), Arc::new(arena)];
        Ok(State { superblock, files, format, new: false, locked, _lock: lock })
    }
}

/// Takes all out of a state whose reset was not finished. The codec table stays.
fn empty(
    superblock: &Superblock,
    table: &File,
    table_bytes: u64,
    arena: &File,
    arena_bytes: u64,
) -> Result<(), StateError> {
    let clear = |file: &File, what, bytes: u64| {
        let mode = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(file, mode, 0, bytes.cast_signed())
            .map_err(|errno| StateError::File { what, source: errno.into() })
    };
    failpoint::reach("reset.found");
    // Words and sums first: no word may name an object that is gone.
    clear(table, TABLE, table_bytes)?;
    failpoint::reach("reset.table");
    clear(arena, ARENA, arena_bytes)?;
    failpoint::reach("reset.arena");
    for number in 0..super::INTENTS {
        let [what, _] = superblock.intent(number);
        what.store(0, Ordering::Release);
    }
    superblock.set_served(false);
    failpoint::reach("reset.noted");
    superblock.set_complete();
    Ok(())
}

/// Bytes of the table's file before its seal.
fn table_bytes(format: &Format) -> Result<u64, StateError> {
    let parts = words::parts(format.capacity.div_ceil(PAGE_SIZE as u64));
    let sum = parts.and_then(|[words, sums]| words.checked_add(sums));
    sum.ok_or(StateError::Damaged { what: "the size of the disk is too large for a table" })
}

/// Takes the lock that only one process may have. Never waits for it: the caller may retry.
fn lock(file: File, what: &'static str, home: &str) -> Result<Flock<File>, StateError> {
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        Errno::EWOULDBLOCK => StateError::InUse { home: home.into() },
        errno => StateError::File { what, source: errno.into() },
    })
}

fn write(file: &File, bytes: &[u8], at: u64, what: &'static str) -> Result<(), StateError> {
    file.write_all_at(bytes, at).map_err(|source| StateError::File { what, source })
}

fn new_id() -> Result<Id, StateError> {
    let mut id = Id::default();
    let read = File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut id));
    read.map_err(|source| StateError::File { what: SUPERBLOCK, source })?;
    Ok(id)
}

fn seal_bytes(what: &'static str, id: &Id, bytes: u64) -> [u8; SEAL_BYTES] {
    let mut seal = [0; SEAL_BYTES];
    seal[..3].copy_from_slice(b"vuz");
    seal[3..8].copy_from_slice(what.as_bytes());
    seal[8..12].copy_from_slice(&VERSION.to_le_bytes());
    seal[16..32].copy_from_slice(id);
    seal[32..40].copy_from_slice(&bytes.to_le_bytes());
    let sum = crc32fast::hash(&seal);
    seal[12..16].copy_from_slice(&sum.to_le_bytes());
    seal
}

fn seal(file: &File, what: &'static str, id: &Id, bytes: u64) -> Result<(), StateError> {
    file.set_len(bytes + HOST_PAGE).map_err(|source| StateError::File { what, source })?;
    write(file, &seal_bytes(what, id, bytes), bytes, what)
}

fn read_seal(file: &File, what: &'static str) -> Result<Option<[u8; SEAL_BYTES]>, StateError> {
    let fail = |source| StateError::File { what, source };
    let length = file.metadata().map_err(fail)?.len();
    let mut seal = [0; SEAL_BYTES];
    match length.checked_sub(HOST_PAGE) {
        Some(at) => file.read_exact_at(&mut seal, at).map_err(fail)?,
        None => return Ok(None),
    }
    Ok(Some(seal))
}

fn check_seal(file: &File, what: &'static str, id: &Id, bytes: u64) -> Result<(), StateError> {
    let damaged = |what| StateError::Damaged { what };
    let cut = || match what {
        TABLE => damaged("the table is cut short, or is not a table"),
        _ => damaged("the arena is cut short, or is not an arena"),
    };
    let seal = read_seal(file, what)?.ok_or_else(cut)?;
    if seal[..3] != *b"vuz" || seal[3..8] != *what.as_bytes() {
        return Err(cut());
    }
    if le32(&seal, 8) != Some(VERSION) {
        return Err(StateError::Version { found: le32(&seal, 8).unwrap_or(0) });
    }
    if seal[16..32] != *id {
        return Err(StateError::Foreign { what });
    }
    if le64(&seal, 32) != Some(bytes) || seal != seal_bytes(what, id, bytes) {
        return Err(cut());
    }
    Ok(())
}

/// Which of the three files this is. The seal first: what else is in an arena is up to the guest.
fn role_of(file: &File) -> Result<usize, StateError> {
    let seal = read_seal(file, SUPERBLOCK)?.unwrap_or([0; SEAL_BYTES]);
    match &seal[..8] {
        b"vuztable" => return Ok(1),
        b"vuzarena" => return Ok(2),
        _ => {}
    }
    let mut magic = [0; 8];
    match file.read_exact_at(&mut magic, 0) {
        Ok(()) if superblock::is_superblock(&magic) => Ok(0),
        _ => Err(StateError::Damaged {
            what: "one of its files is not a superblock, a table or an arena",
        }),
    }
}
