//! What the generator drives: lanes, each a queue of its own, over memory that is shared with the server.

use std::{io, sync::Arc};

use vhost_user_zram_frontend::{self as frontend, Region};

/// What can go wrong with a target.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// The vhost-user side failed.
    #[error(transparent)]
    Frontend(#[from] frontend::Error),
    /// The block device or its ring failed.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
    /// What was asked for cannot be done on this target.
    #[error("{0}")]
    Unfit(String),
}

/// Result of a target.
pub type Result<T> = std::result::Result<T, TargetError>;

/// What an operation does to the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Reads it.
    Read,
    /// Writes to it.
    Write,
    /// Says that the bytes are not needed any more.
    Discard,
}

/// One operation.
#[derive(Debug, Clone, Copy)]
pub struct Io {
    /// What it does.
    pub kind: Kind,
    /// Offset on the disk in bytes.
    pub offset: u64,
    /// Address of the data in the target's region; a discard has none.
    pub addr: u64,
    /// Length in bytes.
    pub len: u32,
}

/// How a lane waits for completions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Wait {
    /// Sleeps until it is woken.
    Irq,
    /// Polls the ring all the time.
    Poll,
}

/// A completed operation.
#[derive(Debug, Clone, Copy)]
pub struct Done {
    /// The slot it was submitted with.
    pub slot: usize,
    /// Whether it succeeded.
    pub ok: bool,
}

/// One queue of a target, owned by one thread.
pub trait Lane: Send {
    /// Takes an operation; it may start only with the next [`Lane::publish`].
    fn submit(&mut self, slot: usize, io: &Io) -> Result<()>;

    /// Starts all operations taken.
    fn publish(&mut self) -> Result<()>;

    /// Waits for at least one completion and appends all that are there.
    fn reap(&mut self, wait: Wait, done: &mut Vec<Done>) -> Result<()>;
}

/// A target, connected.
pub struct Target {
    /// Its queues.
    pub lanes: Vec<Box<dyn Lane>>,
    /// Memory for all data.
    pub region: Arc<Region>,
    /// Size of the disk in bytes.
    pub capacity: u64,
}

/// What a target has to be fit for.
#[derive(Debug, Clone, Copy)]
pub struct Need {
    /// Number of lanes.
    pub queues: usize,
    /// Operations in flight on each.
    pub depth: u16,
    /// Longest operation in bytes.
    pub block: u32,
    /// Longest piece of guest memory given as one descriptor, in bytes.
    pub segment: u32,
    /// Do without in-flight tracking.
    pub no_inflight: bool,
    /// Whether operations are discards.
    pub discard: bool,
    /// Bytes of memory for data.
    pub memory: u64,
}
