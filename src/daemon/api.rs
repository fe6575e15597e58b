//! The socket of the control API, and the order in which it comes and goes: it is there before a long load,
//! and its file is gone before its clients are cut off.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::inherit::{self, Inherited};
use super::socket::{self, Bound, SocketAccess, SocketError};
use super::{DaemonError, service_manager};
use crate::control::{About, CONNECTIONS, Control};
use crate::disk::Disk;
use crate::stop::Stop;

/// The API's socket, before there is a disk.
pub(super) enum ApiSocket {
    /// To be bound.
    Unbound(PathBuf),
    /// The service manager passed it on.
    Inherited(Bound),
}

/// The API while it is served.
pub(super) struct Api {
    // Dropped first: a client that finds no socket does not try again.
    _socket: Bound,
    control: Control,
}

impl ApiSocket {
    /// The socket that the service manager passed on, or one at `path`, if there is to be any. A mistake of the
    /// user is reported before a long load. Waits at most `time` until a daemon that ends has left the path.
    pub(super) fn prepare(
        path: Option<&PathBuf>,
        time: Duration,
        stop: &Stop,
    ) -> Result<Option<Self>, SocketError> {
        if let Some(fd) = service_manager::api_socket() {
            let Inherited::Listening(listener) = inherit::adopt(fd)? else {
                return Err(SocketError::Inherited { fd, why: "the API's socket does not listen" });
            };
            if let Some(path) = path {
                log::info!(
                    "--api-socket {} is ignored: the service manager passed a socket on",
                    path.display()
                );
            }
            return Ok(Some(Self::Inherited(Bound::inherited(listener))));
        }
        let Some(path) = path else { return Ok(None) };
        socket::wait_until_free(path, time, stop)?;
        Ok(Some(Self::Unbound(path.clone())))
    }

    /// Creates the socket, for its owner alone, and serves the API on it. `descriptors` is how many there are
    /// beside those that the disk and its guests need.
    pub(super) fn serve(
        self,
        disk: &Arc<Disk>,
        endpoint: &str,
        descriptors: u64,
        stop: &Stop,
    ) -> Result<Api, DaemonError> {
        let socket = match self {
            Self::Inherited(socket) => socket,
            Self::Unbound(path) => {
                let access = SocketAccess::default().resolve()?;
                Bound::bind(path, access, stop)?
            }
        };
        let connections = usize::try_from(descriptors).unwrap_or(usize::MAX).min(CONNECTIONS);
        if connections < CONNECTIONS {
            log::warn!(
                "the control API has {connections} connections at a time instead of {CONNECTIONS}: raise \
                 RLIMIT_NOFILE (ulimit -n, LimitNOFILE=)"
            );
        }
        let listener = socket.listener().map_err(DaemonError::Descriptor)?;
        let about = About { socket: endpoint.to_owned() };
        let control = Control::start(listener, Arc::clone(disk), about, connections)?;
        Ok(Api { _socket: socket, control })
    }
}

impl Api {
    /// Front ends can connect from now on.
    pub(super) fn set_ready(&self) {
        self.control.set_ready();
    }
}
