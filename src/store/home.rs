//! The directory of a state: its owner, and its files, reached by its descriptor.
//!
//! A state holds what a guest wrote, and a daemon trusts its own memory. So only its owner may be able
//! to change it, and no name in a directory that others can write to (`/dev/shm`) decides the owner:
//!
//! * directory and files belong to the daemon's user, or to the one that was named;
//! * others can neither write to the directory nor use the files at all;
//! * a file has one name, so it is not another user's file by a second one;
//! * no symbolic link is followed to a file, nor one of another user's to the directory.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, renameat};
use nix::sys::stat::{Mode, fstatat};
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::StateError;

const DIRECTORY_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;
/// What others may not do with the directory: write. They can search what they cannot open.
const DIRECTORY_OTHERS: u32 = 0o022;
const FILE_OTHERS: u32 = 0o077;

/// A state's directory, open.
pub(super) struct Home {
    handle: File,
    path: PathBuf,
    /// A user that it may belong to beside the daemon's own.
    owner: Option<u32>,
}

impl Home {
    /// Opens the directory `path`, or makes it if `create`.
    pub(super) fn open(path: &Path, create: bool, owner: Option<u32>) -> Result<Self, StateError> {
        // Without a slash at its end, which would hide that it is a link.
        let path: PathBuf = path.components().collect();
        let fail = |source| StateError::Directory { path: path.clone(), source };
        let found = path.symlink_metadata();
        let link = found.as_ref().ok().filter(|meta| meta.is_symlink());
        if let Some(owner) =
            link.map(MetadataExt::uid).filter(|uid| *uid != 0 && !accepts(*uid, owner))
        {
            return Err(StateError::Link { path, owner });
        }
        let follow = if link.is_some() { OFlag::empty() } else { OFlag::O_NOFOLLOW };
        let new = create && found.is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
        if new {
            match DirBuilder::new().mode(DIRECTORY_MODE).create(&path) {
                // Whatever the umask is, or the default of an access list.
                Ok(()) => fs::set_permissions(&path, Permissions::from_mode(DIRECTORY_MODE))
                    .map_err(fail)?,
                // Another process was faster.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(fail(error)),
            }
        }
        // Of whatever else it may be, a pipe would be waited for.
        let flags = (OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | follow).bits();
        let handle = match OpenOptions::new().read(true).custom_flags(flags).open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(StateError::None { home: path.display().to_string() });
            }
            handle => handle.map_err(fail)?,
        };
        let kind = fstatfs(&handle).map_err(|errno| fail(errno.into()))?.filesystem_type();
        if kind != TMPFS_MAGIC {
            if new {
                // Nothing is left of what was refused; a process that put something there keeps it.
                let _ = fs::remove_dir(&path);
            }
            return Err(StateError::NotTmpfs(path));
        }
        let meta = handle.metadata().map_err(fail)?;
        let name = format!("state directory {}", path.display());
        check_owner(&meta, &name, owner)?;
        check_mode(&meta, &name, DIRECTORY_OTHERS, DIRECTORY_MODE)?;
        Ok(Self { handle, path, owner })
    }

    /// Its path, for messages.
    pub(super) fn name(&self) -> String {
        self.path.display().to_string()
    }

    /// A second descriptor of the directory, to be locked.
    pub(super) fn handle(&self) -> Result<File, StateError> {
        let again = self.handle.try_clone();
        again.map_err(|source| StateError::Directory { path: self.path.clone(), source })
    }

    /// Whether there is something of this name. What cannot be read may be there, and must not
    /// be made anew.
    pub(super) fn has(&self, name: &str) -> bool {
        fstatat(&self.handle, name, AtFlags::AT_SYMLINK_NOFOLLOW) != Err(Errno::ENOENT)
    }

    /// Opens a file of the state, if it is there.
    pub(super) fn file(&self, what: &'static str) -> Result<Option<File>, StateError> {
        let flags = OFlag::O_RDWR | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let file = match openat(&self.handle, what, flags, Mode::empty()) {
            Err(Errno::ENOENT) => return Ok(None),
            file => File::from(file.map_err(|errno| failed(what, errno))?),
        };
        let meta = file.metadata().map_err(|source| StateError::File { what, source })?;
        if !meta.is_file() {
            return Err(StateError::Damaged { what: "one of its files is not a regular file" });
        }
        let name = format!("state's {what}");
        check_owner(&meta, &name, self.owner)?;
        check_mode(&meta, &name, FILE_OTHERS, FILE_MODE)?;
        if meta.nlink() != 1 {
            return Err(StateError::Names { what, names: meta.nlink() });
        }
        Ok(Some(file))
    }

    /// An empty file `name`, in place of one that nothing was ever stored in.
    pub(super) fn make_file(&self, name: &str, what: &'static str) -> Result<File, StateError> {
        match unlinkat(&self.handle, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(errno) => return Err(failed(what, errno)),
        }
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
        let mode = Mode::from_bits_truncate(FILE_MODE);
        let file = openat(&self.handle, name, flags, mode).map_err(|errno| failed(what, errno))?;
        let file = File::from(file);
        file.set_permissions(Permissions::from_mode(FILE_MODE))
            .map_err(|source| StateError::File { what, source })?;
        Ok(file)
    }

    /// Gives the file `from` the name `what`.
    pub(super) fn rename(&self, from: &str, what: &'static str) -> Result<(), StateError> {
        let renamed = renameat(&self.handle, from, &self.handle, what);
        renamed.map_err(|errno| failed(what, errno))
    }
}

fn failed(what: &'static str, errno: Errno) -> StateError {
    StateError::File { what, source: errno.into() }
}

/// Whether what belongs to the user `uid` may be a part of a state.
fn accepts(uid: u32, owner: Option<u32>) -> bool {
    uid == rustix::process::geteuid().as_raw() || Some(uid) == owner
}

fn check_owner(meta: &fs::Metadata, name: &str, owner: Option<u32>) -> Result<(), StateError> {
    if accepts(meta.uid(), owner) {
        return Ok(());
    }
    let own = rustix::process::geteuid().as_raw();
    Err(StateError::Owner { name: name.into(), found: meta.uid(), own })
}

fn check_mode(meta: &fs::Metadata, name: &str, others: u32, wanted: u32) -> Result<(), StateError> {
    if meta.mode() & others == 0 {
        return Ok(());
    }
    Err(StateError::Mode { name: name.into(), found: meta.mode() & 0o7777, wanted })
}
