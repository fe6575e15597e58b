//! A queue thread: sleeps until one of its queues has work, and never on anything else. While requests come
//! soon after one another, it polls its empty rings for a moment before it sleeps (`poll`).

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use crate::blk::mailbox::{Command, Mailbox};
use crate::blk::poll::Polling;
use crate::blk::queue::{QueueServer, Shared, Turn, Vring};
use crate::blk::request::snapshot;
use crate::blk::watchdog::{Checks, Pulse, Watch};
use crate::checker;
use crate::clock;
use crate::device::WorkerContext;
use crate::ratelimit::Kind;

/// Epoll token of the mailbox; those of kicks are the numbers of their queues in the thread.
const MAILBOX: u64 = u64::MAX;

/// Requests that a poll finds, after which the thread asks epoll for the kicks of other queues.
const IN_A_ROW: u32 = 16;

/// A queue thread, from the session's side.
pub(crate) struct Worker {
    mailbox: Arc<Mailbox>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts thread `number`, for the virtqueues `vrings` (each with its number). `trouble` is
    /// signalled if the thread dies.
    pub(crate) fn spawn(
        number: usize,
        vrings: Vec<(usize, Vring)>,
        shared: Arc<Shared>,
        context: WorkerContext,
        trouble: EventFd,
        watch: Arc<Watch>,
    ) -> io::Result<Self> {
        let mailbox = Mailbox::new()?;
        let epoll = Epoll::new()?;
        listen(&epoll, mailbox.event().as_raw_fd(), MAILBOX)?;
        let its_mailbox = Arc::clone(&mailbox);
        let body = move || {
            let end = End { mailbox: Arc::clone(&its_mailbox), trouble };
            let shared = &*shared;
            let pulse = watch.pulse(number);
            let queues = vrings.into_iter().map(|(index, vring)| {
                let (mailbox, pulse) = (Arc::clone(&its_mailbox), Arc::clone(&pulse));
                let server = QueueServer::new(index, vring, shared, mailbox, pulse);
                Served { index, server, kick: None, hot: false, unasked: false, stopped: None }
            });
            let queues = queues.collect();
            let (mailbox, checks) = (its_mailbox, Checks::of(&watch.stall_limits()));
            let thread = QueueThread {
                queues,
                shared,
                mailbox,
                epoll,
                context,
                watch,
                pulse,
                checks,
                polling: Polling::new(shared.options.poll, clock::since_start()),
                sleepy: false,
                in_a_row: 0,
                quitting: false,
            };
            thread.run();
            drop(end);
        };
        let thread = crate::threads::spawn(&format!("queue-{number}"), body)?;
        Ok(Self { mailbox, thread: Some(thread) })
    }

    pub(crate) fn send(&self, command: Command) {
        self.mailbox.send(command);
    }

    /// Waits for the thread to end, after [`Command::Quit`]. Returns false if it had died.
    pub(crate) fn join(&mut self) -> bool {
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

/// The end of the thread, by unwinding too: no caller waits for its answers any more, and the session is
/// notified if its queues are dead.
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
    /// Its driver was not asked for kicks: the thread does not sleep before the queue has had a turn.
    unasked: bool,
    /// The sender to notify when it is drained.
    stopped: Option<Sender<()>>,
}

/// How a poll of the rings ended.
enum Polled {
    /// A ring has something new.
    Found,
    /// The thread is called by its mailbox.
    Called,
    /// There is nothing, or nothing was to be polled.
    Nothing,
}

struct QueueThread<'d> {
    queues: Vec<Served<'d>>,
    shared: &'d Shared,
    mailbox: Arc<Mailbox>,
    epoll: Epoll,
    context: WorkerContext,
    watch: Arc<Watch>,
    pulse: Arc<Pulse>,
    /// The checks of parked requests, by the coarse clock.
    checks: Checks,
    polling: Polling,
    /// The turns that follow ask the drivers for kicks.
    sleepy: bool,
    /// Polls that found something since epoll was asked.
    in_a_row: u32,
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
            checker::may_not_hold("a queue's thread sleeps");
            let count = match self.wait(&mut events) {
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
            self.wake(&mut woken);
            for command in commands.drain(..) {
                self.obey(command);
            }
            self.check_parked();
            self.check_throttled();
            let sleepy = std::mem::take(&mut self.sleepy) || !self.polling.is_on();
            for queue in &mut self.queues {
                if queue.hot || queue.unasked {
                    queue.server.set_polled(!sleepy);
                    let turn = queue.server.serve(&mut self.context);
                    (queue.hot, queue.unasked) = (turn == Turn::More, turn == Turn::Poll);
                }
                if queue.server.is_drained()
                    && let Some(stopped) = queue.stopped.take()
                {
                    let _ = stopped.send(());
                }
            }
        }
    }

    /// Waits for events, if there is nothing to do: first by polling the rings, if that pays.
    fn wait(&mut self, events: &mut [EpollEvent]) -> io::Result<usize> {
        if self.queues.iter().any(|queue| queue.hot) {
            return self.ask(events);
        }
        if self.queues.iter().any(|queue| queue.unasked) {
            match self.poll() {
                Polled::Found if self.in_a_row < IN_A_ROW => {
                    self.in_a_row += 1;
                    return Ok(0);
                }
                Polled::Found | Polled::Called => return self.ask(events),
                // The drivers are asked for kicks before the thread sleeps.
                Polled::Nothing => {
                    self.sleepy = true;
                    return Ok(0);
                }
            }
        }
        if !self.polling.is_watching() {
            return self.sleep(events);
        }
        self.polling.sleeps(clock::since_start());
        let count = self.sleep(events)?;
        if events[..count].iter().any(|event| event.data() != MAILBOX) {
            self.polling.kicked(clock::since_start());
        } else {
            self.polling.woken();
        }
        Ok(count)
    }

    /// The events that are there.
    fn ask(&mut self, events: &mut [EpollEvent]) -> io::Result<usize> {
        self.in_a_row = 0;
        self.epoll.wait(0, events)
    }

    /// Polls the rings while nothing is in flight, for as long as that is worth it.
    fn poll(&mut self) -> Polled {
        // What is parked is checked from time to time, and what waits for a rate limit is due at some time.
        let waits =
            |server: &QueueServer<'_>| !server.is_at_rest() || server.waits_until().is_some();
        if self.queues.iter().any(|queue| waits(&queue.server)) {
            return Polled::Nothing;
        }
        let began = clock::since_start();
        if !self.polling.begin(began) {
            return Polled::Nothing;
        }
        let memory = snapshot(&self.shared.memory);
        let (polled, now) = loop {
            let mut found = false;
            for queue in &mut self.queues {
                queue.hot = queue.server.has_news(&memory);
                found |= queue.hot;
            }
            let now = clock::since_start();
            let over = self.polling.read(now, found);
            if over {
                break (if found { Polled::Found } else { Polled::Nothing }, now);
            } else if self.mailbox.is_full() {
                self.polling.called(now);
                break (Polled::Called, now);
            }
            std::hint::spin_loop();
        };
        self.shared.device.figures().polled(
            now.saturating_sub(began),
            match polled {
                Polled::Found => Some(true),
                Polled::Nothing => Some(false),
                Polled::Called => None,
            },
        );
        polled
    }

    /// Sleeps until there are events, or parked requests are to be checked, or a queue that waits for a rate
    /// limit is due.
    fn sleep(&self, events: &mut [EpollEvent]) -> io::Result<usize> {
        // Only parked requests have to be checked while nothing happens.
        let parked = self.queues.iter().any(|queue| !queue.server.is_at_rest());
        let interval = self.watch.stall_limits().interval().filter(|_| parked);
        let due = self.queues.iter().filter_map(|queue| queue.server.waits_until()).min();
        let due = due.map(|due| due.saturating_sub(clock::since_start()));
        let timeout = interval.into_iter().chain(due).min().map_or(-1, milliseconds);
        self.pulse.rest();
        let count = self.epoll.wait(timeout, events);
        self.watch.rouse(&self.pulse);
        count
    }

    /// Checks the parked requests, unless that was done recently.
    fn check_parked(&mut self) {
        let stall_limits = self.watch.stall_limits();
        let Some(interval) = stall_limits.interval() else { return };
        if self.queues.iter().all(|queue| queue.server.is_at_rest()) {
            return;
        }
        let now = clock::coarse();
        if !self.checks.are_due(now, interval) {
            return;
        }
        let check = self.checks.at(now);
        for queue in &mut self.queues {
            queue.hot |= queue.server.check_parked(check, &stall_limits);
        }
    }

    /// Gives those queues a turn that have waited for a rate limit, and are due.
    fn check_throttled(&mut self) {
        let mut now = None;
        for queue in &mut self.queues {
            if let Some(until) = queue.server.waits_until() {
                queue.hot |= *now.get_or_insert_with(clock::since_start) >= until;
            }
        }
    }

    /// Tells the queues which of their requests woke up.
    fn wake(&mut self, woken: &mut Vec<(usize, u16)>) {
        for (ring, head) in woken.drain(..) {
            if let Some((_, queue)) = find(&mut self.queues, ring) {
                queue.server.wake(head);
                queue.hot = true;
            }
        }
    }

    fn kicked(&mut self, number: usize) {
        let queue = &mut self.queues[number];
        queue.hot = true;
        let Some(kick) = &mut queue.kick else { return };
        let mut count = [0; 8];
        match kick.read(&mut count) {
            Ok(8) => queue.server.kicked(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // Not an eventfd, or the end of one: it would be readable for ever.
            _ => {
                let text = format_args!("the kick descriptor cannot be read and is ignored");
                queue.server.warn(Kind::Descriptors, text);
                unlisten(&self.epoll, kick.as_raw_fd());
                queue.kick = None;
            }
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Start { ring, kick, error_event, inflight_log } => {
                let Some((number, queue)) = find(&mut self.queues, ring) else { return };
                if let Some(old) = queue.kick.take() {
                    unlisten(&self.epoll, old.as_raw_fd());
                }
                if let Err(error) = listen_for_edges(&self.epoll, kick.as_raw_fd(), number as u64) {
                    let text = format_args!("the kick descriptor cannot be polled: {error}");
                    queue.server.warn(Kind::Descriptors, text);
                }
                queue.kick = Some(kick);
                queue.server.start(error_event, inflight_log);
                // A front end that reconnects may not repeat its kick.
                queue.hot = true;
            }
            Command::Poll { ring } => {
                if let Some((_, queue)) = find(&mut self.queues, ring) {
                    queue.hot = true;
                }
            }
            Command::Stop { ring, stopped } => {
                let Some((_, queue)) = find(&mut self.queues, ring) else { return };
                if let Some(kick) = queue.kick.take() {
                    unlisten(&self.epoll, kick.as_raw_fd());
                }
                queue.server.stop();
                queue.stopped = Some(stopped);
                // Requests that an earlier process took are still to be done.
                queue.hot = true;
            }
            Command::Pause { finish, paused, resume } => {
                self.drain(finish);
                let _ = paused.send(());
                // Ends when the session drops its end, also if it does so by dying.
                let _ = resume.recv();
                for queue in &mut self.queues {
                    queue.server.resume();
                    // Kicks of this time were seen and not followed.
                    queue.hot = true;
                }
            }
            Command::Quit => {
                for queue in &mut self.queues {
                    queue.server.leave();
                    queue.hot = true;
                }
                self.quitting = true;
            }
        }
    }

    /// Finishes what is in flight, or puts it back unless all is to `finish`, taking nothing new.
    fn drain(&mut self, finish: bool) {
        let (mut commands, mut woken) = (Vec::new(), Vec::new());
        let mut events = [EpollEvent::default()];
        if !finish {
            self.queues.iter_mut().for_each(|queue| queue.server.pause());
        }
        while !self.queues.iter().all(|queue| queue.server.is_at_rest()) {
            self.mailbox.take(&mut commands, &mut woken);
            self.wake(&mut woken);
            if !self.queues.iter().any(|queue| queue.server.has_woken()) {
                // Kicks wake the thread as well; all queues are served after the pause, which is short.
                let _ = self.epoll.wait(1, &mut events);
            }
            for queue in &mut self.queues {
                if queue.server.has_woken() {
                    queue.server.resume_woken(&mut self.context);
                }
            }
            self.check_parked();
        }
        for command in commands {
            self.mailbox.send(command);
        }
    }
}

fn find<'a, 'd>(queues: &'a mut [Served<'d>], ring: usize) -> Option<(usize, &'a mut Served<'d>)> {
    queues.iter_mut().enumerate().find(|(_, queue)| queue.index == ring)
}

/// A time as epoll has it, rounded up: a thread that sleeps too short wakes up for nothing.
fn milliseconds(time: Duration) -> i32 {
    i32::try_from(time.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX)
}

fn listen(epoll: &Epoll, fd: RawFd, token: u64) -> io::Result<()> {
    epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, token))
}

/// The same, woken by each signal once. What stays readable whatever is read from it, as a full eventfd
/// that counts down by ones, does not keep the thread busy.
fn listen_for_edges(epoll: &Epoll, fd: RawFd, token: u64) -> io::Result<()> {
    let events = EventSet::IN | EventSet::EDGE_TRIGGERED;
    epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(events, token))
}

fn unlisten(epoll: &Epoll, fd: RawFd) {
    if let Err(error) = epoll.ctl(ControlOperation::Delete, fd, EpollEvent::default()) {
        log::debug!("a descriptor cannot be taken out of epoll: {error}");
    }
}
