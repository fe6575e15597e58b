//! The codec table of a disk with a state: by what its objects were compressed, and by what new ones
//! are.

use super::DeviceError;
use crate::codec::{CodecSpec, CodecTable};
use crate::store::{CODECS, CodecEntry, State, StateError};

const _: () = assert!(CODECS == crate::codec::ENTRIES);

/// The codecs of a disk: those that its slots name, one bit of `named` each, and `wanted` for new
/// objects. Changes nothing.
///
/// A codec that the state does not have gets an entry that no slot names: a free one, or if there is
/// none, one whose objects are all gone. A slot may also name an entry that is free, if the state is
/// damaged; that entry stays free, so its pages stay errors.
///
/// # Errors
/// An entry is damaged, slots name a codec that this program does not know, or
/// all entries are named.
pub(super) fn of(state: &State, named: u16, wanted: CodecSpec) -> Result<CodecTable, DeviceError> {
    let entries = state.codecs()?;
    let is_named = |number: usize| named >> number & 1 == 1;
    let mut specs = [None; CODECS];
    for (number, entry) in entries.iter().enumerate() {
        specs[number] = entry.as_ref().and_then(spec_of);
        if let (Some(entry), None, true) = (entry, specs[number], is_named(number)) {
            return Err(StateError::UnknownCodec { name: name_of(entry) }.into());
        }
    }
    let old = |number: &usize| is_named(*number) && specs[*number] != Some(wanted);
    let others = || (0..CODECS).filter(old).filter_map(|number| Some((number, specs[number]?)));
    let names: Vec<String> = others().map(|(_, spec)| spec.to_string()).collect();
    let names = names.join(", ");

    let free = |number: &usize| entries[*number].is_none() && !is_named(*number);
    let number = (0..CODECS)
        .find(|number| specs[*number] == Some(wanted))
        .or_else(|| (0..CODECS).find(free))
        .or_else(|| (0..CODECS).find(|number| !is_named(*number)))
        .ok_or(StateError::NoRoomForCodec { wanted: wanted.to_string(), found: names.clone() })?;
    let codecs =
        CodecTable::new(number as u8, wanted, others().map(|(number, spec)| (number as u8, spec)))?;
    if !names.is_empty() {
        log::info!("new pages are compressed by {wanted}; the state has pages of {names} too");
    }
    Ok(codecs)
}

/// Has the state's codec table say what the primary codec of `codecs` is, which [`of`] has chosen. To be
/// called before any slot can name it.
pub(super) fn add_primary(state: &State, codecs: &CodecTable) -> Result<(), StateError> {
    let primary = codecs.primary();
    let (number, entry) = (usize::from(primary.number()), entry_of(primary.spec()));
    if state.codecs()?[number].as_ref() != Some(&entry) {
        state.set_codec(number, &entry);
    }
    Ok(())
}

/// How a superblock says it.
fn entry_of(spec: CodecSpec) -> CodecEntry {
    let algorithm = spec.algorithm().to_owned();
    CodecEntry { algorithm, level: spec.level(), ..CodecEntry::default() }
}

/// The codec of an entry, if this program knows it.
fn spec_of(entry: &CodecEntry) -> Option<CodecSpec> {
    let spec = CodecSpec::with_level(&entry.algorithm, entry.level)?;
    (entry_of(spec) == *entry).then_some(spec)
}

fn name_of(entry: &CodecEntry) -> String {
    let CodecEntry { algorithm, level, parameters, dictionary } = entry;
    let mut name = format!("{algorithm}(level={level}");
    if *parameters != 0 {
        name += &format!(",parameters={parameters:#x}");
    }
    if *dictionary != 0 {
        name += &format!(",dictionary={dictionary}");
    }
    name + ")"
}
