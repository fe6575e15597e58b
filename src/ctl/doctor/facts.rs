//! What is known of a host and its daemons, or of a guest: all that the checks look at.

use std::path::PathBuf;

/// A host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// Memory of the host, if it can be read.
    pub memory: Option<HostMemory>,
    /// Disks that have a socket, a process or a unit.
    pub disks: Vec<Disk>,
    /// Virtual machines with such disks.
    pub front_ends: Vec<FrontEnd>,
}

/// Memory of a host, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HostMemory {
    /// All of it.
    pub total: u64,
    /// What can be had without swapping.
    pub available: u64,
}

/// A disk, as far as anything is known of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Disk {
    /// Its name.
    pub name: String,
    /// The socket of its API; empty if it has none.
    pub api: PathBuf,
    /// Sockets that no process listens on.
    pub stale_sockets: Vec<PathBuf>,
    /// Why its daemon does not answer, though a process has the socket.
    pub silent: Option<String>,
    /// What its daemon says.
    pub figures: Option<Figures>,
    /// Its daemon's process.
    pub process: Option<Process>,
    /// Where front ends connect.
    pub socket: Option<PathBuf>,
    /// Where it keeps its state.
    pub state: Option<StateDir>,
    /// The systemd unit of its daemon.
    pub unit: Option<Unit>,
}

/// Figures of a disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figures {
    /// Limit on its memory in bytes; 0 means none.
    pub mem_limit: u64,
    /// The most memory that it can take, in bytes.
    pub worst_case: u64,
    /// What it takes now, in bytes.
    pub used: u64,
    /// Bytes of the pages that hold something.
    pub stored: u64,
    /// Writes that ended well.
    pub writes: u64,
    /// Discards and write-zeroes requests.
    pub discards: u64,
    /// Pages freed by those.
    pub freed_pages: u64,
    /// Writes that failed.
    pub failed_writes: u64,
    /// Queues that never showed a request.
    pub blind_queues: u64,
    /// Queues that made no sense.
    pub broken_queues: u64,
    /// Requests that took too long.
    pub stalled: u64,
}

/// A daemon's process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// Its options.
    pub options: Options,
    /// The most memory that it may lock, in bytes; `None` is no limit.
    pub mlock_limit: Option<u64>,
    /// Its control group and those above it, the nearest first.
    pub groups: Vec<Group>,
}

/// What a daemon was told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// Its name, given or derived.
    pub name: Option<String>,
    /// Where front ends connect.
    pub socket: Option<PathBuf>,
    /// Where its API is.
    pub api: Option<PathBuf>,
    /// Where its state is.
    pub state_dir: Option<PathBuf>,
    /// Its configuration file.
    pub config: Option<PathBuf>,
    /// Its size in bytes.
    pub size: Option<u64>,
    /// Limit on its memory in bytes.
    pub mem_limit: Option<u64>,
    /// Whether its state is in memory that the service manager holds.
    pub fd_store: bool,
    /// Whether its memory is locked.
    pub mlock: bool,
}

/// A control group with a memory controller.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Group {
    /// Its path below the mount point.
    pub path: String,
    /// Limit in bytes, if there is one.
    pub max: Option<u64>,
    /// Where it is throttled, in bytes, if anywhere.
    pub high: Option<u64>,
    /// Processes of this very group that the kernel killed since it ran out of memory.
    pub oom_kills: u64,
}

/// The directory of a state.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StateDir {
    /// Its path.
    pub path: PathBuf,
    /// Type of its file system, such as `tmpfs`, if it is known.
    pub fs_type: Option<String>,
    /// Size of that file system in bytes, if it is a tmpfs.
    pub fs_size: Option<u64>,
    /// Processes that lock it or were told to use it, in ascending order.
    pub users: Vec<u32>,
}

/// What systemd says of a unit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unit {
    /// Its name.
    pub name: String,
    /// `active`, `failed` and so on.
    pub active: String,
    /// How its last run ended: `success`, `oom-kill`, `exit-code` and so on.
    pub result: String,
    /// The most descriptors that are stored for it.
    pub fd_store_max: Option<u64>,
    /// The most memory that it may lock, in bytes; `None` is no limit.
    pub mlock_limit: Option<u64>,
    /// The options in its command line and settings.
    pub options: Options,
    /// Where its settings are (EnvironmentFile=).
    pub settings: Option<PathBuf>,
    /// What the daemon says is wrong with its options.
    pub mistake: Option<String>,
    /// A configuration file of the disk's name that is not among the options.
    pub unused_config: Option<PathBuf>,
    /// Whether the daemon's user, who is not root, may not read its configuration file.
    pub config_is_closed: bool,
}

/// A virtual machine monitor.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FrontEnd {
    /// Its process.
    pub pid: u32,
    /// Name of the program.
    pub program: String,
    /// Name of the guest, or an empty text.
    pub guest: String,
    /// Version, if it is known.
    pub version: Option<(u32, u32)>,
    /// Whether all of the guest's memory is shared, if the command line says so.
    pub memory_shared: Option<bool>,
    /// Its connections to disks.
    pub connections: Vec<Connection>,
}

/// A front end's connection to a disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Connection {
    /// The socket.
    pub socket: PathBuf,
    /// Whether it connects again when the daemon comes back.
    pub reconnects: bool,
}

/// A guest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Guest {
    /// Its disks of this kind, or all virtio disks if it cannot be told.
    pub disks: Vec<GuestDisk>,
    /// Read-ahead of swap (`vm.page-cluster`), as a power of two of pages.
    pub page_cluster: Option<u32>,
}

/// A disk as its guest sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GuestDisk {
    /// Its name, such as `vda`.
    pub name: String,
    /// Whether the guest takes it for one that rotates.
    pub rotational: bool,
    /// Whether discards can be sent.
    pub takes_discards: bool,
    /// Bytes written since the guest's start.
    pub written: u64,
    /// Discards sent since then.
    pub discards: u64,
    /// Swap areas on it.
    pub swaps: Vec<GuestSwap>,
    /// File systems on it that are mounted.
    pub mounts: Vec<GuestMount>,
}

/// A swap area.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GuestSwap {
    /// Its device.
    pub device: String,
    /// Whether freed swap is discarded, if the settings that it is used by are known.
    pub discards: Option<bool>,
}

/// A mounted file system.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GuestMount {
    /// Where it is mounted.
    pub place: String,
    /// Whether it is mounted with `discard`.
    pub discards: bool,
    /// Whether `fstrim` runs from time to time.
    pub trimmed: bool,
}
