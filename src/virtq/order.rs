//! Completions in the order in which heads were taken.
//!
//! When a disk outlives its process, the next process resumes each ring at its used index. The used index
//! tells which requests are still to be done only if requests complete in order; otherwise an in-flight
//! region has to tell it. Without a region, requests that are finished early wait here.

use std::collections::VecDeque;

use crate::virtq::elem::UsedElem;

/// The order of one queue's requests.
#[derive(Debug)]
pub(crate) struct Order {
    /// Heads that were taken and not published, the earliest first.
    turns: VecDeque<u16>,
    /// By head: finished before its turn.
    early: Vec<Option<UsedElem>>,
}

impl Order {
    /// The order of a ring of `size`.
    pub(crate) fn new(size: u16) -> Self {
        let mut early = Vec::new();
        early.resize_with(usize::from(size), || None);
        Self { turns: VecDeque::with_capacity(usize::from(size)), early }
    }

    /// A head was taken.
    pub(crate) fn take(&mut self, head: u16) {
        self.turns.push_back(head);
    }

    /// The last `count` heads were put back, also those that are finished.
    pub(crate) fn put_back(&mut self, count: usize) {
        for head in self.turns.drain(self.turns.len().saturating_sub(count)..) {
            self.early[usize::from(head)] = None;
        }
    }

    /// Whether this head is finished before its turn.
    pub(crate) fn is_early(&self, head: u16) -> bool {
        self.early.get(usize::from(head)).is_some_and(Option::is_some)
    }

    /// Leaves in `finished` what may be published now, in order. The rest comes with a later call.
    pub(crate) fn release(&mut self, finished: &mut Vec<UsedElem>) {
        for finished in finished.drain(..) {
            let place = usize::from(finished.head);
            self.early[place] = Some(finished);
        }
        while let Some(head) = self.turns.front()
            && let Some(next) = self.early[usize::from(*head)].take()
        {
            finished.push(next);
            self.turns.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::virtq::elem::Head;

    const NONE: [u16; 0] = [];

    fn finished(head: u16) -> UsedElem {
        Head::new(head).finish(u32::from(head) + 1)
    }

    fn release(order: &mut Order, heads: &[u16]) -> Vec<u16> {
        let mut batch = heads.iter().map(|head| finished(*head)).collect();
        order.release(&mut batch);
        assert!(batch.iter().all(|done| done.written == u32::from(done.head) + 1));
        batch.into_iter().map(|done| done.head).collect()
    }

    #[test]
    fn what_is_early_waits_for_what_is_late() {
        let mut order = Order::new(8);
        [5, 2, 7].into_iter().for_each(|head| order.take(head));
        assert_eq!(release(&mut order, &[7]), NONE);
        assert_eq!(release(&mut order, &[2]), NONE);
        assert_eq!(release(&mut order, &[5]), [5, 2, 7]);
        order.take(2);
        assert_eq!(release(&mut order, &[2]), [2]);
    }

    #[test]
    fn what_is_put_back_has_no_turn() {
        let mut order = Order::new(8);
        [0, 1, 2, 3].into_iter().for_each(|head| order.take(head));
        order.put_back(2);
        assert_eq!(release(&mut order, &[1, 0]), [0, 1]);
        [2, 3].into_iter().for_each(|head| order.take(head));
        assert_eq!(release(&mut order, &[3]), NONE);
        assert_eq!(release(&mut order, &[2]), [2, 3]);
    }

    proptest! {
        /// Whatever the order in which heads are taken, put back and finished, all of them are
        /// released in the order in which they were taken.
        #[test]
        fn all_is_released_in_order(steps in prop::collection::vec((0..4_u8, any::<prop::sample::Index>()), 1..200)) {
            const SIZE: u16 = 8;
            let mut order = Order::new(SIZE);
            let mut free: Vec<u16> = (0..SIZE).collect();
            // Head and not finished; taken and not released.
            let (mut running, mut owed) = (Vec::new(), VecDeque::new());
            let give = |order: &mut Order, heads: &[u16], owed: &mut VecDeque<u16>| {
                let released = release(order, heads);
                for head in &released {
                    assert_eq!(owed.pop_front(), Some(*head));
                }
                released
            };
            for (step, pick) in steps {
                match step {
                    0 | 1 if !free.is_empty() => {
                        let head = free.swap_remove(pick.index(free.len()));
                        order.take(head);
                        running.push(head);
                        owed.push_back(head);
                    }
                    2 if running.last().is_some() && running.last() == owed.back() => {
                        order.put_back(1);
                        free.extend(running.pop());
                        owed.pop_back();
                    }
                    3 if !running.is_empty() => {
                        let head = running.remove(pick.index(running.len()));
                        free.extend(give(&mut order, &[head], &mut owed));
                    }
                    _ => {}
                }
            }
            running.reverse();
            give(&mut order, &running, &mut owed);
            prop_assert!(owed.is_empty(), "{owed:?}");
        }
    }
}
