//! Growth of a disk while it is used.
//!
//! A disk is made with address space for more than its size, in its mappings and in the files of its state
//! (`docs/adr/0012-growth.md`), so nothing that a thread uses moves when it grows. What the growth needs comes
//! first, then the note in the state, by one store, and then the size that requests are checked against.

use std::sync::atomic::Ordering;

use nix::sys::resource::{Resource, getrlimit};

use super::{Device, DeviceConfig, DeviceError, MAX_SIZE};
use crate::checker::Class;
use crate::failpoint;
use crate::pool::Pool;
use crate::store::StoreError;
use crate::sync;
use crate::units::PAGE_SIZE;

/// The mutexes of growing disks, to the lock checker.
static GROWTH: Class = Class::mutex("growth");

/// How many times its first size a disk can have.
const TIMES: u64 = 64;
/// To what every disk can grow, in bytes.
const LEAST: u64 = 64 << 30;

/// Why a disk does not get another size. It is as it was then.
#[derive(Debug, thiserror::Error)]
pub enum GrowError {
    /// It would shrink.
    #[error(
        "the disk has {size} bytes and cannot have {wanted}: a disk does not shrink, since its guest may use \
         all of it"
    )]
    Shrink {
        /// Bytes of the disk.
        size: u64,
        /// Bytes that were asked for.
        wanted: u64,
    },
    /// It has no room for so much.
    #[error(
        "the disk has {size} bytes and cannot have {wanted}: it was made with room for {max} bytes"
    )]
    Room {
        /// Bytes of the disk.
        size: u64,
        /// Bytes that were asked for.
        wanted: u64,
        /// The most it can have, in bytes.
        max: u64,
    },
    /// The process may not have so much address space.
    #[error(
        "the disk has {size} bytes and cannot grow, since the process has no address space for more: raise \
         RLIMIT_AS (ulimit -v, LimitAS=) and start the daemon again"
    )]
    AddressSpace {
        /// Bytes of the disk.
        size: u64,
    },
    /// The host does not lock the memory that the growth needs.
    #[error("the disk cannot grow to {wanted} bytes")]
    Store {
        /// Bytes that were asked for.
        wanted: u64,
        /// Why.
        source: StoreError,
    },
}

impl DeviceConfig {
    /// The most bytes that a new disk can grow to.
    ///
    /// # Errors
    /// The size is impossible.
    pub(super) fn capacity(&self) -> Result<u64, DeviceError> {
        let size = self.disk_size()?;
        let capacity = size.saturating_mul(TIMES).clamp(LEAST, MAX_SIZE);
        // A file that is too long is a deadly signal.
        let files = getrlimit(Resource::RLIMIT_FSIZE).map_or(u64::MAX, |(soft, _)| soft);
        Ok(if Pool::address_space_for(capacity) < files { capacity } else { size })
    }
}

impl Device {
    /// The size that the disk would have after a growth to `bytes`: a multiple of a page.
    ///
    /// # Errors
    /// The disk does not get this size.
    pub fn check_size(&self, bytes: u64) -> Result<u64, GrowError> {
        let size = self.size();
        let wanted = bytes.checked_next_multiple_of(PAGE_SIZE as u64).unwrap_or(u64::MAX);
        if wanted < size {
            return Err(GrowError::Shrink { size, wanted: bytes });
        }
        if wanted > self.capacity {
            return Err(GrowError::Room { size, wanted: bytes, max: self.capacity });
        }
        let has_room = wanted == size
            || self.table.room() >= wanted / PAGE_SIZE as u64
                && self.pool.room() >= self.address_space_for(wanted);
        if has_room { Ok(wanted) } else { Err(GrowError::AddressSpace { size }) }
    }

    /// Address space of the arena for a disk of `bytes` bytes, as far as it was made with so much.
    fn address_space_for(&self, bytes: u64) -> u64 {
        let space = Pool::address_space_for(bytes);
        self.state.as_ref().map_or(space, |state| space.min(state.format().arena_bytes))
    }

    /// Has the disk grow to `bytes` bytes, rounded up to a page, while it is used: returns its size. What is new
    /// reads as zeroes. A process that is killed meanwhile leaves a state of the old size or of the new one.
    ///
    /// # Errors
    /// The disk does not get this size.
    pub fn grow(&self, bytes: u64) -> Result<u64, GrowError> {
        let _turn = sync::lock_as(&GROWTH, &self.growing);
        let size = self.check_size(bytes)?;
        if size == self.size() {
            return Ok(size);
        }
        let pages = size / PAGE_SIZE as u64;
        failpoint::reach("grow.checked");
        let prepared = self.table.prepare(pages);
        prepared
            .and_then(|()| self.pool.prepare(self.address_space_for(size)))
            .map_err(|source| GrowError::Store { wanted: size, source })?;
        failpoint::reach("grow.prepared");
        // Before any request can use what is new.
        if let Some(state) = &self.state {
            state.set_size(size);
        }
        failpoint::reach("grow.noted");
        self.pool.grow();
        self.table.grow(pages);
        self.size.store(size, Ordering::Release);
        self.grown.store(true, Ordering::Release);
        failpoint::reach("grow.published");
        Ok(size)
    }

    /// Whether the disk is larger than it was made, so that a front end may know an old size.
    pub fn has_grown(&self) -> bool {
        self.grown.load(Ordering::Acquire)
    }
}
