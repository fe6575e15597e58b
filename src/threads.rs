//! The threads of a disk. They and the lines that they log carry the disk's name.
//!
//! A thread inherits the name from the thread that starts it. So no caller has to pass it on, and two disks
//! in one process (as in tests) can be told apart.

use std::cell::RefCell;
use std::fmt;
use std::io;
use std::str::FromStr;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

/// The name of a disk in the log and in the names of threads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskName(Arc<str>);

/// A text is not a valid name of a disk.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{0}' is not a disk name: 1 to {max} letters, digits, '.', '_' or '-', the first a letter or digit",
    max = DiskName::MAX
)]
pub struct DiskNameError(String);

impl DiskName {
    /// Bytes of the longest name.
    pub const MAX: usize = 64;

    /// A name made of `text`, such as a file's name. Characters that a name cannot have become '-'. `None`
    /// if nothing is left.
    pub fn derived(text: &str) -> Option<Self> {
        let text: String = text.chars().map(|c| if is_valid(c) { c } else { '-' }).collect();
        let text = text.trim_start_matches(|c: char| !c.is_ascii_alphanumeric());
        text[..text.len().min(Self::MAX)].parse().ok()
    }

    /// The calling thread works for this disk until the returned value is dropped.
    #[must_use]
    pub fn enter(&self) -> Entered {
        Entered(CURRENT.replace(Some(self.clone())))
    }
}

fn is_valid(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')
}

impl Default for DiskName {
    /// The name of a disk that has none.
    fn default() -> Self {
        Self("disk".into())
    }
}

impl FromStr for DiskName {
    type Err = DiskNameError;

    fn from_str(text: &str) -> Result<Self, DiskNameError> {
        let begins = text.starts_with(|c: char| c.is_ascii_alphanumeric());
        if begins && text.len() <= Self::MAX && text.chars().all(is_valid) {
            Ok(Self(text.into()))
        } else {
            Err(DiskNameError(text.to_owned()))
        }
    }
}

impl fmt::Display for DiskName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

thread_local! {
    static CURRENT: RefCell<Option<DiskName>> = const { RefCell::new(None) };
}

/// While this exists the calling thread works for a disk; after that for the previous one, if any.
#[derive(Debug)]
pub struct Entered(Option<DiskName>);

impl Drop for Entered {
    fn drop(&mut self) {
        CURRENT.set(self.0.take());
    }
}

/// The disk for which the calling thread works.
pub fn current_disk() -> Option<DiskName> {
    CURRENT.try_with(|current| current.borrow().clone()).ok().flatten()
}

/// Starts a thread for the disk for which the calling thread works. Its name is `role` followed by the
/// disk's name; the kernel shows the first 15 bytes.
///
/// # Errors
/// The host has no thread left.
pub fn spawn<T: Send + 'static>(
    role: &str,
    body: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    let disk = current_disk();
    let name = disk.as_ref().map_or_else(|| role.to_owned(), |disk| format!("{role} {disk}"));
    thread::Builder::new().name(name).spawn(move || {
        let _entered = disk.as_ref().map(DiskName::enter);
        body()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_short_and_plain() {
        for good in ["a", "vm1.disk_2-x", "0", &"x".repeat(64)] {
            assert_eq!(good.parse::<DiskName>().unwrap().to_string(), good);
        }
        for bad in ["", "-a", ".a", "a b", "a/b", "a\n", "ä", &"x".repeat(65)] {
            bad.parse::<DiskName>().unwrap_err();
        }
        let derived = |text: &str| DiskName::derived(text).map(|name| name.to_string());
        assert_eq!(derived("vm 1/ü").as_deref(), Some("vm-1--"));
        assert_eq!(derived("../x").as_deref(), Some("x"));
        assert_eq!(derived(&"y".repeat(99)), Some("y".repeat(64)));
        assert_eq!((derived(""), derived("///")), (None, None));
    }

    #[test]
    fn a_thread_works_for_the_disk_of_the_one_that_started_it() {
        let [one, other] = ["one", "other"].map(|name| name.parse::<DiskName>().unwrap());
        assert_eq!(current_disk(), None);
        let entered = one.enter();
        let grandchild = spawn("child", || {
            let name = thread::current().name().map(str::to_owned);
            (name, spawn("grandchild", current_disk).unwrap().join().unwrap())
        });
        assert_eq!(
            grandchild.unwrap().join().unwrap(),
            (Some("child one".into()), Some(one.clone()))
        );
        let inner = other.enter();
        assert_eq!(current_disk(), Some(other));
        drop(inner);
        assert_eq!(current_disk(), Some(one));
        drop(entered);
        assert_eq!(spawn("child", current_disk).unwrap().join().unwrap(), None);
    }
}
