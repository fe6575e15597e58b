//! Places kept at hand, so that threads do not meet on the mutex of a class.

use std::sync::Mutex;

use crate::checker::Class;
use crate::stats;
use crate::store::Place;
use crate::sync;

/// Sets of magazines; a power of two. More threads than this share them, which costs speed only.
const SHARDS: usize = 16;

/// The mutexes of all shards, to the lock checker.
static SHARD: Class = Class::mutex("pool shard");

/// Places that a magazine holds at most.
const MOST: usize = 8;

/// Objects of a class for each place that one magazine may hold: what lies in magazines is memory
/// that is not used.
const OBJECTS_PER_PLACE: u64 = 256;

/// Free places of one class, to be given out last in, first out. To the class they are in use.
#[derive(Debug, Default, Clone)]
pub(super) struct Magazine {
    len: u8,
    limit: u8,
    places: [u64; MOST],
}

impl Magazine {
    pub(super) fn pop(&mut self) -> Option<Place> {
        self.len = self.len.checked_sub(1)?;
        Some(Place::from_units(self.places[usize::from(self.len)]))
    }

    /// Puts a place in; false if it is full.
    pub(super) fn push(&mut self, place: Place) -> bool {
        if self.len >= self.limit {
            return false;
        }
        self.places[usize::from(self.len)] = place.units();
        self.len += 1;
        true
    }

    /// Sets how much it may hold, for a class of this many objects, and returns half of that: how
    /// many places to move between it and the class at a time.
    pub(super) fn resize(&mut self, objects: u64) -> usize {
        self.limit = most_in_one(objects) as u8;
        usize::from(self.limit) / 2
    }
}

/// Places that one magazine of a class of this many objects holds at most.
fn most_in_one(objects: u64) -> u64 {
    (objects / OBJECTS_PER_PLACE).min(MOST as u64)
}

/// One magazine for each class, of one shard of threads. Empty until it is first used.
type Magazines = Vec<Magazine>;

/// The magazines of all threads.
///
/// A shard's mutex comes before the mutex of a class.
pub(super) struct Caches {
    shards: Box<[Shard]>,
    classes: usize,
}

/// Alone in its pair of cache lines.
#[repr(align(128))]
#[derive(Default)]
struct Shard(Mutex<Magazines>);

impl Caches {
    pub(super) fn new(classes: usize) -> Self {
        Self { shards: (0..SHARDS).map(|_| Shard::default()).collect(), classes }
    }

    /// Calls `with` with the calling thread's magazine of a class.
    pub(super) fn with<T>(&self, class: usize, with: impl FnOnce(&mut Magazine) -> T) -> T {
        let mut magazines = sync::lock_as(&SHARD, &self.shards[stats::thread_number() % SHARDS].0);
        if magazines.is_empty() {
            magazines.resize(self.classes, Magazine::default());
        }
        with(&mut magazines[class])
    }

    /// Empties all magazines, those of other threads too.
    pub(super) fn drain(&self, mut give_back: impl FnMut(usize, Place)) {
        for shard in &self.shards {
            for (class, magazine) in sync::lock_as(&SHARD, &shard.0).iter_mut().enumerate() {
                while let Some(place) = magazine.pop() {
                    give_back(class, place);
                }
            }
        }
    }

    /// Places that the caches of all threads hold at most if all of `objects` objects are of one class.
    pub(super) fn most_places(objects: u64) -> u64 {
        SHARDS as u64 * most_in_one(objects)
    }

    /// Most bytes of heap for this many classes.
    pub(super) fn most_heap(classes: usize) -> u64 {
        (SHARDS * (classes * size_of::<Magazine>() + size_of::<Shard>())) as u64
    }

    pub(super) fn heap_bytes(&self) -> u64 {
        let magazines: usize =
            self.shards.iter().map(|shard| sync::lock_as(&SHARD, &shard.0).capacity()).sum();
        (magazines * size_of::<Magazine>() + size_of_val(&*self.shards)) as u64
    }

    /// Places in all magazines.
    #[cfg(test)]
    pub(super) fn len(&self) -> u64 {
        let in_shard = |shard: &Shard| -> u64 {
            sync::lock_as(&SHARD, &shard.0).iter().map(|magazine| u64::from(magazine.len)).sum()
        };
        self.shards.iter().map(in_shard).sum()
    }
}
