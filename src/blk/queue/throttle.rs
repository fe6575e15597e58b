//! A queue and the disk's rate limits: it asks before it begins a request. If it has to wait, that request and
//! those behind it stay in the available ring, so nothing is in flight that a stop would have to wait for.
//!
//! A queue that waits has no turn for its ring before it is due, however often its driver kicks. What was begun
//! before is finished and published meanwhile.

use std::time::Duration;

use super::QueueServer;
use crate::blk::request::Request;
use crate::clock;
use crate::device::Op;
use crate::rates::{Demand, Wait};

/// A queue that waits for a rate limit, with the request that is the next one of its ring.
#[derive(Debug)]
pub(super) struct Throttled {
    demand: Demand,
    wait: Wait,
    since: Duration,
    /// Nothing is taken before the queue has asked again.
    held: bool,
}

/// What a request takes of the limits, if it is one that has limits.
fn demand(request: &Request) -> Option<Demand> {
    match request {
        Request::Io { op: Op::Read, bytes, .. } => Some(Demand::Read(*bytes)),
        Request::Io { op: Op::Write, bytes, .. } => Some(Demand::Write(*bytes)),
        // No data is moved, whatever the range.
        Request::Io { op: Op::Discard | Op::WriteZeroes, .. } => Some(Demand::Write(0)),
        Request::Flush { .. } | Request::GetId { .. } | Request::Refused { .. } => None,
    }
}

impl QueueServer<'_> {
    /// A turn begins: sees whether there are limits, and whether the queue has to wait still.
    pub(super) fn look_at_limits(&mut self) {
        let version = self.shared.throttle.version();
        self.limited = version != 0;
        if !self.limited {
            return self.wait_no_more();
        }
        let Some(Throttled { demand, wait, held: true, .. }) = self.throttled else { return };
        if wait.version == version {
            let now = clock::since_start();
            if now < wait.until || !self.asks(demand, now) {
                return;
            }
        }
        if let Some(throttled) = &mut self.throttled {
            throttled.held = false;
        }
    }

    /// Whether nothing is taken from the ring before [`Self::waits_until`].
    pub(super) fn is_held(&self) -> bool {
        self.throttled.as_ref().is_some_and(|throttled| throttled.held)
    }

    /// When the queue needs a turn because of a rate limit.
    pub(crate) fn waits_until(&self) -> Option<Duration> {
        self.throttled.as_ref().filter(|throttled| throttled.held).map(|held| held.wait.until)
    }

    /// Whether a request may begin now. It is paid for then.
    pub(super) fn may_begin(&mut self, request: &Request, now: Duration) -> bool {
        let Some(demand) = demand(request) else { return true };
        let caller = self.caller.get_or_insert_with(|| self.mailbox.caller(self.index));
        match self.shared.throttle.take(self.index, demand, now, || caller.clone()) {
            Ok(()) => {
                self.has_waited(now);
                true
            }
            Err(wait) => {
                self.has_to_wait(demand, wait, now);
                false
            }
        }
    }

    /// Whether the next request might begin now, by what it was.
    fn asks(&mut self, demand: Demand, now: Duration) -> bool {
        let caller = self.caller.get_or_insert_with(|| self.mailbox.caller(self.index));
        let asked = self.shared.throttle.ask(self.index, demand, now, || caller.clone());
        asked.map_err(|wait| self.has_to_wait(demand, wait, now)).is_ok()
    }

    fn has_to_wait(&mut self, demand: Demand, wait: Wait, now: Duration) {
        let since = self.throttled.as_ref().map(|throttled| throttled.since);
        if since.is_none() {
            self.shared.device.figures().throttled_requests.inc();
        }
        let since = since.unwrap_or(now);
        self.throttled = Some(Throttled { demand, wait, since, held: true });
    }

    /// The queue takes no more heads, or there is no limit any more.
    pub(super) fn wait_no_more(&mut self) {
        if self.throttled.is_some() {
            self.shared.throttle.leave(self.index);
            self.has_waited(clock::since_start());
        }
    }

    fn has_waited(&mut self, now: Duration) {
        if let Some(Throttled { since, .. }) = self.throttled.take() {
            self.shared.device.figures().throttled(now.saturating_sub(since));
        }
    }
}
