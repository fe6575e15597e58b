//! Where front ends come from, and which one is served next.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::heartbeat::Heartbeat;
use super::inherit::{self, Inherited};
use super::lobby::Lobby;
use super::socket::{self, Access, Bound, SocketError};
use super::{DaemonError, Endpoint};
use crate::causes::with_causes;
use crate::disk::Disk;
use crate::ratelimit::Kind;
use crate::stop::Stop;
use crate::vhost_user::{Others, SessionEnd};

/// The pause after a front end was refused, if no other one waits: it may reconnect at once.
const REST: Duration = Duration::from_millis(100);
/// Where connections come from, before and after the socket exists.
pub(super) enum Source {
    /// To be bound when all is ready, with these permissions.
    Unbound(PathBuf, Access),
    Listening(Bound),
    Connected(UnixStream),
}

impl Source {
    /// Reports a mistake of the user before a long load. Waits at most `time` until a daemon that ends has
    /// left the socket.
    pub(super) fn prepare(
        endpoint: &Endpoint,
        time: Duration,
        stop: &Stop,
    ) -> Result<Self, SocketError> {
        match endpoint {
            Endpoint::Path(path, access) => {
                let access = access.resolve()?;
                socket::wait_until_free(path, time, stop)?;
                Ok(Source::Unbound(path.clone(), access))
            }
            Endpoint::Fd(fd) => Ok(match inherit::adopt(*fd)? {
                Inherited::Listening(listener) => Source::Listening(Bound::inherited(listener)),
                Inherited::Connected(stream) => Source::Connected(stream),
            }),
        }
    }

    /// Creates the socket, unless it is inherited.
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
    let heartbeat = Heartbeat::start(stop).map_err(DaemonError::Setup)?;
    let listener = match source {
        Source::Connected(stream) => {
            let mut heartbeat = heartbeat;
            let others = heartbeat.as_mut().map(|heartbeat| heartbeat as &mut dyn Others);
            return match disk.serve(&stream, stop.as_fd(), others) {
                SessionEnd::HungUp | SessionEnd::Stopped => Ok(()),
                SessionEnd::Refused(error) => Err(DaemonError::Session(error)),
            };
        }
        Source::Listening(listener) => listener,
        // The caller has called `open`.
        Source::Unbound(..) => return Ok(()),
    };
    let lobby = Lobby::new(listener, heartbeat, Arc::clone(disk.log()));
    let mut lobby = lobby.map_err(DaemonError::Setup)?;
    while let Some((stream, peer)) = lobby.next(stop.as_fd()) {
        disk.log().info(Kind::Connections, format_args!("a front end ({peer}) connects"));
        match disk.serve(&stream, stop.as_fd(), Some(&mut lobby)) {
            SessionEnd::Stopped => {
                // In this order: a front end whose connection is closed may reconnect at once, and a
                // daemon that is about to end must not accept it. QEMU 7.2 abandons a disk whose new
                // connection fails half-way.
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
                if !lobby.any_ready() {
                    // If the daemon is to stop, `lobby.next` returns `None`.
                    let _ = stop.pause(REST);
                }
            }
        }
    }
    Ok(())
}
