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
//! | 3 | [`engine`] | asynchronous compression: submit, complete, refuse, fail |
//! | 2 | [`slot`] | slot table, slot word, sleepable lock |
//! | 2 | [`pool`] | variable-size objects in an arena |
//! | 1 | [`store`] | the shared mappings of one disk, and its state's files |
//! | 1 | [`codec`] | one page in, bytes out |
//! | 0 | [`sync`], [`checker`] | atomics and waiting, the lock checker |
//! | 0 | [`stats`], [`clock`], [`units`] | counters, time, units |
//! | 0 | [`stop`] | the end of the process, which waits take |
//! | 0 | `causes` | an error and its causes as one line |
//! | 0 | [`failpoint`] | steps at which tests stop a process or a thread |
//!
//! See `docs/architecture.md` for the way of a request through them.

// Under loom and shuttle only what they explore is built: the lock, its word and its wait queues,
// and under loom what the pool and the engine share.
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
#[cfg(not(shuttle))]
pub mod engine;
#[cfg(not(any(loom, shuttle)))]
pub mod failpoint;
#[cfg(not(any(loom, shuttle)))]
pub mod guest;
#[cfg(not(shuttle))]
pub mod pool;
pub mod slot;
#[cfg(not(any(loom, shuttle)))]
pub mod stats;
#[cfg(not(any(loom, shuttle)))]
pub mod stop;
pub mod store;
pub mod sync;
pub mod units;
#[cfg(not(any(loom, shuttle)))]
pub mod upkeep;
