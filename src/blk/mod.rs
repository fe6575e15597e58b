//! The virtio-blk device (VIRTIO 1.2, 5.2): requests, configuration space, and the threads that serve
//! its virtqueues.
//!
//! * `config`: features, limits, configuration space
//! * `request`, `refusal`, `reply`: requests from chain to status, and why one is refused
//! * `queue`: one virtqueue, served
//! * `parked`: its requests that wait, and how many there may be
//! * `workers`, `worker`, `mailbox`: queue threads, and their commands and wake-ups
//! * `poll`: when a queue thread polls its rings before it sleeps
//! * `watchdog`: requests that do not end

pub(crate) mod config;
#[cfg(fuzzing)]
pub mod fuzzing;
pub(crate) mod mailbox;
pub(crate) mod parked;
pub(crate) mod poll;
pub(crate) mod queue;
pub(crate) mod refusal;
pub(crate) mod reply;
pub(crate) mod request;
#[cfg(test)]
pub(crate) mod tests;
pub(crate) mod watchdog;
pub(crate) mod worker;
pub(crate) mod workers;

pub use self::config::{GuestOptions, StallLimits};
