//! Processes: the daemons, what they may use, and what they lock.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::System;
use super::options;
use crate::doctor::facts::{Group, Process};

/// File name of the daemon's program.
const PROGRAM: &str = "vhost-user-zram";

/// Number of a capability (capabilities(7)).
const CAP_IPC_LOCK: u32 = 14;

/// The words of a process's command line.
pub(super) fn words(system: &System<'_>, pid: u32) -> Vec<String> {
    let line = system.read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    line.trim_end_matches('\0').split('\0').map(str::to_owned).collect()
}

/// The working directory of a process.
pub(super) fn working_dir(system: &System<'_>, pid: u32) -> PathBuf {
    fs::read_link(system.place(format!("/proc/{pid}/cwd"))).unwrap_or_else(|_| "/".into())
}

/// File name of the program in the first word.
pub(super) fn program(words: &[String]) -> &str {
    words.first().and_then(|word| Path::new(word).file_name()?.to_str()).unwrap_or_default()
}

/// Whether only root can change a program: any other one is not to be run, whatever its name is.
pub(super) fn is_trusted(place: &Path) -> bool {
    place.is_absolute()
        && place.ancestors().all(|part| {
            fs::symlink_metadata(part).is_ok_and(|meta| {
                // In a directory with the sticky bit others cannot replace what is root's.
                let open = meta.permissions().mode() & 0o022 != 0;
                let sticky = meta.is_dir() && meta.permissions().mode() & 0o1000 != 0;
                meta.uid() == 0 && !meta.is_symlink() && (!open || sticky)
            })
        })
}

/// All processes, in ascending order.
pub(super) fn all(system: &System<'_>) -> Vec<u32> {
    let entries = fs::read_dir(system.place("/proc")).into_iter().flatten();
    let mut pids: Vec<u32> =
        entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    pids.sort_unstable();
    pids
}

/// The daemons.
pub(super) fn daemons(system: &System<'_>) -> Vec<Process> {
    let mut found = Vec::new();
    for pid in all(system) {
        let words = words(system, pid);
        if program(&words) != PROGRAM {
            continue;
        }
        found.push(Process {
            pid,
            options: options::parse(system, &words[1..], &working_dir(system, pid)),
            mlock_limit: mlock_limit(system, pid),
            groups: groups(system, pid),
        });
    }
    found
}

/// The most bytes that a process may lock; `None` if that is not limited.
fn mlock_limit(system: &System<'_>, pid: u32) -> Option<u64> {
    // CAP_IPC_LOCK is above the limit.
    let status = system.read(format!("/proc/{pid}/status")).unwrap_or_default();
    let capabilities = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let capabilities = capabilities.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    if capabilities.is_some_and(|mask| mask & (1 << CAP_IPC_LOCK) != 0) {
        return None;
    }
    // The line has name, soft limit, hard limit and unit.
    let text = system.read(format!("/proc/{pid}/limits"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("Max locked memory"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// The groups of a process with a memory controller of version 2, the nearest first.
fn groups(system: &System<'_>, pid: u32) -> Vec<Group> {
    let text = system.read(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let Some(path) = text.lines().find_map(|line| line.strip_prefix("0::")) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for path in Path::new(path).ancestors() {
        let dir = Path::new("/sys/fs/cgroup").join(path.strip_prefix("/").unwrap_or(path));
        let events = system.read(dir.join("memory.events")).unwrap_or_default();
        let kills = events.lines().find_map(|line| line.strip_prefix("oom_kill "));
        found.push(Group {
            path: path.display().to_string(),
            max: system.number(dir.join("memory.max")),
            high: system.number(dir.join("memory.high")),
            oom_kills: kills.and_then(|count| count.trim().parse().ok()).unwrap_or(0),
        });
    }
    found
}

/// Processes that lock the directory `path`, by `/proc/locks`.
pub(super) fn lockers(system: &System<'_>, path: &Path) -> Vec<u32> {
    let Ok(meta) = fs::metadata(system.place(path)) else { return Vec::new() };
    let (major, minor) = (libc::major(meta.dev()), libc::minor(meta.dev()));
    let file = format!("{major:02x}:{minor:02x}:{}", meta.ino());
    let text = system.read("/proc/locks").unwrap_or_default();
    let holder = |line: &str| {
        // "1: FLOCK  ADVISORY  WRITE 4711 00:1a:23 0 EOF"; one that waits has "->" behind its number.
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, "FLOCK", _, _, pid, of, ..] = words[..] else { return None };
        (of == file).then(|| pid.parse().ok())?
    };
    text.lines().filter_map(holder).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_others_can_change_is_not_run() {
        let dir = std::env::temp_dir().join(format!("zramctl-trust-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let file = dir.join("qemu-system-x86_64");
        fs::write(&file, "").unwrap();
        let mode = |path: &Path, mode| {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        };
        mode(&dir, 0o755);
        mode(&file, 0o755);
        let root = fs::metadata(&file).unwrap().uid() == 0;
        assert_eq!(is_trusted(&file), root);
        mode(&file, 0o775);
        assert!(!is_trusted(&file));
        mode(&file, 0o755);
        mode(&dir, 0o757);
        assert!(!is_trusted(&file));
        assert!(!is_trusted(Path::new("qemu-system-x86_64")));
        fs::remove_dir_all(&dir).unwrap();
    }
}
