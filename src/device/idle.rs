//! Idle marks: pages that nothing has accessed since they were marked.

use super::Device;
use crate::slot::{Content, Word};

impl Device {
    /// Marks all pages that are objects as idle, while requests continue; what is in use at its moment is not
    /// marked. Each access takes the mark away. `go_on` is asked every now and then. Returns how many pages got
    /// the mark.
    pub fn mark_idle(&self, mut go_on: impl FnMut() -> bool) -> u64 {
        let reader = self.table.reader();
        let (mut next, mut marked) = (0, 0);
        while next < self.table.len() && go_on() {
            self.look(&mut next, &reader, |index, word| {
                let can_be =
                    |word: Word| matches!(word.content(), Content::Object(..)) && !word.is_idle();
                if can_be(word)
                    && let Some(guard) = self.table.try_lock(index)
                    && can_be(guard.word())
                {
                    self.table.mark(guard, |word| word.with_idle(true));
                    marked += 1;
                }
                true
            });
        }
        marked
    }
}
