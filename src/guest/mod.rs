//! The guest's side: vhost-user sessions, virtqueues, virtio-blk requests.
//!
//! * `session`: one front end, from connection to end; the seam behind which all else lies
//! * `incoming`: what lies in its socket, before it is read
//! * `handler`: what each vhost-user message does to rings and memory
//! * `memory`: the guest's memory
//! * `handed`, `sigbus`: files that are mapped for a front end, and their loss
//! * `workers`, `worker`, `mailbox`: queue threads, and what reaches them
//! * `queue`: one virtqueue, served
//! * `position`: where a ring that is started goes on
//! * `account`: what a queue keeps so that the next process can go on
//! * `inflight`, `ledger`, `recovery`, `order`: the region that says what is in flight, what a running
//!   ring writes there, what is made of it, and completions in order where there is none
//! * `parked`: its requests that wait, and how many there may be
//! * `watchdog`: requests that do not end
//! * `ring`, `chain`: available and used rings, descriptor chains
//! * `request`, `refusal`: virtio-blk requests from chain to status, and why one is refused
//! * `limited`: warnings that come too often
//! * `sys`: three system calls
//! * `config`: features, limits, configuration space

mod account;
mod chain;
mod config;
mod events;
#[cfg(fuzzing)]
pub mod fuzzing;
mod handed;
mod handler;
mod incoming;
mod inflight;
mod ledger;
mod limited;
mod mailbox;
mod memory;
mod order;
mod parked;
mod position;
mod queue;
mod recovery;
mod refusal;
mod request;
mod ring;
mod session;
mod sigbus;
mod sys;
#[cfg(test)]
mod tests;
mod watchdog;
mod worker;
mod workers;

pub use self::config::GuestOptions;
pub use self::limited::{Kind, Limiter};
pub use self::session::{Others, Server, SessionEnd, SessionError, Times};
pub use self::watchdog::Patience;
