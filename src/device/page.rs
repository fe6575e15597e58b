//! One page in and out of a slot: same-filled, compressed or raw.

use std::sync::Arc;

use super::content::NewContent;
use super::{Device, IoError, Payload};
use crate::codec::{CodecError, CodecTable, Workspace};
use crate::engine::{Job, Sampler, Spares, Work};
use crate::slot::{Content, Reader};
use crate::units::{PAGE_SIZE, Page, SECTORS_PER_PAGE};

/// Longest object that is worth its decompression: 15/16 of a page. What compresses worse is
/// stored raw ("huge"), which reads much faster and takes at most 256 bytes more.
pub(super) const MAX_OBJECT: usize = PAGE_SIZE - PAGE_SIZE / 16;

/// What one thread needs to serve requests: codec contexts and scratch pages. Not shared.
pub struct WorkerContext {
    pub(super) workspace: Workspace,
    pub(super) page: Box<Page>,
    object: Box<[u8; MAX_OBJECT]>,
    pub(super) sampler: Sampler,
    pub(super) spares: Spares,
    /// Its thread's way to the slots.
    pub(super) reader: Reader,
    /// The present of the request that is polled, if access times are kept.
    pub(super) now: u16,
}

impl WorkerContext {
    pub(super) fn new(codecs: &CodecTable, reader: Reader) -> Result<Self, CodecError> {
        Ok(Self {
            workspace: codecs.workspace()?,
            page: Box::new([0; PAGE_SIZE]),
            object: Box::new([0; MAX_OBJECT]),
            sampler: Sampler::default(),
            spares: Spares::default(),
            reader,
            now: 0,
        })
    }
}

impl WorkerContext {
    /// The page as a job for the codec of this number; another one takes its place here.
    pub(super) fn compress_later(&mut self, codec: u8) -> Arc<Job> {
        let page = std::mem::replace(&mut self.page, self.spares.take());
        Job::compress(page, codec, MAX_OBJECT, &mut self.spares)
    }
}

impl Device {
    /// Has the slot fetched of the first page of a request from `sector` on, which will be polled soon.
    pub fn prefetch_slot(&self, sector: u64) {
        self.table.prefetch(sector / SECTORS_PER_PAGE);
    }

    /// Has up to `bytes` bytes fetched of the object that is read first by a request from `sector` on, whose
    /// slot was fetched.
    pub fn prefetch_object(&self, sector: u64, bytes: usize, context: &WorkerContext) {
        let hint = || self.table.hint(sector / SECTORS_PER_PAGE);
        if let Some(object) = context.reader.inside(hint) {
            self.pool.prefetch(object.place, object.length.min(bytes));
        }
    }

    /// Stores the page in `context.page`, if it is same-filled, as a content for the slot `index`,
    /// which does not name it yet.
    pub(super) fn encode_same(
        &self,
        index: u64,
        context: &WorkerContext,
    ) -> Result<Option<NewContent<'_>>, IoError> {
        let Some(word) = same_filled(&context.page) else { return Ok(None) };
        let [a, b, c, d, rest @ ..] = word;
        if [a, b, c, d] == rest {
            return Ok(Some(NewContent::same(u32::from_le_bytes(rest))));
        }
        let object = self.store(index, &word, &context.reader)?;
        Ok(Some(self.content_of(object, Content::SameWide)))
    }

    /// What is done with a page that is written.
    pub(super) fn compression(&self) -> Work {
        Work::Compress { codec: self.codecs.primary().number(), limit: MAX_OBJECT }
    }

    /// Compresses and stores the page in `context.page`, which is not same-filled, likewise.
    pub(super) fn encode_page(
        &self,
        index: u64,
        context: &mut WorkerContext,
    ) -> Result<NewContent<'_>, IoError> {
        let WorkerContext { workspace, page, object, sampler, .. } = context;
        let codec = self.codecs.primary();
        let work = Work::Compress { codec: codec.number(), limit: MAX_OBJECT };
        let compressed = self
            .engine
            .inline(work, sampler, || codec.compress(workspace, page, &mut object[..]))
            .map_err(IoError::Compress)?;
        let object = compressed.map(|length| (codec.number(), &context.object[..length]));
        self.store_encoded(index, object, &context.page, &context.reader)
    }

    /// Stores what a codec made of a page: an object with the codec's number, or none that is worth it.
    pub(super) fn store_encoded(
        &self,
        index: u64,
        object: Option<(u8, &[u8])>,
        page: &Page,
        reader: &Reader,
    ) -> Result<NewContent<'_>, IoError> {
        let (codec, bytes) = object.unwrap_or((0, page));
        let object = self.store(index, bytes, reader)?;
        Ok(self.content_of(object, |object| Content::Object(codec, object)))
    }

    /// Reads a content into `context.page`; `object` is the bytes of its object.
    pub(super) fn decode(
        &self,
        index: u64,
        content: Content,
        object: &[u8],
        context: &mut WorkerContext,
    ) -> Result<(), IoError> {
        let page = &mut *context.page;
        match content {
            Content::Empty | Content::Discarded | Content::Same(0) => page.fill(0),
            Content::Unknown => return Err(IoError::Damaged { index }),
            Content::Same(pattern) => {
                fill(page, (u64::from(pattern) << 32 | u64::from(pattern)).to_le_bytes());
            }
            Content::SameWide(_) => fill(page, object.first_chunk().copied().unwrap_or_default()),
            Content::Object(_, stored) if stored.is_huge() => page.copy_from_slice(object),
            Content::Object(codec, _) => self.decompress(index, codec, object, context)?,
        }
        Ok(())
    }

    /// Decompresses an object of the page `index` into `context.page` by the codec of number `codec`.
    pub(super) fn decompress(
        &self,
        index: u64,
        codec: u8,
        object: &[u8],
        context: &mut WorkerContext,
    ) -> Result<(), IoError> {
        let WorkerContext { workspace, page, sampler, .. } = context;
        let decoded = self.engine.inline(Work::Decompress { codec }, sampler, || {
            self.codecs.decompress(codec, workspace, object, page)
        });
        decoded.map_err(|source| IoError::Decompress { index, source })
    }

    /// Decompresses an object of the page `index` straight to where `payload` wants it, from its byte
    /// `offset` on. False if that is not one piece of memory, or the codec cannot: nothing is done then.
    pub(super) fn decompress_to(
        &self,
        index: u64,
        codec: u8,
        object: &[u8],
        (payload, offset): (&mut impl Payload, u64),
        sampler: &mut Sampler,
    ) -> Result<bool, IoError> {
        let failed = |source| IoError::Decompress { index, source };
        let entry = self.codecs.get(codec).map_err(failed)?;
        if !entry.writes_shared() {
            return Ok(false);
        }
        let decoded = payload.fill(offset, PAGE_SIZE, |place| {
            let work = Work::Decompress { codec };
            self.engine.inline(work, sampler, || entry.decompress_shared(object, &place))
        })?;
        decoded.map_or(Ok(false), |decoded| decoded.map(|()| true).map_err(failed))
    }
}

/// The 8-byte word that the page repeats, if it does.
fn same_filled(page: &Page) -> Option<[u8; 8]> {
    let (first, rest) = page.split_first_chunk::<8>()?;
    // The last word first: it decides most pages for the price of one comparison.
    (rest.last_chunk::<8>() == Some(first) && page[..PAGE_SIZE - 8] == *rest).then_some(*first)
}

fn fill(page: &mut Page, word: [u8; 8]) {
    for piece in page.chunks_exact_mut(8) {
        piece.copy_from_slice(&word);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_filled_finds_any_repeated_word_and_nothing_else() {
        let word = *b"12345678";
        let mut page = [0; PAGE_SIZE];
        assert_eq!(same_filled(&page), Some([0; 8]));
        fill(&mut page, word);
        assert_eq!(same_filled(&page), Some(word));
        for at in [0, 7, 8, 2048, PAGE_SIZE - 9, PAGE_SIZE - 8, PAGE_SIZE - 1] {
            page[at] ^= 1;
            assert_eq!(same_filled(&page), None, "a difference at {at}");
            page[at] ^= 1;
        }
        // A pattern of 16 bytes is not one of 8.
        for piece in page.chunks_exact_mut(16) {
            piece.copy_from_slice(b"1234567812345679");
        }
        assert_eq!(same_filled(&page), None);
    }
}
