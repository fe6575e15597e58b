//! The shared mappings of one disk: the words of its slot table, and the arena of its objects.
//!
//! The only room that maps memory. It knows nothing of what lies in the mappings, only that they
//! are sparse: what was never written takes no memory, and what was released gives it back.

// Under loom the slot lock alone is built, which needs no more than a place.
#[cfg(not(any(loom, shuttle)))]
mod arena;
#[cfg(not(any(loom, shuttle)))]
mod kind;
#[cfg(not(any(loom, shuttle)))]
mod mapping;
mod place;
#[cfg(all(test, not(any(loom, shuttle))))]
mod tests;
#[cfg(not(any(loom, shuttle)))]
mod words;

#[cfg(not(any(loom, shuttle)))]
pub use arena::Arena;
#[cfg(not(any(loom, shuttle)))]
pub use kind::MemoryKind;
pub use place::Place;
#[cfg(not(any(loom, shuttle)))]
pub use words::Words;

/// Bytes of a page of host memory, the grain in which mappings come and go.
#[cfg(not(any(loom, shuttle)))]
pub(crate) const HOST_PAGE: u64 = 4096;

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
        source: std::io::Error,
    },
    /// A mapping could not be locked in memory.
    #[error("the {what} cannot be locked in memory")]
    Lock {
        /// Which mapping.
        what: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// The host has no memory for pages that are to be written.
    #[error("the host has no memory for {bytes} more bytes")]
    Populate {
        /// How much was asked for.
        bytes: u64,
        /// Why.
        source: std::io::Error,
    },
}
