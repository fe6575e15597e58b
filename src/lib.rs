//! zram for virtual machines, in host userspace.
//!
//! A vhost-user-blk back end that keeps each 4 KiB page of a guest's disk as a compressed object
//! in memory. The rooms of the house, each above all that it imports:
//!
//! | floor | room | knows |
//! |---|---|---|
//! | 8 | `main.rs` | arguments, exit codes |
//! | 7 | [`daemon`] | lifecycle: signals, sockets, the disk |
//! | 5 | [`guest`] | vhost-user session, virtqueues, virtio-blk requests |
//! | 5 | [`upkeep`] | background work: giving memory back, watching the host |
//! | 4 | [`device`] | a zram device: sectors to slots |
//! | 2 | [`slot`] | slot table, slot word, sleepable lock |
//! | 2 | [`pool`] | variable-size objects in an arena |
//! | 1 | [`store`] | the shared mappings of one disk |
//! | 1 | [`codec`] | one page in, bytes out |
//! | 0 | [`sync`], [`checker`] | atomics and waiting, the lock checker |
//! | 0 | [`stats`], [`units`] | counters, units |
//!
//! See `docs/architecture.md` for the way of a request through them.

// Under loom only what is model-checked is built: the lock, its word and its wait queues, and what
// the pool shares without a mutex.
pub mod checker;
#[cfg(not(loom))]
pub mod codec;
#[cfg(not(loom))]
pub mod daemon;
#[cfg(not(loom))]
pub mod device;
#[cfg(not(loom))]
pub mod guest;
pub mod pool;
pub mod slot;
#[cfg(not(loom))]
pub mod stats;
pub mod store;
pub mod sync;
pub mod units;
#[cfg(not(loom))]
pub mod upkeep;
