//! What tests of processes share: a directory of their own, the lines that a process says, and the figures
//! in a line. The guest tests use this file, too.

use std::{
    collections::HashMap,
    env,
    fs::{self, File},
    io::{BufRead, BufReader, ErrorKind, Read, Write},
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// A directory that goes away with its value.
pub struct TempDir(PathBuf);

impl TempDir {
    pub fn new() -> Self {
        Self::within(&env::temp_dir())
    }

    /// One on the tmpfs that every Linux has.
    pub fn in_memory() -> Self {
        Self::within(Path::new("/dev/shm"))
    }

    pub fn within(parent: &Path) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        loop {
            let n = COUNT.fetch_add(1, Ordering::Relaxed);
            let path = parent.join(format!("vhost-user-zram.{}.{n}", std::process::id()));
            match fs::create_dir(&path) {
                Ok(()) => return Self(path),
                // Of a process that was killed and had the same number.
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => panic!("{}: {error}", path.display()),
            }
        }
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        // Left behind at worst.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The lines of a stream, as they come.
#[derive(Clone, Default)]
pub struct Lines(Arc<(Mutex<Vec<String>>, Condvar)>);

impl Lines {
    /// Reads `stream` to its end in a thread, and copies it to `log`. Bytes that are not UTF-8 are
    /// replaced, and a carriage return at the end of a line is left out, as consoles send them.
    pub fn follow(
        stream: impl Read + Send + 'static,
        mut log: Option<File>,
    ) -> (Self, JoinHandle<()>) {
        let lines = Self::default();
        let theirs = lines.clone();
        let thread = thread::spawn(move || {
            let mut stream = BufReader::new(stream);
            let mut bytes = Vec::new();
            while stream.read_until(b'\n', &mut bytes).is_ok_and(|count| count > 0) {
                if let Some(log) = &mut log {
                    // A log that cannot be written is missed by its reader alone.
                    let _ = log.write_all(&bytes);
                }
                let line = String::from_utf8_lossy(&bytes);
                let line = line.trim_end_matches('\n').trim_end_matches('\r').to_owned();
                theirs.0.0.lock().unwrap_or_else(PoisonError::into_inner).push(line);
                theirs.0.1.notify_all();
                bytes.clear();
            }
        });
        (lines, thread)
    }

    /// All lines so far.
    pub fn all(&self) -> Vec<String> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many lines there are so far.
    pub fn len(&self) -> usize {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Waits for the `nth` (from 0) line that begins with `prefix`.
    pub fn wait_for(&self, prefix: &str, nth: usize, limit: Duration) -> Option<String> {
        let is_it = |line: &str| line.starts_with(prefix).then(|| line.to_owned());
        self.wait(limit, 0, is_it, nth)
    }

    /// Waits for a line that contains `text`.
    pub fn wait_for_text(&self, text: &str, limit: Duration) -> Option<String> {
        self.wait(limit, 0, |line| line.contains(text).then(|| line.to_owned()), 0)
    }

    /// Waits for what `find` makes of the first line after `from` others that it makes something of.
    pub fn find<T>(
        &self,
        from: usize,
        limit: Duration,
        find: impl Fn(&str) -> Option<T>,
    ) -> Option<T> {
        self.wait(limit, from, find, 0)
    }

    fn wait<T>(
        &self,
        limit: Duration,
        from: usize,
        is_it: impl Fn(&str) -> Option<T>,
        nth: usize,
    ) -> Option<T> {
        let deadline = Instant::now() + limit;
        let mut lines = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(found) = lines.iter().skip(from).filter_map(|line| is_it(line)).nth(nth) {
                return Some(found);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            let waited = self.0.1.wait_timeout(lines, left);
            lines = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// The `name=number` words of a line.
pub fn figures(line: &str) -> HashMap<String, u64> {
    line.split_whitespace()
        .filter_map(|word| word.split_once('='))
        .filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?)))
        .collect()
}
