//! The life of the daemon: its socket, its signals, the service manager; and the order in which they and
//! its disk start and stop.

mod accept;
mod api;
mod console;
mod heartbeat;
mod inherit;
mod limits;
mod lobby;
mod reload;
mod service_manager;
mod signals;
mod socket;

use std::os::fd::RawFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use self::accept::Source;
use self::api::ApiSocket;
pub use self::console::Console;
pub use self::reload::{Change, Reread};
pub use self::service_manager::ServiceManagerError;
use self::signals::Signals;
pub use self::socket::{SocketAccess, SocketError};
use crate::checker;
use crate::control::ControlError;
use crate::device::{DeviceError, State, StateError};
use crate::disk::{self, Disk, DiskConfig, DiskError, ImageFormat, Origin};
use crate::stop::{Stop, Stopped};

/// Where front ends come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// A socket to be created at this path, with these permissions.
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

/// How long the disk's contents live.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Keep {
    /// As long as the process.
    Process,
    /// As long as the files of a directory on a tmpfs.
    Directory {
        /// Its path.
        path: PathBuf,
        /// Number of a user that may own it, beside the daemon's own.
        owner: Option<u32>,
    },
    /// As long as the service manager stores the descriptors.
    ServiceManager,
}

/// All settings of a daemon.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Where front ends come from.
    pub endpoint: Endpoint,
    /// Where the control API is, if not at a socket that the service manager passes on.
    pub api_socket: Option<PathBuf>,
    /// The disk.
    pub disk: DiskConfig,
    /// How long the disk's contents live.
    pub keep: Keep,
    /// Create the state if it does not exist.
    pub create: bool,
    /// A raw image that is loaded into a new disk: at each start, or when the state is created.
    pub load: Option<PathBuf>,
    /// Which formats that image may have.
    pub load_format: ImageFormat,
}

/// Why the daemon cannot start or cannot continue.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The service manager.
    #[error(transparent)]
    ServiceManager(#[from] ServiceManagerError),
    /// The host does not provide a resource that the daemon needs.
    #[error("cannot set up signals or sockets")]
    Setup(#[source] nix::Error),
    /// The control API.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// A descriptor cannot be copied.
    #[error("cannot copy a descriptor")]
    Descriptor(#[source] std::io::Error),
    /// A thread could not be started.
    #[error("cannot start a thread")]
    Thread(#[source] std::io::Error),
    /// The inherited connection, the only one, ended with an error.
    #[error("the session on the inherited connection failed")]
    Session(#[source] crate::vhost_user::SessionError),
    /// The daemon is to end.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

impl DaemonError {
    /// Whether it is not a failure, but the request to end while the daemon started.
    fn is_stop(&self) -> bool {
        matches!(
            self,
            Self::Stopped(_)
                | Self::Socket(SocketError::Stopped(_))
                | Self::Disk(DiskError::Stopped(_))
                | Self::ServiceManager(ServiceManagerError::Stopped(_))
        )
    }
}

/// Runs the daemon to its end: SIGTERM, SIGINT or SIGHUP, or the hang-up of an inherited connection. If it has
/// `reread`, SIGHUP does not end it, but has it read the options again.
///
/// Prints to stdout one `ready:` line when front ends can connect, one `stats:` line at each SIGUSR1,
/// one `compacted:` line when a compaction that SIGUSR2 requested is done, and one `summary:` line at
/// the end, if there was a disk by then. A signal ends the start, too: there is no `ready:` line then.
///
/// # Errors
/// The daemon cannot start. It leaves no file behind.
pub fn run(
    settings: &Settings,
    console: &Console,
    reread: Option<Reread>,
) -> Result<(), DaemonError> {
    let _entered = settings.disk.name.enter();
    let guest = &settings.disk.guest;
    let descriptors = limits::raise_open_files(guest.num_queues, guest.threads);
    let stop = Stop::new().map_err(DaemonError::Thread)?;
    let signals = Signals::block(reread.is_some()).map_err(DaemonError::Setup)?;
    signals.watch_for_end(stop.clone()).map_err(DaemonError::Thread)?;
    match start_and_serve(settings, &signals, console, reread, descriptors, &stop) {
        Err(error) if error.is_stop() => Ok(()),
        ended => ended,
    }
}

fn start_and_serve(
    settings: &Settings,
    signals: &Signals,
    console: &Console,
    reread: Option<Reread>,
    descriptors: u64,
    stop: &Stop,
) -> Result<(), DaemonError> {
    // A mistake of the user is reported before a long load, not after it.
    let longest_wait = if settings.keep == Keep::Process { Duration::ZERO } else { disk::GRACE };
    let endpoint = endpoint(settings)?;
    let source = Source::prepare(&endpoint, longest_wait, stop)?;
    if endpoint != settings.endpoint {
        log::info!("the service manager passes the socket: {} is not made", settings.endpoint);
    }
    let api = ApiSocket::prepare(settings.api_socket.as_ref(), longest_wait, stop)?;
    // What the API shows is counted.
    let mut config = settings.disk.clone();
    config.guest.latency |= api.is_some();
    let disk = Arc::new(open(settings, &config, stop)?);
    signals.answer(Arc::downgrade(&disk), console.lines()).map_err(DaemonError::Thread)?;
    let shown = endpoint.to_string();
    let api = api.map(|api| api.serve(&disk, &shown, descriptors, stop)).transpose();
    let ended = api.and_then(|api| {
        let once_ready = || {
            if let Some(api) = &api {
                api.set_ready();
            }
            let Some(reread) = reread else { return Ok(()) };
            let reload = signals.reload(reread, Arc::downgrade(&disk), stop.clone());
            reload.map_err(DaemonError::Thread)
        };
        let ended = serve(settings, &endpoint, source, &disk, console, once_ready, stop);
        disk.begin_stop();
        drop(api);
        ended
    });
    disk.stop();
    let failed =
        |error: &DaemonError| !error.is_stop() && !matches!(error, DaemonError::Session(_));
    if !ended.as_ref().is_err_and(failed) {
        // There are such figures in debug builds only.
        for class in checker::figures() {
            log::debug!("locks: {class}");
        }
        console.lines().say(format_args!("summary: {}", disk.report()));
    }
    ended
}

/// Where front ends come from: a socket that the service manager passes takes the place of one that the
/// daemon would make, so that a unit's command line is the same with and without a socket unit.
fn endpoint(settings: &Settings) -> Result<Endpoint, DaemonError> {
    let own = settings.endpoint.clone();
    let passed = match own {
        Endpoint::Path(..) => service_manager::passed_socket()?,
        Endpoint::Fd(_) => None,
    };
    Ok(passed.map_or(own, Endpoint::Fd))
}

/// Creates the disk, or opens the one that an earlier process left.
fn open(settings: &Settings, config: &DiskConfig, stop: &Stop) -> Result<Disk, DaemonError> {
    let state = match &settings.keep {
        Keep::Process => return Ok(Disk::create(config)?),
        Keep::Directory { path, owner } => config.state_in(path, settings.create, *owner, stop)?,
        Keep::ServiceManager => handed(settings, stop)?,
    };
    Ok(Disk::open(config, state)?)
}

/// The state that the service manager holds.
fn handed(settings: &Settings, stop: &Stop) -> Result<State, DaemonError> {
    const HOME: &str = "the service manager's descriptor store";
    let config = &settings.disk;
    let files = service_manager::handed_back()?;
    if files.is_empty() && !settings.create {
        return Err(DiskError::from(StateError::None { home: HOME.into() }).into());
    }
    if !files.is_empty() {
        match config.state_of(&files, HOME, stop) {
            Err(DiskError::Device(DeviceError::State(StateError::Unfinished { .. })))
                if settings.create =>
            {
                service_manager::forget(stop)?;
            }
            state => return Ok(state?),
        }
    }
    let state = config.new_state(HOME)?;
    service_manager::keep(&state.descriptors(), stop)?;
    Ok(state)
}

/// Loads the image into a new disk, opens the socket, and serves front ends. Calls `once_ready` before the
/// first of them.
fn serve(
    settings: &Settings,
    endpoint: &Endpoint,
    source: Source,
    disk: &Disk,
    console: &Console,
    once_ready: impl FnOnce() -> Result<(), DaemonError>,
    stop: &Stop,
) -> Result<(), DaemonError> {
    // Opening the disk may have taken long.
    stop.check()?;
    let origin = disk.origin();
    match &settings.load {
        Some(path) if origin == Origin::Opened => {
            log::info!("--load {} is ignored: the disk exists already", path.display());
        }
        Some(path) => {
            let its_stop = stop.clone();
            let progress = move || service_manager::say_busy(&its_stop);
            disk.load(path, settings.load_format, stop, progress)?;
        }
        None => {}
    }
    disk.set_complete();
    let source = source.open(stop)?;
    // So may opening the socket. No front end was accepted yet.
    stop.check()?;
    console.lines().say(format_args!(
        "ready: socket={} size={} block={} algorithm={} queues={} state={origin} name={}",
        endpoint,
        disk.size(),
        disk.block_size(),
        disk.codec(),
        settings.disk.guest.num_queues,
        disk.name(),
    ));
    // Not before: the end of a reload tells the service manager so, too.
    once_ready()?;
    service_manager::say_ready(stop);
    // Not before: a start that fails says why, in one line.
    disk.say_worst_case();
    accept::serve(source, disk, stop)
}
