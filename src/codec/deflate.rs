//! DEFLATE by a library in Rust, as raw streams or with zlib's header and check sum.

use std::fmt;

use zlib_rs::{Deflate, DeflateFlush, Inflate, InflateFlush, Status};

use super::{CodecError, PAGE_SIZE, Page, spec::DEFLATE};

/// What level -1 stands for.
const USUAL_LEVEL: i32 = 6;

/// The largest window there is, which reads streams of any other.
const WIDEST: u8 = 15;

/// More than any page becomes: pages that do not compress are stored in blocks with a few bytes of header each.
const BOUND: usize = 2 * PAGE_SIZE;

pub(super) struct Compressor {
    stream: Deflate,
    /// Where objects are made. The library panics (0.6.8) if it goes on after it had too little room.
    made: Box<[u8; BOUND]>,
}

/// Of streams of any level and window.
pub(super) struct Decompressor(Inflate);

impl Compressor {
    /// `level` and `winbits` are in their ranges.
    pub(super) fn new(level: i32, winbits: i32) -> Self {
        let level = if level < 0 { USUAL_LEVEL } else { level };
        let stream = Deflate::new(level, winbits > 0, winbits.unsigned_abs() as u8);
        Self { stream, made: Box::new([0; BOUND]) }
    }

    pub(super) fn compress(
        &mut self,
        page: &Page,
        out: &mut [u8],
    ) -> Result<Option<usize>, CodecError> {
        self.stream.reset();
        let failed = |reason| CodecError::Compress { algorithm: DEFLATE, reason };
        match self.stream.compress(page, &mut self.made[..], DeflateFlush::Finish) {
            Ok(Status::StreamEnd) => {}
            Ok(Status::Ok | Status::BufError) => return Err(failed("the library wants more room")),
            Err(error) => return Err(failed(error.as_str())),
        }
        let len = usize::try_from(self.stream.total_out()).unwrap_or(BOUND);
        let Some(out) = out.get_mut(..len) else { return Ok(None) };
        out.copy_from_slice(&self.made[..len]);
        Ok(Some(len))
    }
}

impl Decompressor {
    pub(super) fn new() -> Self {
        Self(Inflate::new(false, WIDEST))
    }

    /// `has_header` is whether the object was made with zlib's header.
    pub(super) fn decompress(
        &mut self,
        has_header: bool,
        object: &[u8],
        page: &mut Page,
    ) -> Result<(), CodecError> {
        let corrupt =
            |reason| CodecError::Corrupt { algorithm: DEFLATE, len: object.len(), reason };
        self.0.reset(has_header);
        let end = self.0.decompress(object, page, InflateFlush::Finish);
        let decoded = usize::try_from(self.0.total_out()).unwrap_or(0);
        match end {
            Ok(Status::StreamEnd) if self.0.total_in() != object.len() as u64 => {
                Err(corrupt("bytes follow its end"))
            }
            Ok(Status::StreamEnd) if decoded != PAGE_SIZE => {
                Err(CodecError::NotAPage { algorithm: DEFLATE, decoded })
            }
            Ok(Status::StreamEnd) => Ok(()),
            Ok(Status::Ok | Status::BufError) if decoded == PAGE_SIZE => {
                Err(corrupt("it holds more than a page, or ends too early"))
            }
            Ok(Status::Ok | Status::BufError) => Err(corrupt("it ends too early")),
            Err(_) => Err(corrupt("it is damaged")),
        }
    }
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

    fn text() -> Page {
        std::array::from_fn(|at| b'a' + (at * at / 7 % 23) as u8)
    }

    #[test]
    fn a_header_costs_six_bytes_and_neither_form_reads_the_other() {
        let (mut raw, mut zlib) = ([0; PAGE_SIZE], [0; PAGE_SIZE]);
        let len = Compressor::new(-1, -11).compress(&text(), &mut raw).unwrap().unwrap();
        let with_header = Compressor::new(-1, 11).compress(&text(), &mut zlib).unwrap().unwrap();
        assert_eq!(with_header, len + 6);
        let (mut back, mut page) = (Decompressor::new(), [0; PAGE_SIZE]);
        back.decompress(true, &zlib[..with_header], &mut page).unwrap();
        assert!(page == text());
        assert!(back.decompress(false, &zlib[..with_header], &mut page).is_err());
        assert!(back.decompress(true, &raw[..len], &mut page).is_err());
        back.decompress(false, &raw[..len], &mut page).unwrap();
    }

    #[test]
    fn streams_of_more_or_less_than_a_page_are_errors() {
        let (mut raw, mut back) = (Compressor::new(9, -15), Decompressor::new());
        let source = [text(), text()].concat();
        let mut made = |size: usize| {
            let mut out = [0; 3 * PAGE_SIZE];
            raw.stream.reset();
            raw.stream.compress(&source[..size], &mut out, DeflateFlush::Finish).unwrap();
            out[..raw.stream.total_out() as usize].to_vec()
        };
        for size in [0, 1, 100, PAGE_SIZE - 1] {
            let error = back.decompress(false, &made(size), &mut [0; PAGE_SIZE]).unwrap_err();
            assert_eq!(error, CodecError::NotAPage { algorithm: DEFLATE, decoded: size });
        }
        for size in [PAGE_SIZE + 1, 2 * PAGE_SIZE] {
            let error = back.decompress(false, &made(size), &mut [0; PAGE_SIZE]).unwrap_err();
            assert!(matches!(error, CodecError::Corrupt { .. }), "{error}");
        }
    }
}
