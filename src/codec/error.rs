use thiserror::Error;

use super::{PAGE_SIZE, spec::CodecSpec, spec::SpecError};

/// What can go wrong in a codec.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum CodecError {
    /// A parameter of the spec is out of range.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The library could not set up a context: memory, or a library without the feature.
    #[error("cannot set up a context for {spec}: {reason}")]
    Setup {
        /// For what.
        spec: CodecSpec,
        /// The library's own words.
        reason: &'static str,
    },
    /// A slot word names a codec that the disk's table does not have.
    #[error("the disk's codec table has no entry {number}")]
    NoEntry {
        /// The number in the word.
        number: u8,
    },
    /// All entries of the disk's codec table are taken.
    #[error("{wanted} cannot be added to the disk's codec table, which is full: it has {found}")]
    NoRoom {
        /// What was to be added.
        wanted: CodecSpec,
        /// What it has.
        found: String,
    },
    /// Compression failed for a reason other than the size of the object.
    #[error("{algorithm} cannot compress a page: {reason}")]
    Compress {
        /// Name of the algorithm.
        algorithm: &'static str,
        /// The library's own words.
        reason: &'static str,
    },
    /// The object does not decode.
    #[error("an object of {len} bytes is not a page compressed by {algorithm}: {reason}")]
    Corrupt {
        /// Name of the algorithm.
        algorithm: &'static str,
        /// Bytes in the object.
        len: usize,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The object decodes, but to less than a page.
    #[error(
        "an object of {algorithm} decompresses to {decoded} bytes instead of the {PAGE_SIZE} of a page"
    )]
    NotAPage {
        /// Name of the algorithm.
        algorithm: &'static str,
        /// Bytes that came out, fewer than [`PAGE_SIZE`].
        decoded: usize,
    },
}
