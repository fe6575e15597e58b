//! Disks that outlive their process: made, and taken over from a process that is gone.

use std::path::Path;
use std::sync::Arc;

use super::{BlockChoice, Device, DeviceConfig, DeviceError, StateError, codecs, content};
use crate::failpoint;
use crate::pool::{Named, Pool};
use crate::slot::{Content, SlotTable};
use crate::store::{Arena, Format, State};
use crate::units::PAGE_SIZE;

impl DeviceConfig {
    /// What a state of such a disk has in its superblock.
    ///
    /// # Errors
    /// The size is impossible.
    pub fn format(&self) -> Result<Format, DeviceError> {
        let (size, capacity) = (self.disk_size()?, self.capacity()?);
        Ok(Format {
            size,
            capacity,
            pool_pages: size / PAGE_SIZE as u64,
            arena_bytes: Pool::address_space_for(capacity),
            block_size: self.block_size.of_new(),
        })
    }

    /// The state in a directory; see [`State::in_directory`].
    ///
    /// # Errors
    /// It is not there, not whole, or not of this disk.
    pub fn state_in(
        &self,
        dir: &Path,
        create: bool,
        owner: Option<u32>,
    ) -> Result<State, DeviceError> {
        Ok(State::in_directory(dir, create, &self.format()?, self.memory.is_locked(), owner)?)
    }
}

impl Device {
    /// The disk in a state, which was made or opened for the same configuration. If that asks for a larger disk,
    /// it grows.
    ///
    /// A codec that the state does not have yet is added to its codec table; the others stay for the
    /// objects that name them.
    ///
    /// What an earlier process left behind is looked through once, skipping holes: its locks are
    /// cleared, and what the pool and the counters know is found again. A state that contradicts
    /// itself is refused, and is as it was then.
    ///
    /// # Errors
    /// The state is damaged, or of a disk with another logical block than was asked for; its pages are
    /// of a codec that this program does not know, or its codec table is full; or it cannot grow to the size
    /// that was asked for; or the host refuses the mappings.
    pub fn with_state(config: &DeviceConfig, state: State) -> Result<Self, DeviceError> {
        let state = Arc::new(state);
        let format = state.format();
        if let BlockChoice::Only(wanted) = config.block_size
            && format.block_size != wanted
        {
            let found = format.block_size;
            return Err(StateError::BlockSize { found, wanted }.into());
        }
        let (pages, limit) = (format.size / PAGE_SIZE as u64, config.limit());
        let mut table = SlotTable::of(&state, pages)?;
        let arena = Arena::of(&state, Pool::address_space_for(format.size))?;
        if state.is_new() {
            let codecs = codecs::of(&state, 0, config.codec)?;
            codecs::add(&state, codecs.0.primary())?;
            let pool = Pool::new(arena, format.pool_pages, limit)?;
            return Self::over(config, codecs, table, pool, Some(state));
        }
        if let Some(index) = table.first_unknown() {
            return Err(DeviceError::Slot { index });
        }
        let mut named = 0;
        table.for_each(|_, word| {
            if let Content::Object(codec, object) = word.content()
                && !object.is_huge()
            {
                named |= 1 << codec;
            }
        });
        let codecs = codecs::of(&state, named, config.codec)?;
        let pool = Pool::rebuild(arena, format.pool_pages, limit, |visit| {
            table.for_each(|_, word| {
                if let Some(object) = word.content().object() {
                    visit(Named { place: object.place, length: object.length });
                }
            });
        })?;
        codecs::add(&state, codecs.0.primary())?;
        content::take_over(&mut table, &pool);
        pool.adopt_table(table.bytes());
        let device = Self::over(config, codecs, table, pool, Some(state))?;
        let figures = device.figures();
        device.table.for_each(|_, word| figures.adopt(word.content()));
        failpoint::reach("open.counted");
        device.grow(config.disk_size()?.max(device.size()))?;
        Ok(device)
    }

    /// The disk is as it was to be made: from now on a new process opens it. Until then one that is
    /// told to make it begins anew.
    pub fn set_complete(&self) {
        if let Some(state) = &self.state {
            failpoint::reach("create.filled");
            state.set_complete();
        }
    }

    /// What the disk is kept in, if it outlives the process.
    pub fn state(&self) -> Option<&State> {
        self.state.as_deref()
    }
}
