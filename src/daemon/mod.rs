//! The life of the daemon: its disk, its socket, its signals.

mod accept;
mod console;
mod disk;
mod image;
mod inherit;
mod limits;
mod load;
mod lobby;
mod manager;
mod signals;
mod socket;

use std::os::fd::{AsFd, RawFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sys::eventfd::EventFd;

use self::accept::Source;
pub use self::console::Console;
use self::disk::Origin;
pub use self::image::{ImageError, ImageFormat, ImageFormatError, Remedy};
pub use self::inherit::Inherited;
pub use self::load::LoadError;
pub use self::manager::ManagerError;
use self::signals::Signals;
pub use self::socket::{Bound, SocketAccess, SocketError};
use crate::checker;
use crate::device::{DeviceConfig, DeviceError};
use crate::guest::{GuestOptions, Server};
use crate::sync;
use crate::upkeep::{Host, Upkeep};

/// How long the socket of a daemon that goes is waited for, as its state is: it has both to its end.
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
    Session(#[source] crate::guest::SessionError),
}

/// Runs the daemon to its end: SIGTERM, SIGINT or SIGHUP, or the hang-up of an inherited connection.
///
/// Prints one `ready:` line when front ends can come, one `stats:` line at each SIGUSR1, one
/// `compacted:` line when the compaction is done that SIGUSR2 asks for, and one `summary:` line at
/// the end, all to stdout.
///
/// # Errors
/// The daemon cannot start; nothing was left behind.
pub fn run(settings: &Settings, console: &Console) -> Result<(), DaemonError> {
    limits::raise_open_files(settings.guest.num_queues, settings.guest.threads);
    let stop = Arc::new(EventFd::new().map_err(DaemonError::Setup)?);
    let signals = Signals::block().map_err(DaemonError::Setup)?;
    let stdout = console.lines();
    // What the user got wrong is said before a long load, not after it.
    let patience = if settings.keep == Keep::Process { Duration::ZERO } else { GRACE };
    let source = Source::prepare(&settings.endpoint, patience)?;
    let (device, origin) = disk::open(settings)?;
    let device = Arc::new(device);
    let host = settings.host_reserve.map_or_else(Host::with_default_reserve, Host::new);
    let upkeep = Upkeep::start(Arc::clone(&device), host).map_err(DaemonError::Thread)?;
    let upkeep = Arc::new(Mutex::new(Some(upkeep)));
    signals
        .watch(Arc::clone(&stop), Arc::downgrade(&device), Arc::clone(&upkeep), console.lines())
        .map_err(DaemonError::Thread)?;
    if let Some(path) = settings.load.as_ref().filter(|_| origin != Origin::Opened) {
        let loaded = load::load(&device, path, settings.load_format, stop.as_fd())
            .map_err(|source| DaemonError::Load { path: path.clone(), source })?;
        if !loaded {
            stdout.say(format_args!("summary: {}", device.report()));
            return Ok(());
        }
    }
    if let (Some(path), Origin::Opened) = (&settings.load, origin) {
        log::info!("{} is not loaded again: its disk was opened", path.display());
    }
    device.set_complete();
    let source = source.open()?;
    stdout.say(format_args!(
        "ready: socket={} size={} block={} algorithm={} queues={} state={origin}",
        settings.endpoint,
        device.size(),
        device.block_size(),
        device.codec(),
        settings.guest.num_queues
    ));
    manager::say_ready();
    let server = Server::new(Arc::clone(&device), settings.guest.clone());
    let ended = accept::serve(source, &server, stop.as_fd());
    // Taken out first: its end is waited for, and signals are not.
    let upkeep = sync::lock(&upkeep).take();
    drop(upkeep);
    // Of debug builds only.
    for class in checker::figures() {
        log::debug!("locks: {class}");
    }
    stdout.say(format_args!("summary: {}", device.report()));
    ended
}
