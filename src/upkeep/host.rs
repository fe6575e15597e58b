//! How much memory the host can spare: its own, and what the daemon's control groups allow.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Most memory that is left to the host if nothing else is said.
const MOST_RESERVE: u64 = 512 << 20;

/// Where the daemon reads what it may use.
#[derive(Debug)]
pub struct Host {
    proc: PathBuf,
    /// The daemon's control group and those above it, as far as they have a memory controller.
    groups: Vec<Group>,
    /// Bytes not to be used; `None` if nothing is watched.
    reserve: Option<AtomicU64>,
}

/// A directory of a control group, and the names its files have.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Group {
    dir: PathBuf,
    max: &'static str,
    current: &'static str,
    /// Prefix of the counters in `memory.stat` that take in groups below.
    total: &'static str,
}

/// The reserve for a host, or group, of this size: a 32nd of it, at most 512 MiB.
pub fn default_reserve(memory: u64) -> u64 {
    (memory / 32).min(MOST_RESERVE)
}

impl Host {
    /// This host, of which `reserve` bytes are left free.
    pub fn new(reserve: u64) -> Self {
        Self::at(Path::new("/"), Some(reserve))
    }

    /// This host with the default reserve.
    pub fn with_default_reserve() -> Self {
        let host = Self::at(Path::new("/"), None);
        let smallest = host.sizes().min();
        let reserve = smallest.map_or(MOST_RESERVE, default_reserve);
        Self { reserve: Some(AtomicU64::new(reserve)), ..host }
    }

    /// Nothing is watched.
    #[cfg(test)]
    pub fn unlimited() -> Self {
        Self { proc: PathBuf::new(), groups: Vec::new(), reserve: None }
    }

    fn at(root: &Path, reserve: Option<u64>) -> Self {
        let proc = root.join("proc");
        let groups = fs::read_to_string(proc.join("self/cgroup"))
            .map_or_else(|_| Vec::new(), |text| groups(root, &text));
        Self { proc, groups, reserve: reserve.map(AtomicU64::new) }
    }

    /// Bytes that are left free; 0 if nothing is watched.
    pub fn reserve(&self) -> u64 {
        self.reserve.as_ref().map_or(0, |bytes| bytes.load(Ordering::Relaxed))
    }

    /// Changes that, unless nothing is watched.
    pub fn set_reserve(&self, bytes: u64) {
        if let Some(reserve) = &self.reserve {
            reserve.store(bytes, Ordering::Relaxed);
        }
    }

    /// Whether there is a reserve to be kept, and nothing that says what is left. A reserve of 0 bytes
    /// is kept in any case.
    pub fn is_blind(&self) -> bool {
        self.reserve() > 0 && self.spare().is_none()
    }

    /// Bytes that may still be used; `None` if nothing is watched, or nothing can be read.
    pub fn spare(&self) -> Option<u64> {
        let reserve = self.reserve.as_ref()?.load(Ordering::Relaxed);
        let host = self.meminfo("MemAvailable:").into_iter();
        let least = host.chain(self.groups.iter().filter_map(Group::available)).min()?;
        Some(least.saturating_sub(reserve))
    }

    /// Bytes of the host, and of the groups that have a limit.
    fn sizes(&self) -> impl Iterator<Item = u64> {
        let host = self.meminfo("MemTotal:").into_iter();
        host.chain(self.groups.iter().filter_map(Group::limit))
    }

    fn meminfo(&self, name: &str) -> Option<u64> {
        let text = fs::read_to_string(self.proc.join("meminfo")).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
        Some(kib * 1024)
    }
}

impl Group {
    /// The limit in bytes, if there is one that could ever be reached.
    fn limit(&self) -> Option<u64> {
        // "max", or in version 1 a number near 2^63.
        let limit = number(&self.dir.join(self.max))?;
        (limit < 1 << 60).then_some(limit)
    }

    /// Bytes up to the limit, page cache that can go counted as free. Shared memory is not such
    /// cache: it is on the lists of anonymous memory.
    fn available(&self) -> Option<u64> {
        let limit = self.limit()?;
        let current = number(&self.dir.join(self.current))?;
        let stat = fs::read_to_string(self.dir.join("memory.stat")).unwrap_or_default();
        let counter = |name: &str| -> u64 {
            let name = format!("{}{name} ", self.total);
            let value = stat.lines().find_map(|line| line.strip_prefix(&name));
            value.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
        };
        let cache = counter("active_file") + counter("inactive_file");
        Some(limit.saturating_sub(current.saturating_sub(cache)))
    }
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The groups of `/proc/self/cgroup`'s lines (`id:controllers:path`), the daemon's own first.
fn groups(root: &Path, text: &str) -> Vec<Group> {
    let mounted = root.join("sys/fs/cgroup");
    let mut found = Vec::new();
    for line in text.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let (top, max, current, total) = if controllers.is_empty() {
            (mounted.clone(), "memory.max", "memory.current", "")
        } else if controllers.split(',').any(|name| name == "memory") {
            let top = mounted.join("memory");
            (top, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
        } else {
            continue;
        };
        let mut dir = top.join(path.trim_start_matches('/'));
        // In a container the path may be the host's, of which only the end is mounted.
        if !dir.is_dir() {
            dir.clone_from(&top);
        }
        while dir.starts_with(&top) {
            found.push(Group { dir: dir.clone(), max, current, total });
            if !dir.pop() {
                break;
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// A directory with the files of a host, gone at the end.
    struct Fake(PathBuf);

    impl Fake {
        fn new(name: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("zram-host-{name}-{}", std::process::id()));
            let fake = Self(dir);
            let available = 800 * 1024;
            fake.file(
                "proc/meminfo",
                &format!("MemTotal: 1024000 kB\nMemAvailable:  {available} kB\n"),
            );
            fake
        }

        fn file(&self, path: &str, text: &str) {
            let path = self.0.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        fn host(&self, reserve: u64) -> Host {
            Host::at(&self.0, Some(reserve))
        }
    }

    impl Drop for Fake {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn without_groups_it_is_what_the_kernel_says_is_available() {
        let fake = Fake::new("plain");
        assert_eq!(fake.host(0).spare(), Some(800 * MIB));
        assert_eq!(fake.host(100 * MIB).spare(), Some(700 * MIB));
        assert_eq!(fake.host(900 * MIB).spare(), Some(0));
        assert_eq!(Host::unlimited().spare(), None);
    }

    #[test]
    fn the_tightest_group_counts_and_its_page_cache_does_not() {
        let fake = Fake::new("v2");
        fake.file("proc/self/cgroup", "0::/vm/disk\n");
        fake.file("sys/fs/cgroup/vm/disk/memory.max", "max\n");
        fake.file("sys/fs/cgroup/vm/disk/memory.current", "1000\n");
        fake.file("sys/fs/cgroup/vm/memory.max", &format!("{}\n", 256 * MIB));
        fake.file("sys/fs/cgroup/vm/memory.current", &format!("{}\n", 200 * MIB));
        let stat = format!("anon 5\ninactive_file {}\nactive_file {}\n", 10 * MIB, 4 * MIB);
        fake.file("sys/fs/cgroup/vm/memory.stat", &stat);
        assert_eq!(fake.host(MIB).spare(), Some(69 * MIB));
        assert_eq!(fake.host(0).sizes().min(), Some(256 * MIB));
    }

    #[test]
    fn groups_of_the_first_version_are_known() {
        let fake = Fake::new("v1");
        fake.file("proc/self/cgroup", "5:cpu,cpuacct:/x\n4:memory:/x\n0::/\n");
        fake.file("sys/fs/cgroup/memory/x/memory.limit_in_bytes", &format!("{}\n", 64 * MIB));
        fake.file("sys/fs/cgroup/memory/x/memory.usage_in_bytes", &format!("{}\n", 60 * MIB));
        fake.file("sys/fs/cgroup/memory/x/memory.stat", "inactive_file 1\ntotal_inactive_file 0\n");
        assert_eq!(fake.host(0).spare(), Some(4 * MIB));
        fake.file("sys/fs/cgroup/memory/x/memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(fake.host(0).spare(), Some(800 * MIB));
    }

    #[test]
    fn a_reserve_that_cannot_be_kept_is_known() {
        let fake = Fake::new("blind");
        assert!(!fake.host(1).is_blind());
        fs::remove_file(fake.0.join("proc/meminfo")).unwrap();
        assert!(fake.host(1).is_blind());
        // Nothing is to be left free, so nothing is missed.
        assert!(!fake.host(0).is_blind());
        assert!(!Host::unlimited().is_blind());
        // A group that has a limit is enough.
        fake.file("proc/self/cgroup", "0::/vm\n");
        fake.file("sys/fs/cgroup/vm/memory.max", &format!("{}\n", 64 * MIB));
        fake.file("sys/fs/cgroup/vm/memory.current", "0\n");
        assert!(!fake.host(1).is_blind());
    }

    #[test]
    fn the_reserve_is_a_part_of_small_hosts_and_bounded_on_large_ones() {
        assert_eq!(default_reserve(320 * MIB), 10 * MIB);
        assert_eq!(default_reserve(1 << 40), 512 * MIB);
    }
}
