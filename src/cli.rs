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
use vhost_user_zram::blk::{GuestOptions, StallLimits};
use vhost_user_zram::codec::CodecSpec;
use vhost_user_zram::daemon::{Endpoint, Keep, Settings, SocketAccess};
use vhost_user_zram::device::{BlockChoice, DeviceConfig, MemoryKind};
use vhost_user_zram::disk::{DiskConfig, ImageFormat};
use vhost_user_zram::engine::{Cpus, EngineConfig, EngineModel, Policy};
use vhost_user_zram::threads::DiskName;
use vhost_user_zram::units::BlockSize;

/// Exit code of a command line that makes no sense, as of most programs.
const USAGE: u8 = 2;

/// zram for virtual machines: a vhost-user-blk back end that keeps a guest's disk compressed in
/// host memory.
///
/// The daemon stays in the foreground. SIGTERM, SIGINT or SIGHUP ends it (SIGHUP not under nohup),
/// SIGUSR1 prints a line of statistics, SIGUSR2 compacts the disk's memory and says when that is
/// done. The disk's contents live as long as the daemon, or with --state-dir or --fd-store as long
/// as the host is up.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
#[command(group = ArgGroup::new("endpoint").required(true).args(["socket_path", "fd"]))]
pub struct Args {
    /// Listen on a Unix socket at PATH; a stale one is replaced.
    #[arg(long, value_name = "PATH")]
    socket_path: Option<PathBuf>,

    /// Permissions of the socket, in octal; to connect is to write. Whatever the umask, the socket never
    /// has more of them [default: 600, and 660 with --socket-group].
    #[arg(long, value_name = "MODE", value_parser = parse_mode, conflicts_with = "fd")]
    socket_mode: Option<u32>,

    /// User who owns the socket, by name or number [default: the daemon's].
    #[arg(long, value_name = "USER", conflicts_with = "fd")]
    socket_owner: Option<String>,

    /// Group of the socket, by name or number, such as kvm for the QEMU of libvirt [default: the
    /// daemon's].
    #[arg(long, value_name = "GROUP", conflicts_with = "fd")]
    socket_group: Option<String>,

    /// Use the Unix socket inherited as descriptor N, a listening or a connected one.
    #[arg(long, value_name = "N")]
    fd: Option<RawFd>,

    /// Name of the disk in the log and in the names of threads: up to 64 letters, digits, '.', '_' and
    /// '-' [default: the file name of --socket-path without its extension, else that of --state-dir].
    #[arg(long, value_name = "NAME")]
    name: Option<DiskName>,

    /// Print what this back end can do, as JSON, and exit. All other options are ignored.
    #[arg(long)]
    print_capabilities: bool,

    /// Size of the disk in bytes, or with a suffix K, M, G or T (powers of 1024). Rounded up to
    /// 4096 bytes; at most 16376G, which is 8G less than 16T.
    #[arg(long, value_name = "SIZE", value_parser = parse_disk_size)]
    size: NonZeroU64,

    /// Logical block that the guest is told of, 512 or 4096 bytes. Images are made for 512, and a BIOS
    /// boots from nothing else; with 4096 no write is less than a page
    /// [default: 512 with --load, else 4096; a disk that is there keeps its own].
    #[arg(long, value_name = "BYTES")]
    block_size: Option<BlockSize>,

    /// Keep the disk in files in DIR, which has to be on a tmpfs such as /run, so that it outlives the
    /// daemon: the next one with the same DIR goes on with it. DIR and files are the daemon's user's alone.
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,

    /// Accept a state whose directory and files belong to the user with this number; without this they
    /// have to belong to the daemon's own.
    #[arg(long, value_name = "UID", requires = "state_dir")]
    state_owner: Option<u32>,

    /// Keep the disk in memory that the service manager holds for the next daemon
    /// (FileDescriptorStoreMax= of systemd, at least 3).
    #[arg(long, conflicts_with = "state_dir")]
    fd_store: bool,

    /// Make the disk's state if there is none; one that is there is opened, as without this.
    #[arg(long)]
    create: bool,

    /// Fill the disk from the raw image FILE, a regular file or a block device, at the start, or when
    /// its state is made.
    #[arg(long, value_name = "FILE")]
    load: Option<PathBuf>,

    /// What the image of --load may be: auto refuses a file that begins like one of another format than
    /// raw (qcow2, VMDK, gzip, zstd and such), raw loads the bytes as they are.
    #[arg(long, value_name = "FORMAT", default_value = "auto", requires = "load")]
    load_format: ImageFormat,

    /// How new pages are compressed: lz4, lz4(acceleration=N), lz4-flex, zstd or zstd(level=N). Pages that
    /// a state has from before are read whatever they were compressed by.
    #[arg(long, value_name = "ALGORITHM", default_value = "lz4")]
    algorithm: CodecSpec,

    /// Refuse all writes.
    #[arg(long)]
    read_only: bool,

    /// Most virtqueues that a guest may have, 1 to 64. One that is not used costs nothing.
    #[arg(long, value_name = "N", default_value_t = 64,
          value_parser = clap::value_parser!(u16).range(1..=64))]
    num_queues: u16,

    /// Largest virtqueue that a guest may have: a power of two, 2 to 32768 descriptors. A front end
    /// cannot ask for it: one whose queues are larger is refused.
    #[arg(long, value_name = "N", default_value_t = 32768, value_parser = parse_queue_size)]
    queue_size: u16,

    /// Most threads that serve the virtqueues; one starts when a queue of its own does [default: the
    /// CPUs].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    queue_threads: Option<u16>,

    /// The disk's serial number, up to 20 bytes.
    #[arg(long, value_name = "TEXT", default_value = "vhost-user-zram", value_parser = parse_serial)]
    serial: String,

    /// Most memory for compressed pages and the table of what lies where (8 bytes a page, 12 with a
    /// state, by 512 pages), in bytes or with a suffix; writes that would need more fail. 0 is no
    /// limit.
    #[arg(long, value_name = "SIZE", default_value = "0", value_parser = parse_size)]
    mem_limit: u64,

    /// Who compresses: auto (workers if the codec is slow, or the request large and workers idle),
    /// inline (the queue's thread), or offload (workers).
    /// [default: auto, with a model offload]
    #[arg(long, value_name = "POLICY")]
    engine: Option<Policy>,

    /// Threads that compress beside those of the queues [default: one for each CPU, or one less if the
    /// queues' threads compress too].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    engine_workers: Option<u16>,

    /// Pages that may wait for a worker.
    #[arg(long, value_name = "N", default_value_t = 1024,
          value_parser = clap::value_parser!(u16).range(1..=16384))]
    engine_queue: u16,

    /// CPUs that workers run on, such as 2-3,6 [default: all].
    #[arg(long, value_name = "LIST")]
    engine_cpus: Option<Cpus>,

    /// Experiment: make the engine behave like a device, such as
    /// latency=50us,per-kib=5us,reorder=8,refuse=10%,fail=1%,corrupt=0.1%,hang=0.1%,die=0.1%,timeout=100ms,seed=1.
    /// Implies offload unless --engine says otherwise.
    #[arg(long, value_name = "MODEL")]
    engine_model: Option<EngineModel>,

    /// Memory that is left free for the rest of the host, or of the daemon's control group, in bytes
    /// or with a suffix: writes that would need it fail [default: a 32nd of it, at most 512M].
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    host_reserve: Option<u64>,

    /// Keep the disk in unlinked files in DIR, which has to be on a tmpfs, so that its size bounds
    /// the disk. Without this, in anonymous memory.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["state_dir", "fd_store"])]
    memory_dir: Option<PathBuf>,

    /// Lock the disk's pages in memory, so that the host never swaps them out. RLIMIT_MEMLOCK has to
    /// allow all of their address space: set it to infinity.
    #[arg(long)]
    mlock: bool,

    /// Report requests that take longer than this, in the log and as `stalled_requests` in the
    /// statistics. 0 is never.
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    watchdog: u32,

    /// Have requests that wait longer than this fail with an I/O error, which is counted as
    /// `expired_requests`; more than --watchdog. 0 is never. Time in which the daemon was stopped,
    /// frozen or asleep with its host does not count.
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    watchdog_fail: u32,

    /// How much is logged to stderr: off, error, warn, info, debug or trace.
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    log_level: log::LevelFilter,
}

impl Args {
    /// How much is logged.
    pub fn log_level(&self) -> log::LevelFilter {
        self.log_level
    }

    /// Refuses what is wrong only together.
    fn check(self) -> Result<Self, clap::Error> {
        if self.create && self.state_dir.is_none() && !self.fd_store {
            let text =
                "--create says what to do with --state-dir or --fd-store, and there is neither";
            return Err(Self::command().error(ErrorKind::MissingRequiredArgument, text));
        }
        if self.watchdog_fail == 0 || (1..self.watchdog_fail).contains(&self.watchdog) {
            return Ok(self);
        }
        let text = "--watchdog-fail has to be more than --watchdog, and that not 0";
        Err(Self::command().error(ErrorKind::ValueValidation, text))
    }

    /// What the daemon is told.
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
            (None, true) => Keep::Manager,
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
                },
                host_reserve: self.host_reserve,
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

/// Parses the command line; on a mistake says so in one line, and gives the exit code.
pub fn parse() -> Result<Args, ExitCode> {
    Args::try_parse().and_then(Args::check).map_err(|error| match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => print(error.render()),
        _ => {
            // Clap's first paragraph says what is wrong; usage and hints follow after a blank
            // line.
            let text = error.render().to_string();
            let lines: Vec<_> = text.lines().take_while(|line| !line.is_empty()).collect();
            let line = lines.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ");
            let _ = writeln!(std::io::stderr(), "{line}");
            ExitCode::from(USAGE)
        }
    })
}

/// Says in one line why the daemon could not do its work.
pub fn fail(error: &anyhow::Error) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "error: {error:#}");
    ExitCode::FAILURE
}

/// Prints what was asked for.
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
        _ => return Err(format!("`{suffix}` is no suffix of a size: K, M, G or T")),
    };
    let number: u64 = digits.parse().map_err(|_| format!("`{digits}` is no number of bytes"))?;
    let bytes = number.checked_mul(1 << shift);
    bytes.ok_or_else(|| "it does not fit into 64 bits".into())
}

fn parse_disk_size(text: &str) -> Result<NonZeroU64, String> {
    NonZeroU64::new(parse_size(text)?).ok_or_else(|| "a disk cannot have size 0".into())
}

fn parse_queue_size(text: &str) -> Result<u16, String> {
    let size: u16 = text.parse().map_err(|_| "it is no number up to 32768".to_string())?;
    if (2..=32768).contains(&size) && size.is_power_of_two() {
        Ok(size)
    } else {
        Err("it is no power of two from 2 to 32768".into())
    }
}

fn parse_mode(text: &str) -> Result<u32, String> {
    let mode = u32::from_str_radix(text, 8).map_err(|_| "it is not an octal number".to_string())?;
    if mode <= 0o777 { Ok(mode) } else { Err("it has more than the permission bits, 777".into()) }
}

fn parse_serial(text: &str) -> Result<String, String> {
    if text.len() <= 20 {
        Ok(text.into())
    } else {
        Err(format!("it has {} bytes, and 20 is the most", text.len()))
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
