//! zram for virtual machines, in host userspace.
//!
//! A vhost-user-blk back end that keeps each 4 KiB page of a guest's disk as a compressed object
//! in memory. `docs/architecture.md` has the modules in their layers, and the way of a request through
//! them; `tests/layers.rs` keeps that table true.

// Under loom and shuttle only what they explore is built: the lock, its word and its wait queues,
// and under loom what the pool, the engine and the rate limits share. So much of it has no caller there.
#![cfg_attr(any(loom, shuttle), allow(dead_code, unused_imports))]

#[cfg(not(any(loom, shuttle)))]
mod blk;
#[cfg(not(any(loom, shuttle)))]
mod causes;
mod checker;
#[cfg(not(any(loom, shuttle)))]
mod clock;
#[cfg(not(any(loom, shuttle)))]
mod codec;
#[cfg(not(any(loom, shuttle)))]
mod control;
#[cfg(not(any(loom, shuttle)))]
mod daemon;
#[cfg(not(any(loom, shuttle)))]
mod device;
#[cfg(not(any(loom, shuttle)))]
mod disk;
#[cfg(not(shuttle))]
mod engine;
#[cfg(not(any(loom, shuttle)))]
mod events;
#[cfg(not(any(loom, shuttle)))]
mod failpoint;
#[cfg(not(shuttle))]
mod inbox;
#[cfg(not(shuttle))]
mod notifier;
#[cfg(not(shuttle))]
mod pool;
mod prefetch;
#[cfg(not(any(loom, shuttle)))]
mod ratelimit;
#[cfg(not(shuttle))]
mod rates;
mod slot;
#[cfg(not(any(loom, shuttle)))]
mod stats;
#[cfg(not(any(loom, shuttle)))]
mod stop;
mod store;
mod sync;
#[cfg(not(any(loom, shuttle)))]
mod threads;
mod units;
#[cfg(not(any(loom, shuttle)))]
mod upkeep;
#[cfg(not(any(loom, shuttle)))]
mod vhost_user;
#[cfg(not(any(loom, shuttle)))]
mod virtq;

/// What the program, the benches, the tests and the fuzz targets use. It is not an interface: anything in it
/// may change at any time.
#[cfg(not(any(loom, shuttle)))]
pub mod internals {
    pub use crate::blk::{GuestOptions, StallLimits};
    pub use crate::clock::mark_start;
    pub use crate::codec::{Codec, CodecSpec, Workspace};
    pub use crate::control::api;
    pub use crate::daemon::{Change, Console, Endpoint, Keep, Reread, Settings, SocketAccess, run};
    pub use crate::device::{
        BlockChoice, Device, DeviceConfig, MemoryKind, Op, Payload, PayloadFault, WorkerContext,
        WorstCase,
    };
    pub use crate::disk::{DiskConfig, ImageFormat};
    pub use crate::engine::{Cpus, EngineConfig, EngineModel, Policy};
    pub use crate::failpoint::{RESETS, STEPS};
    pub use crate::pool::{Effort, LastRound, Move, Owned, Pool};
    pub use crate::rates::{Rate, Rates};
    pub use crate::store::{Arena, State};
    pub use crate::threads::{DiskName, current_disk};
    pub use crate::units::{BlockSize, PAGE_SIZE, Page, SECTORS_PER_PAGE};

    /// Entries of the fuzz targets.
    #[cfg(fuzzing)]
    pub mod fuzzing {
        pub use crate::blk::fuzzing::virtqueue;
        pub use crate::device::fuzzing::damaged_state;
        pub use crate::vhost_user::fuzzing::session;
    }
}
