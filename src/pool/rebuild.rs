//! A pool from an arena that has objects already, and the table that names them.

use std::sync::atomic::Ordering;

use super::RebuildError;
use super::class::CLASS;
use super::layout::REGION_BYTES;
use super::objects::Pool;
use crate::store::{Arena, Place};
use crate::sync;
use crate::units::PAGE_SIZE;

/// An object that a table names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Named {
    /// The number of the slot that names it.
    pub owner: u32,
    /// Where it lies.
    pub place: Place,
    /// Its length in bytes, 1..=4096.
    pub length: usize,
}

impl Pool {
    /// A pool as [`Pool::new`] makes it, with the objects in it that `visit` names to its argument.
    /// Whatever else is in the arena is given back to the host.
    ///
    /// `visit` is called twice, and has to name the same objects both times.
    ///
    /// # Errors
    /// The objects contradict each other, or the arena.
    pub fn rebuild(
        arena: Arena,
        pages: u64,
        limit: u64,
        visit: impl Fn(&mut dyn FnMut(Named)),
    ) -> Result<Self, RebuildError> {
        let pool = Self::new(arena, pages, limit);
        let mut adopted = Ok(());
        visit(&mut |object| {
            if adopted.is_ok() {
                adopted = pool.adopt(object);
            }
        });
        adopted?;
        pool.punch_unused().map_err(|error| RebuildError::Trim(error.to_string()))?;
        let (committed, exists) = (pool.budget.committed(), pool.arena.allocated_bytes());
        if exists < committed {
            return Err(RebuildError::Missing { missing: committed - exists });
        }
        // Only now: looking at a page that does not exist would make it exist.
        visit(&mut |object| {
            let tag = pool.arena.tag(object.place);
            if tag.load(Ordering::Relaxed) != object.owner {
                tag.store(object.owner, Ordering::Relaxed);
            }
        });
        Ok(pool)
    }

    fn adopt(&self, object: Named) -> Result<(), RebuildError> {
        let Named { place, length, .. } = object;
        let fits = |class| {
            place.offset() < self.arena.len() / REGION_BYTES * REGION_BYTES
                && self.kinds.shape(class).position(place).is_some()
        };
        match length {
            1..=PAGE_SIZE if fits(self.kinds.of(length)) => {
                sync::lock_as(&CLASS, &self.classes[self.kinds.of(length)])
                    .adopt(place, self.common())
            }
            _ => Err(RebuildError::Place { offset: place.offset(), length }),
        }
    }

    fn punch_unused(&self) -> std::io::Result<()> {
        for class in &self.classes {
            sync::lock_as(&CLASS, class).punch_unused(self.common())?;
        }
        for (offset, len) in self.regions.unowned() {
            self.arena.decommit(offset, len)?;
        }
        // The end of the arena that is too short for a region.
        let rest = self.arena.len() / REGION_BYTES * REGION_BYTES;
        if rest < self.arena.len() {
            self.arena.decommit(rest, self.arena.len() - rest)?;
        }
        Ok(())
    }
}
