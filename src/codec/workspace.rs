//! The libraries' contexts of one thread, made when they are first used.

use super::table::ENTRIES;
use super::{Codec, CodecError, CodecSpec, deflate, lz4, lz4_flex, lzo, zstd};

/// Most compressors at a time, as many as the kernel's zram has priorities.
const COMPRESSORS: usize = 4;

/// What one thread needs to use codecs: compressors by the number of their codec, made when a codec is
/// first used and at most four of them, and one decompressor for all zstd codecs and one for all of
/// deflate. It is bounded by about 1.8 MiB with zstd, lzo or lz4hc codecs, 64 KiB with lz4 ones.
#[derive(Debug, Default)]
pub struct Workspace {
    compressors: [Option<(CodecSpec, Compressor)>; ENTRIES],
    zstd: Option<zstd::Decompressor>,
    deflate: Option<deflate::Decompressor>,
}

#[derive(Debug)]
pub(super) enum Compressor {
    Lz4(lz4::Lz4),
    Lz4Flex(lz4_flex::Lz4Flex),
    Lz4Hc(lz4::Lz4Hc),
    Zstd(zstd::Compressor),
    Deflate(deflate::Compressor),
    Lzo(lzo::Lzo),
}

impl Compressor {
    fn new(spec: CodecSpec) -> Result<Self, CodecError> {
        Ok(match spec {
            CodecSpec::Lz4 { acceleration } => Self::Lz4(lz4::Lz4::new(acceleration)),
            CodecSpec::Lz4Flex => Self::Lz4Flex(lz4_flex::Lz4Flex::new()),
            CodecSpec::Lz4Hc { level } => Self::Lz4Hc(lz4::Lz4Hc::new(level)),
            CodecSpec::Deflate { level, winbits } => {
                Self::Deflate(deflate::Compressor::new(level, winbits))
            }
            CodecSpec::Lzo => Self::Lzo(lzo::Lzo::new()),
            CodecSpec::Zstd { level } => Self::Zstd(zstd::Compressor::new(level)?),
        })
    }
}

impl Workspace {
    /// The compressor of this codec.
    pub(super) fn compressor(&mut self, codec: &Codec) -> Result<&mut Compressor, CodecError> {
        let at = usize::from(codec.number) % ENTRIES;
        // A compressor carries its parameters with it, and another table may have others.
        if !matches!(&self.compressors[at], Some((spec, _)) if *spec == codec.spec) {
            self.set_up(at, codec.spec)?;
        }
        match &mut self.compressors[at] {
            Some((_, compressor)) => Ok(compressor),
            None => unreachable!("the compressor was set up"),
        }
    }

    /// The decompressor of zstd, which every level shares.
    pub(super) fn zstd(&mut self, spec: CodecSpec) -> Result<&mut zstd::Decompressor, CodecError> {
        Ok(match &mut self.zstd {
            Some(zstd) => zstd,
            none => none.insert(zstd::Decompressor::new(spec)?),
        })
    }

    /// The decompressor of deflate, likewise.
    pub(super) fn deflate(&mut self) -> &mut deflate::Decompressor {
        self.deflate.get_or_insert_with(deflate::Decompressor::new)
    }

    #[cold]
    fn set_up(&mut self, at: usize, spec: CodecSpec) -> Result<(), CodecError> {
        self.compressors[at] = None;
        if self.compressors.iter().flatten().count() >= COMPRESSORS
            && let Some(other) = self.compressors.iter_mut().find(|slot| slot.is_some())
        {
            *other = None;
        }
        self.compressors[at] = Some((spec, Compressor::new(spec)?));
        Ok(())
    }

    /// Codecs whose compressors are ready.
    #[cfg(test)]
    pub(super) fn ready(&self) -> Vec<CodecSpec> {
        self.compressors.iter().flatten().map(|(spec, _)| *spec).collect()
    }
}
