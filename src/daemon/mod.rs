//! The life of the daemon: its disk, its socket, its signals.

mod accept;
mod console;
mod disk;
mod image;
mod inherit;
mod limits;
mod load;
mod lobby;
mod service_manager;
mod signals;
mod socket;

use std::os::fd::RawFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use self::accept::Source;
pub use self::console::Console;
use self::disk::Origin;
pub use self::image::{ImageError, ImageFormat, ImageFormatError, Remedy};
pub use self::inherit::Inherited;
pub use self::load::LoadError;
pub use self::service_manager::ManagerError;
use self::signals::Signals;
pub use self::socket::{Bound, SocketAccess, SocketError};
use crate::blk::GuestOptions;
use crate::checker;
use crate::device::{Device, DeviceConfig, DeviceError};
use crate::stop::{Stop, Stopped};
use crate::sync;
use crate::upkeep::{Host, Upkeep};
use crate::vhost_user::Server;

/// How long a daemon that starts waits for the state and the socket of one that ends: that has both to
/// its end, and takes a moment if it was killed.
const GRACE: Duration = Duration::from_secs(3);

/// Where front ends come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// A socket to be made at this path, for those who have access.
    Path(PathBuf, SocketAccess),
    /// A socket that was inherited as this descriptor: a listening one, or a connected one.
    Fd(RawFd),
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Endpoint::Path(path, _) => write!(f, "{}", path.display()),
            Endpoint::Fd(fd) => write!(f, "fd:{fd}"),
        }
    }
}

/// What the disk's contents end with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Keep {
    /// The process.
    Process,
    /// The files of a directory on a tmpfs.
    Directory {
        /// Its path.
        path: PathBuf,
        /// Number of a user that it may belong to, beside the daemon's own.
        owner: Option<u32>,
    },
    /// The service manager's store of descriptors.
    Manager,
}

/// All that a daemon is told.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Where front ends come from.
    pub endpoint: Endpoint,
    /// The disk.
    pub device: DeviceConfig,
    /// What guests are offered.
    pub guest: GuestOptions,
    /// What the disk's contents end with.
    pub keep: Keep,
    /// Make a state where there is none.
    pub create: bool,
    /// A raw image that fills the disk at the start, or when its state is made.
    pub load: Option<PathBuf>,
    /// What that image may be.
    pub load_format: ImageFormat,
    /// Memory of the host, or of the daemon's control group, that is left free, in bytes. `None`
    /// is a part of it ([`crate::upkeep::default_reserve`]).
    pub host_reserve: Option<u64>,
}

/// Why the daemon cannot start, or cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The disk.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The service manager.
    #[error(transparent)]
    Manager(#[from] ManagerError),
    /// The image.
    #[error("the image {} cannot be loaded", path.display())]
    Load {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: LoadError,
    },
    /// Something that every process can have.
    #[error("the daemon cannot be set up")]
    Setup(#[source] nix::Error),
    /// A thread could not be started.
    #[error("the daemon cannot start its threads")]
    Thread(#[source] std::io::Error),
    /// The one connection that was inherited ended badly.
    #[error("the session failed")]
    Session(#[source] crate::vhost_user::SessionError),
    /// The daemon is to end.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

impl DaemonError {
    /// Whether nothing went wrong but the daemon was told to end while it started.
    fn is_stop(&self) -> bool {
        matches!(
            self,
            Self::Stopped(_)
                | Self::Socket(SocketError::Stopped(_))
                | Self::Manager(ManagerError::Stopped(_))
                | Self::Load { source: LoadError::Stopped(_), .. }
        )
    }
}

/// Runs the daemon to its end: SIGTERM, SIGINT or SIGHUP, or the hang-up of an inherited connection.
///
/// Prints one `ready:` line when front ends can come, one `stats:` line at each SIGUSR1, one
/// `compacted:` line when the compaction is done that SIGUSR2 asks for, and one `summary:` line at
/// the end, if there was a disk by then, all to stdout. A signal ends the start, too: there is no
/// `ready:` then.
///
/// # Errors
/// The daemon cannot start; nothing was left behind.
pub fn run(settings: &Settings, console: &Console) -> Result<(), DaemonError> {
    limits::raise_open_files(settings.guest.num_queues, settings.guest.threads);
    let stop = Stop::new().map_err(DaemonError::Thread)?;
    let signals = Signals::block().map_err(DaemonError::Setup)?;
    signals.watch_for_end(stop.clone()).map_err(DaemonError::Thread)?;
    // What the user got wrong is said before a long load, not after it.
    let patience = if settings.keep == Keep::Process { Duration::ZERO } else { GRACE };
    let started = Source::prepare(&settings.endpoint, patience, &stop)
        .map_err(DaemonError::from)
        .and_then(|source| Ok((source, disk::open(settings, &stop)?)));
    let (source, (device, origin)) = match started {
        Err(error) if error.is_stop() => return Ok(()),
        started => started?,
    };
    let device = Arc::new(device);
    let host = settings.host_reserve.map_or_else(Host::with_default_reserve, Host::new);
    let upkeep = Upkeep::start(Arc::clone(&device), host).map_err(DaemonError::Thread)?;
    let upkeep = Arc::new(Mutex::new(Some(upkeep)));
    signals
        .answer(Arc::downgrade(&device), Arc::clone(&upkeep), console.lines())
        .map_err(DaemonError::Thread)?;
    let ended = match serve(settings, source, &device, origin, console, &stop) {
        Err(error) if error.is_stop() => Ok(()),
        ended => ended,
    };
    // Taken out first: its end is waited for, and signals are not.
    let upkeep = sync::lock(&upkeep).take();
    drop(upkeep);
    if !matches!(ended, Ok(()) | Err(DaemonError::Session(_))) {
        return ended;
    }
    // Of debug builds only.
    for class in checker::figures() {
        log::debug!("locks: {class}");
    }
    console.lines().say(format_args!("summary: {}", device.report()));
    ended
}

/// Fills the disk if it is to be, opens the socket, and serves front ends.
fn serve(
    settings: &Settings,
    source: Source,
    device: &Arc<Device>,
    origin: Origin,
    console: &Console,
    stop: &Stop,
) -> Result<(), DaemonError> {
    // The disk may have taken its time.
    stop.check()?;
    match &settings.load {
        Some(path) if origin == Origin::Opened => {
            log::info!("{} is not loaded again: its disk was opened", path.display());
        }
        Some(path) => load::load(device, path, settings.load_format, stop)
            .map_err(|source| DaemonError::Load { path: path.clone(), source })?,
        None => {}
    }
    device.set_complete();
    let source = source.open(stop)?;
    // So may the socket; nobody was let in yet.
    stop.check()?;
    console.lines().say(format_args!(
        "ready: socket={} size={} block={} algorithm={} queues={} state={origin}",
        settings.endpoint,
        device.size(),
        device.block_size(),
        device.codec(),
        settings.guest.num_queues
    ));
    service_manager::say_ready(stop);
    let server = Server::new(Arc::clone(device), settings.guest.clone());
    accept::serve(source, &server, stop)
}
