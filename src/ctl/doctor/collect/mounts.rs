//! File systems, by `/proc/PID/mountinfo`.

use std::path::{Path, PathBuf};

use super::System;
use crate::doctor::facts::HostMemory;

/// The file system of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Where it is mounted.
    pub place: PathBuf,
    /// Its type.
    pub fs_type: String,
    /// What is mounted.
    pub source: String,
    /// Options of the mount and of the file system.
    pub options: Vec<String>,
}

impl Mount {
    /// Its size in bytes if it is a tmpfs. One that has the default size, half of the memory, does not say.
    pub fn tmpfs_size(&self, memory: Option<HostMemory>) -> Option<u64> {
        if self.fs_type != "tmpfs" {
            return None;
        }
        let said = self.options.iter().find_map(|option| option.strip_prefix("size="));
        match said {
            // The kernel shows KiB.
            Some(text) => Some(text.strip_suffix('k')?.parse::<u64>().ok()? * 1024),
            None => Some(memory?.total / 2),
        }
    }
}

/// Blanks and backslashes are octal there.
fn unescape(text: &str) -> String {
    let pairs = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    pairs.iter().fold(text.to_owned(), |text, (code, letter)| text.replace(code, letter))
}

/// "36 35 98:0 /root /place rw,noatime master:1 - ext3 /dev/root rw,errors=continue"
fn parse(line: &str) -> Option<Mount> {
    let (front, back) = line.split_once(" - ")?;
    let front: Vec<&str> = front.split(' ').collect();
    let back: Vec<&str> = back.split(' ').collect();
    let [fs_type, source, of_fs] = back[..] else { return None };
    let options = front.get(5)?.split(',').chain(of_fs.split(','));
    Some(Mount {
        place: unescape(front.get(4)?).into(),
        fs_type: fs_type.into(),
        source: unescape(source),
        options: options.map(str::to_owned).collect(),
    })
}

/// All mounts that the process `pid`, or `self`, sees. Later ones lie over earlier ones.
pub fn all(system: &System<'_>, pid: &str) -> Vec<Mount> {
    let text = system.read(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
    text.lines().filter_map(parse).collect()
}

/// The mount that `path` is on.
pub fn of(system: &System<'_>, pid: &str, path: &Path) -> Option<Mount> {
    let holders = all(system, pid).into_iter().filter(|mount| path.starts_with(&mount.place));
    // The last one of the longest.
    holders.max_by_key(|mount| mount.place.components().count())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_type_source_and_options() {
        let line =
            "36 35 0:31 / /run/a\\040b rw,nosuid shared:5 - tmpfs tmpfs rw,size=2048k,mode=755";
        let mount = parse(line).unwrap();
        assert_eq!(mount.place, Path::new("/run/a b"));
        assert_eq!(mount.tmpfs_size(None), Some(2 << 20));
        assert_eq!(parse("36 35 0:31 / /x rw"), None);
        let plain = parse("36 35 0:31 / /x rw - tmpfs tmpfs rw").unwrap();
        let memory = HostMemory { total: 100, available: 1 };
        assert_eq!((plain.tmpfs_size(None), plain.tmpfs_size(Some(memory))), (None, Some(50)));
        assert_eq!(
            parse("36 35 8:1 / / rw - ext4 /dev/sda1 rw").unwrap().tmpfs_size(Some(memory)),
            None
        );
    }
}
