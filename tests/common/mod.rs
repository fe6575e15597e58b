//! What the integration tests share: the daemon as a process, and a disk that can be recognized.
// Each test crate uses its own part of this.
#![allow(dead_code)]

pub mod daemon;
pub mod disk;
pub mod fuse;
pub mod handed;
pub mod held;
pub mod loading;
pub mod manager;
pub mod process;
pub mod raw;

use std::time::{Duration, Instant};

/// No wait in the tests is longer. Nothing is ever asserted about how long something took.
pub const LIMIT: Duration = Duration::from_secs(60);

/// Looks at `condition` until it holds.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: not within {LIMIT:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
