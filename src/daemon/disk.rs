//! Where the daemon's disk comes from.

use std::fmt;
use std::time::Instant;

use super::{DaemonError, Keep, Settings, manager};
use crate::device::{Device, DeviceError, State, StateError};

/// What the disk was found to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// It is blank, and ends with this process.
    None,
    /// It is blank, and outlives this process.
    New,
    /// An earlier process left it.
    Opened,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Origin::None => "none",
            Origin::New => "new",
            Origin::Opened => "opened",
        })
    }
}

/// Makes the disk, or takes it over from an earlier process.
pub(super) fn open(settings: &Settings) -> Result<(Device, Origin), DaemonError> {
    let began = Instant::now();
    let state = match &settings.keep {
        Keep::Process => return Ok((Device::new(&settings.device)?, Origin::None)),
        Keep::Directory { path, owner } => {
            settings.device.state_in(path, settings.create, *owner)?
        }
        Keep::Manager => handed(settings)?,
    };
    let origin = if state.is_new() { Origin::New } else { Origin::Opened };
    let device = Device::with_state(&settings.device, state)?;
    if origin == Origin::Opened {
        log::info!(
            "{} bytes of pages are there, found in {} ms",
            device.report().orig_data_size,
            began.elapsed().as_millis()
        );
    }
    Ok((device, origin))
}

/// The state that the service manager holds.
fn handed(settings: &Settings) -> Result<State, DaemonError> {
    const HOME: &str = "the service manager's store";
    let wanted = settings.device.format()?;
    let locked = settings.device.memory.is_locked();
    let fail = |error| DaemonError::from(DeviceError::from(error));
    let files = manager::handed_back()?;
    if files.is_empty() && !settings.create {
        return Err(fail(StateError::None { home: HOME.into() }));
    }
    if !files.is_empty() {
        match State::from_files(files, HOME, &wanted, locked) {
            Err(StateError::Unfinished { .. }) if settings.create => manager::forget()?,
            state => return state.map_err(fail),
        }
    }
    let state = State::without_names(HOME, &wanted, locked).map_err(fail)?;
    manager::keep(&state.descriptors())?;
    Ok(state)
}
