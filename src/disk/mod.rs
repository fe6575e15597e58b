//! One disk as a whole: its device, its upkeep, the server of its guests, and its limits.
//!
//! * `state`: the state that a disk is opened in
//! * `door`: who uses it
//! * `change`: what can be changed while it is served, and its reset
//! * `load`, `image`: filling it from a raw image
//! * `worst`: what it can cost its host at most
//!
//! The disks of a process share nothing except the table of guest memory that the handler of SIGBUS needs.

mod change;
mod door;
mod image;
mod load;
mod state;
#[cfg(test)]
mod tests;
mod worst;

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use nix::sys::socket::{getsockopt, sockopt};

pub use self::change::{ChangeError, DiskChange, DiskSettings, RateChange, ResetError};
use self::door::Door;
pub use self::door::Sessions;
pub use self::image::ImageFormat;
pub use self::load::LoadError;
pub use self::state::GRACE;
use crate::blk::GuestOptions;
use crate::causes::with_causes;
use crate::codec::CodecSpec;
pub use crate::device::GrowError;
pub use crate::device::{AgeError, RecompressError, SECONDARIES, Wanted};
use crate::device::{
    Compaction, Device, DeviceConfig, DeviceError, Report, Slots, State, StateError, WorstCase,
};
use crate::events::{Bus, Event};
use crate::failpoint;
use crate::ratelimit::Limiter;
use crate::rates::Rates;
use crate::stop::{Stop, Stopped};
use crate::sync;
use crate::threads::DiskName;
use crate::units::{BlockSize, PAGE_SIZE};
use crate::upkeep::{Host, Upkeep};
pub use crate::upkeep::{JobKind, JobReport, JobState, Jobs, RecompressEnd, RecompressRefused};
use crate::vhost_user::{Others, Server, SessionEnd};

/// The settings of a disk at its start. What can be changed later is a [`DiskChange`].
#[derive(Debug, Clone, PartialEq)]
pub struct DiskConfig {
    /// Its name in the log.
    pub name: DiskName,
    /// Its size, its codec, and the source of its memory.
    pub device: DeviceConfig,
    /// The features that guests are offered.
    pub guest: GuestOptions,
    /// Memory of the host, or of the process's control group, that is left free, in bytes. `None`
    /// is a 32nd of it, at most 512 MiB.
    pub host_reserve: Option<u64>,
    /// Rate limits at the start; see [`Disk::set_rates`].
    pub rates: Rates,
}

/// Where a disk's contents come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The disk is blank, and ends with this process.
    None,
    /// The disk is blank, and outlives this process.
    New,
    /// An earlier process left the contents.
    Opened,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Origin::None => "none",
            Origin::New => "new",
            Origin::Opened => "opened",
        })
    }
}

/// Why a disk cannot be created, opened, or loaded.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The device, or its state.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A descriptor of a state cannot be copied.
    #[error("cannot copy the state's descriptors")]
    Descriptor(#[source] io::Error),
    /// The upkeep thread could not be started.
    #[error("cannot start the disk's upkeep thread")]
    Thread(#[source] io::Error),
    /// The image.
    #[error("cannot load {}", path.display())]
    Load {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: LoadError,
    },
    /// The process is to end.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

impl From<StateError> for DiskError {
    fn from(error: StateError) -> Self {
        Self::Device(error.into())
    }
}

/// A disk that can be served.
pub struct Disk {
    name: DiskName,
    origin: Origin,
    device: Arc<Device>,
    /// Runs until [`Disk::stop`].
    upkeep: Mutex<Option<Upkeep>>,
    host: Arc<Host>,
    jobs: Arc<Jobs>,
    server: Server,
    door: Door,
    read_only: bool,
    at_start: DiskChange,
    /// Held by a change of settings.
    changing: Mutex<()>,
}

impl Disk {
    /// A blank disk, which ends with its process.
    ///
    /// # Errors
    /// The configuration is impossible, or the host refuses memory or threads.
    pub fn create(config: &DiskConfig) -> Result<Self, DiskError> {
        let _entered = config.name.enter();
        Self::over(config, Device::new(&config.device)?, Origin::None)
    }

    /// The disk in a state, see [`DiskConfig::state_in`]. One that an earlier process left is scanned.
    ///
    /// # Errors
    /// The state is damaged or not of this disk, or the host refuses memory or threads.
    pub fn open(config: &DiskConfig, state: State) -> Result<Self, DiskError> {
        let _entered = config.name.enter();
        let began = Instant::now();
        let origin = if state.is_new() { Origin::New } else { Origin::Opened };
        let left = state.format().size;
        let device = Device::with_state(&config.device, state)?;
        let (size, asked) = (device.size(), config.device.size);
        if size > left {
            log::info!("the disk has grown from {left} to {size} bytes, as asked for at the start");
        } else if asked < size && size - asked >= PAGE_SIZE as u64 {
            log::info!(
                "the disk has grown to {size} bytes before, and keeps them: {asked} are asked for"
            );
        }
        if origin == Origin::Opened {
            log::info!(
                "opened the disk with {} bytes of pages in {} ms",
                device.report().orig_data_size,
                began.elapsed().as_millis()
            );
        }
        Self::over(config, device, origin)
    }

    fn over(config: &DiskConfig, device: Device, origin: Origin) -> Result<Self, DiskError> {
        let device = Arc::new(device);
        let host = config.host_reserve.map_or_else(Host::with_default_reserve, Host::new);
        let at_start = config.at_start(host.reserve());
        let host = Arc::new(host);
        let upkeep =
            Upkeep::start(Arc::clone(&device), Arc::clone(&host)).map_err(DiskError::Thread)?;
        let disk = Self {
            name: config.name.clone(),
            origin,
            server: Server::new(Arc::clone(&device), config.guest.clone()),
            device,
            jobs: Arc::clone(upkeep.jobs()),
            upkeep: Mutex::new(Some(upkeep)),
            host,
            door: Door::new(),
            read_only: config.guest.read_only,
            at_start,
            changing: Mutex::default(),
        };
        disk.set_rates(config.rates);
        Ok(disk)
    }

    /// Its name in the log.
    pub fn name(&self) -> &DiskName {
        &self.name
    }

    /// Where its contents come from.
    pub fn origin(&self) -> Origin {
        self.origin
    }

    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        self.device.size()
    }

    /// Has the disk grow to `bytes` bytes, rounded up to a page, while guests use it, and tells the front end.
    /// Returns its size. A disk with a state has that size from then on, also after a death of this process.
    ///
    /// # Errors
    /// It would shrink, or has no room for so much; or the host does not lock the memory that the growth needs.
    /// Nothing is changed then.
    pub fn grow(&self, bytes: u64) -> Result<u64, GrowError> {
        let _entered = self.name.enter();
        let before = self.size();
        let size = self.device.grow(bytes)?;
        if size > before {
            log::info!("the disk has grown from {before} to {size} bytes");
            self.server.tell_of_growth();
            failpoint::reach("grow.told");
        }
        Ok(size)
    }

    /// Its logical block.
    pub fn block_size(&self) -> BlockSize {
        self.device.block_size()
    }

    /// The codec of its writes.
    pub fn codec(&self) -> CodecSpec {
        self.device.codec()
    }

    /// Threads that compress beside those of the queues.
    pub fn engine_workers(&self) -> usize {
        self.device.engine_workers()
    }

    /// Writes the raw image at `path` to the start of the disk, which must be blank. Calls `progress`
    /// from time to time.
    ///
    /// # Errors
    /// The image is not raw, cannot be read to its end, or is longer than the disk; the disk cannot
    /// store it; or the process is to end. The contents of the disk are incomplete then.
    pub fn load(
        &self,
        path: &Path,
        format: ImageFormat,
        stop: &Stop,
        progress: impl Fn() + Send + 'static,
    ) -> Result<(), DiskError> {
        let _entered = self.name.enter();
        load::load(&self.device, path, format, stop, progress).map_err(|source| match source {
            LoadError::Stopped(stopped) => stopped.into(),
            source => DiskError::Load { path: path.to_owned(), source },
        })
    }

    /// Marks the disk as complete: from now on a new process opens it. Before that, a process that is to
    /// create the disk creates it anew.
    pub fn set_complete(&self) {
        self.device.set_complete();
        self.door.open();
    }

    /// Serves one front end; see [`Server::serve`].
    pub fn serve(
        &self,
        stream: &UnixStream,
        stop: BorrowedFd<'_>,
        others: Option<&mut dyn Others>,
    ) -> SessionEnd {
        let _entered = self.name.enter();
        // 0 is a process of another PID namespace.
        let peer = getsockopt(stream, sockopt::PeerCredentials).ok();
        let pid = peer.map(|peer| peer.pid()).filter(|pid| *pid > 0);
        let Some(_inside) = self.door.enter(pid, stop) else { return SessionEnd::Stopped };
        self.device.events().tell(|| Event::SessionBegun { pid });
        let end = self.server.serve(stream, stop, others);
        self.device.events().tell(|| Event::SessionEnded {
            reason: match &end {
                SessionEnd::HungUp => "hung_up".into(),
                SessionEnd::Stopped => "stopped".into(),
                SessionEnd::Refused(error) => with_causes(error),
            },
        });
        end
    }

    /// The log of lines that guests and front ends can cause as often as they like.
    pub fn log(&self) -> &Arc<Limiter> {
        self.server.log()
    }

    /// Compacts the disk's memory, and calls `told` when that is done. Does not call it if upkeep stops
    /// before. Returns the number of the job; `None` if upkeep has stopped.
    pub fn compact(&self, told: impl FnOnce(Compaction) + Send + 'static) -> Option<u64> {
        sync::lock(&self.upkeep).as_ref().map(|upkeep| upkeep.compact(told))
    }

    /// Has pages compressed again as a job, and calls `told` at its end. Returns the number of the job.
    ///
    /// # Errors
    /// Another one is under way, or upkeep has stopped.
    pub fn recompress(
        &self,
        wanted: Wanted,
        told: impl FnOnce(RecompressEnd) + Send + 'static,
    ) -> Result<u64, RecompressRefused> {
        let upkeep = sync::lock(&self.upkeep);
        upkeep.as_ref().ok_or(RecompressRefused::Ending)?.recompress(wanted, told)
    }

    /// Marks all pages as idle that nothing accesses at present, or that nothing accessed for `age` seconds, and returns
    /// how many. Takes its time on a large disk.
    ///
    /// # Errors
    /// Pages have no such age.
    pub fn mark_idle(&self, age: Option<u64>) -> Result<u64, AgeError> {
        self.device.mark_idle(age, || self.door.is_open())
    }

    /// The algorithms that pages are recompressed by, by their priorities from 1 on.
    pub fn secondaries(&self) -> [Option<CodecSpec>; SECONDARIES] {
        self.device.secondaries()
    }

    /// Sets the algorithm of this priority, 1 to [`SECONDARIES`].
    ///
    /// # Errors
    /// It cannot be set up, or the codec table is full.
    pub fn set_secondary(&self, priority: usize, codec: CodecSpec) -> Result<(), ChangeError> {
        let failed = |error| ChangeError::Codec(codec, error);
        self.device.set_secondary(priority, codec).map_err(failed)?;
        self.device.events().tell(|| Event::SettingsChanged);
        Ok(())
    }

    /// Its background jobs.
    pub fn jobs(&self) -> &Jobs {
        &self.jobs
    }

    /// What happens to it, for those that listen.
    pub fn events(&self) -> &Arc<Bus> {
        self.device.events()
    }

    /// The front end that is served, and how many were.
    pub fn sessions(&self) -> Sessions {
        self.door.sessions()
    }

    /// Whether guests may not write.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// The most memory that it takes with its size and its limit of now.
    pub fn worst_case(&self) -> WorstCase {
        self.device.worst_case()
    }

    /// The rate limits of all queues together.
    pub fn rates(&self) -> Rates {
        self.server.rates()
    }

    /// Changes the rate limits, also while guests wait for the old ones: they are woken.
    pub fn set_rates(&self, rates: Rates) {
        if rates != self.rates() {
            log::info!("rate limits: {rates}");
            self.server.set_rates(&rates);
        }
    }

    /// Logs the most memory that the disk can take, and warns if the host cannot spare it now.
    pub fn say_worst_case(&self) {
        worst::announce(&self.device, &self.host);
    }

    /// All figures of the disk at this moment.
    pub fn report(&self) -> Report {
        self.device.report()
    }

    /// From now on the most arena memory that there ever was is what there is now: `mem_used_max` of the report.
    pub fn forget_max(&self) {
        self.device.forget_max();
    }

    /// A walk over what each slot holds.
    pub fn slots(&self) -> Slots {
        Slots::new(Arc::clone(&self.device))
    }

    /// The daemon is to end: no reset begins any more, and one that is under way ends soon.
    pub fn begin_stop(&self) {
        self.door.close();
    }

    /// Ends the disk's upkeep, and a reset. What is stored stays.
    pub fn stop(&self) {
        self.door.close();
        self.door.wait_for_reset();
        // Taken out first: this waits for its end, and a compaction must not wait for that.
        let upkeep = sync::lock(&self.upkeep).take();
        drop(upkeep);
    }
}
