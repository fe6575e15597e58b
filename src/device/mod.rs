//! A zram device: sectors of a disk, kept as compressed pages.
//!
//! The device knows slots, objects and codecs, and nothing of its callers. Its requests are [`Io`]s,
//! which are polled: a step that would have to wait (for a slot that is held) returns
//! `Pending` and has arranged to be woken. Nothing here blocks.

mod codecs;
mod compact;
mod content;
mod figures;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod grow;
mod idle;
mod io;
mod latency;
mod page;
mod page_op;
mod recompress;
mod reopen;
mod request;
mod reset;
mod slots;
#[cfg(test)]
mod tests;
mod worst;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use self::codecs::Adding;
pub use self::compact::Compactor;
use self::compact::HostWatch;
pub use self::figures::{Figures, Report};
pub use self::grow::GrowError;
pub use self::idle::AgeError;
pub use self::io::{Io, WINDOW};
pub use self::latency::{Latencies, Timed};
pub use self::page::WorkerContext;
pub use self::recompress::{Pages, RecompressError, Recompression, SECONDARIES, Wanted};
pub use self::request::{Extent, IoError, Op, Payload, PayloadFault};
pub use self::reset::ResetFailed;
pub use self::slots::{SlotState, Slots};
pub use self::worst::WorstCase;
use crate::codec::{Codec, CodecError, CodecSpec, CodecTable};
use crate::engine::{Engine, EngineConfig, EngineError};
use crate::events::Bus;
pub use crate::pool::{Compaction, Effort};
use crate::pool::{LastRound, Pool, RebuildError};
use crate::slot::SlotTable;
use crate::stats::Sharded;
use crate::store::{Arena, Place, StoreError, Words};
pub use crate::store::{MemoryKind, State, StateError};
use crate::units::{BlockSize, PAGE_SIZE, SECTOR_SIZE};

/// What a device is made of.
#[derive(Debug, Clone, PartialEq)]
pub struct DeviceConfig {
    /// Size of the disk in bytes; rounded up to a page. At least 1, at most 8 GiB less than 16 TiB. A disk that is
    /// there grows to it, and keeps its size if it has grown beyond it.
    pub size: u64,
    /// The logical block that guests are told of.
    pub block_size: BlockChoice,
    /// The codec of new objects at first; see [`Device::set_codec`].
    pub codec: CodecSpec,
    /// Most bytes of arena and table together, with the table's check sums; 0 means no limit (zram's
    /// `mem_limit`, which bounds the arena alone). Rounded up to a page.
    pub mem_limit: u64,
    /// Where the memory of table and arena comes from.
    pub memory: MemoryKind,
    /// Whether the times of accesses are kept, see [`Device::mark_idle`]: 2 bytes for each page.
    pub access_times: bool,
    /// Which thread does the codec's work, and when.
    pub engine: EngineConfig,
}

/// The logical block of a disk, which does not change in its life: a guest that runs on the disk is
/// not told of it again, and what is on the disk is made for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockChoice {
    /// That of a disk that is made; one that is there keeps its own.
    IfNew(BlockSize),
    /// This one: a disk that is there and has another is refused.
    Only(BlockSize),
}

impl Default for BlockChoice {
    fn default() -> Self {
        Self::IfNew(BlockSize::Page)
    }
}

impl BlockChoice {
    /// The logical block of a disk that is made.
    fn of_new(self) -> BlockSize {
        match self {
            Self::IfNew(size) | Self::Only(size) => size,
        }
    }
}

/// Why a device could not be made.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The size is 0 or too large.
    #[error("a disk of {size} bytes is not possible: the size is 1 byte to {max} bytes")]
    Size {
        /// What was asked for, in bytes.
        size: u64,
        /// The most there can be, in bytes.
        max: u64,
    },
    /// The codec refuses its parameters, or cannot be set up.
    #[error("the codec cannot be set up")]
    Codec(#[from] CodecError),
    /// The engine cannot be started.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The disk's memory cannot be mapped.
    #[error("the disk's memory cannot be set up")]
    Store(#[from] StoreError),
    /// The state cannot be opened or made.
    #[error(transparent)]
    State(#[from] StateError),
    /// The disk of a state cannot grow to the size that is asked for.
    #[error(transparent)]
    Grow(#[from] GrowError),
    /// A slot of the state says what no slot can.
    #[error("the state is damaged: slot {index} makes no sense")]
    Slot {
        /// Number of the first such slot.
        index: u64,
    },
    /// Table and arena of the state contradict each other.
    #[error("the state is damaged")]
    Contradiction(#[source] RebuildError),
}

impl From<RebuildError> for DeviceError {
    fn from(error: RebuildError) -> Self {
        match error {
            // The host's fault: a user that is told of damage may throw the disk away.
            RebuildError::Store(error) => Self::Store(error),
            damage => Self::Contradiction(damage),
        }
    }
}

impl DeviceConfig {
    /// Size of the disk in bytes, rounded up to a page.
    fn disk_size(&self) -> Result<u64, DeviceError> {
        if self.size == 0 || self.size > MAX_SIZE {
            return Err(DeviceError::Size { size: self.size, max: MAX_SIZE });
        }
        Ok(self.size.next_multiple_of(PAGE_SIZE as u64))
    }

    /// Most bytes of arena and table, rounded up to a page; 0 means no limit.
    fn limit(&self) -> u64 {
        limit_in_pages(self.mem_limit)
    }
}

/// A limit in bytes, rounded up to a page; 0 means no limit.
fn limit_in_pages(bytes: u64) -> u64 {
    bytes.checked_next_multiple_of(PAGE_SIZE as u64).unwrap_or(0)
}

/// Largest disk in bytes: twice its bytes and what all classes have beside fit in an arena.
const MAX_SIZE: u64 = Place::LIMIT_BYTES / 2 - (8 << 30);

/// One disk: its slots, the pool of its objects, its codecs and its counters.
pub struct Device {
    /// Bytes of the disk. All that they need is in place before they are stored here.
    size: AtomicU64,
    /// The most bytes that it can have.
    capacity: u64,
    grown: AtomicBool,
    /// Held by the thread that has the disk grow.
    growing: Mutex<()>,
    block_size: BlockSize,
    table: SlotTable,
    pool: Pool,
    /// What the disk is kept in, if it outlives the process.
    state: Option<Arc<State>>,
    /// Held by a writer that compacts because a limit is reached.
    reclaiming: Mutex<LastRound>,
    host: OnceLock<HostWatch>,
    codecs: Arc<CodecTable>,
    adding: Adding,
    /// Numbers of the codecs that pages are recompressed by.
    secondaries: Mutex<[Option<u8>; SECONDARIES]>,
    engine: Engine,
    figures: Sharded<Figures>,
    /// How long requests take, if that is counted.
    times: OnceLock<Sharded<latency::Times>>,
    served: AtomicBool,
    events: Arc<Bus>,
}

impl Device {
    /// A blank disk, which ends with its process.
    ///
    /// # Errors
    /// The configuration is impossible, or the host refuses the mappings.
    pub fn new(config: &DeviceConfig) -> Result<Self, DeviceError> {
        let (size, capacity) = (config.disk_size()?, config.capacity()?);
        let [pages, most] = [size, capacity].map(|bytes| bytes / PAGE_SIZE as u64);
        let table = SlotTable::new(Words::with_room(pages, most, &config.memory)?);
        let [space, room] = [size, capacity].map(Pool::address_space_for);
        let pool =
            Pool::new(Arena::with_room(space, room, &config.memory)?, pages, config.limit())?;
        let codecs = (Codec::new(config.codec)?.into(), Adding::default());
        Self::over(config, codecs, table, pool, None)
    }

    fn over(
        config: &DeviceConfig,
        (codecs, adding): (CodecTable, Adding),
        mut table: SlotTable,
        pool: Pool,
        state: Option<Arc<State>>,
    ) -> Result<Self, DeviceError> {
        let block_size =
            state.as_ref().map_or(config.block_size.of_new(), |state| state.format().block_size);
        let codecs = Arc::new(codecs);
        if config.access_times {
            table.keep_ages()?;
        }
        let served = AtomicBool::new(state.as_ref().is_some_and(|state| state.has_served()));
        let capacity =
            state.as_ref().map_or(config.capacity(), |state| Ok(state.format().capacity))?;
        let size = table.len() * PAGE_SIZE as u64;
        let grown = state.as_ref().is_some_and(|state| state.made_size() < size);
        Ok(Self {
            size: AtomicU64::new(size),
            capacity,
            grown: AtomicBool::new(grown),
            growing: Mutex::default(),
            block_size,
            table,
            pool,
            state,
            reclaiming: Mutex::default(),
            host: OnceLock::new(),
            engine: Engine::start(&codecs, &config.engine)?,
            codecs,
            adding,
            secondaries: Mutex::default(),
            figures: Sharded::default(),
            times: OnceLock::new(),
            served,
            events: Arc::default(),
        })
    }

    /// Size of the disk in bytes; a multiple of [`PAGE_SIZE`].
    pub fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    /// Size of the disk in sectors of 512 bytes.
    pub fn sectors(&self) -> u64 {
        self.size() / SECTOR_SIZE
    }

    /// The disk's logical block.
    pub fn block_size(&self) -> BlockSize {
        self.block_size
    }

    /// Name and parameters of the codec of new objects.
    pub fn codec(&self) -> CodecSpec {
        self.codecs.primary().spec()
    }

    /// Threads that compress beside those of the queues.
    pub fn engine_workers(&self) -> usize {
        self.engine.workers()
    }

    /// What one thread needs to poll requests.
    ///
    /// # Errors
    /// The codec cannot allocate its contexts.
    pub fn worker_context(&self) -> Result<WorkerContext, DeviceError> {
        Ok(WorkerContext::new(&self.codecs, self.table.reader())?)
    }

    /// The calling thread's counters.
    pub fn figures(&self) -> &Figures {
        self.figures.local()
    }

    /// What happens to the disk, for those that listen.
    pub fn events(&self) -> &Arc<Bus> {
        &self.events
    }

    /// Changes the most bytes of arena and table, rounded up to a page; 0 means no limit. What the disk
    /// takes stays, also if it is more: then writes fail that need more.
    pub fn set_mem_limit(&self, bytes: u64) {
        self.pool.set_limit(limit_in_pages(bytes));
    }

    /// Bytes of arena and table that count against the limit, and the limit; 0 means no limit.
    pub fn limit_use(&self) -> (u64, u64) {
        (self.pool.committed(), self.pool.limit())
    }

    /// Whether the disk's contents outlive the process.
    pub fn outlives_process(&self) -> bool {
        self.state.is_some()
    }

    /// Whether a guest was ever served from this disk, so that a ring which is already in use can
    /// be one that this disk knows. A blank disk must not be shown to a running guest.
    pub fn has_served(&self) -> bool {
        self.served.load(Ordering::Acquire)
    }

    /// A request of a guest was taken.
    pub fn mark_served(&self) {
        // Loaded first: it is asked for each batch, and true but once.
        if !self.served.load(Ordering::Relaxed) {
            self.set_served(true);
        }
    }

    /// What a guest's rings say can no longer be relied on.
    pub fn forget_served(&self) {
        self.set_served(false);
    }

    fn set_served(&self, served: bool) {
        if let Some(state) = &self.state {
            state.set_served(served);
        }
        self.served.store(served, Ordering::Release);
    }

    /// What the disk holds and what that takes, now.
    pub fn report(&self) -> Report {
        Report::new(&figures::Source {
            counters: &self.figures,
            pool: self.pool.usage(),
            table: self.table.usage(),
            beside: self.state.as_ref().map_or(0, |state| state.bytes_beside()),
            engine: self.engine.report(),
            engine_service: self.engine.service_times(),
            latencies: self.latencies(),
        })
    }

    /// The most arena memory that there ever was is from now on what there is now (zram's `mem_used_max`).
    pub fn forget_max(&self) {
        self.pool.forget_max();
    }

    /// Has so many seconds go by for the times of accesses.
    #[cfg(test)]
    pub(crate) fn let_pass(&self, seconds: u64) {
        self.table.let_pass(seconds);
    }

    /// Holds the lock of a slot that exists, so that requests have to wait for it.
    #[cfg(test)]
    pub(crate) fn hold(&self, index: u64) -> Option<crate::slot::SlotGuard<'_>> {
        self.table.try_lock(index)
    }

    /// Compares the counters with the table, slot by slot, and the pool with both;
    /// no thread may be writing. Returns the first difference.
    #[cfg(test)]
    fn check(&self) -> Result<(), String> {
        let mut expected = figures::Expected::default();
        self.table.for_each(|_, word| expected.add(word.content()));
        expected.compare(&self.figures)?;
        let mut objects = 0;
        self.table.for_each(|_, word| objects += u64::from(word.content().object().is_some()));
        if objects != self.pool.objects() {
            return Err(format!("slots name {objects} objects of {}", self.pool.objects()));
        }
        self.pool.check()?;
        // Its file has a seal beside if it is a state's.
        let seal = if self.state.is_some() { crate::store::HOST_PAGE } else { 0 };
        let (bits, file) = (self.table.bytes(), self.table.usage().words - seal);
        let counted = self.pool.table_bytes();
        if bits != counted || bits != file {
            return Err(format!("{bits} bytes of table, {file} in the file, {counted} counted"));
        }
        Ok(())
    }
}
