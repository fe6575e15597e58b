//! One page in, bytes out: compression algorithms and their parameters.
//!
//! A [`CodecSpec`] says what the user asked for, a [`Codec`] is that made ready and is shared by
//! all threads, a [`Workspace`] is what one thread needs to use it. The room knows nothing of
//! slots, pools or guests; to the rest of the crate a codec is a function from 4096 bytes to
//! fewer and back.
//!
//! * `spec`: names, parameters, their ranges, parsing and printing
//! * `lz4`: the reference C library; the only file here with `unsafe`
//! * `lz4_flex`: the same format in Rust
//! * `zstd`: the reference C library, with frames cut down to what a page needs
//! * `error`: what can go wrong
//!
//! What a codec writes for a page depends on the page, the spec and the library version alone,
//! never on what the workspace did before. Nothing allocates after [`Codec::workspace`].

mod error;
mod lz4;
mod lz4_flex;
mod spec;
#[cfg(test)]
mod tests;
mod zstd;

use crate::checker;
use crate::units::{PAGE_SIZE, Page};

pub use self::{
    error::CodecError,
    spec::{ALGORITHMS, CodecSpec, SpecError},
};

/// An algorithm with its parameters, ready for use: immutable, shared by any number of threads.
#[derive(Clone, Debug)]
pub struct Codec {
    spec: CodecSpec,
}

impl Codec {
    /// Makes `spec` ready. Fails if a parameter of it is out of range.
    pub fn new(spec: CodecSpec) -> Result<Self, CodecError> {
        spec.check()?;
        Ok(Self { spec })
    }

    /// The spec this codec was made of.
    pub fn spec(&self) -> CodecSpec {
        self.spec
    }

    /// Allocates all that one thread needs to use this codec: 16 KiB for lz4, 13 KiB for
    /// lz4-flex, for zstd about 165 KiB at level 1 and 365 KiB from level 12 on.
    pub fn workspace(&self) -> Result<Workspace, CodecError> {
        let contexts = match self.spec {
            CodecSpec::Lz4 { acceleration } => Contexts::Lz4(lz4::Lz4::new(acceleration)),
            CodecSpec::Lz4Flex => Contexts::Lz4Flex(lz4_flex::Lz4Flex::new()),
            CodecSpec::Zstd { level } => Contexts::Zstd(zstd::Zstd::new(level)?),
        };
        Ok(Workspace { spec: self.spec, contexts })
    }

    /// Compresses `page` into `out` and says how many bytes of it are the object, or `None` if
    /// the object is longer than `out`: the caller then stores the page as it is.
    ///
    /// `out.len()` is the caller's limit; nothing beyond it is touched. What lies in `out` behind
    /// the object, or after `None`, is unspecified. The tighter the limit, the sooner the lz4
    /// library gives up on a page that will not fit; the others find out at the end.
    pub fn compress(
        &self,
        ws: &mut Workspace,
        page: &Page,
        out: &mut [u8],
    ) -> Result<Option<usize>, CodecError> {
        checker::might_sleep("compressing");
        match self.contexts(ws)? {
            Contexts::Lz4(lz4) => Ok(lz4.compress(page, out)),
            Contexts::Lz4Flex(flex) => Ok(flex.compress(page, out)),
            Contexts::Zstd(zstd) => zstd.compress(page, out),
        }
    }

    /// Decompresses `object`, made by a codec of the same algorithm with whatever parameters,
    /// into `page`.
    ///
    /// An object that is cut short, overlong, damaged or made up is an error, or decodes to some
    /// other page, in which bytes that `page` held before may show; it never reads or writes out
    /// of bounds. After an error `page` is unspecified.
    pub fn decompress(
        &self,
        ws: &mut Workspace,
        object: &[u8],
        page: &mut Page,
    ) -> Result<(), CodecError> {
        checker::might_sleep("decompressing");
        match self.contexts(ws)? {
            Contexts::Lz4(lz4) => lz4.decompress(object, page),
            Contexts::Lz4Flex(flex) => flex.decompress(object, page),
            Contexts::Zstd(zstd) => zstd.decompress(object, page),
        }
    }

    /// The contexts of `ws`, if it is this codec's: a context carries the parameters with it.
    fn contexts<'a>(&self, ws: &'a mut Workspace) -> Result<&'a mut Contexts, CodecError> {
        if ws.spec == self.spec {
            Ok(&mut ws.contexts)
        } else {
            Err(CodecError::ForeignWorkspace { codec: self.spec, workspace: ws.spec })
        }
    }
}

/// What one thread needs to use a [`Codec`]; good for every codec of the same spec.
#[derive(Debug)]
pub struct Workspace {
    spec: CodecSpec,
    contexts: Contexts,
}

#[derive(Debug)]
enum Contexts {
    Lz4(lz4::Lz4),
    Lz4Flex(lz4_flex::Lz4Flex),
    Zstd(zstd::Zstd),
}
