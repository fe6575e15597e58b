//! What tests of states need: a directory on a tmpfs, and files as images of what is in them.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::unistd::{Whence, lseek64};

/// A directory on a tmpfs that goes away with its value.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("vhost-user-zram-unit.{}.{number}", std::process::id());
        let path = Path::new("/dev/shm").join(name);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Left behind at worst.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// What is in a file: its length, and the runs of it that exist.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct FileImage {
    length: u64,
    runs: Vec<(u64, Vec<u8>)>,
}

/// What is in the files of a directory, as it would be found if all processes that use them died now.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Image(BTreeMap<String, FileImage>);

impl FileImage {
    fn of(file: &File) -> Self {
        let length = file.metadata().unwrap().len();
        let mut runs = Vec::new();
        let mut at = 0;
        while let Ok(start) = lseek64(file, at, Whence::SeekData) {
            at = lseek64(file, start, Whence::SeekHole).unwrap();
            let mut bytes = vec![0; (at - start) as usize];
            file.read_exact_at(&mut bytes, start as u64).unwrap();
            runs.push((start as u64, bytes));
        }
        Self { length, runs }
    }

    /// Whether both read the same, holes or not.
    fn reads_like(&self, other: &Self) -> bool {
        let plain = |image: &Self| {
            let bytes = image.runs.iter().flat_map(|(at, bytes)| (*at..).zip(bytes));
            bytes.filter(|(_, byte)| **byte != 0).map(|(at, byte)| (at, *byte)).collect::<Vec<_>>()
        };
        self.length == other.length && plain(self) == plain(other)
    }
}

impl Image {
    pub(crate) fn of(dir: &Path) -> Self {
        let entries = fs::read_dir(dir).unwrap().map(Result::unwrap);
        let files = entries.map(|entry| {
            let name = entry.file_name().into_string().unwrap();
            (name, FileImage::of(&File::open(entry.path()).unwrap()))
        });
        Self(files.collect())
    }

    /// Makes the directory's files what they were; others go.
    pub(crate) fn restore(&self, dir: &Path) {
        for entry in fs::read_dir(dir).unwrap() {
            fs::remove_file(entry.unwrap().path()).unwrap();
        }
        for (name, image) in &self.0 {
            let mut new = OpenOptions::new();
            new.read(true).write(true).create_new(true).mode(0o600);
            let file = new.open(dir.join(name)).unwrap();
            file.set_len(image.length).unwrap();
            for (at, bytes) in &image.runs {
                file.write_all_at(bytes, *at).unwrap();
            }
        }
    }

    /// Whether all files read the same, holes or not.
    pub(crate) fn reads_like(&self, other: &Self) -> bool {
        self.0.len() == other.0.len()
            && self
                .0
                .iter()
                .all(|(name, image)| other.0.get(name).is_some_and(|other| image.reads_like(other)))
    }

    /// Bytes that exist of a file.
    pub(crate) fn existing(&self, name: &str) -> impl Iterator<Item = u64> {
        self.0[name].runs.iter().flat_map(|(at, bytes)| *at..*at + bytes.len() as u64)
    }
}

/// Changes bytes of a file in place.
pub(crate) fn edit(path: &Path, at: u64, length: usize, change: impl FnOnce(&mut [u8])) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, at).unwrap();
    change(&mut bytes);
    file.write_all_at(&bytes, at).unwrap();
}

/// The le64 at an offset of a file.
pub(crate) fn word(path: &Path, at: u64) -> u64 {
    let mut bytes = [0; 8];
    File::open(path).unwrap().read_exact_at(&mut bytes, at).unwrap();
    u64::from_le_bytes(bytes)
}

/// Sets the le64 at an offset of a file.
pub(crate) fn set_word(path: &Path, at: u64, value: u64) {
    edit(path, at, 8, |bytes| bytes.copy_from_slice(&value.to_le_bytes()));
}
