//! Where the daemon's disk comes from.

use std::fmt;
use std::fs::File;
use std::time::{Duration, Instant};

use super::service_manager::ManagerError;
use super::{DaemonError, GRACE, Keep, Settings, service_manager};
use crate::device::{Device, DeviceError, State, StateError};
use crate::failpoint;
use crate::stop::Stop;

/// The time between two attempts to open a state that is in use.
const RETRY: Duration = Duration::from_millis(10);

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
///
/// # Errors
/// The disk is impossible, or its state cannot be used; or the daemon is to stop.
pub(super) fn open(settings: &Settings, stop: &Stop) -> Result<(Device, Origin), DaemonError> {
    let began = Instant::now();
    let state = match &settings.keep {
        Keep::Process => return Ok((Device::new(&settings.device)?, Origin::None)),
        Keep::Directory { path, owner } => {
            let open = || settings.device.state_in(path, settings.create, *owner);
            when_free(stop, open)?
        }
        Keep::Manager => handed(settings, stop)?,
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
fn handed(settings: &Settings, stop: &Stop) -> Result<State, DaemonError> {
    const HOME: &str = "the service manager's store";
    let wanted = settings.device.format()?;
    let locked = settings.device.memory.is_locked();
    let fail = |error| DaemonError::from(DeviceError::from(error));
    let files = service_manager::handed_back()?;
    if files.is_empty() && !settings.create {
        return Err(fail(StateError::None { home: HOME.into() }));
    }
    if !files.is_empty() {
        let open = || {
            let copies = files.iter().map(File::try_clone).collect::<Result<_, _>>();
            let copies = copies.map_err(ManagerError::Handed)?;
            State::from_files(copies, HOME, &wanted, locked).map_err(fail)
        };
        match when_free(stop, open) {
            Err(DaemonError::Device(DeviceError::State(StateError::Unfinished { .. })))
                if settings.create =>
            {
                service_manager::forget(stop)?;
            }
            state => return state,
        }
    }
    let state = State::without_names(HOME, &wanted, locked).map_err(fail)?;
    service_manager::keep(&state.descriptors(), stop)?;
    Ok(state)
}

/// Retries `open` while another process has the state: one that was killed takes a moment to go.
fn when_free<E: Into<DaemonError>>(
    stop: &Stop,
    mut open: impl FnMut() -> Result<State, E>,
) -> Result<State, DaemonError> {
    let since = Instant::now();
    loop {
        match open().map_err(Into::into) {
            Err(DaemonError::Device(DeviceError::State(StateError::InUse { .. })))
                if since.elapsed() < GRACE =>
            {
                failpoint::reach("wait.state");
                stop.pause(RETRY)?;
            }
            state => return state,
        }
    }
}
