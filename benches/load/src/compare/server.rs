//! The servers of the rivals: started, measured for memory, stopped.

use std::{
    fs::{self, File},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    plan::{Kind, Rival},
    zram::Zram,
};

/// A server that is not ready by then has failed.
const START: Duration = Duration::from_secs(20);

/// Where things are, and what disks are like.
#[derive(Debug, Clone)]
pub struct Setting {
    /// The daemon.
    pub daemon: PathBuf,
    /// The load generator.
    pub load: PathBuf,
    /// Directory for sockets and logs.
    pub dir: PathBuf,
    /// Directory on a tmpfs.
    pub tmpfs: PathBuf,
    /// Bytes of a disk.
    pub size: u64,
    /// Algorithm of kernel zram.
    pub algorithm: String,
}

/// How the generator reaches a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// By a vhost-user-blk socket.
    Vhost(PathBuf),
    /// As a block device.
    Block(PathBuf),
}

/// A running server.
#[derive(Debug)]
pub struct Server {
    /// How to reach it.
    pub target: Target,
    children: Vec<Child>,
    log: PathBuf,
    tmpfs_file: Option<PathBuf>,
    // Dropped after the body of `drop` has ended the processes that have it open.
    zram: Option<Zram>,
}

/// Memory of a server.
#[derive(Debug, Clone, Copy)]
pub struct Memory {
    /// Bytes of its processes (proportional set size).
    pub processes: u64,
    /// Bytes that the kernel keeps for it elsewhere.
    pub kernel: u64,
    /// Bytes of the disk after compression, if it says so.
    pub compressed: Option<u64>,
}

/// A number that no other call returns.
fn serial() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Why `rival` cannot run here, if it cannot.
pub fn missing(rival: &Rival) -> Option<&'static str> {
    let have = |program: &str| {
        let paths = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&paths).any(|dir| dir.join(program).is_file())
    };
    let qsd = !have("qemu-storage-daemon");
    match rival.kind {
        Kind::Zram | Kind::ZramQsd if !Zram::available() => Some("no kernel zram, or not root"),
        Kind::ZramQsd | Kind::TmpfsQsd | Kind::Nbdkit if qsd => Some("no qemu-storage-daemon"),
        Kind::Nbdkit if !have("nbdkit") => Some("no nbdkit"),
        _ => None,
    }
}

impl Server {
    /// Starts the server of `rival` with `queues` queues and an empty disk.
    ///
    /// # Errors
    ///
    /// When it does not get ready.
    pub fn start(rival: &Rival, queues: usize, setting: &Setting) -> Result<Self> {
        let name = &rival.name;
        // Files of an earlier server of that name would say that this one is ready.
        let dir = setting.dir.join(format!("{name}.{queues}.{}", serial()));
        fs::create_dir(&dir).with_context(|| dir.display().to_string())?;
        let path = |suffix: &str| dir.join(suffix);
        let socket = path("socket");
        let mut server = Self {
            target: Target::Vhost(socket.clone()),
            children: Vec::new(),
            log: path("log"),
            tmpfs_file: None,
            zram: None,
        };
        let size = setting.size.to_string();
        let queue_count = queues.to_string();
        let zram = || Zram::new(setting.size, &setting.algorithm);
        match &rival.kind {
            Kind::Ours { algorithm, args } => {
                let mut command = Command::new(&setting.daemon);
                command.arg("--socket-path").arg(&socket).args(["--size", &size]);
                command.args(["--algorithm", algorithm, "--num-queues", &queue_count]);
                command.args(["--log-level", "warn"]).args(args);
                let log = server.log.clone();
                let ready = || fs::read_to_string(&log).is_ok_and(|text| text.contains("ready"));
                server.spawn(command, ready)?;
            }
            Kind::Null => {
                let mut command = Command::new(&setting.load);
                command.arg("null").arg("--socket-path").arg(&socket);
                command.args(["--queues", &queue_count, "--size", &size]);
                server.spawn(command, || socket.exists())?;
            }
            Kind::Zram => {
                let device = zram()?;
                server.target = Target::Block(device.node().to_owned());
                server.zram = Some(device);
            }
            Kind::ZramQsd => {
                let device = zram()?;
                let node = device.node().display().to_string();
                server.zram = Some(device);
                // Direct and by io_uring, as the generator drives the device itself.
                let disk = format!("host_device,filename={node},cache.direct=on,aio=io_uring");
                server.storage_daemon(&disk, &socket, queues, &path("pid"))?;
            }
            Kind::TmpfsQsd => {
                let file = setting.tmpfs.join(format!("{name}.img"));
                File::create(&file)
                    .and_then(|image| image.set_len(setting.size))
                    .with_context(|| file.display().to_string())?;
                let disk = format!("file,filename={},aio=io_uring", file.display());
                server.tmpfs_file = Some(file);
                server.storage_daemon(&disk, &socket, queues, &path("pid"))?;
            }
            Kind::Nbdkit => {
                let (nbd, pid) = (path("nbd"), path("nbd.pid"));
                let mut command = Command::new("nbdkit");
                command.arg("--foreground").arg("--unix").arg(&nbd).arg("--pidfile").arg(&pid);
                command.args(["memory", &size, "allocator=zstd"]);
                server.spawn(command, || pid.exists())?;
                let disk = format!("nbd,server.type=unix,server.path={}", nbd.display());
                server.storage_daemon(&disk, &socket, queues, &path("pid"))?;
            }
        }
        Ok(server)
    }

    /// Starts a qemu-storage-daemon with an I/O thread, which is how it does best.
    fn storage_daemon(
        &mut self,
        disk: &str,
        socket: &Path,
        queues: usize,
        pid: &Path,
    ) -> Result<()> {
        let mut command = Command::new("qemu-storage-daemon");
        command.args(["--object", "iothread,id=io"]);
        command.arg("--blockdev").arg(format!("{disk},node-name=disk,discard=unmap"));
        command.arg("--export").arg(format!(
            "vhost-user-blk,id=export,node-name=disk,addr.type=unix,addr.path={},writable=on,\
             num-queues={queues},iothread=io",
            socket.display()
        ));
        command.arg("--pidfile").arg(pid);
        // It writes the file when all it was asked for is there.
        self.spawn(command, || pid.exists())
    }

    fn spawn(&mut self, mut command: Command, ready: impl Fn() -> bool) -> Result<()> {
        let log = File::options().create(true).append(true).open(&self.log)?;
        let name = command.get_program().to_string_lossy().into_owned();
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| name.clone())?;
        self.children.push(child);
        let begun = Instant::now();
        while !ready() {
            let ended = match self.children.last_mut() {
                Some(child) => child.try_wait()?.is_some(),
                None => true,
            };
            if ended || begun.elapsed() > START {
                bail!("{name} does not get ready: {}", self.said());
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// What its processes have printed.
    fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default().trim().to_owned()
    }

    /// Its processes.
    pub fn pids(&self) -> impl Iterator<Item = u32> + '_ {
        self.children.iter().map(Child::id)
    }

    /// Its memory now. A front end must not be connected: its memory would be among the server's.
    ///
    /// # Errors
    ///
    /// When the kernel does not say.
    pub fn memory(&self, rival: &Rival) -> Result<Memory> {
        let mut memory = Memory { processes: 0, kernel: 0, compressed: None };
        for pid in self.pids() {
            let path = format!("/proc/{pid}/smaps_rollup");
            let ended = || format!("{} has ended: {}", rival.name, self.said());
            let text = fs::read_to_string(&path).with_context(ended)?;
            memory.processes += pss(&text).context(path)?;
        }
        if let Some(zram) = &self.zram {
            let now = zram.memory()?;
            (memory.kernel, memory.compressed) = (now.pool, Some(now.compressed));
        }
        if let Some(file) = &self.tmpfs_file {
            // In units of 512 bytes whatever the file system's blocks are (stat(2)).
            memory.kernel = fs::metadata(file)?.blocks() * 512;
        }
        if let (Kind::Ours { .. }, Some(child)) = (&rival.kind, self.children.first()) {
            memory.compressed = self.compressed(child.id())?;
        }
        Ok(memory)
    }

    /// What the daemon says of its disk when it is asked by a signal.
    fn compressed(&self, pid: u32) -> Result<Option<u64>> {
        let count = |text: &str| text.matches("stats:").count();
        let before = count(&fs::read_to_string(&self.log)?);
        kill(Pid::from_raw(pid as i32), Signal::SIGUSR1)?;
        let begun = Instant::now();
        loop {
            let text = fs::read_to_string(&self.log)?;
            // A line is whole when its end is there.
            if count(&text) > before && text.ends_with('\n') {
                return Ok(figure(&text, "compr_data_size"));
            }
            if begun.elapsed() > START {
                bail!("the daemon prints no statistics");
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The last first: what it serves is from those before it.
        for child in self.children.iter_mut().rev() {
            // One that has ended by itself is as good.
            let _ = child.kill();
            let _ = child.wait();
        }
        if let Some(file) = &self.tmpfs_file {
            // It is in a directory that is removed at the end.
            let _ = fs::remove_file(file);
        }
    }
}

/// Proportional set size in bytes, from `/proc/PID/smaps_rollup`.
fn pss(smaps: &str) -> Option<u64> {
    let line = smaps.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib << 10)
}

/// A figure of the last line of statistics.
fn figure(log: &str, name: &str) -> Option<u64> {
    let line = log.lines().rev().find(|line| line.starts_with("stats:"))?;
    let pairs = line.split_whitespace().filter_map(|pair| pair.split_once('='));
    pairs.into_iter().find(|(key, _)| *key == name)?.1.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pss_is_found_among_its_likes() {
        let smaps = "55d0-7ffd ---p 00000000 00:00 0 [rollup]\nRss: 9 kB\nPss:        \
                     140463 kB\nPss_Dirty: 1 kB\nSwapPss: 3 kB\n";
        assert_eq!(pss(smaps), Some(140_463 << 10));
        assert_eq!(pss("Pss_Dirty: 1 kB\n"), None);
    }

    #[test]
    fn a_figure_is_that_of_the_last_line_of_statistics() {
        let log = "ready: x\nstats: orig_data_size=9 compr_data_size=1\n\
                   stats: orig_data_size=9 compr_data_size=42 mem_used_total=50\nsummary: \
                   compr_data_size=7\n";
        assert_eq!(figure(log, "compr_data_size"), Some(42));
        assert_eq!(figure(log, "data_size"), None);
    }
}
