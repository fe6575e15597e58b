//! Checks of the data in a front end's socket, before it is read.
//!
//! The vhost crate reads a message with calls that block, and repeats some of them. So it is called to
//! read only when a whole message is there, and to write only when there is room. It would also block if
//! descriptors do not arrive, because the message has more than the crate takes, or because the process
//! has none left: the kernel discards them with the header then, and the crate continues to read.
//!
//! A file of a file system in user space may block any thread that queries or closes it, until its server
//! answers. The crate closes the descriptors that it does not want. So a message with such a file stays
//! unread: when a socket is closed, the kernel releases what it holds without a message to the server.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, recv, recvmsg};
use vhost::vhost_user::message::FrontendReq;

use crate::vhost_user::error::SessionError;
use crate::virtq::{handed, sys};

/// Bytes of a message's header: le32 request, le32 flags, le32 size of the body.
pub(crate) const HEADER_BYTES: usize = 12;
/// Longest body of a message.
const MAX_BODY_BYTES: usize = 4096;
/// Descriptors of a message that the vhost crate takes.
const MAX_DESCRIPTORS: usize = 32;
/// Descriptors that the kernel lets a message have (`SCM_MAX_FD`).
const KERNEL_DESCRIPTORS: usize = 253;
/// Descriptors that have to be free beyond those of a message. Between the check and the read other
/// threads may open some: upkeep has one file open at a time.
const MARGIN: usize = 4;

/// What the socket holds.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Incoming {
    /// A whole message can be read.
    Message,
    /// Nothing, or not all of a message.
    Part { begun: bool },
    /// The peer has closed the connection.
    End,
}

/// Peeks into the socket: does it hold a whole message?
pub(crate) fn peek(stream: &UnixStream) -> Result<Incoming, SessionError> {
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    let mut header = [0; HEADER_BYTES];
    let here = match recv(stream.as_raw_fd(), &mut header, flags) {
        Ok(0) | Err(Errno::ECONNRESET) => return Ok(Incoming::End),
        Ok(here) => here,
        Err(Errno::EAGAIN | Errno::EINTR) => return Ok(Incoming::Part { begun: false }),
        Err(errno) => return Err(SessionError::Connection(errno.into())),
    };
    if here < HEADER_BYTES {
        return Ok(Incoming::Part { begun: true });
    }
    let [.., a, b, c, d] = header;
    let body = u32::from_le_bytes([a, b, c, d]) as usize;
    if body > MAX_BODY_BYTES {
        return Err(SessionError::MessageSize(body));
    }
    let waiting = sys::bytes_waiting(stream).map_err(SessionError::Connection)?;
    if waiting >= HEADER_BYTES + body {
        Ok(Incoming::Message)
    } else {
        Ok(Incoming::Part { begun: true })
    }
}

/// Makes sure that the descriptors of the next message can be received, and are of a kind that blocks no
/// thread. Returns a duplicate of the one that comes with SET_BACKEND_REQ_FD, if it is of such a kind; it is
/// closed by [`handed::discard`].
pub(crate) fn check_descriptors(stream: &UnixStream) -> Result<Option<OwnedFd>, SessionError> {
    let (code, descriptors, cut_off) =
        peek_descriptors(stream).map_err(SessionError::Connection)?;
    let count = descriptors.len();
    let is_channel = code == u32::from(FrontendReq::SET_BACKEND_REQ_FD) && count == 1;
    let mut channel = None;
    // While the duplicates are open: so there is room for as many descriptors, and for some more.
    let margin: io::Result<Vec<UnixStream>> =
        (0..if count > 0 { MARGIN } else { 0 }).map(|_| stream.try_clone()).collect();
    let mut foreign = None;
    for descriptor in descriptors {
        let kind = handed::foreign(descriptor.as_fd());
        if kind.is_some() {
            handed::discard(descriptor.into());
        } else if is_channel {
            channel = Some(descriptor);
        }
        foreign = foreign.or(kind);
    }
    if let Some(kind) = foreign {
        Err(SessionError::Foreign(kind))
    } else if count > MAX_DESCRIPTORS {
        Err(SessionError::Descriptors { count, max: MAX_DESCRIPTORS })
    } else if cut_off || margin.is_err() {
        channel.into_iter().for_each(|descriptor| handed::discard(descriptor.into()));
        Err(SessionError::NoDescriptors)
    } else {
        Ok(channel)
    }
}

/// The next message's request, duplicates of its descriptors, and whether some could not be received.
fn peek_descriptors(stream: &UnixStream) -> io::Result<(u32, Vec<OwnedFd>, bool)> {
    // A header (a length of 8 bytes, level and type of 4 each) and the descriptors (cmsg(3)). It is
    // parsed here: if it is cut off, nix returns none of the descriptors that did arrive.
    const HEADER: usize = 16;
    let mut control = [0_u8; HEADER + 4 * (KERNEL_DESCRIPTORS + 1)];
    let mut header = [0; HEADER_BYTES];
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
    let mut place = [IoSliceMut::new(&mut header)];
    let received = recvmsg::<()>(stream.as_raw_fd(), &mut place, Some(&mut control), flags)?;
    let cut_off = received.flags.contains(MsgFlags::MSG_CTRUNC);
    let [a, b, c, d, ..] = header;
    let code = u32::from_le_bytes([a, b, c, d]);
    let word = |at: usize| control.get(at..at + 4).and_then(|word| word.try_into().ok());
    #[expect(clippy::disallowed_methods, reason = "the kernel counts in its own byte order")]
    let number = |at: usize| word(at).map_or(0, i32::from_ne_bytes);
    let length = usize::try_from(number(0)).unwrap_or(0);
    if (number(8), number(12)) != (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
        return Ok((code, Vec::new(), cut_off));
    }
    let count = length.saturating_sub(HEADER) / 4;
    let descriptors = (0..count).filter_map(|n| sys::received(number(HEADER + 4 * n)));
    Ok((code, descriptors.collect(), cut_off))
}

/// Whether there is room for a reply: the vhost crate writes replies in a loop that a peer which
/// never reads could keep busy for ever.
pub(crate) fn can_reply(stream: &UnixStream) -> Result<bool, SessionError> {
    let events = poll_now(stream, PollFlags::POLLOUT)?;
    Ok(events.is_some_and(|events| events.contains(PollFlags::POLLOUT)))
}

/// Whether the peer has hung up: no data follows what is in the socket.
pub(crate) fn has_hung_up(stream: &UnixStream) -> Result<bool, SessionError> {
    // The nix crate has no name for this event, and so does not report it either.
    let events = poll_now(stream, PollFlags::from_bits_retain(libc::POLLRDHUP))?;
    Ok(events.is_none_or(|events| events.contains(PollFlags::POLLHUP)))
}

/// The pending events; `None` if one of them has no name in the nix crate.
fn poll_now(stream: &UnixStream, flags: PollFlags) -> Result<Option<PollFlags>, SessionError> {
    let mut fds = [PollFd::new(stream.as_fd(), flags)];
    match poll(&mut fds, PollTimeout::ZERO) {
        Ok(_) | Err(Errno::EINTR) => Ok(fds[0].revents()),
        Err(errno) => Err(SessionError::Connection(errno.into())),
    }
}

/// Waits until one of `fds` is readable or hung up, and returns which ones are.
pub(crate) fn wait<const N: usize>(
    fds: [Option<BorrowedFd<'_>>; N],
    timeout: Option<Duration>,
) -> Result<[bool; N], SessionError> {
    let mut polled: Vec<PollFd<'_>> =
        fds.iter().flatten().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
    let timeout = timeout.map_or(PollTimeout::NONE, |timeout| {
        // Rounded up, so it does not end early: `poll` counts whole milliseconds.
        let timeout = timeout.saturating_add(Duration::from_millis(1));
        PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX)
    });
    match poll(&mut polled, timeout) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(errno) => return Err(SessionError::Connection(errno.into())),
    }
    let mut results = polled.iter().map(|fd| fd.any().unwrap_or(true));
    Ok(fds.map(|fd| fd.is_some() && results.next().unwrap_or(false)))
}
