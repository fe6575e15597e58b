//! What can go wrong with the mappings of a disk.

use std::io;

/// What to do where not everything may be locked. The kernel counts the address space, not what
/// exists of it.
fn advice(limit: Option<u64>) -> String {
    limit.map_or_else(String::new, |limit| {
        format!(
            ", for RLIMIT_MEMLOCK is {limit} bytes: raise it (ulimit -l unlimited, \
             LimitMEMLOCK=infinity)"
        )
    })
}

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
    #[error("the {what} ({bytes} bytes of address space) cannot be locked in memory{}", advice(*limit))]
    Lock {
        /// Which mapping.
        what: &'static str,
        /// Its size.
        bytes: u64,
        /// Bytes that the process may lock, if that is limited.
        limit: Option<u64>,
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
    #[error("cannot determine which pages of the {what} exist")]
    Look {
        /// Which mapping.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The host does not take pages back.
    #[error("pages of the {what} cannot be given back to the host")]
    Release {
        /// Which mapping.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
}
