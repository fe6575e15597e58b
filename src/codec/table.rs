//! The codecs of one disk, by the number that slot words name them by.

use super::{Codec, CodecError, CodecSpec, Workspace};
use crate::units::Page;

/// Most codecs of a disk: a slot word has four bits for the number of one.
pub const ENTRIES: usize = 16;

/// The codecs of one disk, immutable while it is served: the primary one for new objects, and those of
/// objects that were stored before.
#[derive(Clone, Debug)]
pub struct CodecTable {
    entries: [Option<Codec>; ENTRIES],
    primary: Codec,
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
        let primary = Codec::numbered(primary, number)?;
        let mut entries = [None; ENTRIES];
        for (number, spec) in others {
            entries[usize::from(number) % ENTRIES] = Some(Codec::numbered(spec, number)?);
        }
        entries[usize::from(number) % ENTRIES] = Some(primary);
        Ok(Self { entries, primary })
    }

    /// The codec of new objects.
    pub fn primary(&self) -> &Codec {
        &self.primary
    }

    /// The codec of this number.
    ///
    /// # Errors
    /// The table has no such entry.
    pub fn get(&self, number: u8) -> Result<&Codec, CodecError> {
        let entry = self.entries.get(usize::from(number)).and_then(Option::as_ref);
        entry.ok_or(CodecError::NoEntry { number })
    }

    /// All codecs, by number.
    pub fn iter(&self) -> impl Iterator<Item = &Codec> {
        self.entries.iter().flatten()
    }

    /// A workspace in which the primary codec is ready; the others become ready when they are first
    /// used.
    ///
    /// # Errors
    /// The library cannot set up its contexts.
    pub fn workspace(&self) -> Result<Workspace, CodecError> {
        self.primary.workspace()
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
        let mut entries = [None; ENTRIES];
        entries[usize::from(codec.number) % ENTRIES] = Some(codec);
        Self { entries, primary: codec }
    }
}
