//! The codecs of a disk: by what its objects were compressed, and by what new ones are.

use std::sync::{Mutex, MutexGuard};

use super::{Device, DeviceError};
use crate::codec::{Codec, CodecError, CodecSpec, CodecTable};
use crate::store::{CODECS, CodecEntry, State, StateError};
use crate::sync;

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
pub(super) fn of(
    state: &State,
    named: u16,
    wanted: CodecSpec,
) -> Result<(CodecTable, Adding), DeviceError> {
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
    let missing = |number: &usize| is_named(*number) && codecs.get(*number as u8).is_err();
    let adding = Adding::without((0..CODECS).filter(missing));
    Ok((codecs, adding))
}

/// Held by a thread that adds a codec: numbers that no codec may get, one bit each, since damaged slots name
/// them, whose pages stay errors.
#[derive(Debug, Default)]
pub(super) struct Adding(Mutex<u16>);

impl Adding {
    fn without(numbers: impl Iterator<Item = usize>) -> Self {
        Self(Mutex::new(numbers.fold(0, |bits, number| bits | 1 << number)))
    }

    fn begin(&self) -> MutexGuard<'_, u16> {
        sync::lock(&self.0)
    }
}

impl Device {
    /// New objects are compressed by `spec` from now on. Those that are there stay as they are, and are read as
    /// before.
    ///
    /// # Errors
    /// A parameter is out of range, its contexts cannot be set up, or the codec table is full: the codecs of
    /// a disk stay in it until the disk is opened again, and then those that have pages.
    pub fn set_codec(&self, spec: CodecSpec) -> Result<(), DeviceError> {
        let number = self.codec_number(spec)?;
        Ok(self.codecs.set_primary(number)?)
    }

    /// Has the disk know this codec, by which nothing is compressed yet: [`Self::set_codec`] does not
    /// fail then.
    ///
    /// # Errors
    /// As for [`Self::set_codec`].
    pub fn learn_codec(&self, spec: CodecSpec) -> Result<(), DeviceError> {
        self.codec_number(spec).map(drop)
    }

    /// The number of this codec, which the disk has from now on.
    ///
    /// # Errors
    /// As for [`Self::set_codec`].
    pub(super) fn codec_number(&self, spec: CodecSpec) -> Result<u8, DeviceError> {
        let reserved = self.adding.begin();
        if let Some(codec) = self.codecs.find(spec) {
            return Ok(codec.number());
        }
        let is_free =
            |number: &u8| self.codecs.get(*number).is_err() && *reserved >> number & 1 == 0;
        let Some(number) = (0..CODECS as u8).find(is_free) else {
            let names: Vec<_> = self.codecs.iter().map(|codec| codec.spec().to_string()).collect();
            let found = names.join(", ");
            return Err(CodecError::NoRoom { wanted: spec, found }.into());
        };
        let codec = Codec::numbered(spec, number)?;
        // Where it fails nothing has changed yet.
        self.engine.learn(&codec)?;
        if let Some(state) = &self.state {
            add(state, &codec)?;
        }
        self.codecs.add(codec);
        Ok(number)
    }
}

/// Has the state's codec table say what `codec` is, whose entry no slot names. To be called before any can
/// name it.
pub(super) fn add(state: &State, codec: &Codec) -> Result<(), StateError> {
    let (number, entry) = (usize::from(codec.number()), entry_of(codec.spec()));
    if state.codecs()?[number].as_ref() != Some(&entry) {
        state.set_codec(number, &entry);
    }
    Ok(())
}

/// How a superblock says it.
fn entry_of(spec: CodecSpec) -> CodecEntry {
    let algorithm = spec.algorithm().to_owned();
    let (level, parameters) = (spec.level(), spec.parameters());
    CodecEntry { algorithm, level, parameters, ..CodecEntry::default() }
}

/// The codec of an entry, if this program knows it.
fn spec_of(entry: &CodecEntry) -> Option<CodecSpec> {
    let spec = CodecSpec::of(&entry.algorithm, entry.level, entry.parameters)?;
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
