//! The service manager. The daemon notifies it when it is ready and answers its watchdog, takes its socket
//! from it, and has it store a state's descriptors from one process to the next (systemd's sd_notify(3),
//! sd_watchdog_enabled(3), sd_listen_fds(3), `FileDescriptorStoreMax=`).

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

/// The name under which the service manager stores a state's descriptors.
const NAME: &str = "vhost-user-zram";
/// The name of the socket for the control API (systemd's `FileDescriptorName=`).
const API: &str = "api";
/// The name under which it passes the socket that front ends connect to (`FileDescriptorName=`).
const SOCKET_NAME: &str = "vhost-user";
/// Descriptors of a state.
const DESCRIPTORS: u32 = 3;
/// The longest wait until the service manager has received a message that matters, and has acted on it.
const ANSWER_TIME: Duration = Duration::from_secs(10);
/// The longest wait until the service manager has received a message that is only a hint.
const HINT_TIME: Duration = Duration::from_secs(1);
/// The message that makes the service manager close the descriptors that it stores for this daemon.
const FORGET: [NotifyState<'static>; 2] = [NotifyState::FdStoreRemove, NotifyState::FdName(NAME)];

/// Why the service manager cannot store the descriptors of a state.
#[derive(Debug, thiserror::Error)]
pub enum ServiceManagerError {
    /// No service manager started the daemon.
    #[error("--fd-store requires a service manager (NOTIFY_SOCKET is not set)")]
    None,
    /// It stores too few descriptors.
    #[error(
        "the service manager stores at most {most} descriptors, and a state has {DESCRIPTORS} (FileDescriptorStoreMax=)"
    )]
    TooFew {
        /// The most that it stores.
        most: u32,
    },
    /// It closed the descriptors as soon as it had received them.
    #[error("the service manager does not store the state's descriptors (FileDescriptorStoreMax=)")]
    NotHeld,
    /// The descriptors that it passed are for another process.
    #[error("the descriptors in LISTEN_FDS are for another process (LISTEN_PID)")]
    NotOurs,
    /// It passed more sockets than the daemon can use.
    #[error(
        "the service manager passes {count} sockets of the name {SOCKET_NAME}, and a disk has one (ListenStream=)"
    )]
    Sockets {
        /// Their number.
        count: usize,
    },
    /// It does not answer.
    #[error("the service manager does not answer")]
    Silent,
    /// A message cannot be sent.
    #[error("cannot send to the service manager (NOTIFY_SOCKET)")]
    Unreachable(#[source] io::Error),
    /// The descriptors that it passed cannot be used.
    #[error("cannot use the descriptors in LISTEN_FDS")]
    Handed(#[source] io::Error),
    /// The daemon is to end.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

/// The files that the service manager stored for this daemon; none without a service manager.
pub(super) fn handed_back() -> Result<Vec<File>, ServiceManagerError> {
    // The state of a disk may be among them. Without this check it would be taken for one that never
    // existed.
    if std::env::var_os("LISTEN_FDS").is_some() && !are_ours() {
        return Err(ServiceManagerError::NotOurs);
    }
    inherit::files(passed(NAME)?.into_iter()).map_err(ServiceManagerError::Handed)
}

/// The descriptor of the socket that the service manager made for front ends, as systemd does by a socket
/// unit. `None` without one, or if the descriptors are for another process.
pub(super) fn passed_socket() -> Result<Option<RawFd>, ServiceManagerError> {
    let sockets = if are_ours() { passed(SOCKET_NAME)? } else { Vec::new() };
    match sockets[..] {
        [] => Ok(None),
        [socket] => Ok(Some(socket)),
        _ => Err(ServiceManagerError::Sockets { count: sockets.len() }),
    }
}

/// Whether the descriptors that the service manager passed are for this process, and not for one that
/// started it.
fn are_ours() -> bool {
    let pid = std::env::var("LISTEN_PID").ok().and_then(|pid| pid.parse().ok());
    pid == Some(std::process::id())
}

/// The descriptors of this name that the service manager passed to this process.
fn passed(name: &str) -> Result<Vec<RawFd>, ServiceManagerError> {
    let all = sd_notify::listen_fds_with_names().map_err(ServiceManagerError::Handed)?;
    Ok(all.filter(|(_, its)| its == name).map(|(fd, _)| fd).collect())
}

/// The descriptor of a socket of the name `api` that the service manager passed on to this process, for the
/// control API.
pub(super) fn api_socket() -> Option<RawFd> {
    if !are_ours() {
        return None;
    }
    passed(API).ok()?.first().copied()
}

/// Has the service manager store a state's descriptors, and returns when it does. On an error it stores
/// none of them.
///
/// # Errors
/// No message can be sent, or the service manager does not store them or takes too long, or the daemon is
/// to stop.
pub(super) fn keep(descriptors: &[BorrowedFd<'_>], stop: &Stop) -> Result<(), ServiceManagerError> {
    let kept = try_to_keep(descriptors, stop);
    if let Err(ServiceManagerError::Stopped(_)) = kept {
        // The service manager may have them. They contain no data yet.
        if let Err(error) = send(&FORGET, &[], HINT_TIME, stop) {
            log::debug!("cannot notify the service manager: {}", with_causes(&error));
        }
    }
    kept
}

fn try_to_keep(descriptors: &[BorrowedFd<'_>], stop: &Stop) -> Result<(), ServiceManagerError> {
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return Err(ServiceManagerError::None);
    }
    // systemd sets FDSTORE from version 254 on.
    let most = std::env::var("FDSTORE").ok().and_then(|text| text.parse().ok());
    if let Some(most) = most.filter(|most| *most < DESCRIPTORS) {
        return Err(ServiceManagerError::TooFew { most });
    }
    let unreachable = |errno: nix::Error| ServiceManagerError::Unreachable(errno.into());
    let marked: io::Result<Vec<File>> = descriptors.iter().map(|fd| marked(*fd)).collect();
    let marked = marked.map_err(ServiceManagerError::Unreachable)?;
    // In one message, so the service manager never has only some of them.
    let message = [NotifyState::FdStore, NotifyState::FdName(NAME)];
    let fds: Vec<BorrowedFd<'_>> = marked.iter().map(AsFd::as_fd).collect();
    send(&message, &fds, ANSWER_TIME, stop)?;
    drop(marked);
    wait_until_taken(stop)?;
    for fd in descriptors {
        if !is_held(*fd).map_err(unreachable)? {
            // The service manager may store some of them.
            forget(stop)?;
            return Err(ServiceManagerError::NotHeld);
        }
    }
    Ok(())
}

/// Opens the file again, with a lock that lasts as long as any process has that open file. A service
/// manager that stores nothing for this service sends no error, but closes the descriptors it receives.
fn marked(fd: BorrowedFd<'_>) -> io::Result<File> {
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    fcntl(&file, FcntlArg::F_OFD_SETLK(&whole_file()))?;
    Ok(file)
}

/// Whether a process has an open file that [`marked`] made.
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

/// Has the service manager close the descriptors that it stores, and returns when it did.
///
/// # Errors
/// No message can be sent, or the service manager takes too long, or the daemon is to stop.
pub(super) fn forget(stop: &Stop) -> Result<(), ServiceManagerError> {
    send(&FORGET, &[], ANSWER_TIME, stop)?;
    wait_until_taken(stop)
}

/// Tells the service manager that front ends can connect. They are served whether that succeeds or not.
pub(super) fn say_ready(stop: &Stop) {
    // This message matters: a service manager waits for it, also one that is busy because its host boots.
    say(NotifyState::Ready, ANSWER_TIME, stop);
}

/// Tells the service manager that the options are read again, until [`say_ready`].
pub(super) fn say_reloading(stop: &Stop) {
    // The time is what `Type=notify-reload` needs to tell this from the answer to an earlier request.
    let now = NotifyState::monotonic_usec_now();
    let message =
        now.map(|now| [NotifyState::Reloading, now]).map_err(ServiceManagerError::Unreachable);
    tell(message.and_then(|message| send(&message, &[], HINT_TIME, stop)));
}

/// Tells the service manager that the start takes long: it is to wait another minute for [`say_ready`].
pub(super) fn say_busy(stop: &Stop) {
    say(NotifyState::ExtendTimeoutUsec(60_000_000), HINT_TIME, stop);
}

/// The time after which the service manager ends this process unless [`say_alive`] is called; `None` if it
/// has no watchdog on it.
pub(super) fn watchdog_time() -> Option<Duration> {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse().ok());
    // What started the daemon, such as a shell, may have the watchdog instead.
    let other = std::env::var_os("WATCHDOG_PID").is_some()
        && number("WATCHDOG_PID") != Some(u64::from(std::process::id()));
    let time = number("WATCHDOG_USEC").filter(|time| *time > 0 && !other);
    time.map(Duration::from_micros)
}

/// Answers the service manager's watchdog. Never waits: an answer that finds its queue full is left out.
pub(super) fn say_alive(stop: &Stop) {
    say(NotifyState::Watchdog, Duration::ZERO, stop);
}

/// Tells the service manager that the daemon ends.
pub(super) fn say_stopping(stop: &Stop) {
    say(NotifyState::Stopping, HINT_TIME, stop);
}

fn say(state: NotifyState<'_>, time: Duration, stop: &Stop) {
    tell(send(&[state], &[], time, stop));
}

/// Logs why the service manager was not told.
fn tell(sent: Result<(), ServiceManagerError>) {
    if let Err(error) = sent {
        log::debug!("cannot notify the service manager: {}", with_causes(&error));
    }
}

/// Sends a message to the service manager, if there is one. Waits at most `time` for room in its queue.
fn send(
    message: &[NotifyState<'_>],
    fds: &[BorrowedFd<'_>],
    time: Duration,
    stop: &Stop,
) -> Result<(), ServiceManagerError> {
    let Some(name) = std::env::var_os("NOTIFY_SOCKET") else { return Ok(()) };
    let socket = connect(&name).map_err(ServiceManagerError::Unreachable)?;
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
            Err(Errno::EAGAIN) if since.elapsed() < time => {
                failpoint::reach("wait.manager.room");
                let left = time.saturating_sub(since.elapsed());
                stop.wait_for(socket.as_fd(), PollFlags::POLLOUT, left)?;
            }
            Err(Errno::EAGAIN) => return Err(ServiceManagerError::Silent),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(ServiceManagerError::Unreachable(errno.into())),
        }
    }
}

/// A socket that sends to the service manager, and is writable when its queue has room for a message.
fn connect(name: &OsStr) -> io::Result<UnixDatagram> {
    let address = match name.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(name)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&address)?;
    Ok(socket)
}

/// Waits until the service manager has handled every message so far: it closes the descriptor of the
/// barrier then.
fn wait_until_taken(stop: &Stop) -> Result<(), ServiceManagerError> {
    let unreachable = |errno: nix::Error| ServiceManagerError::Unreachable(errno.into());
    let (ours, its) = pipe().map_err(unreachable)?;
    send(&[NotifyState::Custom("BARRIER=1")], &[its.as_fd()], ANSWER_TIME, stop)?;
    drop(its);
    failpoint::reach("wait.manager.barrier");
    let taken = stop.wait_for(ours.as_fd(), PollFlags::POLLIN, ANSWER_TIME)?;
    taken.then_some(()).ok_or(ServiceManagerError::Silent)
}
