//! Classes of locks, and the order in which they were ever taken.

use std::backtrace::Backtrace;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::ClassFigures;
use super::class::{Class, Lock};
use super::fault::{Fault, Held, Verdict};

/// Classes there can be; their sets are bits of a word.
const MOST: u32 = 64;

impl Class {
    pub(super) fn count_taken(&'static self, waited: Duration) {
        if self.number.load(Ordering::Relaxed) == 0 {
            graph().number(self);
        }
        self.taken.fetch_add(1, Ordering::Relaxed);
        self.max_wait.fetch_max(nanoseconds(waited), Ordering::Relaxed);
    }

    pub(super) fn count_held(&self, time: Duration) {
        self.max_hold.fetch_max(nanoseconds(time), Ordering::Relaxed);
    }

    /// Whether this order was seen before, looked up without the graph's mutex.
    fn is_known_before(&self, other: &Class) -> bool {
        match other.number.load(Ordering::Relaxed) {
            0 => false,
            number => self.after.load(Ordering::Relaxed) >> (number - 1) & 1 == 1,
        }
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// All classes, and where each order was first seen.
struct Graph {
    classes: Vec<&'static Class>,
    first: BTreeMap<(u32, u32), Backtrace>,
}

static GRAPH: Mutex<Graph> = Mutex::new(Graph { classes: Vec::new(), first: BTreeMap::new() });

fn graph() -> MutexGuard<'static, Graph> {
    GRAPH.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Notes that `wanted` is taken with `held` held, which are of different classes. An order that
/// contradicts what was noted before is a fault, and is not noted.
pub(super) fn note(held: Held, wanted: Lock) -> Verdict {
    let (before, after) = (held.lock.class(), wanted.class());
    if before.is_known_before(after) { Ok(()) } else { graph().add(held, wanted) }
}

impl Graph {
    fn number(&mut self, class: &'static Class) -> u32 {
        if class.number.load(Ordering::Relaxed) == 0 {
            self.classes.push(class);
            let count = self.classes.len() as u32;
            assert!(count <= MOST, "more than {MOST} classes of locks");
            class.number.store(count, Ordering::Relaxed);
        }
        class.number.load(Ordering::Relaxed) - 1
    }

    fn add(&mut self, held: Held, wanted: Lock) -> Verdict {
        let (from, to) = (self.number(held.lock.class()), self.number(wanted.class()));
        if let Some(path) = self.path(to, from) {
            let first = match path[..] {
                [a, b, ..] => self.first.get(&(a, b)).map(ToString::to_string),
                _ => None,
            };
            let path = path.iter().map(|class| self.classes[*class as usize].name).collect();
            let first = first.unwrap_or_default();
            return Err(Box::new(Fault::Inversion { wanted, held, path, first }));
        }
        held.lock.class().after.fetch_or(1 << to, Ordering::Relaxed);
        // Where is known if RUST_BACKTRACE asks for it; it costs much, but once for each pair.
        self.first.insert((from, to), Backtrace::capture());
        Ok(())
    }

    /// Classes from `from` to `to`, each of which was once taken with the one before it held.
    fn path(&self, from: u32, to: u32) -> Option<Vec<u32>> {
        let mut seen = 1_u64 << from;
        let mut paths = vec![vec![from]];
        while let Some(path) = paths.pop() {
            let last = path[path.len() - 1];
            if last == to {
                return Some(path);
            }
            let after = self.classes[last as usize].after.load(Ordering::Relaxed);
            let new = after & !seen;
            for next in (0..MOST).filter(|next| new >> next & 1 == 1) {
                seen |= 1 << next;
                paths.push(path.iter().copied().chain([next]).collect());
            }
        }
        None
    }
}

/// What is known of each class that was used, in the order of first use.
pub fn figures() -> Vec<ClassFigures> {
    let figures = |class: &&'static Class| ClassFigures {
        name: class.name,
        taken: class.taken.load(Ordering::Relaxed),
        max_wait: Duration::from_nanos(class.max_wait.load(Ordering::Relaxed)),
        max_hold: Duration::from_nanos(class.max_hold.load(Ordering::Relaxed)),
    };
    graph().classes.iter().map(figures).collect()
}
