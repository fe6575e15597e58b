//! The service manager: it is told when the daemon is ready, and holds a state's descriptors from one
//! process to the next (systemd's sd_notify(3), sd_listen_fds(3), `FileDescriptorStoreMax=`).

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::pipe;
use sd_notify::NotifyState;

use super::inherit;

/// The name under which it holds them.
const NAME: &str = "vhost-user-zram";
/// Descriptors of a state.
const DESCRIPTORS: u32 = 3;
/// How long it may take over what it was sent, in milliseconds.
const PATIENCE: u16 = 10_000;

/// Why nothing can be left with the service manager.
#[derive(Debug, thiserror::Error)]
pub enum ManagerError {
    /// The daemon was not started by one.
    #[error("no service manager holds descriptors for this process (NOTIFY_SOCKET is not set)")]
    None,
    /// It holds too few.
    #[error(
        "the service manager holds {most} descriptors and {DESCRIPTORS} are needed (FileDescriptorStoreMax=)"
    )]
    TooFew {
        /// How many it holds.
        most: u32,
    },
    /// It does not answer.
    #[error("the service manager does not take the state's descriptors")]
    Silent,
    /// It cannot be reached.
    #[error("the service manager cannot be reached")]
    Unreachable(#[source] io::Error),
    /// What it handed over cannot be had.
    #[error("the descriptors of the service manager cannot be taken over")]
    Handed(#[source] io::Error),
}

/// What it held for this process; nothing if there is no manager.
pub(super) fn handed_back() -> Result<Vec<File>, ManagerError> {
    let all = sd_notify::listen_fds_with_names().map_err(ManagerError::Handed)?;
    let ours = all.filter(|(_, name)| name == NAME).map(|(fd, _)| fd);
    inherit::files(ours).map_err(ManagerError::Handed)
}

/// Has a state's descriptors held; returns when they are.
pub(super) fn keep(descriptors: &[BorrowedFd<'_>]) -> Result<(), ManagerError> {
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return Err(ManagerError::None);
    }
    // systemd says it from version 254 on.
    let most = std::env::var("FDSTORE").ok().and_then(|text| text.parse().ok());
    if let Some(most) = most.filter(|most| *most < DESCRIPTORS) {
        return Err(ManagerError::TooFew { most });
    }
    // In one message, so that it never holds a part of them.
    let message = [NotifyState::FdStore, NotifyState::FdName(NAME)];
    sd_notify::notify_with_fds(&message, descriptors).map_err(ManagerError::Unreachable)?;
    wait_until_taken()
}

/// Has it give up what it holds.
pub(super) fn forget() -> Result<(), ManagerError> {
    let message = [NotifyState::FdStoreRemove, NotifyState::FdName(NAME)];
    sd_notify::notify(&message).map_err(ManagerError::Unreachable)?;
    wait_until_taken()
}

/// Front ends can come. No manager, or one that cannot be reached, is no reason not to serve them.
pub(super) fn say_ready() {
    say(NotifyState::Ready);
}

/// The daemon ends.
pub(super) fn say_stopping() {
    say(NotifyState::Stopping);
}

fn say(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        log::debug!("the service manager cannot be told: {error}");
    }
}

/// Waits until everything that was sent is worked off: it closes what comes with a barrier.
fn wait_until_taken() -> Result<(), ManagerError> {
    let unreachable = |errno: nix::Error| ManagerError::Unreachable(errno.into());
    let (ours, its) = pipe().map_err(unreachable)?;
    let barrier = [NotifyState::Custom("BARRIER=1")];
    sd_notify::notify_with_fds(&barrier, &[its.as_fd()]).map_err(ManagerError::Unreachable)?;
    drop(its);
    let mut fds = [PollFd::new(ours.as_fd(), PollFlags::POLLIN)];
    match poll(&mut fds, PollTimeout::from(PATIENCE)) {
        Ok(0) => Err(ManagerError::Silent),
        Ok(_) => Ok(()),
        Err(errno) => Err(unreachable(errno)),
    }
}
