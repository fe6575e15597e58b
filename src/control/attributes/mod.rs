//! zram's attributes: the files of `/sys/block/zramN/`, under the kernel's names and with its texts.
//!
//! * `table`: which there are, and what can be done with them
//! * `parse`, `write`: what a text that is written is to do, by the kernel's rules
//! * `text`: what reading gives, byte for byte in the kernel's form
//! * `block_state`: the one that is too long for a text
//!
//! Nothing here waits, and nothing but `block_state` looks at slots. `docs/parity.md` says where a disk behaves
//! differently from a zram device, and why.

mod block_state;
mod error;
mod parse;
mod table;
mod text;
mod write;

pub use self::block_state::BlockState;
pub use self::error::AttributeError;
pub use self::table::{ATTRIBUTES, Attribute};
pub use self::write::Write;
use crate::codec::CodecSpec;
use crate::device::{Report, SECONDARIES};

/// What attributes say of a disk: one moment of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct View {
    /// Its size in bytes.
    pub size: u64,
    /// Its codecs.
    pub codecs: Codecs,
    /// Its figures.
    pub report: Report,
}

/// The codecs of a disk: that of new pages, and those of recompression by their priorities from 1 on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Codecs {
    /// That of new pages.
    pub primary: CodecSpec,
    /// Those of recompression.
    pub secondaries: [Option<CodecSpec>; SECONDARIES],
}

impl Codecs {
    /// The codec of a priority, 0 to [`SECONDARIES`].
    fn of(&self, priority: usize) -> Option<CodecSpec> {
        match priority.checked_sub(1) {
            None => Some(self.primary),
            Some(place) => self.secondaries.get(place).copied().flatten(),
        }
    }

    /// The lowest of some priorities whose algorithm has this name.
    fn find(
        &self,
        algorithm: &str,
        mut priorities: std::ops::RangeInclusive<usize>,
    ) -> Option<usize> {
        let is_it = |priority: &usize| {
            self.of(*priority).is_some_and(|codec| codec.algorithm() == algorithm)
        };
        priorities.find(is_it)
    }
}

/// What reading an attribute gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reading {
    /// A text.
    Text(String),
    /// A line for each slot that holds something: [`BlockState`] makes them.
    BlockState,
}

/// Reads an attribute.
///
/// # Errors
/// There is no such attribute, or it cannot be read.
pub fn read(name: &str, view: &View) -> Result<Reading, AttributeError> {
    let attribute = available(name)?;
    if !attribute.mode.reads() {
        return Err(AttributeError::WriteOnly(attribute.name));
    }
    let View { size, codecs, report } = view;
    Ok(Reading::Text(match attribute.name {
        "block_state" => return Ok(Reading::BlockState),
        "comp_algorithm" => text::comp_algorithm(codecs.primary),
        "debug_stat" => text::debug_stat(),
        "disksize" => text::number(*size),
        // A disk has its size from its first moment to its last.
        "initstate" => text::number(1),
        "io_stat" => text::io_stat(report),
        "mm_stat" => text::mm_stat(report),
        "recomp_algorithm" => text::recomp_algorithm(&codecs.secondaries),
        // Each that can be read has its line above; a test walks them.
        _ => return Err(AttributeError::WriteOnly(attribute.name)),
    }))
}

/// What writing `text` to an attribute is to do.
///
/// # Errors
/// There is no such attribute, it cannot be written, or the text says nothing that can be done.
pub fn write(name: &str, text: &str, codecs: &Codecs) -> Result<Write, AttributeError> {
    let attribute = available(name)?;
    if !attribute.mode.writes() {
        return Err(AttributeError::ReadOnly(attribute.name));
    }
    write::parse(attribute, text, codecs)
}

/// The attribute, if there is anything behind it.
fn available(name: &str) -> Result<&'static Attribute, AttributeError> {
    let found = table::find(name).ok_or_else(|| AttributeError::Unknown(name.to_owned()))?;
    match found.missing {
        Some(what) => Err(AttributeError::NotSupported(found.name, what)),
        None => Ok(found),
    }
}

#[cfg(test)]
mod tests {
    use super::table::Mode;
    use super::*;

    fn view() -> View {
        View { size: 1 << 30, codecs: Codecs::default(), report: Report::default() }
    }

    #[test]
    fn each_attribute_does_what_its_mode_says() {
        for attribute in ATTRIBUTES {
            let name = attribute.name;
            let read = read(name, &view()).map_err(|error| error.errno());
            let write = write(name, "1", &Codecs::default()).map_err(|error| error.errno());
            if attribute.missing.is_some() {
                assert_eq!((read, write), (Err("ENOTSUP"), Err("ENOTSUP")), "{name}");
                continue;
            }
            assert_eq!(read == Err("EACCES"), attribute.mode == Mode::Write, "{name}");
            assert_eq!(write == Err("EACCES"), attribute.mode == Mode::Read, "{name}");
        }
        assert_eq!(read("disk_size", &view()).unwrap_err().errno(), "ENOENT");
        assert_eq!(write("", "1", &Codecs::default()).unwrap_err().errno(), "ENOENT");
    }

    #[test]
    fn what_a_disk_is_can_be_read() {
        let text = |name| match read(name, &view()) {
            Ok(Reading::Text(text)) => text,
            other => panic!("{name}: {other:?}"),
        };
        assert_eq!(text("disksize"), "1073741824\n");
        assert_eq!(text("initstate"), "1\n");
        assert_eq!(text("comp_algorithm"), "[lz4] lz4-flex lz4hc zstd deflate lzo \n");
        assert_eq!(read("block_state", &view()), Ok(Reading::BlockState));
    }
}
