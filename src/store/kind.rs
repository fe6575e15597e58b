//! Where the memory of a disk comes from.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use nix::fcntl::OFlag;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};

/// What kind of memory the mappings of a disk are made of.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MemoryKind {
    dir: Option<PathBuf>,
    locked: bool,
}

impl MemoryKind {
    /// Unlinked files in `dir`, which is a tmpfs, so that its size bounds them; or, without one,
    /// anonymous files, which nothing bounds but the host. If `locked`, pages never leave memory
    /// for swap once they exist.
    pub fn new(dir: Option<PathBuf>, locked: bool) -> Self {
        Self { dir, locked }
    }

    pub(crate) fn is_locked(&self) -> bool {
        self.locked
    }

    /// A new, empty file.
    pub(super) fn file(&self, what: &str) -> io::Result<File> {
        let Some(dir) = &self.dir else {
            let name = format!("zram-{what}");
            return Ok(File::from(memfd_create(name.as_str(), MFdFlags::MFD_CLOEXEC)?));
        };
        let mut options = OpenOptions::new();
        let nameless = OFlag::O_TMPFILE | OFlag::O_CLOEXEC;
        options.read(true).write(true).mode(0o600).custom_flags(nameless.bits());
        let file = options
            .open(dir)
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", dir.display())))?;
        // Elsewhere pages would be written to a disk, and a hole would cost its space.
        if fstatfs(&file)?.filesystem_type() != TMPFS_MAGIC {
            let text = format!("{} is not on a tmpfs", dir.display());
            return Err(io::Error::new(io::ErrorKind::Unsupported, text));
        }
        Ok(file)
    }
}
