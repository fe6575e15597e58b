//! The shared mappings of one disk: the words of its slot table, and the arena of its objects; and
//! its state, if they are to outlive the process.
//!
//! The only room that maps the disk's memory. It knows nothing of what lies in table and arena, only
//! that they are sparse: what was never written takes no memory, and what was released gives it back.

// Under loom the slot lock alone is built, which needs no more than a place.
#[cfg(not(any(loom, shuttle)))]
mod arena;
#[cfg(not(any(loom, shuttle)))]
mod barrier;
#[cfg(all(test, not(any(loom, shuttle))))]
mod codec_tests;
mod error;
#[cfg(not(any(loom, shuttle)))]
mod home;
#[cfg(not(any(loom, shuttle)))]
mod kind;
#[cfg(not(any(loom, shuttle)))]
mod mapping;
mod place;
#[cfg(not(any(loom, shuttle)))]
mod refusal;
#[cfg(all(test, not(any(loom, shuttle))))]
pub(crate) mod scratch;
#[cfg(not(any(loom, shuttle)))]
mod state;
#[cfg(all(test, not(any(loom, shuttle))))]
mod state_tests;
#[cfg(not(any(loom, shuttle)))]
mod superblock;
#[cfg(all(test, not(any(loom, shuttle))))]
mod tests;
#[cfg(not(any(loom, shuttle)))]
mod words;

#[cfg(not(any(loom, shuttle)))]
pub use arena::Arena;
#[cfg(not(any(loom, shuttle)))]
pub use barrier::Barrier;
pub use error::StoreError;
#[cfg(not(any(loom, shuttle)))]
pub use kind::MemoryKind;
#[cfg(not(any(loom, shuttle)))]
pub use mapping::Notes;
pub use place::Place;
#[cfg(not(any(loom, shuttle)))]
pub use refusal::StateError;
#[cfg(not(any(loom, shuttle)))]
pub use state::State;
#[cfg(not(any(loom, shuttle)))]
pub use superblock::{CODECS, CodecEntry, Format, INTENTS};
#[cfg(not(any(loom, shuttle)))]
pub use words::{WORDS_PER_PAGE, Words};

/// Bytes of a page of host memory, the grain in which mappings come and go.
#[cfg(not(any(loom, shuttle)))]
pub(crate) const HOST_PAGE: u64 = 4096;
