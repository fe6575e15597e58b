//! What can go wrong in a pool.

use crate::store::StoreError;

/// Why an object could not be stored. The pool is unchanged.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// Committing more memory would exceed the limit.
    #[error("the memory limit of {limit} bytes is reached")]
    Limit {
        /// The limit, in bytes.
        limit: u64,
    },
    /// Committing more memory would leave the host less than its reserve.
    #[error("the host is short of memory")]
    HostShort,
    /// All address space of the arena is in use.
    #[error("the arena's address space of {bytes} bytes is used up")]
    AddressSpace {
        /// Its size.
        bytes: u64,
    },
    /// The host has no memory.
    #[error("the arena cannot grow")]
    Store(#[from] StoreError),
}

/// Why a pool cannot be rebuilt from the objects that a table names: the table or the arena is
/// damaged, or the host does not help.
#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    /// No object of this length can start at this place.
    #[error("no object of {length} bytes can start at byte {offset} of the arena")]
    Place {
        /// Where it is said to be, in bytes.
        offset: u64,
        /// Its length.
        length: usize,
    },
    /// Two objects lie in the same place, or a region holds objects of two classes.
    #[error("the object at byte {offset} of the arena lies where another one is")]
    Overlap {
        /// Where it is said to be, in bytes.
        offset: u64,
    },
    /// Objects lie on pages that do not exist.
    #[error(
        "of the {len} bytes at byte {offset} of the arena, which hold objects, some do not exist"
    )]
    Missing {
        /// Where they begin, in bytes.
        offset: u64,
        /// How many they are.
        len: u64,
    },
    /// The host does not say which pages exist, or does not take back what no object uses.
    #[error(transparent)]
    Store(#[from] StoreError),
}
