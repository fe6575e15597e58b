//! The channel on which a disk speaks to its front end by itself: a socket that the front end hands over
//! (SET_BACKEND_REQ_FD).
//!
//! One message is sent on it, VHOST_USER_BACKEND_CONFIG_CHANGE_MSG, after which the front end reads the
//! configuration space again. The vhost crate has no such message, and keeps the socket that it receives to
//! itself; so the session keeps a duplicate of the descriptor (`incoming.rs`). No reply is asked for, and
//! nothing is ever read: whatever the front end does with its end, no thread waits for it.

use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, send};
use vhost::vhost_user::message::BackendReq;

use crate::vhost_user::incoming::HEADER_BYTES;
use crate::virtq::handed;

/// Flags of a header: version 1, and no reply wanted.
const VERSION: u32 = 1;

/// A channel, once the front end has handed one over.
#[derive(Debug, Default)]
pub(crate) struct Channel {
    socket: Option<OwnedFd>,
}

impl Channel {
    /// Uses this socket from now on, in place of another one.
    pub(crate) fn open(&mut self, socket: OwnedFd) {
        self.close();
        self.socket = Some(socket);
    }

    /// Closes the socket, if there is one. What the front end has sent on it is not read, and may contain
    /// descriptors that block the thread that closes them.
    pub(crate) fn close(&mut self) {
        self.socket.take().into_iter().for_each(|socket| handed::discard(socket.into()));
    }

    /// Tells the front end that its configuration space has changed. Never waits.
    pub(crate) fn tell_of_config(&mut self) {
        let Some(socket) = &self.socket else { return };
        let words = [BackendReq::CONFIG_CHANGE_MSG.into(), VERSION, 0];
        let mut message = [0; HEADER_BYTES];
        for (bytes, word) in message.chunks_exact_mut(4).zip(words) {
            bytes.copy_from_slice(&u32::to_le_bytes(word));
        }
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        match send(socket.as_raw_fd(), &message, flags) {
            Ok(HEADER_BYTES) => log::debug!("the front end is told of the disk's configuration"),
            // It has not read what it was told before, and will find all of it when it does.
            Err(Errno::EAGAIN) => log::debug!("the front end does not read what it is told"),
            // What would follow half of a message would not be understood.
            failed => {
                log::debug!("the front end cannot be told of the disk's configuration: {failed:?}");
                self.close();
            }
        }
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        self.close();
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn open() -> (Channel, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut channel = Channel::default();
        channel.open(ours.into());
        (channel, theirs)
    }

    #[test]
    fn a_message_is_a_header_without_a_body_and_wants_no_reply() {
        let (mut channel, mut theirs) = open();
        channel.tell_of_config();
        channel.tell_of_config();
        drop(channel);
        let mut all = Vec::new();
        theirs.read_to_end(&mut all).unwrap();
        assert_eq!(all, [2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0].repeat(2));
    }

    #[test]
    fn a_front_end_that_does_not_read_keeps_no_thread_waiting() {
        let (mut channel, mut theirs) = open();
        // More than any buffer has.
        (0..100_000).for_each(|_| channel.tell_of_config());
        drop(channel);
        let mut all = Vec::new();
        theirs.read_to_end(&mut all).unwrap();
        assert!(all.len().is_multiple_of(HEADER_BYTES) && all.len() < 100_000 * HEADER_BYTES);
    }

    #[test]
    fn a_channel_that_is_closed_or_was_replaced_is_not_used() {
        let (mut channel, theirs) = open();
        drop(theirs);
        channel.tell_of_config();
        assert!(channel.socket.is_none());
        channel.tell_of_config();
        let ((mut channel, mut first), (ours, mut second)) = (open(), UnixStream::pair().unwrap());
        channel.open(ours.into());
        channel.tell_of_config();
        drop(channel);
        let mut all = Vec::new();
        first.read_to_end(&mut all).unwrap();
        assert!(all.is_empty());
        second.read_to_end(&mut all).unwrap();
        assert_eq!(all.len(), HEADER_BYTES);
    }
}
