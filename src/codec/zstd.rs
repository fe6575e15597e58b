//! Zstandard by the reference C library, with all left out of the frame that a page does not need.
//!
//! The frame has no magic number, no content size, no checksum and no dictionary id: 2 bytes of
//! header (what kind of frame, window size) and 3 a block remain, where a common frame has 7 and
//! 3. The library tunes tables and window to 4096 bytes, since it is given the whole source at
//! once.

use std::fmt;

use zstd::zstd_safe::{
    CCtx, CParameter, DCtx, DParameter, ErrorCode, FrameFormat, get_error_name, is_error_kind,
    zstd_sys::ZSTD_ErrorCode::ZSTD_error_dstSize_tooSmall as DST_SIZE_TOO_SMALL,
};

use super::{
    CodecError, PAGE_SIZE, Page,
    spec::{CodecSpec, ZSTD},
};

pub(super) struct Compressor(CCtx<'static>);

/// Of frames of any level.
pub(super) struct Decompressor(DCtx<'static>);

impl Compressor {
    pub(super) fn new(level: i32) -> Result<Self, CodecError> {
        let setup = |reason| CodecError::Setup { spec: CodecSpec::Zstd { level }, reason };
        let mut context = CCtx::try_create().ok_or_else(|| setup("out of memory"))?;
        for parameter in [
            CParameter::CompressionLevel(level),
            CParameter::Format(FrameFormat::Magicless),
            CParameter::ContentSizeFlag(false),
            CParameter::ChecksumFlag(false),
            CParameter::DictIdFlag(false),
        ] {
            context.set_parameter(parameter).map_err(|code| setup(get_error_name(code)))?;
        }
        let mut this = Self(context);
        // The library allocates its tables with the first page, of the size that all pages need:
        // now, where being short of memory can still be told.
        this.compress(&[0; PAGE_SIZE], &mut [0; 64])?;
        Ok(this)
    }

    pub(super) fn compress(
        &mut self,
        page: &Page,
        out: &mut [u8],
    ) -> Result<Option<usize>, CodecError> {
        match self.0.compress2(out, page) {
            Ok(len) => Ok(Some(len)),
            Err(code) if is_error_kind(code, DST_SIZE_TOO_SMALL) => Ok(None),
            Err(code) => {
                Err(CodecError::Compress { algorithm: ZSTD, reason: get_error_name(code) })
            }
        }
    }
}

impl Decompressor {
    /// `spec` is the codec that needs it first, for the error.
    pub(super) fn new(spec: CodecSpec) -> Result<Self, CodecError> {
        let setup = |reason| CodecError::Setup { spec, reason };
        let mut context = DCtx::try_create().ok_or_else(|| setup("out of memory"))?;
        context
            .set_parameter(DParameter::Format(FrameFormat::Magicless))
            .map_err(|code| setup(get_error_name(code)))?;
        Ok(Self(context))
    }

    pub(super) fn decompress(&mut self, object: &[u8], page: &mut Page) -> Result<(), CodecError> {
        match self.0.decompress(&mut page[..], object) {
            Ok(PAGE_SIZE) => Ok(()),
            Ok(decoded) => Err(CodecError::NotAPage { algorithm: ZSTD, decoded }),
            Err(code) => Err(corrupt(object, code)),
        }
    }
}

#[cold]
fn corrupt(object: &[u8], code: ErrorCode) -> CodecError {
    CodecError::Corrupt { algorithm: ZSTD, len: object.len(), reason: get_error_name(code) }
}

impl fmt::Debug for Compressor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Compressor").finish_non_exhaustive()
    }
}

impl fmt::Debug for Decompressor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decompressor").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contexts(level: i32) -> (Compressor, Decompressor) {
        let spec = CodecSpec::Zstd { level };
        (Compressor::new(level).unwrap(), Decompressor::new(spec).unwrap())
    }

    fn page(seed: u32) -> Page {
        let mut x = seed.wrapping_mul(2_654_435_761) | 1;
        std::array::from_fn(|i| {
            x ^= x << 13;
            x ^= x >> 17;
            x ^= x << 5;
            if i % 64 < seed as usize % 64 { x as u8 } else { (i / 128) as u8 }
        })
    }

    #[test]
    fn contexts_do_not_grow_with_use() {
        for level in [-5, 1, 3, 9, 19, 22] {
            let (mut zstd, mut back) = contexts(level);
            let before = (zstd.0.sizeof(), back.0.sizeof());
            for seed in 0..300 {
                let (page, mut out) = (page(seed), [0; 2 * PAGE_SIZE]);
                let len = zstd.compress(&page, &mut out).unwrap().unwrap();
                back.decompress(&out[..len], &mut [0; PAGE_SIZE]).unwrap();
            }
            assert_eq!((zstd.0.sizeof(), back.0.sizeof()), before, "{level}");
        }
    }

    #[test]
    fn frames_are_bare() {
        let (mut zstd, mut back) = contexts(3);
        let mut bare = [0; 2 * PAGE_SIZE];
        let mut common = [0; 2 * PAGE_SIZE];
        let len = zstd.compress(&page(20), &mut bare).unwrap().unwrap();
        let common_len = zstd::zstd_safe::compress(&mut common[..], &page(20), 3).unwrap();
        assert_eq!(len + 5, common_len, "no magic number, and a byte less of sizes");
        // A common frame is not taken for a bare one.
        assert!(back.decompress(&common[..common_len], &mut [0; PAGE_SIZE]).is_err());
    }

    #[test]
    fn frames_of_more_or_less_than_a_page_are_errors() {
        let (mut zstd, mut back) = contexts(3);
        let source = [page(20), page(21)].concat();
        for size in [0, 1, 100, PAGE_SIZE - 1] {
            let mut out = [0; 2 * PAGE_SIZE];
            let len = zstd.0.compress2(&mut out[..], &source[..size]).unwrap();
            let error = back.decompress(&out[..len], &mut [0; PAGE_SIZE]).unwrap_err();
            assert_eq!(error, CodecError::NotAPage { algorithm: ZSTD, decoded: size });
        }
        for size in [PAGE_SIZE + 1, 2 * PAGE_SIZE] {
            let mut out = [0; 3 * PAGE_SIZE];
            let len = zstd.0.compress2(&mut out[..], &source[..size]).unwrap();
            let error = back.decompress(&out[..len], &mut [0; PAGE_SIZE]).unwrap_err();
            assert!(matches!(error, CodecError::Corrupt { .. }), "{error}");
        }
    }
}
