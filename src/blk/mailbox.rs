//! The input of a queue thread besides kicks: commands of the session, and requests that woke up.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender};
use std::task::{Wake, Waker};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::inbox::Inbox;
use crate::virtq::inflight_log::InflightLog;

/// A command of the session to a queue thread. If the thread has ended, the command's `Sender` is dropped
/// unused, and the session's `recv` fails.
pub(crate) enum Command {
    /// Serve a ring that is ready, and poll it at once.
    Start { ring: usize, kick: File, error_event: Option<File>, inflight_log: InflightLog },
    /// Poll a ring: it was enabled, or the rate limits changed.
    Poll { ring: usize },
    /// Take no more heads of a ring; answer when all that were taken are published or put back.
    Stop { ring: usize, stopped: Sender<()> },
    /// Finish everything in flight or put it back, answer, and wait until the sender of `resume` is dropped:
    /// the memory that requests use is about to change. If `finish`, nothing is put back: a request that is
    /// taken again may not find its memory then.
    Pause { finish: bool, paused: Sender<()>, resume: Receiver<()> },
    /// Finish what is in flight, except what the next session resubmits, and end.
    Quit,
}

#[derive(Default)]
struct Mail {
    commands: Vec<Command>,
    woken: Vec<Arc<RequestWaker>>,
}

/// The mailbox of one queue thread.
pub(crate) struct Mailbox {
    /// Closed when the thread has ended. Commands are dropped then, which the sender notices.
    inbox: Inbox<Mail>,
    event: EventFd,
}

impl Mailbox {
    pub(crate) fn new() -> io::Result<Arc<Self>> {
        let event = EventFd::new(EFD_NONBLOCK)?;
        Ok(Arc::new(Self { inbox: Inbox::default(), event }))
    }

    /// Readable while there may be something in the mailbox.
    pub(crate) fn event(&self) -> &EventFd {
        &self.event
    }

    /// Whether there may be something in the mailbox, without a system call.
    pub(crate) fn is_full(&self) -> bool {
        self.inbox.is_full()
    }

    /// Sends the thread a command.
    pub(crate) fn send(&self, command: Command) {
        self.put(|mail| mail.commands.push(command));
    }

    /// A waker that puts one request of one ring on the thread's list.
    pub(crate) fn waker(self: &Arc<Self>, ring: usize, head: u16) -> Waker {
        let listed = AtomicBool::new(false);
        Waker::from(Arc::new(RequestWaker { mailbox: Arc::clone(self), ring, head, listed }))
    }

    /// A waker that has the thread poll one ring.
    pub(crate) fn caller(self: &Arc<Self>, ring: usize) -> Waker {
        Waker::from(Arc::new(Caller { mailbox: Arc::clone(self), ring }))
    }

    /// Takes everything out: commands, and woken requests as (ring, head), added to the vectors.
    pub(crate) fn take(&self, commands: &mut Vec<Command>, woken: &mut Vec<(usize, u16)>) {
        // The event is reset first: what is put in after that signals it again.
        let _ = self.event.read();
        self.inbox.take(|mail| {
            commands.append(&mut mail.commands);
            for waker in mail.woken.drain(..) {
                // From here on it may be woken again: the thread polls it after this.
                waker.listed.store(false, Ordering::Release);
                woken.push((waker.ring, waker.head));
            }
        });
    }

    /// The thread ends: drops what is in the mailbox, and all that is sent later.
    pub(crate) fn close(&self) {
        self.inbox.close(|mail| mail.commands.clear());
    }

    fn put(&self, change: impl FnOnce(&mut Mail)) {
        if self.inbox.put(change) {
            // Fails only if the counter is full, and then the event is readable anyway.
            let _ = self.event.write(1);
        }
    }
}

struct RequestWaker {
    mailbox: Arc<Mailbox>,
    ring: usize,
    head: u16,
    /// It is on the list already: once is enough for any number of wake-ups.
    listed: AtomicBool,
}

impl Wake for RequestWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.listed.swap(true, Ordering::AcqRel) {
            self.mailbox.put(|mail| mail.woken.push(Arc::clone(self)));
        }
    }
}

struct Caller {
    mailbox: Arc<Mailbox>,
    ring: usize,
}

impl Wake for Caller {
    fn wake(self: Arc<Self>) {
        self.mailbox.send(Command::Poll { ring: self.ring });
    }
}
