//! Split virtqueues as a device sees them, and the guest memory they lie in (VIRTIO 1.2, 2.7).
//!
//! * `memory`: the guest's memory
//! * `handed`, `sigbus`: files that are mapped for a front end, and their loss
//! * `ring`, `chain`, `elem`: available and used rings, descriptor chains, and a head between the two
//! * `position`: where a ring that is started resumes
//! * `account`: what a queue keeps so that the next process can resume
//! * `inflight`, `ledger`, `recovery`, `order`: the region that says what is in flight, what a running
//!   ring writes there, what is made of it, and completions in order where there is none
//! * `sys`: system calls that no crate in use has without `unsafe`

pub(crate) mod account;
pub(crate) mod chain;
pub(crate) mod elem;
pub(crate) mod handed;
pub(crate) mod inflight;
pub(crate) mod ledger;
pub(crate) mod memory;
pub(crate) mod order;
pub(crate) mod position;
pub(crate) mod recovery;
pub(crate) mod ring;
pub(crate) mod sigbus;
pub(crate) mod sys;
#[cfg(test)]
pub(crate) mod tests;
