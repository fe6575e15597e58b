//! One page in and out of a slot: same-filled, compressed or raw.

use super::{Device, IoError};
use crate::codec::{Codec, CodecError, Workspace};
use crate::slot::{Content, Object};
use crate::units::{PAGE_SIZE, Page};

/// Longest object that is worth its decompression: 15/16 of a page. What compresses worse is
/// stored raw ("huge"), which reads much faster and takes at most 256 bytes more.
const MAX_OBJECT: usize = PAGE_SIZE - PAGE_SIZE / 16;

/// Index of the one codec in the disk's codec table.
const PRIMARY: u8 = 0;

/// What one thread needs to serve requests: codec contexts and scratch pages. Not shared.
pub struct Lane {
    workspace: Workspace,
    pub(super) page: Box<Page>,
    object: Box<[u8; MAX_OBJECT]>,
}

impl Lane {
    pub(super) fn new(codec: &Codec) -> Result<Self, CodecError> {
        Ok(Self {
            workspace: codec.workspace()?,
            page: Box::new([0; PAGE_SIZE]),
            object: Box::new([0; MAX_OBJECT]),
        })
    }
}

impl Device {
    /// Stores the page in `lane.page` as a content for the slot `index`, which does not name it
    /// yet.
    pub(super) fn encode(&self, index: u64, lane: &mut Lane) -> Result<Content, IoError> {
        if let Some(word) = same_filled(&lane.page) {
            return self.encode_same(index, word);
        }
        let compressed = self
            .codec
            .compress(&mut lane.workspace, &lane.page, &mut lane.object[..])
            .map_err(IoError::Compress)?;
        let (codec, bytes) = match compressed {
            Some(length) => (PRIMARY, &lane.object[..length]),
            None => (0, &lane.page[..]),
        };
        let place = self.store(index, bytes)?;
        Ok(Content::Object(codec, Object { place, length: bytes.len() }))
    }

    fn encode_same(&self, index: u64, word: [u8; 8]) -> Result<Content, IoError> {
        let [a, b, c, d, rest @ ..] = word;
        if [a, b, c, d] == rest {
            return Ok(Content::Same(u32::from_le_bytes(rest)));
        }
        let place = self.store(index, &word)?;
        Ok(Content::SameWide(Object { place, length: word.len() }))
    }

    /// Reads a content into `lane.page`. If it has an object, the caller holds the slot's lock.
    pub(super) fn decode(
        &self,
        index: u64,
        content: Content,
        lane: &mut Lane,
    ) -> Result<(), IoError> {
        let page = &mut *lane.page;
        match content {
            Content::Empty => page.fill(0),
            Content::Same(0) => page.fill(0),
            Content::Same(pattern) => {
                fill(page, (u64::from(pattern) << 32 | u64::from(pattern)).to_le_bytes());
            }
            Content::SameWide(object) => {
                let bytes = self.pool.read(object.place, object.length);
                fill(page, bytes.first_chunk().copied().unwrap_or_default());
            }
            Content::Object(_, object) => {
                let bytes = self.pool.read(object.place, object.length);
                if object.is_huge() {
                    page.copy_from_slice(bytes);
                } else {
                    let decoded = self.codec.decompress(&mut lane.workspace, bytes, page);
                    decoded.map_err(|source| IoError::Decompress { index, source })?;
                }
            }
        }
        Ok(())
    }
}

/// The 8-byte word that the page repeats, if it does.
fn same_filled(page: &Page) -> Option<[u8; 8]> {
    let (first, rest) = page.split_first_chunk::<8>()?;
    // The last word first: it settles most pages for the price of one comparison.
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
