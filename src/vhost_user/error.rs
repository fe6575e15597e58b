//! Why a session ends from this side.

use std::io;

use vhost::vhost_user::Error as VhostError;

/// Why a session could not start, or was ended from this side.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The connection fails.
    #[error("the connection fails")]
    Connection(#[source] io::Error),
    /// The host has no threads or descriptors left.
    #[error("the session cannot be set up")]
    Setup(#[source] io::Error),
    /// A message is malformed, or was refused.
    #[error("the front end's message is refused")]
    Message(#[source] VhostError),
    /// A message is longer than any message can be.
    #[error("a message of {0} bytes is too long")]
    MessageSize(usize),
    /// The peer began a message and did not continue, or does not read replies.
    #[error("the front end stalls")]
    Stalled,
    /// The peer did nothing with its session while another one was waiting.
    #[error("the front end is silent while another one waits")]
    Silent,
    /// A message carries too many descriptors.
    #[error("a message has {count} descriptors, more than {max}")]
    Descriptors {
        /// How many.
        count: usize,
        /// How many are allowed.
        max: usize,
    },
    /// A message carries a file that may make a thread wait.
    #[error(
        "a message has a descriptor of the wrong kind, {0}: guest memory is a memfd, a file on tmpfs or hugetlbfs, \
         or secret memory (memfd_secret), and all else an eventfd"
    )]
    Foreign(&'static str),
    /// The process has no descriptors left for those of a message.
    #[error("the process has no descriptors left for those of a message (ulimit -n)")]
    NoDescriptors,
    /// The peer's memory was truncated while it was mapped.
    #[error("the front end truncated the guest's memory")]
    MemoryLost,
    /// A queue thread died.
    #[error("a queue thread died")]
    QueueThread,
}
