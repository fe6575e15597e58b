//! What can go wrong with the mappings and files of a disk.

use std::io;
use std::path::PathBuf;

use super::superblock::VERSION;

/// What can go wrong with the mappings.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A mapping could not be made.
    #[error("cannot map {bytes} bytes of shared memory for the {what}")]
    Map {
        /// Which mapping.
        what: &'static str,
        /// Its size.
        bytes: u64,
        /// Why.
        source: io::Error,
    },
    /// A mapping could not be locked in memory.
    #[error("the {what} cannot be locked in memory")]
    Lock {
        /// Which mapping.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The host has no memory for pages that are to be written.
    #[error("the host has no memory for {bytes} more bytes")]
    Populate {
        /// How much was asked for.
        bytes: u64,
        /// Why.
        source: io::Error,
    },
    /// The file system does not say which pages exist.
    #[error("it cannot be found out which pages of the {what} exist")]
    Look {
        /// Which mapping.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// Words do not exist, and their check sums do.
    #[error("slot {index} and those after it are gone")]
    NoWords {
        /// The first slot of them.
        index: u64,
    },
    /// Words exist, and their check sums do not.
    #[error("the check sums of slot {index} and those after it are gone")]
    NoSums {
        /// The first slot of them.
        index: u64,
    },
}

/// Why a state cannot be opened or made. Nothing of what was there is changed then.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// There is none, and none is to be made.
    #[error("there is no state in {home} (--create makes one)")]
    None {
        /// Where it was looked for.
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
    #[error("{} is not on a tmpfs", .0.display())]
    NotTmpfs(PathBuf),
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
    #[error("the state is of format version {found}, and this program knows version {VERSION}")]
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
    /// The disk has another size.
    #[error("the state is of a disk of {found} bytes, not of {wanted}")]
    Size {
        /// Bytes of the disk in the state.
        found: u64,
        /// Bytes that were asked for.
        wanted: u64,
    },
    /// The disk has other codecs.
    #[error("the state is of a disk compressed by {found}, not by {wanted}")]
    Codecs {
        /// Codecs of the disk in the state.
        found: String,
        /// What was asked for.
        wanted: String,
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
