//! A file of a FUSE file system whose server falls silent: any question to it waits without end.
//!
//! While one is open its process must start no other: that one would close it, and wait.
//!
//! The server speaks as much of the protocol as it takes to open one file (`include/uapi/linux/fuse.h`).

use std::{
    fs::{File, OpenOptions},
    io::{Read, Write},
    os::fd::AsRawFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::daemon::TempDir;

const LOOKUP: u32 = 1;
const GETATTR: u32 = 3;
const OPEN: u32 = 14;
const INIT: u32 = 26;

/// Bytes of the file.
pub const LEN: u64 = 16 << 20;

/// An open file whose server is silent. Dropping it ends the file system, and all waiting for it.
pub struct SilentFile {
    dir: TempDir,
    file: Option<File>,
    server: Option<JoinHandle<()>>,
}

impl SilentFile {
    /// `None`, with a printed reason, where this process may not mount one.
    pub fn new() -> Option<Self> {
        let device = OpenOptions::new().read(true).write(true).open("/dev/fuse");
        let device = device.map_err(|e| eprintln!("skipped: /dev/fuse: {e}")).ok()?;
        let dir = TempDir::new();
        let data = format!("fd={},rootmode=40000,user_id=0,group_id=0\0", device.as_raw_fd());
        let data = std::ffi::CStr::from_bytes_with_nul(data.as_bytes()).expect("no zero in it");
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        mount("silent", dir.path(), "fuse", flags, data)
            .map_err(|e| eprintln!("skipped: a FUSE file system cannot be mounted: {e}"))
            .ok()?;
        let silent = Arc::new(AtomicBool::new(false));
        let theirs = Arc::clone(&silent);
        let server = thread::spawn(move || serve(device, &theirs));
        let mut this = Self { dir, file: None, server: Some(server) };
        let file = OpenOptions::new().read(true).write(true).open(this.dir.join("file"));
        this.file = Some(file.expect("the one file"));
        silent.store(true, Ordering::SeqCst);
        Some(this)
    }

    pub fn file(&self) -> &File {
        self.file.as_ref().expect("open until the end")
    }
}

impl Drop for SilentFile {
    fn drop(&mut self) {
        // Ends the connection, and with it all waits.
        unmount(self.dir.path(), UnmountFlags::FORCE | UnmountFlags::DETACH).expect("unmount");
        drop(self.file.take());
        self.server.take().expect("once").join().expect("server");
    }
}

/// Answers until it is to be silent, and reads on then, until the file system is gone.
fn serve(mut device: File, silent: &AtomicBool) {
    let mut message = vec![0; 1 << 20];
    while let Ok(len) = device.read(&mut message) {
        let word = |at: usize| u32::from_le_bytes(message[at..at + 4].try_into().expect("4 bytes"));
        let (code, unique, node) = (word(4), &message[8..16], word(16));
        assert!(len >= 40, "a message of {len} bytes");
        if silent.load(Ordering::SeqCst) {
            continue;
        }
        let body = match code {
            // Version, read-ahead, flags, background and congestion, longest write, time grain.
            INIT => [words(&[7, 31, 0, 0, 10 << 16 | 10, 65536, 1]), vec![0; 36]].concat(),
            LOOKUP => [words(&[2, 0, 1, 0, 0, 0, 0, 0, 0, 0]), attributes(2)].concat(),
            GETATTR => [words(&[0; 4]), attributes(node)].concat(),
            OPEN => words(&[1, 0, 0, 0]),
            _ => Vec::new(),
        };
        const ENOSYS: u32 = 38_u32.wrapping_neg();
        let error = if body.is_empty() { ENOSYS } else { 0 };
        let head = [words(&[16 + body.len() as u32, error]), unique.to_vec()].concat();
        // Of messages that want no answer none is taken.
        let _ = device.write(&[head, body].concat());
    }
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// `struct fuse_attr` of the root, 1, or the file, 2.
fn attributes(node: u32) -> Vec<u8> {
    let (mode, len) = if node == 1 { (0o40755, 0) } else { (0o100600, LEN as u32) };
    // Node, size, blocks, three times, their nanoseconds, mode, links, owner, group, device, block.
    let times = [0; 9];
    [words(&[node, 0, len, 0, 0, 0]), words(&times), words(&[mode, 1, 0, 0, 0, 4096, 0])].concat()
}
