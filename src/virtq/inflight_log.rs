//! The in-flight log of a queue: what it took and did not give back, for the next process.

use std::collections::VecDeque;

use crate::virtq::elem::{Head, UsedElem};
use crate::virtq::order::Order;
use crate::virtq::region_log::RegionLog;

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

/// The in-flight log of one started ring; decided when it starts.
#[derive(Debug, Default)]
pub(crate) enum InflightLog {
    /// None: requests complete in any order. What a dead process had in flight is lost anyway.
    #[default]
    None,
    /// Only the used index remains, so requests complete in order.
    Order(Order),
    /// The in-flight region remains, so requests complete in any order.
    Region(RegionLog),
}

impl InflightLog {
    /// A batch was taken from the available ring, in this order.
    pub(crate) fn take(&mut self, batch: &VecDeque<Head>) {
        match self {
            InflightLog::None => {}
            InflightLog::Order(order) => batch.iter().for_each(|taken| order.take(taken.index())),
            InflightLog::Region(region_log) => region_log.take(batch),
        }
    }

    /// The rest of what was taken last goes back into the available ring, in the order in which it
    /// was taken.
    pub(crate) fn put_back(&mut self, rest: &VecDeque<Head>) {
        match self {
            InflightLog::None => {}
            InflightLog::Order(order) => order.put_back(rest.len()),
            InflightLog::Region(region_log) => region_log.put_back(rest),
        }
    }

    /// Leaves in `finished` what may be published now.
    pub(crate) fn release(&mut self, finished: &mut Vec<UsedElem>) {
        if let InflightLog::Order(order) = self
            && !finished.is_empty()
        {
            order.release(finished);
        }
    }

    /// Whether this head is finished and waits for its turn to be published.
    pub(crate) fn is_early(&self, head: u16) -> bool {
        matches!(self, InflightLog::Order(order) if order.is_early(head))
    }

    /// The log in the region, if there is one.
    pub(crate) fn region_log(&mut self) -> Option<&mut RegionLog> {
        match self {
            InflightLog::Region(region_log) => Some(region_log),
            _ => None,
        }
    }

    /// Whether an earlier process left requests that are not resubmitted yet.
    pub(crate) fn has_resubmits(&self) -> bool {
        matches!(self, InflightLog::Region(region_log) if region_log.has_resubmits())
    }
}
