//! The codecs of one disk, by the number that slot words name them by.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

use super::{Codec, CodecError, CodecSpec, Workspace};
use crate::units::Page;

/// Most codecs of a disk: a slot word has four bits for the number of one.
pub const ENTRIES: usize = 16;

/// The codecs of one disk: the primary one for new objects, and those of objects that were stored before. An
/// entry that it has is never changed or taken back, so whoever has the number of one can use it; entries are
/// added, and another one becomes the primary one, while the disk is served.
#[derive(Debug)]
pub struct CodecTable {
    entries: [OnceLock<Codec>; ENTRIES],
    primary: AtomicU8,
}

impl CodecTable {
    /// A table with `primary` as the entry of number `number`, below [`ENTRIES`], and with `others` at
    /// the numbers that are given.
    ///
    /// # Errors
    /// A parameter of a spec is out of range.
    pub fn new(
        number: u8,
        primary: CodecSpec,
        others: impl IntoIterator<Item = (u8, CodecSpec)>,
    ) -> Result<Self, CodecError> {
        let this = Self::from(Codec::numbered(primary, number)?);
        for (number, spec) in others {
            this.add(Codec::numbered(spec, number)?);
        }
        Ok(this)
    }

    /// Adds a codec as the entry of its number, which is free: an entry that is there stays.
    pub fn add(&self, codec: Codec) {
        let _ = self.entries[usize::from(codec.number) % ENTRIES].set(codec);
    }

    /// The codec of new objects.
    pub fn primary(&self) -> &Codec {
        let number = usize::from(self.primary.load(Ordering::Acquire));
        match self.entries[number % ENTRIES].get() {
            Some(codec) => codec,
            None => unreachable!("the primary codec is an entry that the table has"),
        }
    }

    /// The codec of this number, which the table has, is that of new objects from now on.
    ///
    /// # Errors
    /// The table has no such entry.
    pub fn set_primary(&self, number: u8) -> Result<(), CodecError> {
        self.get(number)?;
        self.primary.store(number, Ordering::Release);
        Ok(())
    }

    /// The codec of this spec, if the table has it.
    pub fn find(&self, spec: CodecSpec) -> Option<&Codec> {
        self.iter().find(|codec| codec.spec == spec)
    }

    /// The codec of this number.
    ///
    /// # Errors
    /// The table has no such entry.
    pub fn get(&self, number: u8) -> Result<&Codec, CodecError> {
        let entry = self.entries.get(usize::from(number)).and_then(OnceLock::get);
        entry.ok_or(CodecError::NoEntry { number })
    }

    /// All codecs, by number.
    pub fn iter(&self) -> impl Iterator<Item = &Codec> {
        self.entries.iter().filter_map(OnceLock::get)
    }

    /// A workspace in which the primary codec is ready; the others become ready when they are first
    /// used.
    ///
    /// # Errors
    /// The library cannot set up its contexts.
    pub fn workspace(&self) -> Result<Workspace, CodecError> {
        self.primary().workspace()
    }

    /// Decompresses an object by the codec of number `number`; see [`Codec::decompress`].
    ///
    /// # Errors
    /// There is no such codec, or it fails.
    pub fn decompress(
        &self,
        number: u8,
        ws: &mut Workspace,
        object: &[u8],
        page: &mut Page,
    ) -> Result<(), CodecError> {
        self.get(number)?.decompress(ws, object, page)
    }
}

impl From<Codec> for CodecTable {
    /// A table of one codec.
    fn from(codec: Codec) -> Self {
        let entries = Default::default();
        let this = Self { entries, primary: AtomicU8::new(codec.number % ENTRIES as u8) };
        this.add(codec);
        this
    }
}
