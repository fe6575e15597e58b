//! What the integration tests share: the daemon as a process, and a disk that can be recognized.
// Each test crate uses its own part of this.
#![allow(dead_code)]

pub mod daemon;
pub mod disk;
pub mod fuse;
pub mod handed;
pub mod held;
pub mod http;
pub mod loading;
pub mod manager;
pub mod process;
pub mod prometheus;
pub mod raw;
pub mod victim;

use std::fs::File;
use std::time::{Duration, Instant};

use nix::sys::memfd::{MFdFlags, memfd_create};

/// No wait in the tests is longer. Nothing is ever asserted about how long something took.
pub const LIMIT: Duration = Duration::from_secs(60);

/// Checks `condition` until it holds.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: not within {LIMIT:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A file of `len` zeroes in memory.
pub fn memfd(len: u64) -> File {
    let file = File::from(memfd_create("test", MFdFlags::MFD_CLOEXEC).unwrap());
    file.set_len(len).unwrap();
    file
}
