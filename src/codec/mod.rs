//! One page in, bytes out: compression algorithms and their parameters.
//!
//! A [`CodecSpec`] is what the user asked for, a [`Codec`] is a spec that was checked. A disk has a
//! [`CodecTable`] of up to [`ENTRIES`] of them: each object is decompressed by the entry that its slot
//! word names, and new objects are compressed by the primary entry. A [`Workspace`] is what one thread
//! needs to use any of them. The module knows nothing of slots, pools or guests; to the rest of the
//! crate a codec is a function from 4096 bytes to fewer and back.
//!
//! * `spec`: names, parameters, their ranges, parsing and printing
//! * `table`: the codecs of one disk
//! * `workspace`: the libraries' contexts of one thread
//! * `lz4`: the reference C library; the only file here with `unsafe`
//! * `lz4_flex`: the same format in Rust
//! * `deflate`, `lzo`: libraries in Rust
//! * `zstd`: the reference C library, with frames cut down to what a page needs
//! * `error`: what can go wrong
//!
//! What a codec writes for a page depends on the page, the spec and the library version alone,
//! never on what the workspace did before.

mod deflate;
mod error;
mod lz4;
mod lz4_flex;
mod lzo;
mod spec;
mod table;
#[cfg(test)]
mod tests;
mod workspace;
mod zstd;

use vm_memory::VolatileSlice;

use crate::checker;
use crate::units::{PAGE_SIZE, Page};

use self::workspace::Compressor;
pub use self::{
    error::CodecError,
    spec::{ALGORITHMS, CodecSpec, SpecError},
    table::{CodecTable, ENTRIES},
    workspace::Workspace,
};

/// An algorithm with its parameters, and its number in a disk's [`CodecTable`]: immutable, used by any
/// number of threads.
#[derive(Clone, Copy, Debug)]
pub struct Codec {
    spec: CodecSpec,
    number: u8,
}

impl Codec {
    /// The codec of a table whose only entry, 0, is `spec`.
    ///
    /// # Errors
    /// A parameter is out of range.
    pub fn new(spec: CodecSpec) -> Result<Self, CodecError> {
        Self::numbered(spec, 0)
    }

    /// The codec of a table's entry `number`, below [`ENTRIES`].
    ///
    /// # Errors
    /// A parameter is out of range.
    pub fn numbered(spec: CodecSpec, number: u8) -> Result<Self, CodecError> {
        spec.check()?;
        Ok(Self { spec, number })
    }

    /// The spec this codec was made of.
    pub fn spec(&self) -> CodecSpec {
        self.spec
    }

    /// The entry of the codec table that a slot word names, below [`ENTRIES`].
    pub fn number(&self) -> u8 {
        self.number
    }

    /// A workspace with all that one thread needs to use this codec: 16 KiB for lz4, 13 KiB for
    /// lz4-flex, 256 KiB for lz4hc, some 180 KiB for deflate, 450 KiB for lzo, for zstd about 165 KiB at level 1
    /// and 365 KiB from level 12 on. Using it with this codec allocates nothing.
    ///
    /// # Errors
    /// The library cannot set up its contexts.
    pub fn workspace(&self) -> Result<Workspace, CodecError> {
        let mut workspace = Workspace::default();
        workspace.compressor(self)?;
        match self.spec {
            CodecSpec::Zstd { .. } => drop(workspace.zstd(self.spec)?),
            CodecSpec::Deflate { .. } => drop(workspace.deflate()),
            _ => {}
        }
        Ok(workspace)
    }

    /// Compresses `page` into `out` and says how many bytes of it are the object, or `None` if
    /// the object is longer than `out`: the caller then stores the page as it is.
    ///
    /// `out.len()` is the caller's limit; nothing beyond it is touched. What lies in `out` behind
    /// the object, or after `None`, is unspecified. The tighter the limit, the sooner the lz4
    /// library abandons a page that will not fit; the others find out at the end.
    ///
    /// # Errors
    /// The library fails, or cannot set up a context.
    pub fn compress(
        &self,
        ws: &mut Workspace,
        page: &Page,
        out: &mut [u8],
    ) -> Result<Option<usize>, CodecError> {
        checker::might_sleep("compressing");
        match ws.compressor(self)? {
            Compressor::Lz4(lz4) => Ok(lz4.compress(page, out)),
            Compressor::Lz4Flex(flex) => Ok(flex.compress(page, out)),
            Compressor::Lz4Hc(lz4) => Ok(lz4.compress(page, out)),
            Compressor::Zstd(zstd) => zstd.compress(page, out),
            Compressor::Deflate(deflate) => deflate.compress(page, out),
            Compressor::Lzo(lzo) => lzo.compress(page, out),
        }
    }

    /// Decompresses `object`, made by a codec of the same algorithm with whatever parameters,
    /// into `page`.
    ///
    /// An object that is cut short, overlong, damaged or made up is an error, or decodes to some
    /// other page, in which bytes that `page` held before may show; it never reads or writes out
    /// of bounds. After an error `page` is unspecified.
    ///
    /// # Errors
    /// The object does not decode to a page, or the library cannot set up a context.
    pub fn decompress(
        &self,
        ws: &mut Workspace,
        object: &[u8],
        page: &mut Page,
    ) -> Result<(), CodecError> {
        checker::might_sleep("decompressing");
        match self.spec {
            CodecSpec::Lz4 { .. } | CodecSpec::Lz4Hc { .. } => lz4::decompress(object, page),
            CodecSpec::Lz4Flex => lz4_flex::decompress(object, page),
            CodecSpec::Zstd { .. } => ws.zstd(self.spec)?.decompress(object, page),
            CodecSpec::Deflate { winbits, .. } => {
                ws.deflate().decompress(winbits > 0, object, page)
            }
            CodecSpec::Lzo => lzo::decompress(object, page),
        }
    }

    /// Whether [`Self::decompress_shared`] works. Only lz4's decoder is known to take nothing from its output
    /// that decides where it reads or writes (docs/adr/0010).
    pub fn writes_shared(&self) -> bool {
        matches!(self.spec, CodecSpec::Lz4 { .. } | CodecSpec::Lz4Hc { .. })
    }

    /// Decompresses `object` straight into `place`, a page of memory that another process may write at the
    /// same time.
    ///
    /// # Errors
    /// The object does not decode to a page, `place` is not as long as one, or the codec cannot do this.
    pub fn decompress_shared(
        &self,
        object: &[u8],
        place: &VolatileSlice<'_>,
    ) -> Result<(), CodecError> {
        checker::might_sleep("decompressing");
        match self.spec {
            CodecSpec::Lz4 { .. } | CodecSpec::Lz4Hc { .. } => {
                lz4::decompress_shared(object, place)
            }
            spec => Err(CodecError::Setup { spec, reason: "it cannot write to shared memory" }),
        }
    }
}
