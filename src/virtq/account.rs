//! How a queue accounts for what it took, so that the next process can go on where it died.

use std::collections::VecDeque;

use crate::virtq::elem::{Finished, Taken};
use crate::virtq::ledger::Ledger;
use crate::virtq::order::Order;

/// How a ring records what it has in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Record {
    /// In its part of the in-flight region.
    Region,
    /// In its used index: requests complete in the order in which they were taken.
    Order,
    /// Not at all.
    None,
}

/// The account of one started ring; decided when it starts.
#[derive(Debug, Default)]
pub(crate) enum Account {
    /// None: completions come in any order, and what a dead process leaves is lost anyway.
    #[default]
    None,
    /// The used index is all that remains, so completions come in order.
    Ordered(Order),
    /// The in-flight region remains: completions come in any order.
    Tracked(Ledger),
}

impl Account {
    /// A batch was taken from the available ring, in this order.
    pub(crate) fn take(&mut self, batch: &VecDeque<Taken>) {
        match self {
            Account::None => {}
            Account::Ordered(order) => batch.iter().for_each(|taken| order.take(taken.head())),
            Account::Tracked(ledger) => ledger.take(batch),
        }
    }

    /// The rest of what was taken last goes back into the available ring, in the order in which it
    /// was taken.
    pub(crate) fn put_back(&mut self, rest: &VecDeque<Taken>) {
        match self {
            Account::None => {}
            Account::Ordered(order) => order.put_back(rest.len()),
            Account::Tracked(ledger) => ledger.put_back(rest),
        }
    }

    /// Leaves in `finished` what may be published now.
    pub(crate) fn release(&mut self, finished: &mut Vec<Finished>) {
        if let Account::Ordered(order) = self
            && !finished.is_empty()
        {
            order.release(finished);
        }
    }

    /// Whether this head is finished and waits for its turn to be published.
    pub(crate) fn is_early(&self, head: u16) -> bool {
        matches!(self, Account::Ordered(order) if order.is_early(head))
    }

    /// The ledger, if there is one.
    pub(crate) fn ledger(&mut self) -> Option<&mut Ledger> {
        match self {
            Account::Tracked(ledger) => Some(ledger),
            _ => None,
        }
    }

    /// Whether an earlier process left requests that are not begun again yet.
    pub(crate) fn has_again(&self) -> bool {
        matches!(self, Account::Tracked(ledger) if ledger.has_again())
    }
}
