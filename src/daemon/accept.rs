//! Where front ends come from, and who is served next.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::inherit::{self, Inherited};
use super::lobby::Lobby;
use super::socket::{self, Access, Bound, SocketError};
use super::{DaemonError, Endpoint};
use crate::causes::with_causes;
use crate::disk::Disk;
use crate::failpoint;
use crate::ratelimit::Kind;
use crate::stop::Stop;
use crate::vhost_user::SessionEnd;

/// How long the daemon rests after it had to refuse a front end, which may try again at once, if
/// nobody else waits.
const REST: Duration = Duration::from_millis(100);
/// Where connections come from, before and after the socket exists.
pub(super) enum Source {
    /// To be bound when all is ready, for those who have access.
    Unbound(PathBuf, Access),
    Listening(Bound),
    Connected(UnixStream),
}

impl Source {
    /// What the user got wrong is said here, before a long load; a socket of a daemon that goes is
    /// waited for as long as `patience`.
    pub(super) fn prepare(
        endpoint: &Endpoint,
        patience: Duration,
        stop: &Stop,
    ) -> Result<Self, SocketError> {
        match endpoint {
            Endpoint::Path(path, access) => {
                let access = access.resolve()?;
                let since = Instant::now();
                while let Err(error) = socket::check(path) {
                    if !matches!(error, SocketError::Live { .. }) || since.elapsed() >= patience {
                        return Err(error);
                    }
                    failpoint::reach("wait.socket");
                    stop.pause(REST)?;
                }
                Ok(Source::Unbound(path.clone(), access))
            }
            Endpoint::Fd(fd) => Ok(match inherit::adopt(*fd)? {
                Inherited::Listening(listener) => Source::Listening(Bound::inherited(listener)),
                Inherited::Connected(stream) => Source::Connected(stream),
            }),
        }
    }

    /// Makes the socket, if it is not inherited.
    pub(super) fn open(self, stop: &Stop) -> Result<Self, SocketError> {
        match self {
            Source::Unbound(path, access) => {
                Ok(Source::Listening(Bound::bind(path, access, stop)?))
            }
            other => Ok(other),
        }
    }
}

/// Serves front ends, one after another, until the daemon is to stop or an inherited connection ends.
pub(super) fn serve(source: Source, disk: &Disk, stop: &Stop) -> Result<(), DaemonError> {
    let listener = match source {
        Source::Connected(stream) => {
            return match disk.serve(&stream, stop.as_fd(), None) {
                SessionEnd::HungUp | SessionEnd::Stopped => Ok(()),
                SessionEnd::Refused(error) => Err(DaemonError::Session(error)),
            };
        }
        Source::Listening(listener) => listener,
        // `open` comes before.
        Source::Unbound(..) => return Ok(()),
    };
    let mut lobby = Lobby::new(listener, Arc::clone(disk.log())).map_err(DaemonError::Setup)?;
    while let Some((stream, peer)) = lobby.next(stop.as_fd()) {
        disk.log().info(Kind::Connections, format_args!("a front end ({peer}) connects"));
        match disk.serve(&stream, stop.as_fd(), Some(&mut lobby)) {
            SessionEnd::Stopped => {
                // In this order: a front end that sees its connection close may connect again at
                // once, and must not be let in by a daemon that is about to end. QEMU 7.2 gives
                // a disk up whose new connection fails half-way.
                drop(lobby);
                drop(stream);
                return Ok(());
            }
            SessionEnd::HungUp => {
                let line = format_args!("the front end ({peer}) hung up");
                disk.log().info(Kind::Connections, line);
            }
            SessionEnd::Refused(error) => {
                let why = with_causes(&error);
                let line = format_args!("the front end ({peer}) is disconnected: {why}");
                disk.log().warn(Kind::Disconnections, line);
                drop(stream);
                if !lobby.has_spoken() {
                    // If the daemon is to stop, the lobby says so next.
                    let _ = stop.pause(REST);
                }
            }
        }
    }
    Ok(())
}
