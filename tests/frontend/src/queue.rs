//! A ring with its event descriptors and the driver's side of the notification rules.

use std::{
    os::fd::{AsFd, BorrowedFd},
    sync::{
        Arc,
        atomic::{Ordering, fence},
    },
    time::{Duration, Instant},
};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::{
    error::{Error, Result, io_err},
    fd::borrow,
    memory::Region,
    ring::{Ring, Used},
    spec::{AVAIL_NO_INTERRUPT, USED_NO_NOTIFY},
    wire::wait_readable,
};

/// An eventfd that can be waited for with a deadline.
#[derive(Debug)]
pub struct Event(EventFd);

impl Event {
    /// Makes a non-blocking eventfd with count 0.
    ///
    /// # Errors
    ///
    /// When the process has no descriptor left.
    pub fn new() -> Result<Self> {
        EventFd::new(EFD_NONBLOCK).map(Self).map_err(io_err("eventfd"))
    }

    /// The eventfd.
    pub fn fd(&self) -> &EventFd {
        &self.0
    }

    /// Adds 1.
    ///
    /// # Errors
    ///
    /// When the count is saturated.
    pub fn signal(&self) -> Result<()> {
        self.0.write(1).map_err(io_err("eventfd write"))
    }

    /// Takes the count; 0 when no signal came.
    pub fn take(&self) -> u64 {
        self.0.read().unwrap_or(0)
    }

    /// Waits for a signal and takes the count.
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`] when none comes.
    pub fn wait(&self, what: &'static str, timeout: Duration) -> Result<u64> {
        wait_readable(self, Instant::now() + timeout, what, timeout)?;
        Ok(self.take())
    }
}

impl AsFd for Event {
    fn as_fd(&self) -> BorrowedFd<'_> {
        borrow(&self.0)
    }
}

/// What a back end has to be told of a queue: its ring and its events. It can be cloned and kept while
/// the queue is used by another thread, to be given to the next back end.
#[derive(Debug, Clone)]
pub struct Wiring {
    index: usize,
    ring: Ring,
    kick: Arc<Event>,
    call: Arc<Event>,
    err: Arc<Event>,
}

impl Wiring {
    /// Queue index.
    pub fn index(&self) -> usize {
        self.index
    }

    /// The ring.
    pub fn ring(&self) -> &Ring {
        &self.ring
    }

    /// Kick descriptor: driver to device.
    pub fn kick_event(&self) -> &Event {
        &self.kick
    }

    /// Call descriptor: device to driver, the interrupt.
    pub fn call_event(&self) -> &Event {
        &self.call
    }

    /// Error descriptor: device to driver, the ring is broken.
    pub fn err_event(&self) -> &Event {
        &self.err
    }

    /// Takes all counts out of the events, as if the signals had died with a back end.
    pub fn silence(&self) {
        for event in [&self.kick, &self.call, &self.err] {
            event.take();
        }
    }
}

/// A virtqueue from the driver's side. Heads are pushed, published in batches and popped when used;
/// whether the device is kicked follows EVENT_IDX or the flags.
#[derive(Debug)]
pub struct Queue {
    wiring: Wiring,
    event_idx: bool,
    /// Avail index including what is not published yet.
    pushed: u16,
    /// Avail index as published.
    published: u16,
    /// Used index up to which elements were popped.
    popped: u16,
    /// Used index last seen, to read the shared word only when that is exhausted.
    seen: u16,
}

impl Queue {
    /// Makes queue `index` with a ring of `size` entries in `region`. `event_idx` tells whether that
    /// feature was negotiated.
    ///
    /// # Errors
    ///
    /// When the region has no room.
    pub fn new(index: usize, region: &Arc<Region>, size: u16, event_idx: bool) -> Result<Self> {
        Self::with_ring(index, Ring::new(region, size)?, event_idx)
    }

    /// The same around a ring made elsewhere.
    ///
    /// # Errors
    ///
    /// When the process has no descriptor left.
    pub fn with_ring(index: usize, ring: Ring, event_idx: bool) -> Result<Self> {
        let event = || Event::new().map(Arc::new);
        let wiring = Wiring { index, ring, kick: event()?, call: event()?, err: event()? };
        let (pushed, published, popped, seen) = (0, 0, 0, 0);
        Ok(Self { wiring, event_idx, pushed, published, popped, seen })
    }

    /// Ring and events.
    pub fn wiring(&self) -> &Wiring {
        &self.wiring
    }

    /// Queue index.
    pub fn index(&self) -> usize {
        self.wiring.index
    }

    /// The ring.
    pub fn ring(&self) -> &Ring {
        &self.wiring.ring
    }

    /// Kick descriptor: driver to device.
    pub fn kick_event(&self) -> &Event {
        &self.wiring.kick
    }

    /// Call descriptor: device to driver, the interrupt.
    pub fn call_event(&self) -> &Event {
        &self.wiring.call
    }

    /// Error descriptor: device to driver, the ring is broken.
    pub fn err_event(&self) -> &Event {
        &self.wiring.err
    }

    /// Whether EVENT_IDX is followed.
    pub fn event_idx(&self) -> bool {
        self.event_idx
    }

    /// Elements published and not yet popped.
    pub fn in_flight(&self) -> u16 {
        self.published.wrapping_sub(self.popped)
    }

    /// Avail index after all that was pushed.
    pub fn avail_idx(&self) -> u16 {
        self.pushed
    }

    /// Used index up to which elements were popped.
    pub fn used_idx(&self) -> u16 {
        self.popped
    }

    /// Forgets everything and zeroes the ring, as a driver does after a device reset.
    ///
    /// # Errors
    ///
    /// When the ring lies outside its region.
    pub fn reset(&mut self) -> Result<()> {
        self.wiring.ring.clear()?;
        (self.pushed, self.published, self.popped, self.seen) = (0, 0, 0, 0);
        Ok(())
    }

    /// Puts a chain's head into the avail ring without publishing it.
    ///
    /// # Errors
    ///
    /// When the ring lies outside its region.
    #[inline]
    pub fn push(&mut self, head: u16) -> Result<()> {
        self.wiring.ring.set_avail(self.pushed, head)?;
        self.pushed = self.pushed.wrapping_add(1);
        Ok(())
    }

    /// Publishes everything pushed and kicks if the device asks for it. Returns whether it did.
    ///
    /// # Errors
    ///
    /// When the ring lies outside its region or the kick cannot be sent.
    #[inline]
    pub fn publish(&mut self) -> Result<bool> {
        let (old, new) = (self.published, self.pushed);
        if old == new {
            return Ok(false);
        }
        self.wiring.ring.set_avail_idx(new)?;
        self.published = new;
        // The index must be visible before the device's wish is read, or both sides could sleep.
        fence(Ordering::SeqCst);
        let wanted = if self.event_idx {
            need_event(self.wiring.ring.avail_event()?, new, old)
        } else {
            self.wiring.ring.used_flags()? & USED_NO_NOTIFY == 0
        };
        if wanted {
            self.wiring.kick.signal()?;
        }
        Ok(wanted)
    }

    /// Publishes everything pushed without a kick, whatever the device asks for.
    ///
    /// # Errors
    ///
    /// When the ring lies outside its region.
    pub fn publish_quietly(&mut self) -> Result<()> {
        self.published = self.pushed;
        self.wiring.ring.set_avail_idx(self.pushed)
    }

    /// Kicks, asked for or not.
    ///
    /// # Errors
    ///
    /// When the kick cannot be sent.
    pub fn kick(&self) -> Result<()> {
        self.wiring.kick.signal()
    }

    /// Takes the next used element, if there is one.
    ///
    /// # Errors
    ///
    /// When the device has used more than was published.
    #[inline]
    pub fn pop(&mut self) -> Result<Option<Used>> {
        if self.popped == self.seen {
            self.seen = self.wiring.ring.used_idx()?;
            if self.popped == self.seen {
                return Ok(None);
            }
            let (new, owed) = (self.seen.wrapping_sub(self.popped), self.in_flight());
            if new > owed {
                self.seen = self.popped;
                let why = format!("{new} elements used, {owed} in flight");
                return Err(Error::UsedRing { queue: self.wiring.index, why });
            }
        }
        let used = self.wiring.ring.used(self.popped)?;
        self.popped = self.popped.wrapping_add(1);
        Ok(Some(used))
    }

    /// Asks for an interrupt at the next used element; returns whether there is one already (then
    /// none may come).
    ///
    /// # Errors
    ///
    /// When the ring lies outside its region.
    pub fn want_call(&self) -> Result<bool> {
        self.want_call_after(0)
    }

    /// Asks for an interrupt once `more` further elements than the next one are used. Without
    /// EVENT_IDX, at the next one.
    ///
    /// # Errors
    ///
    /// When the ring lies outside its region.
    pub fn want_call_after(&self, more: u16) -> Result<bool> {
        if self.event_idx {
            self.wiring.ring.set_used_event(self.popped.wrapping_add(more))?;
        } else {
            self.wiring.ring.set_avail_flags(0)?;
        }
        fence(Ordering::SeqCst);
        Ok(self.wiring.ring.used_idx()?.wrapping_sub(self.popped) > more)
    }

    /// Asks for no interrupt. With EVENT_IDX that is an index just passed: half the number space away.
    ///
    /// # Errors
    ///
    /// When the ring lies outside its region.
    pub fn want_no_call(&self) -> Result<()> {
        if self.event_idx {
            self.wiring.ring.set_used_event(self.popped.wrapping_sub(1))
        } else {
            self.wiring.ring.set_avail_flags(AVAIL_NO_INTERRUPT)
        }
    }

    /// Waits until a used element can be popped, by interrupt.
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`] when nothing is used in time.
    pub fn wait_used(&mut self, timeout: Duration) -> Result<()> {
        if self.popped != self.seen {
            return Ok(());
        }
        let deadline = Instant::now() + timeout;
        while !self.want_call()? {
            wait_readable(&self.wiring.call, deadline, "used element", timeout)?;
            self.wiring.call.take();
        }
        self.want_no_call()
    }

    /// Waits until a used element can be popped, by reading the used index all the time.
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`] when nothing is used in time.
    pub fn spin_used(&mut self, timeout: Duration) -> Result<()> {
        let mut since = None;
        loop {
            // Reading the clock costs more than reading the ring.
            for _ in 0..256 {
                if self.popped != self.seen || self.wiring.ring.used_idx()? != self.popped {
                    return Ok(());
                }
                std::hint::spin_loop();
            }
            if since.get_or_insert_with(Instant::now).elapsed() > timeout {
                return Err(Error::Timeout { what: "used element", waited: timeout });
            }
        }
    }
}

/// Whether going from index `old` to `new` passes `event` (the rule of the virtio specification).
pub fn need_event(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(event_idx: bool) -> Queue {
        let region = Region::new(0, 0x10_0000).unwrap();
        Queue::new(0, &region, 4, event_idx).unwrap()
    }

    #[test]
    fn the_event_rule_wraps() {
        assert!(need_event(0, 1, 0));
        assert!(!need_event(1, 1, 0));
        assert!(need_event(0xffff, 0, 0xffff));
        assert!(need_event(0, 2, 0xffff));
        assert!(!need_event(2, 2, 0xffff));
    }

    #[test]
    fn kicks_follow_avail_event() {
        let mut queue = queue(true);
        queue.push(0).unwrap();
        assert!(queue.publish().unwrap());
        queue.push(1).unwrap();
        assert!(!queue.publish().unwrap());
        assert_eq!(queue.kick_event().take(), 1);
    }

    #[test]
    fn used_elements_come_out_once_and_not_more_than_published() {
        let mut queue = queue(false);
        assert_eq!(queue.pop().unwrap(), None);
        queue.push(3).unwrap();
        queue.publish().unwrap();
        let used = queue.ring().addresses().2;
        queue.ring().region().write(used + 4, &[3, 0, 0, 0, 9]).unwrap();
        queue.ring().set_used_idx(1).unwrap();
        assert_eq!(queue.pop().unwrap(), Some(Used { id: 3, len: 9 }));
        assert_eq!(queue.pop().unwrap(), None);
        queue.ring().set_used_idx(2).unwrap();
        assert!(queue.pop().is_err());
    }
}
