//! LZ4 by a library in Rust: the same block format, so either lz4 reads what the other wrote.
//!
//! Built with the library's `safe-encode` and `safe-decode`, under which it forbids `unsafe`; its
//! safe decoder is the faster one, too (docs/adr/0002).

use std::fmt;

use lz4_flex::block::{self, CompressTable, DecompressError};

use super::{CodecError, PAGE_SIZE, Page, spec::LZ4_FLEX};

/// The library wants room for the worst case before it starts.
const BOUND: usize = block::get_maximum_output_size(PAGE_SIZE);

pub(super) struct Lz4Flex {
    table: CompressTable,
    /// Where objects are made whose limit is under the worst case, which is to say all.
    made: Box<[u8; BOUND]>,
}

impl Lz4Flex {
    pub(super) fn new() -> Self {
        Self { table: CompressTable::small(), made: Box::new([0; BOUND]) }
    }

    pub(super) fn compress(&mut self, page: &Page, out: &mut [u8]) -> Option<usize> {
        // The library fails on too little room only, and BOUND is room enough. If ever it did fail,
        // the page would be stored raw.
        let len =
            block::compress_into_with_table(page, &mut self.made[..], &mut self.table).ok()?;
        out.get_mut(..len)?.copy_from_slice(&self.made[..len]);
        Some(len)
    }
}

pub(super) fn decompress(object: &[u8], page: &mut Page) -> Result<(), CodecError> {
    match block::decompress_into(object, page) {
        Ok(PAGE_SIZE) => Ok(()),
        Ok(decoded) => Err(CodecError::NotAPage { algorithm: LZ4_FLEX, decoded }),
        Err(error) => Err(CodecError::Corrupt {
            algorithm: LZ4_FLEX,
            len: object.len(),
            reason: reason(&error),
        }),
    }
}

fn reason(error: &DecompressError) -> &'static str {
    match error {
        DecompressError::OutputTooSmall { .. } => "it holds more than a page",
        DecompressError::LiteralOutOfBounds => "its literals end outside of it",
        DecompressError::ExpectedAnotherByte => "it ends too early",
        DecompressError::OffsetZero => "a match has the offset 0",
        DecompressError::OffsetOutOfBounds => "a match lies before the page",
        _ => "it is damaged",
    }
}

impl fmt::Debug for Lz4Flex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lz4Flex").finish_non_exhaustive()
    }
}
