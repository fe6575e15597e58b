//! The listening socket. One daemon at a time creates it, and only the permitted users may connect.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, lchown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use nix::sys::socket::{getsockopt, sockopt};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Group, User};

use crate::failpoint;
use crate::stop::{Stop, Stopped};

/// The longest wait for another daemon that creates the same socket. It takes a moment, unless that
/// daemon is stopped (SIGSTOP).
const TURN_TIME: Duration = Duration::from_secs(3);
/// The time between two attempts.
const RETRY: Duration = Duration::from_millis(10);
/// The time between two looks whether a daemon that ends has left.
const LEAVING: Duration = Duration::from_millis(100);

/// Why the daemon has no socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// A daemon answers at the path.
    #[error("the socket {} belongs to a running daemon{}", path.display(), process(*pid))]
    Live {
        /// The path.
        path: PathBuf,
        /// The process that listens, if it is known.
        pid: Option<i32>,
    },
    /// Another daemon is creating a socket at the path, and does not finish.
    #[error("another daemon that creates the socket {} does not proceed: it holds the lock {}.lock", .0.display(), .0.display())]
    Busy(PathBuf),
    /// The lock file, whose lock is the right to create the socket, cannot be opened or locked.
    #[error("cannot take the lock {} of the socket", path.display())]
    Lock {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No such user.
    #[error("--socket-owner: no user has the name or number '{0}'")]
    NoUser(String),
    /// No such group.
    #[error("--socket-group: no group has the name or number '{0}'")]
    NoGroup(String),
    /// Owner, group, or mode of the socket cannot be set.
    #[error("cannot give the socket {} {what}", path.display())]
    Access {
        /// The path.
        path: PathBuf,
        /// What it was to have.
        what: String,
        /// Why.
        source: io::Error,
    },
    /// The path is something else.
    #[error("{} exists and is not a socket", .0.display())]
    NoSocket(PathBuf),
    /// The directory is missing.
    #[error("the socket's directory {} does not exist", .0.display())]
    NoDirectory(PathBuf),
    /// The path cannot be checked or bound.
    #[error("cannot create the socket {}", path.display())]
    Io {
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// An inherited descriptor cannot be used.
    #[error("cannot use descriptor {fd}: {why}")]
    Inherited {
        /// Its number.
        fd: RawFd,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The daemon is to end.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

fn process(pid: Option<i32>) -> String {
    pid.map_or_else(String::new, |pid| format!(" (process {pid})"))
}

/// The users that may connect to the socket, as the command line names them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SocketAccess {
    /// Permission bits, up to 0777. Connecting requires the right to write. `None` is 0600, and 0660 with a
    /// group.
    pub mode: Option<u32>,
    /// Name or number of its owner; `None` is the daemon's user.
    pub owner: Option<String>,
    /// Name or number of its group; `None` is the daemon's, or the directory's if that is set-group-ID.
    pub group: Option<String>,
}

/// The users that may connect to a socket, in numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Access {
    mode: u32,
    uid: Option<u32>,
    gid: Option<u32>,
}

impl SocketAccess {
    /// Looks the names up. A name that is a number is looked up first, as chown(1) does.
    pub(super) fn resolve(&self) -> Result<Access, SocketError> {
        let uid = self.owner.as_ref().map(|name| {
            let user = User::from_name(name).ok().flatten().map(|user| user.uid.as_raw());
            user.or_else(|| name.parse().ok()).ok_or_else(|| SocketError::NoUser(name.clone()))
        });
        let gid = self.group.as_ref().map(|name| {
            let group = Group::from_name(name).ok().flatten().map(|group| group.gid.as_raw());
            group.or_else(|| name.parse().ok()).ok_or_else(|| SocketError::NoGroup(name.clone()))
        });
        let (uid, gid) = (uid.transpose()?, gid.transpose()?);
        let mode = self.mode.unwrap_or(if gid.is_some() { 0o660 } else { 0o600 });
        Ok(Access { mode, uid, gid })
    }
}

impl Access {
    /// Creates a listening socket at `path`. At no time can a user connect that `apply` does not permit.
    fn bind(self, path: &Path) -> io::Result<UnixListener> {
        // The group is not yet the right one, so only the owner may connect. The mask belongs to the
        // process; no other thread creates files now.
        let before = umask(Mode::from_bits_truncate(0o777 & !(self.mode & 0o600)));
        let bound = UnixListener::bind(path);
        umask(before);
        bound
    }

    /// Gives the socket to its group and owner. The owner is set last, because only the owner may set
    /// the rest.
    fn apply(self, path: &Path) -> Result<(), SocketError> {
        let fail = |what| move |source| SocketError::Access { path: path.to_owned(), what, source };
        if let Some(gid) = self.gid {
            lchown(path, None, Some(gid)).map_err(fail(format!("group {gid}")))?;
        }
        let mode = fs::Permissions::from_mode(self.mode);
        fs::set_permissions(path, mode).map_err(fail(format!("mode {:03o}", self.mode)))?;
        if let Some(uid) = self.uid {
            lchown(path, Some(uid), None).map_err(fail(format!("user {uid}")))?;
        }
        Ok(())
    }
}

/// The right to create a socket at a path: a lock on a file beside it, which is removed on drop.
#[derive(Debug)]
struct Turn {
    path: PathBuf,
    _lock: Flock<File>,
}

impl Turn {
    /// Waits for the right, for `time` at most.
    fn wait(socket: &Path, time: Duration, stop: &Stop) -> Result<Self, SocketError> {
        let mut name = socket.as_os_str().to_owned();
        name.push(".lock");
        let path = PathBuf::from(name);
        let fail = |source| SocketError::Lock { path: path.clone(), source };
        let mut options = OpenOptions::new();
        options.write(true).create(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
        let since = Instant::now();
        loop {
            let file = options.open(&path).map_err(fail)?;
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                // The daemon before us may have removed the file that was opened here.
                Ok(lock) if is_at(&lock, &path) => return Ok(Self { path, _lock: lock }),
                Ok(_) => {}
                Err((_, Errno::EWOULDBLOCK)) if since.elapsed() < time => {
                    failpoint::reach("wait.turn");
                    stop.pause(RETRY)?;
                }
                Err((_, Errno::EWOULDBLOCK)) => return Err(SocketError::Busy(socket.into())),
                Err((_, errno)) => return Err(fail(errno.into())),
            }
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        // Before the lock is released: only while this daemon holds it is the file its own.
        if let Err(error) = fs::remove_file(&self.path) {
            log::debug!("cannot remove the lock {}: {error}", self.path.display());
        }
    }
}

/// Whether `path` names this open file.
fn is_at(file: &File, path: &Path) -> bool {
    let id = |meta: fs::Metadata| (meta.dev(), meta.ino());
    matches!(
        (file.metadata().map(id), fs::symlink_metadata(path).map(id)),
        (Ok(ours), Ok(there)) if ours == there
    )
}

/// Checks whether a socket can be created at `path`; true if a stale one is there.
///
/// # Errors
/// A daemon is alive at the path, it is not a socket, or its directory is missing.
pub(super) fn check(path: &Path) -> Result<bool, SocketError> {
    let io = |source| SocketError::Io { path: path.into(), source };
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    if !directory.is_dir() {
        return Err(SocketError::NoDirectory(directory.into()));
    }
    UnixAddr::new(path).map_err(|errno| io(errno.into()))?;
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(io(error)),
        Ok(meta) if !meta.file_type().is_socket() => {
            return Err(SocketError::NoSocket(path.into()));
        }
        Ok(_) => {}
    }
    match connect_at_once(path) {
        // The file outlives its daemon if that was killed.
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(true),
        // A full backlog is a sign of life.
        Ok(pid) => Err(SocketError::Live { path: path.into(), pid }),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            Err(SocketError::Live { path: path.into(), pid: None })
        }
        Err(error) => Err(io(error)),
    }
}

/// Waits at most `time` until a daemon that ends has left `path`, so that a socket can be created there.
///
/// # Errors
/// As [`check`], or the daemon is to stop.
pub(super) fn wait_until_free(path: &Path, time: Duration, stop: &Stop) -> Result<(), SocketError> {
    let since = Instant::now();
    while let Err(error) = check(path) {
        if !matches!(error, SocketError::Live { .. }) || since.elapsed() >= time {
            return Err(error);
        }
        failpoint::reach("wait.socket");
        stop.pause(LEAVING)?;
    }
    Ok(())
}

/// Connects, or fails at once. A blocking call would wait for a stopped daemon with a full backlog.
/// Returns the process that listens, if it is in the same PID namespace.
fn connect_at_once(path: &Path) -> io::Result<Option<i32>> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    let peer = getsockopt(&socket, sockopt::PeerCredentials).ok();
    Ok(peer.map(|peer| peer.pid()).filter(|pid| *pid > 0))
}

/// A listening socket. Dropping it removes its file, unless another one has taken its place.
#[derive(Debug)]
pub struct Bound {
    listener: UnixListener,
    /// Path, device and inode of the file that was bound here.
    file: Option<(PathBuf, u64, u64)>,
}

impl Bound {
    /// Creates a socket at `path`, in place of a stale one. When several daemons do so at the same time,
    /// one gets the path, and the others find it in use.
    pub(super) fn bind(path: PathBuf, access: Access, stop: &Stop) -> Result<Self, SocketError> {
        let io = |source| SocketError::Io { path: path.clone(), source };
        let _turn = Turn::wait(&path, TURN_TIME, stop)?;
        let stale = check(&path)?;
        failpoint::reach("socket.checked");
        if stale {
            log::info!("the socket {} is stale and is replaced", path.display());
            fs::remove_file(&path).map_err(io)?;
        }
        let listener = access.bind(&path).map_err(io)?;
        let meta = fs::symlink_metadata(&path).map_err(io)?;
        // From here on the file is removed if a step fails.
        let bound = Self { listener, file: Some((path.clone(), meta.dev(), meta.ino())) };
        bound.listener.set_nonblocking(true).map_err(io)?;
        failpoint::reach("socket.bound");
        access.apply(&path)?;
        Ok(bound)
    }

    /// A socket that another process created and will remove.
    pub(super) fn inherited(listener: UnixListener) -> Self {
        if let Err(error) = listener.set_nonblocking(true) {
            log::debug!("cannot make the inherited socket non-blocking: {error}");
        }
        Self { listener, file: None }
    }

    /// A second descriptor of it. The file goes with this value, whatever becomes of that.
    pub(super) fn listener(&self) -> io::Result<UnixListener> {
        self.listener.try_clone()
    }

    /// The next connection; an error if none waits.
    pub(super) fn accept(&self) -> io::Result<UnixStream> {
        let (stream, _) = self.listener.accept()?;
        stream.set_nonblocking(false)?;
        Ok(stream)
    }
}

impl AsFd for Bound {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        let Some((path, dev, ino)) = &self.file else { return };
        let ours =
            fs::symlink_metadata(path).is_ok_and(|meta| (meta.dev(), meta.ino()) == (*dev, *ino));
        if ours && let Err(error) = fs::remove_file(path) {
            log::debug!("cannot remove the socket's file: {error}");
        }
    }
}
