//! The service manager: it is told when the daemon is ready, and holds a state's descriptors from one
//! process to the next (systemd's sd_notify(3), sd_listen_fds(3), `FileDescriptorStoreMax=`).

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use nix::fcntl::{FcntlArg, fcntl};
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
/// How long it may take over what is said aside.
const ASIDE: Duration = Duration::from_secs(1);

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
    /// It gave them up as soon as it had them.
    #[error("the service manager does not hold the state's descriptors (FileDescriptorStoreMax=)")]
    NotHeld,
    /// They are for somebody else.
    #[error("the service manager handed its descriptors to another process (LISTEN_PID)")]
    NotOurs,
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
    let variable = |name| std::env::var(name).ok();
    let pid = variable("LISTEN_PID").and_then(|pid| pid.parse().ok());
    // A disk may be among them, and must not be taken for one that never was.
    if variable("LISTEN_FDS").is_some() && pid != Some(std::process::id()) {
        return Err(ManagerError::NotOurs);
    }
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
    let unreachable = |errno: nix::Error| ManagerError::Unreachable(errno.into());
    let marked: io::Result<Vec<File>> = descriptors.iter().map(|fd| marked(*fd)).collect();
    let marked = marked.map_err(ManagerError::Unreachable)?;
    // In one message, so that it never holds a part of them.
    let message = [NotifyState::FdStore, NotifyState::FdName(NAME)];
    let fds: Vec<BorrowedFd<'_>> = marked.iter().map(AsFd::as_fd).collect();
    sd_notify::notify_with_fds(&message, &fds).map_err(ManagerError::Unreachable)?;
    drop(marked);
    wait_until_taken()?;
    for fd in descriptors {
        if !is_held(*fd).map_err(unreachable)? {
            // It may have a part of them.
            forget()?;
            return Err(ManagerError::NotHeld);
        }
    }
    Ok(())
}

/// Another open file of the same, with a lock that lasts as long as anybody has that open file: a
/// manager that holds nothing for this service says nothing of it, but closes what it gets.
fn marked(fd: BorrowedFd<'_>) -> io::Result<File> {
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    fcntl(&file, FcntlArg::F_OFD_SETLK(&whole_file()))?;
    Ok(file)
}

/// Whether somebody has an open file that [`marked`] made.
fn is_held(fd: BorrowedFd<'_>) -> nix::Result<bool> {
    let mut lock = whole_file();
    fcntl(fd, FcntlArg::F_OFD_GETLK(&mut lock))?;
    Ok(i32::from(lock.l_type) != libc::F_UNLCK)
}

fn whole_file() -> libc::flock {
    libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

/// Has it give up what it holds.
pub(super) fn forget() -> Result<(), ManagerError> {
    let message = [NotifyState::FdStoreRemove, NotifyState::FdName(NAME)];
    sd_notify::notify(&message).map_err(ManagerError::Unreachable)?;
    wait_until_taken()
}

/// Front ends can come. No manager, or one that cannot be reached, is no reason not to serve them.
pub(super) fn say_ready() {
    // One that is busy with a host that boots has time, for it waits for this.
    say(NotifyState::Ready, Duration::from_millis(PATIENCE.into()));
}

/// The start takes its time: a manager that waits for [`say_ready`] has to wait for another minute.
pub(super) fn say_busy() {
    say(NotifyState::ExtendTimeoutUsec(60_000_000), ASIDE);
}

/// The daemon ends.
pub(super) fn say_stopping() {
    say(NotifyState::Stopping, ASIDE);
}

fn say(state: NotifyState<'_>, patience: Duration) {
    if let Err(error) = send(&state.to_string(), patience) {
        log::debug!("the service manager cannot be told: {error}");
    }
}

/// Sends a message to the manager, if there is one. A manager that does not read is waited for no
/// longer than `patience`.
fn send(text: &str, patience: Duration) -> io::Result<()> {
    let Some(name) = std::env::var_os("NOTIFY_SOCKET") else { return Ok(()) };
    let address = match name.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(&name)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_write_timeout(Some(patience))?;
    socket.send_to_addr(text.as_bytes(), &address).map(drop)
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
