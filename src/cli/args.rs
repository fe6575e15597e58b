//! The options: the one definition of them, from which help, man page, completions and the keys of the
//! configuration file come.

use std::ffi::OsStr;
use std::num::NonZeroU64;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{ArgGroup, CommandFactory, Parser};
use vhost_user_zram::internals::{
    BlockChoice, BlockSize, Change, CodecSpec, Cpus, DeviceConfig, DiskConfig, DiskName, Endpoint,
    EngineConfig, EngineModel, GuestOptions, ImageFormat, Keep, MemoryKind, Policy, Rate, Rates,
    Settings, SocketAccess, StallLimits,
};

use super::values::{parse_disk_size, parse_mode, parse_queue_size, parse_serial, parse_size};

/// zram for virtual machines: a vhost-user-blk back end that keeps a guest's disk compressed in
/// host memory.
///
/// The daemon stays in the foreground. SIGTERM, SIGINT and SIGHUP end it (SIGHUP not under nohup, and
/// with --config it has the file read again), SIGUSR1 prints a line of statistics, SIGUSR2 compacts the
/// disk's memory and prints a line when that is done. The disk's contents live as long as the daemon, or with --state-dir or --fd-store as long
/// as the host is up.
#[derive(Debug, Clone, Parser)]
#[command(version, max_term_width = 100)]
#[command(group = ArgGroup::new("endpoint").required(true).args(["socket_path", "fd"]))]
pub struct Args {
    /// Read options from FILE, in TOML: a line `NAME = VALUE` for each, with the long name of the option, such
    /// as size = "4G" or mlock = true. An option on the command line beats FILE; --NAME=false turns off a
    /// flag that is true there. SIGHUP has FILE read again, and changes --mem-limit, --host-reserve, --log-level
    /// and the rate limits.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Check the options, those of --config included, print a summary of them and exit. Nothing else is
    /// looked at: not whether files, directories or users exist.
    #[arg(long)]
    check_config: bool,

    /// Listen on a Unix socket at PATH. A stale socket is replaced. A socket that the service manager passes
    /// under the name vhost-user (systemd's FileDescriptorName=) takes its place, and PATH is not made.
    #[arg(long, value_name = "PATH")]
    socket_path: Option<PathBuf>,

    /// Permissions of the socket, in octal. Connecting requires write permission. At no time does the
    /// socket have more permissions, whatever the umask [default: 600, or 660 with --socket-group].
    #[arg(long, value_name = "MODE", value_parser = parse_mode, conflicts_with = "fd")]
    socket_mode: Option<u32>,

    /// Owner of the socket, by name or number [default: the daemon's user].
    #[arg(long, value_name = "USER", conflicts_with = "fd")]
    socket_owner: Option<String>,

    /// Group of the socket, by name or number, such as kvm for the QEMU of libvirt [default: the
    /// daemon's group].
    #[arg(long, value_name = "GROUP", conflicts_with = "fd")]
    socket_group: Option<String>,

    /// Use the Unix socket that is inherited as descriptor N, either listening or connected.
    #[arg(long, value_name = "N")]
    fd: Option<RawFd>,

    /// Serve the control API (HTTP with JSON) on a Unix socket at PATH, for the daemon's user alone. A socket
    /// of the name `api` that the service manager passes on (LISTEN_FDS) is used instead.
    #[arg(long, value_name = "PATH")]
    api_socket: Option<PathBuf>,

    /// Name of the disk in the log and in the names of threads: up to 64 letters, digits, '.', '_' and
    /// '-' [default: the file name of --socket-path without its extension, else that of --state-dir].
    #[arg(long, value_name = "NAME")]
    name: Option<DiskName>,

    /// Print the capabilities of this back end as JSON, and exit. All other options are ignored.
    #[arg(long)]
    print_capabilities: bool,

    /// Size of the disk in bytes, or with a suffix K, M, G or T (powers of 1024). Rounded up to a
    /// multiple of 4096 bytes; at most 16376G (8G less than 16T). An existing disk grows to it; one that has
    /// grown beyond it keeps its size.
    #[arg(long, value_name = "SIZE", value_parser = parse_disk_size)]
    size: NonZeroU64,

    /// Logical block size of the disk, 512 or 4096 bytes. Most images are made for 512, and a BIOS boots
    /// only from that. With 4096 each write is of whole pages
    /// [default: 512 with --load, else 4096; an existing disk keeps its own].
    #[arg(long, value_name = "BYTES")]
    block_size: Option<BlockSize>,

    /// Keep the disk in files in DIR, so that it outlives the daemon: the next one with the same DIR
    /// continues with it. DIR must be on a tmpfs, such as /run. Only the daemon's user has access.
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,

    /// Accept a state whose directory and files belong to the user with this number. Without this option
    /// they must belong to the daemon's user.
    #[arg(long, value_name = "UID", requires = "state_dir")]
    state_owner: Option<u32>,

    /// Keep the disk in memory whose descriptors the service manager stores for the next daemon
    /// (systemd's FileDescriptorStoreMax=, at least 3).
    #[arg(long, conflicts_with = "state_dir")]
    fd_store: bool,

    /// Create the disk's state if it does not exist. An existing one is opened, as without this option.
    #[arg(long)]
    create: bool,

    /// Load the raw image FILE, a regular file or a block device, into the disk at the start. A disk with
    /// a state is loaded only when the state is created.
    #[arg(long, value_name = "FILE")]
    load: Option<PathBuf>,

    /// Format of the image of --load: auto refuses a file that begins like one of a format other than
    /// raw (qcow2, VMDK, gzip, zstd and others); raw loads the bytes as they are.
    #[arg(long, value_name = "FORMAT", default_value = "auto", requires = "load")]
    load_format: ImageFormat,

    /// Compression algorithm of new pages: lz4 or lz4(acceleration=N), lz4-flex, lz4hc or lz4hc(level=N), zstd or
    /// zstd(level=N), deflate or deflate(level=N,winbits=N), or lzo. Pages that a state has already are read
    /// whatever compressed them.
    #[arg(long, value_name = "ALGORITHM", default_value = "lz4")]
    algorithm: CodecSpec,

    /// Refuse all writes.
    #[arg(long)]
    read_only: bool,

    /// Maximum number of virtqueues of a guest, 1 to 64. An unused virtqueue costs nothing.
    #[arg(long, value_name = "N", default_value_t = 64,
          value_parser = clap::value_parser!(u16).range(1..=64))]
    num_queues: u16,

    /// Maximum size of a virtqueue: a power of two, 2 to 32768 descriptors. The protocol does not tell
    /// front ends, so one whose queues are larger is refused.
    #[arg(long, value_name = "N", default_value_t = 32768, value_parser = parse_queue_size)]
    queue_size: u16,

    /// Maximum number of threads that serve the virtqueues. A thread starts with the first of its queues
    /// [default: the number of CPUs].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    queue_threads: Option<u16>,

    /// Longest time in microseconds for which a queue thread polls its empty virtqueues before it sleeps: a
    /// request that comes within it costs no kick and no wake-up. The thread polls only while that pays,
    /// and an idle disk is not polled. 0 means never.
    #[arg(long, value_name = "MICROSECONDS", default_value_t = 50,
          value_parser = clap::value_parser!(u32).range(0..=100_000))]
    poll_us: u32,

    /// Serial number of the disk, up to 20 bytes.
    #[arg(long, value_name = "TEXT", default_value = "vhost-user-zram", value_parser = parse_serial)]
    serial: String,

    /// Maximum memory of the compressed pages and the slot table (8 bytes a page, or 12 with a state, in
    /// units of 512 pages), in bytes or with a suffix. Writes that need more fail. 0 means no limit.
    #[arg(long, value_name = "SIZE", default_value = "0", value_parser = parse_size)]
    mem_limit: u64,

    /// Keep for each page when it was last accessed, in 2 bytes beside the slot table, so that pages can be marked as
    /// idle by their age.
    #[arg(long)]
    access_times: bool,

    /// Maximum number of read requests a second, of all virtqueues together. Requests beyond it wait, and no
    /// virtqueue gets more of it than another one that needs as much. 0 means no limit.
    #[arg(long, value_name = "N", default_value_t = 0)]
    read_iops: u64,

    /// Maximum number of bytes read a second, in bytes or with a suffix. 0 means no limit.
    #[arg(long, value_name = "SIZE", default_value = "0", value_parser = parse_size)]
    read_bps: u64,

    /// Maximum number of write requests a second, discards and write-zeroes included. 0 means no limit.
    #[arg(long, value_name = "N", default_value_t = 0)]
    write_iops: u64,

    /// Maximum number of bytes written a second, in bytes or with a suffix. Discards and write-zeroes have no
    /// bytes. 0 means no limit.
    #[arg(long, value_name = "SIZE", default_value = "0", value_parser = parse_size)]
    write_bps: u64,

    /// What an idle disk saves up of these limits for a burst, as milliseconds of them.
    #[arg(long, value_name = "MILLISECONDS", default_value_t = Rate::DEFAULT_BURST_MS,
          value_parser = clap::value_parser!(u32).range(1..=3_600_000))]
    rate_burst_ms: u32,

    /// Where pages are compressed: inline (in the queue's thread), offload (in worker threads), or auto
    /// (in worker threads if the codec is slow, or if the request is large and workers are idle)
    /// [default: auto, or offload with --engine-model].
    #[arg(long, value_name = "POLICY")]
    engine: Option<Policy>,

    /// Number of worker threads that compress [default: one for each CPU, or one less if the threads of
    /// the queues compress, too].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    engine_workers: Option<u16>,

    /// Maximum number of pages that wait for a worker.
    #[arg(long, value_name = "N", default_value_t = 1024,
          value_parser = clap::value_parser!(u16).range(1..=16384))]
    engine_queue: u16,

    /// CPUs on which the workers run, such as 2-3,6 [default: all].
    #[arg(long, value_name = "LIST")]
    engine_cpus: Option<Cpus>,

    /// Experimental: make the workers behave like a device, such as
    /// latency=50us,per-kib=5us,reorder=8,refuse=10%,fail=1%,corrupt=0.1%,hang=0.1%,die=0.1%,timeout=100ms,seed=1.
    /// Implies --engine offload unless that option is given.
    #[arg(long, value_name = "MODEL")]
    engine_model: Option<EngineModel>,

    /// Memory of the host, or of the daemon's control group, that stays free, in bytes or with a suffix.
    /// Writes that need it fail [default: a 32nd of that memory, at most 512M].
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    host_reserve: Option<u64>,

    /// Keep the disk in unlinked files in DIR, which must be on a tmpfs. The size of the tmpfs limits the
    /// disk. Without this option the disk is in anonymous memory.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["state_dir", "fd_store"])]
    memory_dir: Option<PathBuf>,

    /// Lock the disk's pages in memory, so that the host never swaps them out. RLIMIT_MEMLOCK must allow
    /// their whole address space: set it to infinity.
    #[arg(long)]
    mlock: bool,

    /// Report requests that take longer than this, in the log and as `stalled_requests` in the
    /// statistics. 0 means never.
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    watchdog: u32,

    /// Fail requests that wait longer than this with an I/O error, counted as `expired_requests`. Must be
    /// more than --watchdog. 0 means never. Time in which the daemon was stopped, or suspended with its
    /// host, does not count.
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    watchdog_fail: u32,

    /// Level of the log on stderr: off, error, warn, info, debug or trace.
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    log_level: log::LevelFilter,
}

/// The options that may change while the disk is served, by their names in the definition.
pub(super) const CHANGEABLE: [&str; 10] = [
    "size",
    "algorithm",
    "mem_limit",
    "host_reserve",
    "log_level",
    "read_iops",
    "read_bps",
    "write_iops",
    "write_bps",
    "rate_burst_ms",
];

impl Args {
    /// Level of the log.
    pub fn log_level(&self) -> log::LevelFilter {
        self.log_level
    }

    /// What may change while the disk is served: the options of [`CHANGEABLE`].
    pub(super) fn change(&self) -> Change {
        let Self { size, algorithm: codec, mem_limit, host_reserve, log_level, .. } = *self;
        let size = Some(size.get());
        Change { size, codec, mem_limit, host_reserve, rates: self.rates(), log_level }
    }

    /// Whether there is a configuration file.
    pub(super) fn has_config(&self) -> bool {
        self.config.is_some()
    }

    /// Whether the options are to be checked and not more.
    pub(super) fn check_config(&self) -> bool {
        self.check_config
    }

    /// Refuses combinations that are invalid.
    pub(super) fn check(self) -> Result<Self, clap::Error> {
        if self.api_socket.is_some() && self.api_socket == self.socket_path {
            let text = "--api-socket and --socket-path must be different paths";
            return Err(mistake(ErrorKind::ArgumentConflict, "--api-socket", text));
        }
        if self.create && self.state_dir.is_none() && !self.fd_store {
            let text = "--create requires --state-dir or --fd-store";
            return Err(mistake(ErrorKind::MissingRequiredArgument, "--create", text));
        }
        if self.watchdog_fail == 0 || (1..self.watchdog_fail).contains(&self.watchdog) {
            return Ok(self);
        }
        let text = "--watchdog-fail must be more than --watchdog, and --watchdog must not be 0";
        Err(mistake(ErrorKind::ValueValidation, "--watchdog-fail", text))
    }

    /// The settings of the daemon.
    pub fn settings(self) -> Settings {
        let (name, rates) = (self.disk_name(), self.rates());
        let endpoint = match (self.socket_path, self.fd) {
            (Some(path), _) => Endpoint::Path(
                path,
                SocketAccess {
                    mode: self.socket_mode,
                    owner: self.socket_owner,
                    group: self.socket_group,
                },
            ),
            (None, fd) => Endpoint::Fd(fd.unwrap_or(-1)),
        };
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
        let cpus = u16::try_from(cpus).unwrap_or(u16::MAX);
        let keep = match (self.state_dir, self.fd_store) {
            (Some(path), _) => Keep::Directory { path, owner: self.state_owner },
            (None, true) => Keep::ServiceManager,
            (None, false) => Keep::Process,
        };
        let defaults = EngineConfig::default();
        let engine = EngineConfig {
            policy: self.engine.unwrap_or(match self.engine_model {
                Some(_) => Policy::Offload,
                None => Policy::Auto,
            }),
            workers: self.engine_workers.map(usize::from),
            depth: usize::from(self.engine_queue),
            cpus: self.engine_cpus.unwrap_or_default(),
            model: self.engine_model,
            ..defaults
        };
        let block_size = match (self.block_size, &self.load) {
            (Some(size), _) => BlockChoice::Only(size),
            (None, Some(_)) => BlockChoice::IfNew(BlockSize::Sector),
            (None, None) => BlockChoice::IfNew(BlockSize::Page),
        };
        Settings {
            endpoint,
            api_socket: self.api_socket,
            disk: DiskConfig {
                name,
                device: DeviceConfig {
                    size: self.size.get(),
                    block_size,
                    codec: self.algorithm,
                    mem_limit: self.mem_limit,
                    memory: MemoryKind::new(self.memory_dir, self.mlock),
                    access_times: self.access_times,
                    engine,
                },
                guest: GuestOptions {
                    num_queues: self.num_queues,
                    max_queue_size: self.queue_size,
                    threads: self.queue_threads.unwrap_or(cpus.min(self.num_queues)),
                    serial: self.serial,
                    read_only: self.read_only,
                    stall_limits: StallLimits {
                        report: Duration::from_secs(self.watchdog.into()),
                        fail: Duration::from_secs(self.watchdog_fail.into()),
                    },
                    poll: Duration::from_micros(self.poll_us.into()),
                    latency: false,
                },
                host_reserve: self.host_reserve,
                rates,
            },
            keep,
            create: self.create,
            load: self.load,
            load_format: self.load_format,
        }
    }

    /// The rate limits.
    fn rates(&self) -> Rates {
        let rate = |operations_per_second, bytes_per_second| Rate {
            operations_per_second,
            bytes_per_second,
            burst_ms: self.rate_burst_ms,
        };
        Rates {
            read: rate(self.read_iops, self.read_bps),
            write: rate(self.write_iops, self.write_bps),
        }
    }

    /// The name that was given, or one of what the disk is found by.
    fn disk_name(&self) -> DiskName {
        let socket = self.socket_path.as_deref().and_then(Path::file_stem);
        let dir = self.state_dir.as_deref().and_then(Path::file_name);
        let derive = |name: &OsStr| DiskName::derived(&name.to_string_lossy());
        let derived = socket.and_then(derive).or_else(|| dir.and_then(derive));
        self.name.clone().or(derived).unwrap_or_default()
    }
}

/// A mistake in `option`, to be said as `text`.
fn mistake(kind: ErrorKind, option: &str, text: &str) -> clap::Error {
    let mut error = Args::command().error(kind, text);
    error.insert(ContextKind::InvalidArg, ContextValue::String(option.to_owned()));
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn a_request_is_given_up_only_after_it_was_reported() {
        let parse = |more: &str| {
            let base = "vhost-user-zram --socket-path s --size 1M ";
            Args::try_parse_from((base.to_owned() + more).split_whitespace())
                .and_then(Args::check)
                .map(|args| args.settings().disk.guest.stall_limits)
        };
        let seconds = Duration::from_secs;
        assert_eq!(parse("").unwrap(), StallLimits { report: seconds(10), fail: seconds(0) });
        assert_eq!(parse("--watchdog 0").unwrap().report, seconds(0));
        assert_eq!(parse("--watchdog 1 --watchdog-fail 2").unwrap().fail, seconds(2));
        for bad in ["--watchdog-fail 10", "--watchdog 0 --watchdog-fail 5", "--watchdog -1"] {
            parse(bad).unwrap_err();
        }
    }

    #[test]
    fn a_disk_is_named_by_what_it_is_found_by() {
        let name = |more: &str| {
            let words = format!("vhost-user-zram --size 1M {more}");
            let args = Args::try_parse_from(words.split_whitespace());
            args.map(|args| args.settings().disk.name.to_string())
        };
        assert_eq!(name("--socket-path /run/vm1.sock").unwrap(), "vm1");
        assert_eq!(name("--socket-path /run/a,b --state-dir /run/vm2").unwrap(), "a-b");
        assert_eq!(name("--fd 3 --state-dir /run/vm2.disk").unwrap(), "vm2.disk");
        assert_eq!(name("--socket-path /run/,,, --state-dir /run/vm3").unwrap(), "vm3");
        assert_eq!(name("--fd 3").unwrap(), "disk");
        assert_eq!(name("--fd 3 --name x.y --state-dir /run/vm2").unwrap(), "x.y");
        for bad in ["--fd 3 --name a/b", "--fd 3 --name .", "--fd 3 --name="] {
            name(bad).unwrap_err();
        }
    }
}
