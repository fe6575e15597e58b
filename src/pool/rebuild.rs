//! A pool from an arena that has objects already, and the table that names them.

use super::class::CLASS;
use super::layout::REGION_BYTES;
use super::objects::Pool;
use super::{RebuildError, raw};
use crate::failpoint;
use crate::store::{Arena, Place, StoreError};
use crate::sync;
use crate::units::PAGE_SIZE;

/// An object that a table names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Named {
    /// Where it lies.
    pub place: Place,
    /// Its length in bytes, 1..=4096.
    pub length: usize,
}

impl Pool {
    /// A pool as [`Pool::new`] makes it, with the objects in it that `visit` names to its argument.
    /// Whatever else is in the arena is given back to the host.
    ///
    /// No object is read: the arena may have many GiB. So tags are as they are; a wrong one
    /// keeps its object from being moved, and no more.
    ///
    /// # Errors
    /// The objects contradict each other, or the arena, which is as it was then; or the host does not say
    /// which pages exist, or does not take back what no object uses.
    pub fn rebuild(
        arena: Arena,
        pages: u64,
        limit: u64,
        visit: impl FnOnce(&mut dyn FnMut(Named)),
    ) -> Result<Self, RebuildError> {
        let pool = Self::new(arena, pages, limit)?;
        let mut found = Ok(());
        visit(&mut |object| {
            if found.is_ok() {
                found = pool.adopt(object);
            }
        });
        found?;
        pool.check_pages()?;
        failpoint::reach("open.checked");
        pool.punch_unused().map_err(|source| StoreError::Release { what: "arena", source })?;
        failpoint::reach("open.trimmed");
        Ok(pool)
    }

    /// Sees that all pages exist that objects lie on.
    fn check_pages(&self) -> Result<(), RebuildError> {
        for class in &self.classes {
            let class = sync::lock_as(&CLASS, class);
            for (offset, len) in class.committed() {
                let exists = self.arena.exists(offset, len);
                if !exists.map_err(|source| StoreError::Look { what: "arena", source })? {
                    return Err(RebuildError::Missing { offset, len });
                }
            }
        }
        Ok(())
    }

    fn adopt(&self, object: Named) -> Result<(), RebuildError> {
        let Named { place, length } = object;
        let fits = |class| {
            place.offset() < self.arena.used() / REGION_BYTES * REGION_BYTES
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
            raw::decommit(&self.arena, offset, len)?;
        }
        // What is behind the last region, with the room for more.
        let rest = self.arena.used() / REGION_BYTES * REGION_BYTES;
        if rest < self.arena.len() {
            raw::decommit(&self.arena, rest, self.arena.len() - rest)?;
        }
        Ok(())
    }
}
