//! The listening socket.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Somebody answers at the path.
    #[error("{} is the socket of a daemon that is running", .0.display())]
    Live(PathBuf),
    /// The path is something else.
    #[error("{} exists and is no socket", .0.display())]
    NoSocket(PathBuf),
    /// The directory is missing.
    #[error("there is no directory {} for the socket", .0.display())]
    NoDirectory(PathBuf),
    /// The path cannot be looked at or bound.
    #[error("the socket {} cannot be made", path.display())]
    Io {
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// An inherited descriptor is of no use.
    #[error("descriptor {fd} cannot be used: {why}")]
    Inherited {
        /// Its number.
        fd: RawFd,
        /// What is wrong with it.
        why: &'static str,
    },
}

/// Looks whether a socket can be made at `path`; true if a stale one lies there.
///
/// # Errors
/// A daemon is alive at the path, it is no socket, or its directory is missing.
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
        Ok(_) => Err(SocketError::Live(path.into())),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            Err(SocketError::Live(path.into()))
        }
        Err(error) => Err(io(error)),
    }
}

/// Connects, or fails at once: a stopped daemon with a full backlog would be waited for.
fn connect_at_once(path: &Path) -> io::Result<()> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(())
}

/// A listening socket; its file is removed with it, if it is still ours.
#[derive(Debug)]
pub struct Bound {
    listener: UnixListener,
    /// Path, device and inode of the file that was bound here.
    file: Option<(PathBuf, u64, u64)>,
}

impl Bound {
    /// Binds a socket at `path`, in place of a stale one.
    pub(super) fn bind(path: PathBuf) -> Result<Self, SocketError> {
        if check(&path)? {
            log::info!("the socket {} is of a daemon that is gone", path.display());
            fs::remove_file(&path)
                .map_err(|source| SocketError::Io { path: path.clone(), source })?;
        }
        let bound = UnixListener::bind(&path)
            .and_then(|listener| {
                let meta = fs::symlink_metadata(&path)?;
                listener.set_nonblocking(true)?;
                Ok((listener, meta))
            })
            .map_err(|source| SocketError::Io { path: path.clone(), source });
        let (listener, meta) = bound?;
        Ok(Self { listener, file: Some((path, meta.dev(), meta.ino())) })
    }

    /// A socket that was made, and will be removed, by somebody else.
    pub(super) fn inherited(listener: UnixListener) -> Self {
        if let Err(error) = listener.set_nonblocking(true) {
            log::debug!("the inherited socket stays blocking: {error}");
        }
        Self { listener, file: None }
    }

    /// The next connection; an error if none is waiting.
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
            log::debug!("the socket's file stays: {error}");
        }
    }
}
