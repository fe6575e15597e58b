//! zram for virtual machines, in host userspace.
//!
//! A vhost-user-blk back end that keeps each 4 KiB page of a guest's disk as a compressed object
//! in memory. `docs/architecture.md` has the modules in their layers, and the way of a request through
//! them; `tests/layers.rs` keeps that table true.

// Under loom and shuttle only what they explore is built: the lock, its word and its wait queues,
// and under loom what the pool and the engine share.
#[cfg(not(any(loom, shuttle)))]
pub mod blk;
#[cfg(not(any(loom, shuttle)))]
mod causes;
pub mod checker;
#[cfg(not(any(loom, shuttle)))]
pub mod clock;
#[cfg(not(any(loom, shuttle)))]
pub mod codec;
#[cfg(not(any(loom, shuttle)))]
pub mod daemon;
#[cfg(not(any(loom, shuttle)))]
pub mod device;
#[cfg(not(any(loom, shuttle)))]
pub mod disk;
#[cfg(not(shuttle))]
pub mod engine;
#[cfg(not(any(loom, shuttle)))]
pub mod failpoint;
#[cfg(not(shuttle))]
mod notifier;
#[cfg(not(shuttle))]
pub mod pool;
#[cfg(not(any(loom, shuttle)))]
mod ratelimit;
pub mod slot;
#[cfg(not(any(loom, shuttle)))]
pub mod stats;
#[cfg(not(any(loom, shuttle)))]
pub mod stop;
pub mod store;
pub mod sync;
#[cfg(not(any(loom, shuttle)))]
pub mod threads;
pub mod units;
#[cfg(not(any(loom, shuttle)))]
pub mod upkeep;
#[cfg(not(any(loom, shuttle)))]
pub mod vhost_user;
#[cfg(not(any(loom, shuttle)))]
mod virtq;
