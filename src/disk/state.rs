//! The state that a disk is opened in: it is found or created, once no other process has it open.

use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use super::{DiskConfig, DiskError};
use crate::device::{DeviceError, State, StateError};
use crate::failpoint;
use crate::stop::Stop;

/// The longest wait for a state that another process has open. A process that ends keeps it open until its
/// end, and a killed one takes a moment to end.
pub const GRACE: Duration = Duration::from_secs(3);
/// The time between two attempts to open it.
const RETRY: Duration = Duration::from_millis(10);

impl DiskConfig {
    /// The state in the directory `dir`. If there is no state and `create` is set, it is created. It belongs
    /// to the process's user, or to the one with the number `owner`.
    ///
    /// # Errors
    /// The state is missing, not whole, not of this disk, or in use for longer than [`GRACE`]; or the
    /// process is to end.
    pub fn state_in(
        &self,
        dir: &Path,
        create: bool,
        owner: Option<u32>,
        stop: &Stop,
    ) -> Result<State, DiskError> {
        when_free(stop, || Ok(self.device.state_in(dir, create, owner)?))
    }

    /// The state in `files`, which an earlier process left in `home`.
    ///
    /// # Errors
    /// As [`DiskConfig::state_in`].
    pub fn state_of(&self, files: &[File], home: &str, stop: &Stop) -> Result<State, DiskError> {
        let wanted = self.device.format()?;
        when_free(stop, || {
            let copies = files.iter().map(File::try_clone).collect::<Result<_, _>>();
            let copies = copies.map_err(DiskError::Descriptor)?;
            Ok(State::from_files(copies, home, &wanted, self.device.memory.is_locked())?)
        })
    }

    /// A new state in files without names, which live as long as a process has their descriptors.
    ///
    /// # Errors
    /// The host refuses memory.
    pub fn new_state(&self, home: &str) -> Result<State, DiskError> {
        let locked = self.device.memory.is_locked();
        Ok(State::without_names(home, &self.device.format()?, locked)?)
    }
}

/// Retries `open` while another process has the state open.
fn when_free(
    stop: &Stop,
    mut open: impl FnMut() -> Result<State, DiskError>,
) -> Result<State, DiskError> {
    let since = Instant::now();
    loop {
        match open() {
            Err(DiskError::Device(DeviceError::State(StateError::InUse { .. })))
                if since.elapsed() < GRACE =>
            {
                failpoint::reach("wait.state");
                stop.pause(RETRY)?;
            }
            state => return state,
        }
    }
}
