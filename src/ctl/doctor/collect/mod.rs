//! Collects the facts of a system from its files and from systemd. All files are below a root directory, and
//! all commands go through one function, so that tests feed each misconfiguration as files.

mod guest;
mod mounts;
mod options;
mod process;
mod qemu;
mod units;

#[cfg(test)]
mod tests;

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use vhost_user_zram::internals::api;

use super::facts::{Disk, Facts, Figures, HostMemory, StateDir};
use crate::client::ClientError;
use crate::fleet::Daemon;

pub use guest::guest;

/// What a program said.
pub struct Said {
    /// Whether it ended well.
    pub well: bool,
    /// On stdout.
    pub text: String,
    /// On stderr.
    pub complaint: String,
}

/// Runs a program; `None` if it cannot be run.
pub type Run<'s> = &'s (dyn Fn(&Path, &[&str]) -> Option<Said> + Sync);

/// A system to be looked at.
pub struct System<'s> {
    /// The directory that stands for `/`.
    pub root: PathBuf,
    /// How programs are run.
    pub run: Run<'s>,
}

impl System<'_> {
    /// The place of the absolute path `path` of that system.
    fn place(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// The path that `place` has in that system.
    fn path_of(&self, place: &Path) -> PathBuf {
        place
            .strip_prefix(&self.root)
            .map_or_else(|_| place.to_owned(), |rest| Path::new("/").join(rest))
    }

    /// The text of a file; `None` if it cannot be read. Bytes that are not UTF-8 are replaced.
    fn read(&self, path: impl AsRef<Path>) -> Option<String> {
        let bytes = fs::read(self.place(path)).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// What a program prints if it ends well.
    fn prints(&self, program: &Path, arguments: &[&str]) -> Option<String> {
        (self.run)(program, arguments).filter(|said| said.well).map(|said| said.text)
    }

    /// A number that is all of a file.
    fn number<T: std::str::FromStr>(&self, path: impl AsRef<Path>) -> Option<T> {
        self.read(path)?.trim().parse().ok()
    }
}

/// A daemon and what it says of its disk.
pub type Answer<'d> = (&'d Daemon, Result<api::Disk, ClientError>);

/// The facts of a host whose daemons gave these answers.
pub fn host(system: &System<'_>, answers: Vec<Answer<'_>>) -> Facts {
    let mut disks: Vec<Disk> = answers.into_iter().map(|answer| answered(system, answer)).collect();
    let apis: Vec<PathBuf> = disks.iter().map(|disk| disk.api.clone()).collect();
    for process in process::daemons(system) {
        let api = process.options.api.as_ref();
        let name = process.options.name.as_ref();
        let at = api.and_then(|api| apis.iter().position(|other| other == api));
        let at = at.or_else(|| disks.iter().position(|disk| Some(&disk.name) == name));
        let disk = entry(&mut disks, at, name.map_or("disk", String::as_str));
        disk.process = Some(process);
    }
    for unit in units::units(system) {
        let name = units::instance(&unit.name).to_owned();
        let at = disks.iter().position(|disk| disk.name == name);
        entry(&mut disks, at, &name).unit = Some(unit);
    }
    let told: Vec<(u32, PathBuf)> = disks
        .iter()
        .filter_map(|disk| {
            let process = disk.process.as_ref()?;
            Some((process.pid, process.options.state_dir.clone()?))
        })
        .collect();
    for disk in &mut disks {
        complete(system, disk, &told);
    }
    let sockets: Vec<PathBuf> = disks.iter().filter_map(|disk| disk.socket.clone()).collect();
    let front_ends = qemu::front_ends(system, &sockets);
    Facts { memory: memory(system), disks, front_ends }
}

fn entry<'d>(disks: &'d mut Vec<Disk>, at: Option<usize>, name: &str) -> &'d mut Disk {
    let at = at.unwrap_or_else(|| {
        disks.push(Disk { name: name.to_owned(), ..Disk::default() });
        disks.len() - 1
    });
    &mut disks[at]
}

/// What an answer, or none, says of a disk.
fn answered(system: &System<'_>, (daemon, answer): Answer<'_>) -> Disk {
    let api = system.path_of(daemon.client.path());
    let mut disk = Disk { name: daemon.name.clone(), api: api.clone(), ..Disk::default() };
    match answer {
        Ok(answer) => {
            disk.name.clone_from(&answer.name);
            let socket = Path::new(&answer.daemon.socket);
            disk.socket = socket.is_absolute().then(|| socket.to_owned());
            disk.figures = Some(figures(&answer));
        }
        Err(ClientError::Stale(_)) => disk.stale_sockets.push(api),
        Err(error) => disk.silent = Some(crate::report::with_causes(&error)),
    }
    disk
}

fn figures(disk: &api::Disk) -> Figures {
    Figures {
        mem_limit: disk.settings.mem_limit_bytes,
        worst_case: disk.memory.worst_case_bytes,
        used: disk.memory.arena_bytes + disk.memory.metadata_bytes,
        stored: disk.memory.pages_bytes,
        writes: disk.requests.writes,
        discards: disk.requests.discards + disk.requests.write_zeroes,
        freed_pages: disk.pages.freed,
        failed_writes: disk.requests.failed_writes,
        blind_queues: disk.requests.blind_queues,
        broken_queues: disk.requests.broken_queues,
        stalled: disk.requests.stalled,
    }
}

/// What follows from the options of its process or its unit.
fn complete(system: &System<'_>, disk: &mut Disk, told: &[(u32, PathBuf)]) {
    let options = disk.process.as_ref().map(|process| &process.options);
    let options = options.or(disk.unit.as_ref().map(|unit| &unit.options));
    let socket = options.and_then(|options| options.socket.clone());
    if disk.socket.is_none() {
        disk.socket = socket;
    }
    // The socket of a daemon that is there is not touched: a connection would wait in its lobby.
    if disk.figures.is_none()
        && disk.process.is_none()
        && let Some(socket) = &disk.socket
        && is_stale(&system.place(socket))
    {
        disk.stale_sockets.push(socket.clone());
    }
    let Some(path) = options.and_then(|options| options.state_dir.clone()) else { return };
    // The daemon may have file systems of its own.
    let own = disk.process.as_ref().map_or("self".into(), |process| process.pid.to_string());
    let mount = mounts::of(system, &own, &path);
    let fs_type = mount.as_ref().map(|mount| mount.fs_type.clone());
    let fs_size = mount.and_then(|mount| mount.tmpfs_size(memory(system)));
    let mut users = process::lockers(system, &path);
    users.extend(told.iter().filter(|(_, other)| *other == path).map(|(pid, _)| *pid));
    users.sort_unstable();
    users.dedup();
    disk.state = Some(StateDir { path, fs_type, fs_size, users });
}

/// Whether a socket is there that no process listens on.
fn is_stale(place: &Path) -> bool {
    use std::io::ErrorKind::ConnectionRefused;
    use std::os::unix::fs::FileTypeExt;
    let socket = fs::metadata(place).is_ok_and(|meta| meta.file_type().is_socket());
    socket && UnixStream::connect(place).is_err_and(|error| error.kind() == ConnectionRefused)
}

fn memory(system: &System<'_>) -> Option<HostMemory> {
    let text = system.read("/proc/meminfo")?;
    let bytes = |name: &str| -> Option<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
        kib.checked_mul(1024)
    };
    Some(HostMemory { total: bytes("MemTotal:")?, available: bytes("MemAvailable:")? })
}
