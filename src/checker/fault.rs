//! What the checker finds, and how it says so.

use std::fmt;

use super::class::Lock;

/// The owner of a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Holder {
    Thread(u64),
    Task(u64),
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Holder::Thread(number) => write!(f, "thread {number}"),
            Holder::Task(number) => write!(f, "task {number}"),
        }
    }
}

/// A lock that is held, as it is named in a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) lock: Lock,
    /// None: it was given away and is on its way.
    pub(super) holder: Option<Holder>,
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.holder {
            Some(holder) => write!(f, "{} (held by {holder})", self.lock),
            None => write!(f, "{} (given away)", self.lock),
        }
    }
}

/// A rule that was broken.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error(
        "inversion: {wanted} is taken with {held} held, but before, '{}' was taken in this \
         order: {}\nthe other order was first seen at:\n{first}",
        .held.lock.class().name(), .path.join(" > ")
    )]
    Inversion { wanted: Lock, held: Held, path: Vec<&'static str>, first: String },
    #[error("inversion: {wanted} is taken with {held} held, which comes after it")]
    Descending { wanted: Lock, held: Held },
    #[error("recursion: the owner of {wanted} wants it again")]
    Recursion { wanted: Lock },
    #[error("two owners: {lock} is taken, but there is an owner: {held}")]
    TwoOwners { lock: Lock, held: Held },
    #[error("not held: {lock} is released, but it has no owner")]
    NotHeld { lock: Lock },
    #[error("leak: {what} is over, and never released {held}")]
    Leak { what: &'static str, held: Held },
    #[error("may sleep: {what}, with {held}")]
    MaySleep { what: &'static str, held: Held },
    #[error("may not hold: {what}, with {held}")]
    MayNotHold { what: &'static str, held: Held },
}

/// What a check says; boxed, since nearly all of them say nothing.
pub(super) type Verdict = Result<(), Box<Fault>>;

/// Panics with the fault, if there is one; a thread that panics already has it logged.
pub(super) fn report(result: Verdict) {
    let Err(fault) = result else { return };
    if std::thread::panicking() {
        log::error!("lock checker: {fault}");
    } else {
        panic!("lock checker: {fault}");
    }
}
