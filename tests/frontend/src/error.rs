//! What can go wrong on the front end's side of the socket.

use std::{io, time::Duration};

use crate::blk::Status;

/// An error of the front end, or an answer of the back end that it did not expect.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No back end accepted the connection before the deadline.
    #[error("cannot connect to {path} within {waited:?}: {source}")]
    Connect {
        /// The socket's path.
        path: String,
        /// How long was tried.
        waited: Duration,
        /// The last refusal.
        source: io::Error,
    },
    /// A socket, eventfd or memory call failed.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// A vhost-user message was refused or not answered.
    #[error("{what}: {source}")]
    Vhost {
        /// The message.
        what: &'static str,
        /// What the `vhost` crate says of it.
        source: vhost::Error,
    },
    /// The back end did not answer or complete in time.
    #[error("{what}: nothing within {waited:?}")]
    Timeout {
        /// What was waited for.
        what: &'static str,
        /// For how long.
        waited: Duration,
    },
    /// The back end closed the connection.
    #[error("{0}: the back end closed the connection")]
    Closed(&'static str),
    /// The back end answered a message with something that does not answer it.
    #[error("{what}: bad answer: {why}")]
    BadReply {
        /// The message.
        what: &'static str,
        /// What is wrong.
        why: String,
    },
    /// An address lies outside the memory it was looked up in.
    #[error("guest address {addr:#x}+{len:#x} lies outside the region")]
    Address {
        /// Guest-physical address.
        addr: u64,
        /// Bytes asked for.
        len: u64,
    },
    /// The back end does not offer what the caller needs.
    #[error("the back end does not offer {0}")]
    Missing(&'static str),
    /// All request slots, descriptors or bytes of an arena are taken.
    #[error("no room: {0}")]
    Full(&'static str),
    /// The used ring holds something that no correct back end writes.
    #[error("used ring of queue {queue}: {why}")]
    UsedRing {
        /// Queue index.
        queue: usize,
        /// What is wrong.
        why: String,
    },
    /// A request of a synchronous helper ended in another status than OK.
    #[error("{op} at sector {sector}: {status:?}, used length {used_len}")]
    Request {
        /// Request name.
        op: &'static str,
        /// First sector, in units of 512 bytes.
        sector: u64,
        /// Status byte.
        status: Status,
        /// Bytes the back end says it wrote.
        used_len: u32,
    },
}

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Shorthand to name the call an I/O error came from.
pub(crate) fn io_err<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> Error {
    move |e| Error::Io { what, source: e.into() }
}
