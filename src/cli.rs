//! The command line. Parsing only: nothing here touches the system.

use std::ffi::OsStr;
use std::io::Write;
use std::num::NonZeroU64;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{ArgGroup, CommandFactory, Parser};
use vhost_user_zram::internals::{
    BlockChoice, BlockSize, CodecSpec, Cpus, DeviceConfig, DiskConfig, DiskName, Endpoint,
    EngineConfig, EngineModel, GuestOptions, ImageFormat, Keep, MemoryKind, Policy, Rate, Rates,
    Settings, SocketAccess, StallLimits,
};

/// Exit code for an invalid command line, as with most programs.
const USAGE: u8 = 2;

/// zram for virtual machines: a vhost-user-blk back end that keeps a guest's disk compressed in
/// host memory.
///
/// The daemon stays in the foreground. SIGTERM, SIGINT and SIGHUP end it (SIGHUP not under nohup),
/// SIGUSR1 prints a line of statistics, SIGUSR2 compacts the disk's memory and prints a line when that
/// is done. The disk's contents live as long as the daemon, or with --state-dir or --fd-store as long
/// as the host is up.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
#[command(group = ArgGroup::new("endpoint").required(true).args(["socket_path", "fd"]))]
pub struct Args {
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
    /// multiple of 4096 bytes; at most 16376G (8G less than 16T).
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

    /// Compression algorithm of new pages: lz4, lz4(acceleration=N), lz4-flex, zstd or zstd(level=N). Pages
    /// that a state has already are read whatever compressed them.
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

impl Args {
    /// Level of the log.
    pub fn log_level(&self) -> log::LevelFilter {
        self.log_level
    }

    /// Refuses combinations that are invalid.
    fn check(self) -> Result<Self, clap::Error> {
        if self.api_socket.is_some() && self.api_socket == self.socket_path {
            let text = "--api-socket and --socket-path must be different paths";
            return Err(Self::command().error(ErrorKind::ArgumentConflict, text));
        }
        if self.create && self.state_dir.is_none() && !self.fd_store {
            let text = "--create requires --state-dir or --fd-store";
            return Err(Self::command().error(ErrorKind::MissingRequiredArgument, text));
        }
        if self.watchdog_fail == 0 || (1..self.watchdog_fail).contains(&self.watchdog) {
            return Ok(self);
        }
        let text = "--watchdog-fail must be more than --watchdog, and --watchdog must not be 0";
        Err(Self::command().error(ErrorKind::ValueValidation, text))
    }

    /// The settings of the daemon.
    pub fn settings(self) -> Settings {
        let name = self.disk_name();
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
        let rate = |operations_per_second, bytes_per_second| Rate {
            operations_per_second,
            bytes_per_second,
            burst_ms: self.rate_burst_ms,
        };
        let rates = Rates {
            read: rate(self.read_iops, self.read_bps),
            write: rate(self.write_iops, self.write_bps),
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

    /// The name that was given, or one of what the disk is found by.
    fn disk_name(&self) -> DiskName {
        let socket = self.socket_path.as_deref().and_then(Path::file_stem);
        let dir = self.state_dir.as_deref().and_then(Path::file_name);
        let derive = |name: &OsStr| DiskName::derived(&name.to_string_lossy());
        let derived = socket.and_then(derive).or_else(|| dir.and_then(derive));
        self.name.clone().or(derived).unwrap_or_default()
    }
}

/// Parses the command line. Reports a mistake in one line, and returns the exit code.
pub fn parse() -> Result<Args, ExitCode> {
    Args::try_parse().and_then(Args::check).map_err(|error| match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => print(error.render()),
        _ => {
            // The first paragraph of clap's message is the mistake. Usage and hints follow after a
            // blank line.
            let text = error.render().to_string();
            let lines: Vec<_> = text.lines().take_while(|line| !line.is_empty()).collect();
            let line = lines.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ");
            let _ = writeln!(std::io::stderr(), "{line}");
            ExitCode::from(USAGE)
        }
    })
}

/// Reports in one line why the daemon failed.
pub fn fail(error: &anyhow::Error) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "error: {error:#}");
    ExitCode::FAILURE
}

/// Prints `text` to stdout, and returns the exit code.
pub fn print(text: impl std::fmt::Display) -> ExitCode {
    let text = text.to_string();
    match writeln!(std::io::stdout(), "{}", text.trim_end()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let suffix = text[digits.len()..].to_ascii_uppercase();
    let shift = match suffix.as_str() {
        "" | "B" => 0,
        "K" | "KIB" => 10,
        "M" | "MIB" => 20,
        "G" | "GIB" => 30,
        "T" | "TIB" => 40,
        _ => return Err(format!("the suffix `{suffix}` is not K, M, G or T")),
    };
    let number: u64 = digits.parse().map_err(|_| format!("`{digits}` is not a number of bytes"))?;
    let bytes = number.checked_mul(1 << shift);
    bytes.ok_or_else(|| "more than 64 bits".into())
}

fn parse_disk_size(text: &str) -> Result<NonZeroU64, String> {
    NonZeroU64::new(parse_size(text)?).ok_or_else(|| "the size of a disk cannot be 0".into())
}

fn parse_queue_size(text: &str) -> Result<u16, String> {
    let size: u16 = text.parse().map_err(|_| "not a number up to 32768".to_string())?;
    if (2..=32768).contains(&size) && size.is_power_of_two() {
        Ok(size)
    } else {
        Err("not a power of two from 2 to 32768".into())
    }
}

fn parse_mode(text: &str) -> Result<u32, String> {
    let mode = u32::from_str_radix(text, 8).map_err(|_| "not an octal number".to_string())?;
    if mode <= 0o777 { Ok(mode) } else { Err("more than the permission bits, 777".into()) }
}

fn parse_serial(text: &str) -> Result<String, String> {
    if text.len() <= 20 {
        Ok(text.into())
    } else {
        Err(format!("{} bytes, the maximum is 20", text.len()))
    }
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

    #[test]
    fn sizes_are_bytes_or_have_a_suffix() {
        assert_eq!(parse_size("4097"), Ok(4097));
        assert_eq!(parse_size("3K"), Ok(3 << 10));
        assert_eq!(parse_size("2m"), Ok(2 << 20));
        assert_eq!(parse_size("1GiB"), Ok(1 << 30));
        assert_eq!(parse_size("16T"), Ok(16 << 40));
        for bad in ["", "G", "1X", "-1", "1.5G", "0x10", "99999999999T"] {
            parse_size(bad).unwrap_err();
        }
        parse_disk_size("0").unwrap_err();
    }

    #[test]
    fn modes_are_octal() {
        assert_eq!(parse_mode("660"), Ok(0o660));
        assert_eq!(parse_mode("0777"), Ok(0o777));
        assert_eq!(parse_mode("0"), Ok(0));
        for bad in ["", "8", "1777", "-1", "u=rw", "0o600"] {
            parse_mode(bad).unwrap_err();
        }
    }

    #[test]
    fn queue_sizes_are_powers_of_two() {
        assert_eq!(parse_queue_size("128"), Ok(128));
        for bad in ["0", "1", "100", "65536", "x"] {
            parse_queue_size(bad).unwrap_err();
        }
    }
}
