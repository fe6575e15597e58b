//! Split virtqueues as a device sees them, and the guest memory they lie in (VIRTIO 1.2, 2.7).
//!
//! * `memory`, `access`: the guest's memory, and short accesses to it
//! * `handed`, `sigbus`: files that are mapped for a front end, and their loss
//! * `ring`, `chain`, `elem`: available and used rings, descriptor chains, and a head between the two
//! * `position`: where a ring that is started resumes
//! * `inflight_log`: what a queue took and did not give back, for the next process
//! * `inflight`, `part`, `region_log`, `recovery`: the in-flight region, what a running ring writes there, and what
//!   the next process makes of it
//! * `order`: completions in order, where there is no region
//! * `sys`: system calls that no crate in use has without `unsafe`

pub(crate) mod access;
pub(crate) mod chain;
pub(crate) mod elem;
pub(crate) mod handed;
pub(crate) mod inflight;
pub(crate) mod inflight_log;
pub(crate) mod memory;
pub(crate) mod order;
pub(crate) mod part;
pub(crate) mod position;
pub(crate) mod recovery;
pub(crate) mod region_log;
pub(crate) mod ring;
pub(crate) mod sigbus;
pub(crate) mod sys;
#[cfg(test)]
pub(crate) mod tests;
