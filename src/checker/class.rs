//! Locks and their classes, by name.

use std::fmt;
use std::sync::atomic::{AtomicU32, AtomicU64};

/// A class of locks: those that are one as far as order is concerned. A `static`.
#[derive(Debug)]
pub struct Class {
    pub(super) name: &'static str,
    sleepable: bool,
    /// 1 + its number in the graph; 0 while it is in none.
    pub(super) number: AtomicU32,
    /// Classes that were taken while a lock of this one was held, a bit for each.
    pub(super) after: AtomicU64,
    pub(super) taken: AtomicU64,
    pub(super) max_wait: AtomicU64,
    pub(super) max_hold: AtomicU64,
}

impl Class {
    /// A class whose locks are held by threads that do not sleep meanwhile.
    pub const fn mutex(name: &'static str) -> Self {
        Self::new(name, false)
    }

    /// A class whose owners may sleep.
    pub const fn sleepable(name: &'static str) -> Self {
        Self::new(name, true)
    }

    const fn new(name: &'static str, sleepable: bool) -> Self {
        Self {
            name,
            sleepable,
            number: AtomicU32::new(0),
            after: AtomicU64::new(0),
            taken: AtomicU64::new(0),
            max_wait: AtomicU64::new(0),
            max_hold: AtomicU64::new(0),
        }
    }

    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    pub(super) fn is_sleepable(&self) -> bool {
        self.sleepable
    }
}

/// One lock, by name: its class, its address, and a number for people.
#[derive(Clone, Copy)]
pub struct Lock {
    pub(super) class: &'static Class,
    /// What it is part of; see [`super::closed`].
    pub(super) domain: usize,
    pub(super) address: usize,
    pub(super) number: Option<u64>,
}

impl Lock {
    /// The lock at `object`, the `number`th of those in `domain` (an address, too).
    pub fn new<T>(class: &'static Class, domain: usize, object: &T, number: u64) -> Self {
        Self { class, domain, address: (&raw const *object).addr(), number: Some(number) }
    }

    pub(super) fn mutex<T>(class: &'static Class, mutex: &T) -> Self {
        Self { class, domain: 0, address: (&raw const *mutex).addr(), number: None }
    }

    pub(super) fn class(self) -> &'static Class {
        self.class
    }
}

impl PartialEq for Lock {
    fn eq(&self, other: &Self) -> bool {
        self.address == other.address && std::ptr::eq(self.class, other.class)
    }
}

impl Eq for Lock {}

impl fmt::Display for Lock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.number {
            Some(number) => write!(f, "'{}' {number}", self.class.name()),
            None => write!(f, "'{}'", self.class.name()),
        }
    }
}

impl fmt::Debug for Lock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
