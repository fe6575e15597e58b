//! The service manager: it is told when the daemon is ready, and holds a state's descriptors from one
//! process to the next (systemd's sd_notify(3), sd_listen_fds(3), `FileDescriptorStoreMax=`).

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::poll::PollFlags;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::unistd::pipe;
use sd_notify::NotifyState;

use super::inherit;
use crate::causes::with_causes;
use crate::failpoint;
use crate::stop::{Stop, Stopped};

/// The name under which it holds them.
const NAME: &str = "vhost-user-zram";
/// Descriptors of a state.
const DESCRIPTORS: u32 = 3;
/// How long it may take to receive a message that matters, and to act on it.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long it may take to receive a message without which all goes on.
const ASIDE: Duration = Duration::from_secs(1);
/// The message that has it close the descriptors that it holds for this daemon.
const FORGET: [NotifyState<'static>; 2] = [NotifyState::FdStoreRemove, NotifyState::FdName(NAME)];

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
    #[error("the service manager does not answer")]
    Silent,
    /// It cannot be reached.
    #[error("the service manager cannot be reached")]
    Unreachable(#[source] io::Error),
    /// What it handed over cannot be had.
    #[error("the descriptors of the service manager cannot be taken over")]
    Handed(#[source] io::Error),
    /// The daemon is to end.
    #[error(transparent)]
    Stopped(#[from] Stopped),
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

/// Has a state's descriptors held; returns when they are. If not, it holds none of them.
///
/// # Errors
/// It cannot be reached, does not hold them, or takes too long; or the daemon is to stop.
pub(super) fn keep(descriptors: &[BorrowedFd<'_>], stop: &Stop) -> Result<(), ManagerError> {
    let kept = try_to_keep(descriptors, stop);
    if let Err(ManagerError::Stopped(_)) = kept {
        // It may have all of them, or a part, and nothing was stored in them.
        if let Err(error) = send(&FORGET, &[], ASIDE, stop) {
            log::debug!("the service manager cannot be told: {}", with_causes(&error));
        }
    }
    kept
}

fn try_to_keep(descriptors: &[BorrowedFd<'_>], stop: &Stop) -> Result<(), ManagerError> {
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
    send(&message, &fds, PATIENCE, stop)?;
    drop(marked);
    wait_until_taken(stop)?;
    for fd in descriptors {
        if !is_held(*fd).map_err(unreachable)? {
            // It may have a part of them.
            forget(stop)?;
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

/// Has it close what it holds; returns when it did.
///
/// # Errors
/// It cannot be reached or takes too long; or the daemon is to stop.
pub(super) fn forget(stop: &Stop) -> Result<(), ManagerError> {
    send(&FORGET, &[], PATIENCE, stop)?;
    wait_until_taken(stop)
}

/// Front ends can come. No manager, or one that cannot be reached, is no reason not to serve them.
pub(super) fn say_ready(stop: &Stop) {
    // One that is busy with a host that boots has time, for it waits for this.
    say(NotifyState::Ready, PATIENCE, stop);
}

/// The start takes its time: a manager that waits for [`say_ready`] has to wait for another minute.
pub(super) fn say_busy(stop: &Stop) {
    say(NotifyState::ExtendTimeoutUsec(60_000_000), ASIDE, stop);
}

/// The daemon ends.
pub(super) fn say_stopping(stop: &Stop) {
    say(NotifyState::Stopping, ASIDE, stop);
}

fn say(state: NotifyState<'_>, patience: Duration, stop: &Stop) {
    if let Err(error) = send(&[state], &[], patience, stop) {
        log::debug!("the service manager cannot be told: {}", with_causes(&error));
    }
}

/// Sends a message to the manager, if there is one; waits until it has room for it, for no longer than
/// `patience`.
fn send(
    message: &[NotifyState<'_>],
    fds: &[BorrowedFd<'_>],
    patience: Duration,
    stop: &Stop,
) -> Result<(), ManagerError> {
    let Some(name) = std::env::var_os("NOTIFY_SOCKET") else { return Ok(()) };
    let socket = connect(&name).map_err(ManagerError::Unreachable)?;
    let text: String = message.iter().map(|line| format!("{line}\n")).collect();
    let fds: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&fds)];
    let control = if fds.is_empty() { &[][..] } else { &rights[..] };
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    let since = Instant::now();
    loop {
        let bytes = [IoSlice::new(text.as_bytes())];
        match sendmsg::<()>(socket.as_raw_fd(), &bytes, control, flags, None) {
            Ok(_) => return Ok(()),
            Err(Errno::EAGAIN) if since.elapsed() < patience => {
                failpoint::reach("wait.manager.room");
                let left = patience.saturating_sub(since.elapsed());
                stop.wait_for(socket.as_fd(), PollFlags::POLLOUT, left)?;
            }
            Err(Errno::EAGAIN) => return Err(ManagerError::Silent),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(ManagerError::Unreachable(errno.into())),
        }
    }
}

/// A socket whose messages go to the manager, and which is writable when that has room for one.
fn connect(name: &OsStr) -> io::Result<UnixDatagram> {
    let address = match name.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(name)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&address)?;
    Ok(socket)
}

/// Waits until it has worked off everything that was sent: it closes what comes with a barrier.
fn wait_until_taken(stop: &Stop) -> Result<(), ManagerError> {
    let unreachable = |errno: nix::Error| ManagerError::Unreachable(errno.into());
    let (ours, its) = pipe().map_err(unreachable)?;
    send(&[NotifyState::Custom("BARRIER=1")], &[its.as_fd()], PATIENCE, stop)?;
    drop(its);
    failpoint::reach("wait.manager.barrier");
    let taken = stop.wait_for(ours.as_fd(), PollFlags::POLLIN, PATIENCE)?;
    taken.then_some(()).ok_or(ManagerError::Silent)
}
