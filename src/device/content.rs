//! Slots and the objects they name: the one place where the two meet.
//!
//! What makes the `unsafe` of this file right is one rule: *a slot owns the object that its word names*.
//! The bytes of an object are read while its slot's guard is held ([`Device::held`]); an object that no
//! slot names is a value that owns it ([`NewContent`]), which either becomes a slot's or is freed.
#![allow(unsafe_code)]

use super::{Device, IoError};
use crate::failpoint;
use crate::pool::{Move, Owned, Pool};
use crate::slot::{Content, Damaged, Object, SlotGuard, SlotTable};
use crate::store::Place;

/// A content that no slot has yet. Dropping it frees its object.
pub(super) struct NewContent<'d> {
    content: Content,
    object: Option<Owned<'d>>,
    /// What the object adds to the slot's check sum; 0 if it adds nothing.
    body: u32,
}

impl NewContent<'_> {
    pub(super) const EMPTY: Self = Self { content: Content::Empty, object: None, body: 0 };

    /// A page that repeats a pattern of 4 bytes.
    pub(super) fn same(pattern: u32) -> Self {
        Self { content: Content::Same(pattern), ..Self::EMPTY }
    }
}

impl Device {
    /// A content with an object; `content` says which one, of what is known of the object.
    pub(super) fn content_of<'d>(
        &self,
        object: Owned<'d>,
        content: impl FnOnce(Object) -> Content,
    ) -> NewContent<'d> {
        let bytes = object.bytes();
        let body = self.table.body_sum(bytes);
        let content = content(Object { place: object.place(), length: bytes.len() });
        NewContent { content, object: Some(object), body }
    }

    /// What a locked slot holds: its content, and the bytes of its object (none if it has none).
    ///
    /// # Errors
    /// An earlier process left the slot, and it is not what that had stored.
    #[inline(always)]
    pub(super) fn held<'g>(
        &'g self,
        guard: &'g SlotGuard<'_>,
    ) -> Result<(Content, &'g [u8]), IoError> {
        // SAFETY: the slot owns the object. It is locked while the guard lives, which the slice
        // borrows, so no thread frees or moves the object. The table checks that the guard is its
        // own.
        let bytes = |object: Object| unsafe { self.pool.bytes(object.place, object.length) };
        let index = guard.index();
        self.table.held(guard, bytes).map_err(|Damaged| IoError::Damaged { index })
    }

    /// Puts `new` in place of what the slot holds, in one step, and frees what it held.
    pub(super) fn replace(
        &self,
        guard: SlotGuard<'_>,
        new: NewContent<'_>,
        steps: failpoint::Steps,
    ) {
        let NewContent { content, object, body } = new;
        assert!(object.as_ref().is_none_or(|object| object.is_in(&self.pool)));
        object.map(Owned::into_place);
        // SAFETY: the new object is this function's own until here, and the slot's from now on.
        let replaced = unsafe { self.table.publish(guard, content, body, steps.published) };
        self.figures.local().replace(replaced.old, content);
        if replaced.vacated {
            self.pool.notify();
        }
        if let Some(object) = replaced.old.object() {
            // SAFETY: the slot owned it and names it no more.
            drop(unsafe { self.pool.own(object.place, object.length) });
            failpoint::reach(steps.freed);
        }
    }

    /// Moves the object at `from` to a lower place, if `owner` names it and is not locked.
    ///
    /// The tag that named the owner was read without any lock, so it may be of an object that was
    /// freed since, or be overwritten just now. The slot's word decides: while the slot is locked
    /// no other thread changes or frees what it names.
    pub(super) fn relocate(&self, owner: u32, from: Place) -> Move {
        let Some(guard) = self.table.try_lock(u64::from(owner)) else { return Move::Busy };
        let object = guard.word().content().object().filter(|object| object.place == from);
        let Some(Object { place, length }) = object else { return Move::Busy };
        // Not verified: what was damaged stays so.
        // SAFETY: the slot owns the object and is locked, so no other thread frees or moves it.
        let bytes = unsafe { self.pool.bytes(place, length) };
        let Some(copy) = self.pool.copy_below(place, bytes, owner) else { return Move::NoPlace };
        // The bytes are complete at the new place before the word names it.
        failpoint::reach("compact.copied");
        // SAFETY: the copy is this function's own until here, with the bytes of the slot's object.
        unsafe { self.table.publish_moved(guard, copy.into_place()) };
        failpoint::reach("compact.published");
        // SAFETY: the slot owned it and names it no more, and `bytes` is not used any more.
        unsafe { self.pool.own(place, length) }.free_at_once();
        failpoint::reach("compact.vacated");
        Move::Moved
    }
}

/// Takes over the table of a process that is gone, of whose objects `pool` was rebuilt.
pub(super) fn take_over(table: &mut SlotTable, pool: &Pool) {
    // SAFETY: the slots own the objects, and only this function has either.
    table.take_over(|object| unsafe { pool.bytes(object.place, object.length) });
}
