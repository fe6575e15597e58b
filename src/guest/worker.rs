//! A queue thread: sleeps until one of its queues has work, and never on anything else.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread::{self, JoinHandle};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use super::mailbox::{Command, Mailbox};
use super::queue::{QueueServer, Shared, Turn, Vring};
use crate::checker;
use crate::device::Lane;

/// Epoll token of the mailbox; those of kicks are the numbers of their queues in the thread.
const MAILBOX: u64 = u64::MAX;

/// A queue thread, from the session's side.
pub(super) struct Worker {
    mailbox: Arc<Mailbox>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts thread `number`, for the virtqueues `vrings` (each with its number). `trouble` is
    /// signalled if the thread dies.
    pub(super) fn spawn(
        number: usize,
        vrings: Vec<(usize, Vring)>,
        shared: Arc<Shared>,
        lane: Lane,
        trouble: EventFd,
    ) -> io::Result<Self> {
        let mailbox = Mailbox::new()?;
        let epoll = Epoll::new()?;
        watch(&epoll, mailbox.event().as_raw_fd(), MAILBOX)?;
        let its_mailbox = Arc::clone(&mailbox);
        let body = move || {
            let end = End { mailbox: Arc::clone(&its_mailbox), trouble };
            let shared = &*shared;
            let queues = vrings.into_iter().map(|(index, vring)| {
                let server = QueueServer::new(index, vring, shared, Arc::clone(&its_mailbox));
                Served { index, server, kick: None, hot: false, stopped: None }
            });
            let queues = queues.collect();
            QueueThread { queues, mailbox: its_mailbox, epoll, lane, quitting: false }.run();
            drop(end);
        };
        let thread = thread::Builder::new().name(format!("queue-{number}")).spawn(body)?;
        Ok(Self { mailbox, thread: Some(thread) })
    }

    pub(super) fn send(&self, command: Command) {
        self.mailbox.send(command);
    }

    /// Waits for the thread to end, after [`Command::Quit`]. False if it had died.
    pub(super) fn join(&mut self) -> bool {
        self.thread.take().is_none_or(|thread| thread.join().is_ok())
    }
}

impl Drop for Worker {
    /// A session that fails half-way leaves no thread behind.
    fn drop(&mut self) {
        self.send(Command::Quit);
        self.join();
    }
}

/// The end of the thread, by unwinding too: nobody may wait for its answers, and the session is
/// told if its queues are dead.
struct End {
    mailbox: Arc<Mailbox>,
    trouble: EventFd,
}

impl Drop for End {
    fn drop(&mut self) {
        self.mailbox.close();
        if thread::panicking() {
            let _ = self.trouble.write(1);
        }
    }
}

/// A queue and what its thread knows of it.
struct Served<'d> {
    index: usize,
    server: QueueServer<'d>,
    kick: Option<File>,
    /// Has work, or may have.
    hot: bool,
    /// Who waits for it to be drained.
    stopped: Option<Sender<()>>,
}

struct QueueThread<'d> {
    queues: Vec<Served<'d>>,
    mailbox: Arc<Mailbox>,
    epoll: Epoll,
    lane: Lane,
    quitting: bool,
}

impl QueueThread<'_> {
    fn run(mut self) {
        let mut events = vec![EpollEvent::default(); self.queues.len() + 1];
        let (mut commands, mut woken) = (Vec::new(), Vec::new());
        loop {
            if self.quitting && self.queues.iter().all(|queue| queue.server.is_drained()) {
                return;
            }
            let timeout = if self.queues.iter().any(|queue| queue.hot) { 0 } else { -1 };
            checker::may_not_hold("a queue's thread sleeps");
            let count = match self.epoll.wait(timeout, &mut events) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => panic!("epoll fails: {error}"),
            };
            for event in &events[..count] {
                match event.data() {
                    MAILBOX => self.mailbox.take(&mut commands, &mut woken),
                    number => self.kicked(number as usize),
                }
            }
            for (ring, head) in woken.drain(..) {
                if let Some(queue) = self.queues.iter_mut().find(|queue| queue.index == ring) {
                    queue.server.resume(head, &mut self.lane);
                }
            }
            for command in commands.drain(..) {
                self.obey(command);
            }
            for queue in &mut self.queues {
                if queue.hot {
                    queue.hot = queue.server.serve(&mut self.lane) == Turn::More;
                }
                if queue.server.is_drained()
                    && let Some(stopped) = queue.stopped.take()
                {
                    let _ = stopped.send(());
                }
            }
        }
    }

    fn kicked(&mut self, number: usize) {
        let queue = &mut self.queues[number];
        queue.hot = true;
        let Some(kick) = &mut queue.kick else { return };
        let mut count = [0; 8];
        match kick.read(&mut count) {
            Ok(8) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // Not an eventfd, or the end of one: it would be readable for ever.
            _ => {
                log::warn!("queue {}: the kick descriptor is of no use", queue.index);
                unwatch(&self.epoll, kick.as_raw_fd());
                queue.kick = None;
            }
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Start { ring, kick, error_event } => {
                let Some((number, queue)) = find(&mut self.queues, ring) else { return };
                if let Some(old) = queue.kick.take() {
                    unwatch(&self.epoll, old.as_raw_fd());
                }
                if let Err(error) = watch(&self.epoll, kick.as_raw_fd(), number as u64) {
                    log::warn!("queue {ring}: kicks cannot be waited for: {error}");
                }
                queue.kick = Some(kick);
                queue.server.start(error_event);
                // The kick of a front end that reconnects may never come again.
                queue.hot = true;
            }
            Command::Look { ring } => {
                if let Some((_, queue)) = find(&mut self.queues, ring) {
                    queue.hot = true;
                }
            }
            Command::Stop { ring, stopped } => {
                let Some((_, queue)) = find(&mut self.queues, ring) else { return };
                if let Some(kick) = queue.kick.take() {
                    unwatch(&self.epoll, kick.as_raw_fd());
                }
                queue.server.stop();
                queue.hot = false;
                queue.stopped = Some(stopped);
            }
            Command::Pause { paused, resume } => {
                self.drain();
                let _ = paused.send(());
                // Ends when the session drops its end, also if it does so by dying.
                let _ = resume.recv();
            }
            Command::Quit => {
                for queue in &mut self.queues {
                    queue.server.stop();
                    queue.hot = false;
                }
                self.quitting = true;
            }
        }
    }

    /// Finishes what is in flight, taking nothing new.
    fn drain(&mut self) {
        let (mut commands, mut woken) = (Vec::new(), Vec::new());
        let mut events = [EpollEvent::default()];
        while !self.queues.iter().all(|queue| queue.server.is_drained()) {
            self.mailbox.take(&mut commands, &mut woken);
            if woken.is_empty() {
                // Kicks wake this up as well; they stay readable, and the pause is short.
                let _ = self.epoll.wait(1, &mut events);
            }
            for (ring, head) in woken.drain(..) {
                if let Some((_, queue)) = find(&mut self.queues, ring) {
                    queue.server.resume(head, &mut self.lane);
                }
            }
        }
        for command in commands {
            self.mailbox.send(command);
        }
    }
}

fn find<'a, 'd>(queues: &'a mut [Served<'d>], ring: usize) -> Option<(usize, &'a mut Served<'d>)> {
    queues.iter_mut().enumerate().find(|(_, queue)| queue.index == ring)
}

fn watch(epoll: &Epoll, fd: RawFd, token: u64) -> io::Result<()> {
    epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, token))
}

fn unwatch(epoll: &Epoll, fd: RawFd) {
    if let Err(error) = epoll.ctl(ControlOperation::Delete, fd, EpollEvent::default()) {
        log::debug!("a descriptor cannot be taken out of epoll: {error}");
    }
}
