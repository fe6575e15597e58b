//! The socket by hand: any bytes, any header, any descriptors attached.
//!
//! The stock `vhost` front end checks what it sends and waits without limit; a test that plays a broken or
//! hostile VMM needs neither.

use std::{
    fs::File,
    io::{self, IoSlice, IoSliceMut},
    os::{
        fd::{AsFd, AsRawFd, RawFd},
        unix::net::UnixStream,
    },
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg},
};
use vhost::vhost_user::message::FrontendReq;

use crate::{
    error::{Error, Result, io_err},
    fd::own,
};

/// Bytes of a vhost-user message header: request, flags and size, 4 bytes each.
pub const HEADER_LEN: usize = 12;
/// Header flags of a plain request: protocol version 1.
pub const FLAG_VERSION: u32 = 0x1;
/// Header flag of an answer.
pub const FLAG_REPLY: u32 = 0x4;
/// Header flag that asks for an answer (with REPLY_ACK).
pub const FLAG_NEED_REPLY: u32 = 0x8;

/// A message as it came off the socket.
#[derive(Debug)]
pub struct Message {
    /// Request code.
    pub code: u32,
    /// Header flags.
    pub flags: u32,
    /// What follows the header.
    pub body: Vec<u8>,
    /// Descriptors attached to it.
    pub files: Vec<File>,
}

/// How a back end took a message that asked for an acknowledgement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Acknowledged with 0.
    Ack,
    /// Acknowledged with another value: refused, the session continues.
    Nack(u64),
    /// The connection was closed.
    Closed,
}

impl Answer {
    /// Whether the message was refused, one way or the other.
    pub fn is_refusal(self) -> bool {
        self != Self::Ack
    }
}

/// Encodes a message header.
pub fn header(code: u32, flags: u32, size: u32) -> [u8; HEADER_LEN] {
    let mut bytes = [0; HEADER_LEN];
    bytes[..4].copy_from_slice(&code.to_le_bytes());
    bytes[4..8].copy_from_slice(&flags.to_le_bytes());
    bytes[8..].copy_from_slice(&size.to_le_bytes());
    bytes
}

/// Body of the messages that carry a queue index and a number (`SET_VRING_NUM`, `SET_VRING_BASE`,
/// `SET_VRING_ENABLE`, `GET_VRING_BASE`).
pub fn vring_state(index: u32, num: u32) -> Vec<u8> {
    [index.to_le_bytes(), num.to_le_bytes()].concat()
}

/// Body of `SET_VRING_ADDR`: user addresses of the three parts of a ring.
pub fn vring_addr(index: u32, flags: u32, desc: u64, used: u64, avail: u64, log: u64) -> Vec<u8> {
    let mut body = [index.to_le_bytes(), flags.to_le_bytes()].concat();
    for addr in [desc, used, avail, log] {
        body.extend_from_slice(&addr.to_le_bytes());
    }
    body
}

/// One memory region as `SET_MEM_TABLE` and `ADD_MEM_REG` carry it (after their 8 leading bytes).
pub fn memory_region(gpa: u64, size: u64, user_addr: u64, mmap_offset: u64) -> Vec<u8> {
    [gpa, size, user_addr, mmap_offset].iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// A vhost-user socket without any opinion on what goes through it.
#[derive(Debug)]
pub struct Wire {
    sock: UnixStream,
}

impl Wire {
    /// Takes a connected socket.
    pub fn new(sock: UnixStream) -> Self {
        Self { sock }
    }

    /// The socket.
    pub fn socket(&self) -> &UnixStream {
        &self.sock
    }

    /// Sends `bytes` as they are, `fds` attached to the first of them.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`] when the back end has hung up.
    pub fn send(&self, bytes: &[u8], fds: &[RawFd]) -> Result<()> {
        let rights = [ControlMessage::ScmRights(fds)];
        let control: &[ControlMessage<'_>] = if fds.is_empty() { &[] } else { &rights };
        let mut sent = 0;
        while sent < bytes.len() {
            let iov = [IoSlice::new(&bytes[sent..])];
            let control = if sent == 0 { control } else { &[] };
            match sendmsg::<()>(self.sock.as_raw_fd(), &iov, control, MsgFlags::MSG_NOSIGNAL, None)
            {
                Ok(n) => sent += n,
                Err(Errno::EINTR) => {}
                Err(Errno::EPIPE | Errno::ECONNRESET) => return Err(Error::Closed("send")),
                Err(e) => return Err(io_err("sendmsg")(e)),
            }
        }
        Ok(())
    }

    /// Sends one message with a true length in its header.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`] when the back end has hung up.
    pub fn send_message(&self, code: u32, flags: u32, body: &[u8], fds: &[RawFd]) -> Result<()> {
        let mut bytes = header(code, flags, body.len() as u32).to_vec();
        bytes.extend_from_slice(body);
        self.send(&bytes, fds)
    }

    /// Receives one message.
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`], or [`Error::Closed`] when the back end hangs up first.
    pub fn recv_message(&self, timeout: Duration) -> Result<Message> {
        let deadline = Instant::now() + timeout;
        let mut files = Vec::new();
        let mut head = [0; HEADER_LEN];
        self.recv_exact(&mut head, &mut files, deadline, timeout)?;
        let word = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().unwrap_or_default());
        let size = word(8);
        if size > 0x10_0000 {
            return Err(Error::BadReply { what: "receive", why: format!("{size} bytes") });
        }
        let mut body = vec![0; size as usize];
        self.recv_exact(&mut body, &mut files, deadline, timeout)?;
        Ok(Message { code: word(0), flags: word(4), body, files })
    }

    /// Sends a request that asks for an acknowledgement and returns how it was taken.
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`] when there is neither an answer nor a hang-up in time.
    pub fn ask(
        &self,
        code: FrontendReq,
        body: &[u8],
        fds: &[RawFd],
        timeout: Duration,
    ) -> Result<Answer> {
        let sent = self.send_message(u32::from(code), FLAG_VERSION | FLAG_NEED_REPLY, body, fds);
        match sent.and_then(|()| self.recv_message(timeout)) {
            Ok(reply) if reply.code == u32::from(code) && reply.flags & FLAG_REPLY != 0 => {
                let value = reply.body.get(..8).and_then(|b| b.try_into().ok());
                match value.map(u64::from_le_bytes) {
                    Some(0) => Ok(Answer::Ack),
                    Some(value) => Ok(Answer::Nack(value)),
                    None => Err(Error::BadReply {
                        what: "acknowledgement",
                        why: format!("{} bytes", reply.body.len()),
                    }),
                }
            }
            Ok(reply) => Err(Error::BadReply {
                what: "acknowledgement",
                why: format!("request {} answered as {}", u32::from(code), reply.code),
            }),
            Err(Error::Closed(_)) => Ok(Answer::Closed),
            Err(e) => Err(e),
        }
    }

    /// Waits until the back end closes the connection, throwing away what it still says.
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`] when it stays open.
    pub fn wait_closed(&self, timeout: Duration) -> Result<()> {
        let deadline = Instant::now() + timeout;
        let mut byte = [0; 64];
        loop {
            match self.recv_exact(&mut byte[..1], &mut Vec::new(), deadline, timeout) {
                Ok(()) => {}
                Err(Error::Closed(_)) => return Ok(()),
                Err(e) => return Err(e),
            }
        }
    }

    fn recv_exact(
        &self,
        buf: &mut [u8],
        files: &mut Vec<File>,
        deadline: Instant,
        timeout: Duration,
    ) -> Result<()> {
        let mut got = 0;
        while got < buf.len() {
            wait_readable(&self.sock, deadline, "receive", timeout)?;
            let mut space = nix::cmsg_space!([RawFd; 32]);
            let mut iov = [IoSliceMut::new(&mut buf[got..])];
            let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
            match recvmsg::<()>(self.sock.as_raw_fd(), &mut iov, Some(&mut space), flags) {
                Ok(msg) => {
                    for control in msg.cmsgs().map_err(io_err("recvmsg"))? {
                        if let ControlMessageOwned::ScmRights(fds) = control {
                            files.extend(fds.into_iter().map(own));
                        }
                    }
                    if msg.bytes == 0 {
                        return Err(Error::Closed("receive"));
                    }
                    got += msg.bytes;
                }
                Err(Errno::EINTR | Errno::EAGAIN) => {}
                Err(Errno::ECONNRESET | Errno::EPIPE) => return Err(Error::Closed("receive")),
                Err(e) => return Err(io_err("recvmsg")(e)),
            }
        }
        Ok(())
    }
}

/// Waits until `fd` can be read.
pub(crate) fn wait_readable<F: AsFd>(
    fd: &F,
    deadline: Instant,
    what: &'static str,
    waited: Duration,
) -> Result<()> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        // Rounded up, or the last millisecond would be spun away.
        let millis = u16::try_from(left.as_millis() + 1).unwrap_or(u16::MAX);
        let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::from(millis)) {
            Ok(0) | Err(Errno::EINTR) if left.is_zero() => {
                return Err(Error::Timeout { what, waited });
            }
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(()),
            Err(e) => return Err(Error::Io { what, source: io::Error::from(e) }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(50);

    #[test]
    fn a_message_survives_the_wire_with_its_descriptors() {
        let (a, b) = UnixStream::pair().unwrap();
        let (a, b) = (Wire::new(a), Wire::new(b));
        let fd = a.socket().as_raw_fd();
        a.send_message(7, FLAG_VERSION, &[1, 2, 3], &[fd, fd]).unwrap();
        let message = b.recv_message(SHORT).unwrap();
        assert_eq!((message.code, message.flags), (7, FLAG_VERSION));
        assert_eq!((message.body.as_slice(), message.files.len()), (&[1, 2, 3][..], 2));
    }

    #[test]
    fn silence_is_a_timeout_and_a_hang_up_is_closed() {
        let (a, b) = UnixStream::pair().unwrap();
        let a = Wire::new(a);
        assert!(matches!(a.recv_message(SHORT), Err(Error::Timeout { .. })));
        drop(b);
        assert!(matches!(a.recv_message(SHORT), Err(Error::Closed(_))));
        a.wait_closed(SHORT).unwrap();
    }
}
