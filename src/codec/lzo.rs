//! LZO1X by a library in Rust, which is not derived from the reference one.

use std::fmt;

use lzokay::compress::{Dict, compress_no_alloc, compress_worst_size};
use lzokay::decompress::decompress as expand;

use super::{CodecError, PAGE_SIZE, Page, spec::LZO};

/// The library wants room for the worst case before it starts.
const BOUND: usize = compress_worst_size(PAGE_SIZE);

pub(super) struct Lzo {
    tables: Box<Dict>,
    /// Where objects are made whose limit is under the worst case, which is to say all.
    made: Box<[u8; BOUND]>,
}

impl Lzo {
    pub(super) fn new() -> Self {
        Self { tables: Dict::new(), made: Box::new([0; BOUND]) }
    }

    pub(super) fn compress(
        &mut self,
        page: &Page,
        out: &mut [u8],
    ) -> Result<Option<usize>, CodecError> {
        let len = compress_no_alloc(page, &mut self.made[..], &mut self.tables)
            .map_err(|_| CodecError::Compress { algorithm: LZO, reason: "the library fails" })?;
        let Some(out) = out.get_mut(..len) else { return Ok(None) };
        out.copy_from_slice(&self.made[..len]);
        Ok(Some(len))
    }
}

pub(super) fn decompress(object: &[u8], page: &mut Page) -> Result<(), CodecError> {
    match expand(object, page) {
        Ok(PAGE_SIZE) => Ok(()),
        Ok(decoded) => Err(CodecError::NotAPage { algorithm: LZO, decoded }),
        Err(error) => {
            Err(CodecError::Corrupt { algorithm: LZO, len: object.len(), reason: reason(error) })
        }
    }
}

fn reason(error: lzokay::Error) -> &'static str {
    match error {
        lzokay::Error::LookbehindOverrun => "a match lies before the page",
        lzokay::Error::OutputOverrun => "it holds more than a page",
        lzokay::Error::InputOverrun => "it ends too early",
        lzokay::Error::InputNotConsumed => "bytes follow its end",
        lzokay::Error::Error => "it is damaged",
    }
}

impl fmt::Debug for Lzo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lzo").finish_non_exhaustive()
    }
}
