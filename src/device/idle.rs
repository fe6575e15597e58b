//! Idle marks: pages that nothing has accessed since they were marked, or for some time before.

use std::time::Duration;

use super::Device;
use crate::slot::{Content, SlotTable, Word};

/// Why pages are not marked by their age.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AgeError {
    /// Nothing is known of when pages were accessed.
    #[error("no times of accesses are kept: start the daemon with --access-times")]
    NotKept,
    /// No age is as old.
    #[error(
        "ages are kept up to {} seconds, so no page can be known to be {seconds} seconds old",
        SlotTable::OLDEST
    )]
    TooOld {
        /// What was asked for.
        seconds: u64,
    },
}

impl Device {
    /// Marks all pages that are objects as idle, while requests continue; what is in use at its moment is not
    /// marked. Each access takes the mark away. With an `age`, only those are marked that were not accessed for so
    /// many seconds, and younger ones are so no longer; 0 is any age. `go_on` is asked every now and then. Returns how many
    /// pages got the mark.
    ///
    /// # Errors
    /// Pages have no such age.
    pub fn mark_idle(
        &self,
        age: Option<u64>,
        mut go_on: impl FnMut() -> bool,
    ) -> Result<u64, AgeError> {
        if age.is_some() && !self.table.has_ages() {
            return Err(AgeError::NotKept);
        }
        if let Some(seconds) = age.filter(|age| *age >= SlotTable::OLDEST) {
            return Err(AgeError::TooOld { seconds });
        }
        let age = age.unwrap_or(0);
        let is_old = |index| age == 0 || self.table.age(index).is_some_and(|it| it >= age);
        let changes = |index, word: Word| {
            matches!(word.content(), Content::Object(..)) && word.is_idle() != is_old(index)
        };
        let reader = self.table.reader();
        let (mut next, mut marked) = (0, 0);
        while next < self.table.len() && go_on() {
            self.look(&mut next, &reader, |index, word| {
                // Under the lock once more: who had it before has stored the time of the access.
                if changes(index, word)
                    && let Some(guard) = self.table.try_lock(index)
                    && changes(index, guard.word())
                {
                    let idle = !guard.word().is_idle();
                    self.table.mark(guard, |word| word.with_idle(idle));
                    marked += u64::from(idle);
                }
                true
            });
        }
        Ok(marked)
    }

    /// Keeps pages that were not accessed for days from seeming young. To be called again after the time that it
    /// returns, or earlier; `None` if no times of accesses are kept.
    pub fn keep_ages(&self) -> Option<Duration> {
        self.table.keep_ages_true()
    }
}
