//! Raw vhost-user-blk front end for tests, fuzzers and the load generator.
//!
//! The bottom gives byte-level access and judges nothing: any descriptor, index, message or address can
//! be sent. The top is a disk client with a hot path fit for measuring.
//!
//! * [`memory`]: guest memory in memfds, shared with the back end
//! * [`ring`]: a split ring laid out by hand; [`queue`]: the ring with kick and call
//! * [`wire`]: the socket by hand; [`session`]: well-formed messages over the `vhost` crate
//! * [`inflight`]: the region that tells what a back end has taken, kept over its death
//! * [`blk`]: virtio-blk requests of any shape, submitted at depth; [`client`]: all of it in one call
//! * [`spec`]: the numbers; [`random`]: random ones that are the same everywhere

pub mod blk;
pub mod client;
pub mod error;
mod fd;
pub mod inflight;
pub mod memory;
pub mod queue;
pub mod random;
pub mod ring;
pub mod session;
pub mod spec;
mod watchdog;
pub mod wire;

pub use blk::{Blk, Completion, Op, Outstanding, Place, Segment, Shape, Status, Tag};
pub use client::{Client, ClientOptions};
pub use error::{Error, Result};
pub use inflight::Inflight;
pub use memory::Region;
pub use queue::{Queue, Wiring};
pub use random::Random;
pub use ring::{Desc, Ring, Used};
pub use session::{Options, Session};
