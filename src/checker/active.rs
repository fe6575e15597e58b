//! The checker where it is on: the locks that are held, their owners, and what happens to them.
//!
//! Mutexes are noted with the thread that locked them. Guards stand in one list of all that are
//! held, by the address of their lock, since any thread may release them. That list has a mutex
//! of its own, under which nothing else is locked.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::class::{Class, Lock};
use super::fault::{Fault, Held, Holder, Verdict, report};
use super::graph::note;

/// When a wait began.
#[derive(Debug, Clone, Copy)]
pub struct Stopwatch(Instant);

impl Stopwatch {
    /// Now.
    pub fn start() -> Self {
        Self(Instant::now())
    }
}

/// A guard that is held.
struct Entry {
    held: Held,
    since: Instant,
}

static TICKETS: Mutex<BTreeMap<usize, Entry>> = Mutex::new(BTreeMap::new());

fn guards() -> MutexGuard<'static, BTreeMap<usize, Entry>> {
    TICKETS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How many guards are held. A thread that holds one sees at least that one, so at 0 the list need
/// not be read.
static HELD: AtomicUsize = AtomicUsize::new(0);

/// Numbers of threads and tasks.
static NEXT: AtomicU64 = AtomicU64::new(1);

/// What the calling thread is at.
struct Here {
    thread: u64,
    /// Tasks whose turn it is, the innermost last.
    tasks: Vec<u64>,
    mutexes: Vec<Lock>,
    /// How many times it waits for a task to be done.
    waits: u32,
}

thread_local! {
    static HERE: RefCell<Here> = RefCell::new(Here {
        thread: NEXT.fetch_add(1, Ordering::Relaxed),
        tasks: Vec::new(),
        mutexes: Vec::new(),
        waits: 0,
    });
}

/// Calls `with` unless the thread is at its very end, where nothing is checked any more.
fn here<T: Default>(with: impl FnOnce(&mut Here) -> T) -> T {
    HERE.try_with(|here| with(&mut here.borrow_mut())).unwrap_or_default()
}

impl Here {
    fn holder(&self) -> Holder {
        self.tasks.last().map_or(Holder::Thread(self.thread), |task| Holder::Task(*task))
    }

    /// Whether it is this holder that waits, if it waits here for something.
    fn is_held_up(&self, holder: Holder, blocks: bool) -> bool {
        match holder {
            Holder::Task(task) if blocks => self.tasks.contains(&task),
            Holder::Task(task) => self.tasks.last() == Some(&task),
            Holder::Thread(thread) => blocks && thread == self.thread,
        }
    }

    /// What is held by the owner that waits here. `blocks`: the whole thread waits.
    fn held_up(&self, blocks: bool) -> Vec<Held> {
        let holder = Some(Holder::Thread(self.thread));
        let mutexes = self.mutexes.iter().map(|lock| Held { lock: *lock, holder });
        let is_ours = |held: &Held| held.holder.is_some_and(|by| self.is_held_up(by, blocks));
        if HELD.load(Ordering::Relaxed) == 0 {
            return mutexes.collect();
        }
        let guards = guards();
        mutexes.chain(guards.values().map(|entry| entry.held).filter(is_ours)).collect()
    }

    /// Checks an attempt to take a lock, which may have to wait for it.
    fn check_order(&self, wanted: Lock, blocks: bool) -> Verdict {
        if self.mutexes.is_empty() && HELD.load(Ordering::Relaxed) == 0 {
            return Ok(());
        }
        for held in self.held_up(blocks) {
            if held.lock == wanted {
                return Err(Box::new(Fault::Recursion { wanted }));
            }
            if !std::ptr::eq(held.lock.class, wanted.class) {
                note(held, wanted)?;
            } else if held.lock.address > wanted.address {
                return Err(Box::new(Fault::Descending { wanted, held }));
            }
        }
        Ok(())
    }
}

/// The owner that has the turn is about to wait for a lock, or would wait if it were taken. What
/// only tries to take a lock does not wait, and does not call this.
pub fn wants(lock: Lock) {
    report(here(|here| Some(here.check_order(lock, here.waits > 0))).unwrap_or(Ok(())));
}

/// The owner that has the turn has taken a lock, for which it waited since `since`.
pub fn taken(lock: Lock, since: Stopwatch) {
    let now = Instant::now();
    lock.class.count_taken(now - since.0);
    let holder = here(|here| Some(here.holder()));
    let entry = Entry { held: Held { lock, holder }, since: now };
    let before = guards().insert(lock.address, entry);
    if before.is_none() {
        HELD.fetch_add(1, Ordering::Relaxed);
    }
    report(
        before.map_or(Ok(()), |before| Err(Box::new(Fault::TwoOwners { lock, held: before.held }))),
    );
}

/// The lock is about to be released, by any thread: it must be called before another thread can
/// have it.
pub fn released(lock: Lock) {
    let entry = guards().remove(&lock.address);
    report(match entry {
        Some(entry) => {
            HELD.fetch_sub(1, Ordering::Relaxed);
            lock.class.count_held(entry.since.elapsed());
            Ok(())
        }
        None => Err(Box::new(Fault::NotHeld { lock })),
    });
}

/// What the locks of this domain guard is gone, so none of them may be held any more.
pub fn closed(domain: usize) {
    report(leak("what its lock guards", |held| held.lock.domain == domain));
}

/// Takes all guards that match off the list. If there was one, that is a leak.
fn leak(what: &'static str, matches: impl Fn(&Held) -> bool) -> Verdict {
    let mut first = None;
    if HELD.load(Ordering::Relaxed) == 0 {
        return Ok(());
    }
    guards().retain(|_, entry| {
        let leaked = matches(&entry.held);
        HELD.fetch_sub(usize::from(leaked), Ordering::Relaxed);
        if leaked && first.is_none() {
            first = Some(entry.held);
        }
        !leaked
    });
    first.map_or(Ok(()), |held| Err(Box::new(Fault::Leak { what, held })))
}

/// The calling thread may sleep here: it must not hold a lock of a class whose owners may not.
pub fn might_sleep(what: &'static str) {
    let held = here(|here| here.held_up(true).into_iter().find(|h| !h.lock.class.is_sleepable()));
    report(held.map_or(Ok(()), |held| Err(Box::new(Fault::MaySleep { what, held }))));
}

/// Here the calling thread, and the task whose turn it is, must not hold any lock.
pub fn may_not_hold(what: &'static str) {
    let held = here(|here| here.held_up(true).into_iter().next());
    report(held.map_or(Ok(()), |held| Err(Box::new(Fault::MayNotHold { what, held }))));
}

/// Something that is polled and that may keep a guard from one turn to the next. What it holds
/// when it is dropped is leaked, so it has to be dropped after its guards.
#[derive(Debug)]
pub struct Task(u64);

impl Default for Task {
    fn default() -> Self {
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

impl Task {
    /// The calling thread polls it, until what is returned is dropped.
    pub fn enter(&self) -> Turn {
        let mutexes = here(|here| {
            here.tasks.push(self.0);
            here.mutexes.len()
        });
        Turn { mutexes, thread: PhantomData }
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        let holder = Some(Holder::Task(self.0));
        report(leak("a task", |held| held.holder == holder));
    }
}

/// A task's turn on a thread.
#[derive(Debug)]
#[must_use = "the turn ends when this is dropped"]
pub struct Turn {
    /// Locked when it began.
    mutexes: usize,
    thread: PhantomData<*const ()>,
}

impl Drop for Turn {
    /// A task that sleeps keeps guards, but not a mutex.
    fn drop(&mut self) {
        let kept = here(|here| {
            here.tasks.pop();
            let holder = Some(Holder::Thread(here.thread));
            here.mutexes.get(self.mutexes).map(|lock| Held { lock: *lock, holder })
        });
        let what = "the end of a task's turn";
        report(kept.map_or(Ok(()), |held| Err(Box::new(Fault::MayNotHold { what, held }))));
    }
}

/// A lock held by a thread, to lie beside the mutex's guard.
#[derive(Debug)]
#[must_use = "the lock counts as released when this is dropped"]
pub struct Bound {
    lock: Lock,
    since: Instant,
    thread: PhantomData<*const ()>,
}

impl Bound {
    /// The calling thread is about to lock the mutex, and waits until it has.
    pub fn wants<T>(class: &'static Class, mutex: &T) -> Self {
        let lock = Lock::mutex(class, mutex);
        report(here(|here| Some(here.check_order(lock, true))).unwrap_or(Ok(())));
        Self::push(lock)
    }

    /// The calling thread tried to lock the mutex, and did.
    pub fn tried<T>(class: &'static Class, mutex: &T) -> Self {
        let mut bound = Self::push(Lock::mutex(class, mutex));
        bound.taken();
        bound
    }

    fn push(lock: Lock) -> Self {
        here(|here| here.mutexes.push(lock));
        Self { lock, since: Instant::now(), thread: PhantomData }
    }

    /// The mutex is locked.
    pub fn taken(&mut self) {
        let now = Instant::now();
        self.lock.class.count_taken(now - self.since);
        self.since = now;
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        self.lock.class.count_held(self.since.elapsed());
        here(|here| {
            // Not always the last: guards are dropped in any order.
            if let Some(at) = here.mutexes.iter().rposition(|lock| *lock == self.lock) {
                here.mutexes.remove(at);
            }
        });
    }
}

/// A thread that sleeps until a task is done: what it holds is held up by what the task waits for.
#[derive(Debug)]
#[must_use = "the thread waits until this is dropped"]
pub struct Waits(PhantomData<*const ()>);

impl Waits {
    /// The calling thread does nothing else until this is dropped.
    pub fn begin() -> Self {
        might_sleep("waiting for a task");
        here(|here| here.waits += 1);
        Self(PhantomData)
    }
}

impl Drop for Waits {
    fn drop(&mut self) {
        here(|here| here.waits -= 1);
    }
}
