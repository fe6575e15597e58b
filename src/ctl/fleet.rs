//! The daemons of a host: found by the sockets of a run directory, and asked all at the same time.

use std::cmp::Ordering;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering as Order};
use std::thread;
use std::time::Duration;

use crate::client::Client;

/// Name of a daemon's API socket within its directory.
pub const SOCKET: &str = "api.sock";
/// The most daemons that are asked at one moment.
const AT_ONCE: usize = 128;
/// Stack of a thread that asks a daemon.
const STACK: usize = 256 << 10;

/// Why there is no daemon to be asked.
#[derive(Debug, thiserror::Error)]
pub enum FleetError {
    /// The run directory cannot be read.
    #[error("cannot read the run directory {}", path.display())]
    RunDir {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No daemon has a socket there.
    #[error("there is no daemon in {} (NAME/{SOCKET}): see --run-dir and --api", .0.display())]
    None(PathBuf),
    /// No daemon of this name has a socket there.
    #[error("there is no daemon {name} in {}: {}", dir.display(), known(names))]
    Unknown {
        /// The name.
        name: String,
        /// The run directory.
        dir: PathBuf,
        /// Those that are there.
        names: Vec<String>,
    },
    /// One daemon is to be asked, and there are several.
    #[error("which daemon? {} (--disk)", known(.0))]
    Several(Vec<String>),
}

fn known(names: &[String]) -> String {
    match names {
        [] => "there is none at all".into(),
        [one] => format!("there is {one}"),
        many => format!("there are {}", many.join(", ")),
    }
}

/// A daemon that may be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Daemon {
    /// Its name by the place of its socket.
    pub name: String,
    /// Its API.
    pub client: Client,
}

/// Where daemons are looked for.
#[derive(Debug, Clone)]
pub struct Search {
    /// A directory with one directory for each daemon.
    pub run_dir: PathBuf,
    /// Sockets of APIs. If there are any, the directory is not looked at.
    pub apis: Vec<PathBuf>,
    /// The longest wait for an answer.
    pub limit: Duration,
}

impl Search {
    /// All daemons, sorted by name. A run directory that does not exist has none.
    ///
    /// # Errors
    /// The run directory cannot be read.
    pub fn all(&self) -> Result<Vec<Daemon>, FleetError> {
        let daemon =
            |path: PathBuf| Daemon { name: name_of(&path), client: Client::new(path, self.limit) };
        if !self.apis.is_empty() {
            return Ok(self.apis.iter().cloned().map(daemon).collect());
        }
        let fail = |source| FleetError::RunDir { path: self.run_dir.clone(), source };
        let entries = match fs::read_dir(&self.run_dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(fail)?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let path = entry.map_err(fail)?.path().join(SOCKET);
            // A directory of another user may not be looked into: its daemon is there and does not answer.
            let missing = |error: &io::Error| error.kind() == io::ErrorKind::PermissionDenied;
            if path.symlink_metadata().map_or_else(|error| missing(&error), |_| true) {
                found.push(daemon(path));
            }
        }
        found.sort_by(|a, b| natural(&a.name, &b.name));
        Ok(found)
    }

    /// All daemons, at least one.
    ///
    /// # Errors
    /// There is none.
    pub fn some(&self) -> Result<Vec<Daemon>, FleetError> {
        let found = self.all()?;
        if found.is_empty() { Err(FleetError::None(self.run_dir.clone())) } else { Ok(found) }
    }

    /// The daemon of this name, or the only one.
    ///
    /// # Errors
    /// There is no such daemon, or there are several.
    pub fn one(&self, name: Option<&str>) -> Result<Daemon, FleetError> {
        let mut found = self.some()?;
        let names = found.iter().map(|daemon| daemon.name.clone()).collect();
        if let Some(name) = name {
            found.retain(|daemon| daemon.name == name);
            let dir = self.run_dir.clone();
            return found.pop().ok_or(FleetError::Unknown { name: name.into(), dir, names });
        }
        match found.pop() {
            Some(daemon) if found.is_empty() => Ok(daemon),
            _ => Err(FleetError::Several(names)),
        }
    }
}

/// The name of the directory in which `api.sock` is, or of another socket without its extension.
fn name_of(path: &Path) -> String {
    let directory = || path.parent().and_then(Path::file_name);
    let own = path.file_stem();
    let name = if path.file_name().is_some_and(|name| name == SOCKET) { directory() } else { own };
    name.or(own).unwrap_or_default().to_string_lossy().into_owned()
}

/// Asks all of them at the same time; the answers are in the order of the daemons.
pub fn each<T: Send>(daemons: &[Daemon], ask: impl Fn(&Daemon) -> T + Sync) -> Vec<T> {
    let next = AtomicUsize::new(0);
    let answers: Vec<Mutex<Option<T>>> = daemons.iter().map(|_| Mutex::new(None)).collect();
    let work = || {
        loop {
            let at = next.fetch_add(1, Order::Relaxed);
            let Some(daemon) = daemons.get(at) else { break };
            let answer = ask(daemon);
            *answers[at].lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(answer);
        }
    };
    thread::scope(|scope| {
        for _ in 1..daemons.len().min(AT_ONCE) {
            // Without a thread more it takes longer.
            let _ = thread::Builder::new().stack_size(STACK).spawn_scoped(scope, work);
        }
        work();
    });
    let answers = answers.into_iter();
    answers
        .filter_map(|a| a.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner))
        .collect()
}

/// Compares names so that numbers in them count as numbers: `vm2` before `vm10`.
pub fn natural(a: &str, b: &str) -> Ordering {
    let (mut left, mut right) = (a, b);
    while let (Some(x), Some(y)) = (left.chars().next(), right.chars().next()) {
        let order = if x.is_ascii_digit() && y.is_ascii_digit() {
            let (first, second) = (digits(left), digits(right));
            left = &left[first.len()..];
            right = &right[second.len()..];
            let (first, second) = (first.trim_start_matches('0'), second.trim_start_matches('0'));
            first.len().cmp(&second.len()).then_with(|| first.cmp(second))
        } else {
            left = &left[x.len_utf8()..];
            right = &right[y.len_utf8()..];
            x.cmp(&y)
        };
        if order != Ordering::Equal {
            return order;
        }
    }
    left.len().cmp(&right.len()).then_with(|| a.cmp(b))
}

fn digits(text: &str) -> &str {
    let end = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn daemons(names: &[&str]) -> Vec<Daemon> {
        let client = |name: &str| Client::new(name, Duration::ZERO);
        names.iter().map(|name| Daemon { name: (*name).into(), client: client(name) }).collect()
    }

    #[test]
    fn names_are_sorted_as_people_do() {
        let mut names = ["vm10", "vm2", "a", "vm", "vm2b", "vm02", "b9", "b10"];
        names.sort_by(|a, b| natural(a, b));
        assert_eq!(names, ["a", "b9", "b10", "vm", "vm02", "vm2", "vm2b", "vm10"]);
    }

    #[test]
    fn a_socket_is_named_by_its_place() {
        assert_eq!(name_of(Path::new("/run/vhost-user-zram/vm1/api.sock")), "vm1");
        assert_eq!(name_of(Path::new("/tmp/my.disk.sock")), "my.disk");
        assert_eq!(name_of(Path::new("api.sock")), "api");
    }

    #[test]
    fn all_are_asked_and_answers_keep_their_order() {
        let all = daemons(&["a", "b", "c", "d"]);
        // Each waits until all of them are asked: one after another would never end.
        let barrier = std::sync::Barrier::new(all.len());
        let names = each(&all, |daemon| {
            barrier.wait();
            daemon.name.clone()
        });
        assert_eq!(names, ["a", "b", "c", "d"]);
        assert!(each(&[], |daemon| daemon.name.clone()).is_empty());
    }

    #[test]
    fn one_daemon_is_found_by_name_or_by_being_alone() {
        let search = |apis: &[&str]| Search {
            run_dir: "/nonexistent".into(),
            apis: apis.iter().map(PathBuf::from).collect(),
            limit: Duration::ZERO,
        };
        let two = search(&["/x/a.sock", "/x/b.sock"]);
        assert_eq!(two.one(Some("b")).unwrap().name, "b");
        assert_eq!(search(&["/x/a.sock"]).one(None).unwrap().name, "a");
        let error = two.one(None).unwrap_err().to_string();
        assert_eq!(error, "which daemon? there are a, b (--disk)");
        let error = two.one(Some("c")).unwrap_err().to_string();
        assert!(error.contains("no daemon c") && error.contains("a, b"), "{error}");
        assert!(search(&[]).all().unwrap().is_empty());
        assert!(search(&[]).some().unwrap_err().to_string().contains("/nonexistent"));
    }
}
