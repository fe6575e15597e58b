//! Why a state is not opened.

use std::io;
use std::path::PathBuf;

use super::StoreError;
use super::superblock::VERSION;
use crate::units::BlockSize;

/// Why a state cannot be opened or made. Nothing of what was there is changed then.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The state does not exist, and is not to be made.
    #[error("there is no state in {home} (--create makes one)")]
    None {
        /// Where it was searched for.
        home: String,
    },
    /// The directory cannot be had.
    #[error("the state directory {} cannot be used", path.display())]
    Directory {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The directory is on a disk.
    #[error("the state directory {} is not on a tmpfs, such as /run or /dev/shm", .0.display())]
    NotTmpfs(PathBuf),
    /// The directory is a symbolic link that another user made, and may lead anywhere.
    #[error("the state directory {} is a symbolic link of user {owner}", path.display())]
    Link {
        /// Its path.
        path: PathBuf,
        /// Number of the user it belongs to.
        owner: u32,
    },
    /// Directory or file belong to another user.
    #[error(
        "the {name} belongs to user {found}, and the daemon is user {own} (--state-owner {found} \
         accepts it)"
    )]
    Owner {
        /// Which of them.
        name: String,
        /// Number of the user it belongs to.
        found: u32,
        /// Number of the process's user.
        own: u32,
    },
    /// Others than the owner can use it.
    #[error("other users can access the {name}: its mode is {found:o} instead of {wanted:o}")]
    Mode {
        /// Directory or file.
        name: String,
        /// Its permissions.
        found: u32,
        /// What they should be.
        wanted: u32,
    },
    /// A file has other names, or none.
    #[error("the state's {what} has {names} hard links instead of one")]
    Names {
        /// Which file.
        what: &'static str,
        /// How many it has.
        names: u64,
    },
    /// Another daemon has it.
    #[error("the state in {home} is in use by another daemon")]
    InUse {
        /// Where it is.
        home: String,
    },
    /// A file of it is not there.
    #[error("the state in {home} has lost its {what}")]
    Lost {
        /// Where it is.
        home: String,
        /// Which file.
        what: &'static str,
    },
    /// Its making was interrupted, so nothing was ever stored in it by a guest.
    #[error("the state in {home} was never finished (--create makes it anew)")]
    Unfinished {
        /// Where it is.
        home: String,
    },
    /// It is of another version of the format.
    #[error(
        "the state has format version {found}, and this program reads and writes version {VERSION} only"
    )]
    Version {
        /// Its version.
        found: u32,
    },
    /// It uses what this program does not know.
    #[error("the state uses features {unknown:#x}, which this program does not know")]
    Features {
        /// Their bits.
        unknown: u64,
    },
    /// The disk was never so small.
    #[error(
        "the state is of a disk of {found} bytes, and {wanted} bytes are asked for: a disk does not shrink"
    )]
    Size {
        /// Bytes of the disk in the state.
        found: u64,
        /// Bytes that were asked for.
        wanted: u64,
    },
    /// It has no room for so large a disk.
    #[error(
        "the state is of a disk of {found} bytes with room for {room} bytes, and {wanted} bytes are asked for"
    )]
    Room {
        /// Bytes of the disk in the state.
        found: u64,
        /// The most bytes that it can grow to.
        room: u64,
        /// Bytes that were asked for.
        wanted: u64,
    },
    /// The disk has another logical block.
    #[error(
        "the state is of a disk with blocks of {found} bytes, and blocks of {wanted} bytes are asked for"
    )]
    BlockSize {
        /// Logical block of the disk in the state.
        found: BlockSize,
        /// What was asked for.
        wanted: BlockSize,
    },
    /// It has pages that this program cannot decompress.
    #[error("the state has pages compressed by {name}, which this program does not know")]
    UnknownCodec {
        /// The codec, as its entry in the superblock says.
        name: String,
    },
    /// No entry of the codec table can be had for another codec.
    #[error(
        "{wanted} cannot be added to the state's codec table, which is full: the state has pages of \
         {found}"
    )]
    NoRoomForCodec {
        /// What was asked for.
        wanted: String,
        /// What is there.
        found: String,
    },
    /// A file that was handed over lies on a disk.
    #[error("the state's {what} is not in memory")]
    NotMemory {
        /// Which file.
        what: &'static str,
    },
    /// A file belongs to another disk.
    #[error("the state's {what} is of another disk")]
    Foreign {
        /// Which file.
        what: &'static str,
    },
    /// A file is not what it should be.
    #[error("the state is damaged: {what}")]
    Damaged {
        /// What is wrong.
        what: &'static str,
    },
    /// Words exist, and their check sums do not.
    #[error("the state is damaged: the check sums of slot {index} and those after it are gone")]
    NoSums {
        /// The first slot of them.
        index: u64,
    },
    /// A check sum says that there was a word, and it does not exist.
    #[error("the state is damaged: the word of slot {index} is gone, and its check sum is not")]
    NoWords {
        /// The first such slot.
        index: u64,
    },
    /// A file cannot be made or read.
    #[error("the state's {what} cannot be used")]
    File {
        /// Which file.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A mapping of it.
    #[error(transparent)]
    Store(StoreError),
}

impl From<StoreError> for StateError {
    fn from(error: StoreError) -> Self {
        StateError::Store(error)
    }
}
