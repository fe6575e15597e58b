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
use crate::device::Report;

/// What attributes say of a disk: one moment of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct View {
    /// Its size in bytes.
    pub size: u64,
    /// The codec of its writes.
    pub codec: CodecSpec,
    /// Its figures.
    pub report: Report,
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
    let View { size, codec, report } = view;
    Ok(Reading::Text(match attribute.name {
        "block_state" => return Ok(Reading::BlockState),
        "comp_algorithm" => text::comp_algorithm(*codec),
        "debug_stat" => text::debug_stat(),
        "disksize" => text::number(*size),
        // A disk has its size from its first moment to its last.
        "initstate" => text::number(1),
        "io_stat" => text::io_stat(report),
        "mm_stat" => text::mm_stat(report),
        // Each that can be read has its line above; a test walks them.
        _ => return Err(AttributeError::WriteOnly(attribute.name)),
    }))
}

/// What writing `text` to an attribute is to do.
///
/// # Errors
/// There is no such attribute, it cannot be written, or the text says nothing that can be done.
pub fn write(name: &str, text: &str, codec: CodecSpec) -> Result<Write, AttributeError> {
    let attribute = available(name)?;
    if !attribute.mode.writes() {
        return Err(AttributeError::ReadOnly(attribute.name));
    }
    write::parse(attribute, text, codec)
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
        View { size: 1 << 30, codec: CodecSpec::default(), report: Report::default() }
    }

    #[test]
    fn each_attribute_does_what_its_mode_says() {
        for attribute in ATTRIBUTES {
            let name = attribute.name;
            let read = read(name, &view()).map_err(|error| error.errno());
            let write = write(name, "1", CodecSpec::default()).map_err(|error| error.errno());
            if attribute.missing.is_some() {
                assert_eq!((read, write), (Err("ENOTSUP"), Err("ENOTSUP")), "{name}");
                continue;
            }
            assert_eq!(read == Err("EACCES"), attribute.mode == Mode::Write, "{name}");
            assert_eq!(write == Err("EACCES"), attribute.mode == Mode::Read, "{name}");
        }
        assert_eq!(read("disk_size", &view()).unwrap_err().errno(), "ENOENT");
        assert_eq!(write("", "1", CodecSpec::default()).unwrap_err().errno(), "ENOENT");
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
