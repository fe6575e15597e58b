//! The submission queue: bounded, with a fair way to wait for room in it.
//!
//! Who finds no room takes a [`Place`] and is woken when it is its turn, lane after lane. Room is
//! kept for those who were woken until they act: newcomers do not get in before them. Each turn is
//! used, given back, or passed on when its place is dropped, and whenever that leaves room the next
//! one is woken; so whoever waits has before it either a job in the queue or somebody's turn.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Waker;
#[cfg(not(loom))]
use std::time::Duration;
use std::time::Instant;

use super::job::Job;
use crate::sync::{self, AtomicUsize, Condvar, Mutex, Ordering};

/// Jobs that a worker takes at a time at most.
const GRAB: usize = 8;

/// Jobs between those who submit and the workers.
pub(super) struct Queue {
    depth: usize,
    state: Mutex<State>,
    /// Workers wait here.
    filled: Condvar,
    /// Workers that wait, and jobs that are queued; read without the mutex as hints.
    idle: AtomicUsize,
    queued: AtomicUsize,
}

/// What a worker got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
    Some,
    /// There is nothing now.
    None,
    /// There will be nothing any more.
    Closed,
}

/// A place among those who wait for room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    lane: usize,
    number: u64,
}

#[derive(Default)]
struct State {
    /// Oldest first, each with when it came.
    jobs: VecDeque<(Arc<Job>, Instant)>,
    /// Who waits for room, by lane: one lane with many of them does not keep the others out.
    waiting: Vec<VecDeque<(u64, Waker)>>,
    waiting_count: usize,
    /// Those who were woken and have not acted yet: so much room is theirs.
    turns: usize,
    next_number: u64,
    /// The lane whose turn it is.
    turn: usize,
    idle: usize,
    /// Most jobs there ever were.
    deepest: usize,
    closed: bool,
}

impl Queue {
    pub(super) fn new(depth: usize) -> Self {
        Self {
            depth: depth.max(1),
            state: Mutex::new(State::default()),
            filled: Condvar::new(),
            idle: AtomicUsize::new(0),
            queued: AtomicUsize::new(0),
        }
    }

    /// Puts jobs in as far as there is room, the first ones first, and takes them out of `jobs`.
    /// Returns how many; none if the queue is closed. A place whose turn it is is used up.
    pub(super) fn put(&self, jobs: &mut VecDeque<Arc<Job>>, place: &mut Option<Place>) -> usize {
        let mut state = sync::lock(&self.state);
        if state.closed {
            return 0;
        }
        let room = match *place {
            // Not its turn yet.
            Some(mine) if state.position(mine).is_some() => return 0,
            Some(_) => {
                *place = None;
                state.turns -= 1;
                // Room that is others' stays theirs, but for the one that was kept for this.
                self.room(&state).max(usize::from(state.jobs.len() < self.depth))
            }
            None if state.waiting_count > 0 => 0,
            None => self.room(&state),
        };
        let count = jobs.len().min(room);
        let now = Instant::now();
        state.jobs.extend(jobs.drain(..count).map(|job| (job, now)));
        self.queued.store(state.jobs.len(), Ordering::Relaxed);
        state.deepest = state.deepest.max(state.jobs.len());
        // A worker that does not wait looks again by itself, and waking costs a system call.
        let wake = count.min(state.idle);
        let woken = self.next_turns(&mut state);
        drop(state);
        for _ in 0..wake {
            self.filled.notify_one();
        }
        woken.into_iter().for_each(Waker::wake);
        count
    }

    /// Arranges that `waker` is woken when it is its turn, and keeps or takes a place for that.
    /// False if there is room now, or the queue is closed: then it is not, and has no place.
    pub(super) fn wait_for_room(
        &self,
        lane: usize,
        waker: &Waker,
        place: &mut Option<Place>,
    ) -> bool {
        let mut state = sync::lock(&self.state);
        if let Some(mine) = *place
            && let Some(at) = state.position(mine)
        {
            if state.closed {
                state.remove(mine.lane, at);
                *place = None;
                return false;
            }
            let (_, current) = &mut state.waiting[mine.lane][at];
            if !current.will_wake(waker) {
                current.clone_from(waker);
            }
            return true;
        }
        let had_turn = place.take().is_some();
        if had_turn {
            state.turns -= 1;
        }
        let free = self.room(&state) > 0 && (had_turn || state.waiting_count == 0);
        if state.closed || free {
            // The room that this turn was for is this one's again, or the next one's.
            let woken = if free { Vec::new() } else { self.next_turns(&mut state) };
            drop(state);
            woken.into_iter().for_each(Waker::wake);
            return false;
        }
        if lane >= state.waiting.len() {
            state.waiting.resize_with(lane + 1, VecDeque::new);
        }
        let number = state.next_number;
        state.next_number += 1;
        // Who had its turn and needs another one does not start over at the end.
        if had_turn {
            state.waiting[lane].push_front((number, waker.clone()));
        } else {
            state.waiting[lane].push_back((number, waker.clone()));
        }
        state.waiting_count += 1;
        *place = Some(Place { lane, number });
        let woken = self.next_turns(&mut state);
        drop(state);
        woken.into_iter().for_each(Waker::wake);
        true
    }

    /// Gives a place up; if it is its turn, the next one has it.
    pub(super) fn leave(&self, place: Place) {
        let mut state = sync::lock(&self.state);
        match state.position(place) {
            Some(at) => state.remove(place.lane, at),
            None => state.turns -= 1,
        }
        let woken = self.next_turns(&mut state);
        drop(state);
        woken.into_iter().for_each(Waker::wake);
    }

    /// Takes some jobs, the oldest first. If there are none it sleeps, or if it is not to sleep
    /// says so.
    pub(super) fn take(&self, workers: usize, sleep: bool, into: &mut Vec<Arc<Job>>) -> Taken {
        let mut state = sync::lock(&self.state);
        while state.jobs.is_empty() {
            if !sleep {
                return Taken::None;
            }
            if state.closed {
                return Taken::Closed;
            }
            state.idle += 1;
            self.idle.store(state.idle, Ordering::Relaxed);
            state = sync::wait(&self.filled, state);
            state.idle -= 1;
            self.idle.store(state.idle, Ordering::Relaxed);
        }
        // Few enough that the others have something too.
        let count = (state.jobs.len() / workers.max(1)).clamp(1, GRAB);
        into.extend(state.jobs.drain(..count).map(|(job, _)| job));
        self.queued.store(state.jobs.len(), Ordering::Relaxed);
        let woken = self.next_turns(&mut state);
        drop(state);
        woken.into_iter().for_each(Waker::wake);
        Taken::Some
    }

    /// No more jobs come in, and those that wait for room find that out. Jobs that are in stay.
    pub(super) fn close(&self) {
        let mut state = sync::lock(&self.state);
        state.closed = true;
        let woken = self.next_turns(&mut state);
        drop(state);
        self.filled.notify_all();
        woken.into_iter().for_each(Waker::wake);
    }

    /// Takes out all that nobody will do any more.
    pub(super) fn drain(&self) -> Vec<Arc<Job>> {
        let mut state = sync::lock(&self.state);
        self.queued.store(0, Ordering::Relaxed);
        state.jobs.drain(..).map(|(job, _)| job).collect()
    }

    /// Takes out what has waited for longer than this.
    #[cfg(not(loom))]
    pub(super) fn expire(&self, patience: Duration) -> Vec<Arc<Job>> {
        let mut state = sync::lock(&self.state);
        let late = state.jobs.iter().take_while(|(_, came)| came.elapsed() >= patience).count();
        let late = state.jobs.drain(..late).map(|(job, _)| job).collect();
        self.queued.store(state.jobs.len(), Ordering::Relaxed);
        let woken = self.next_turns(&mut state);
        drop(state);
        woken.into_iter().for_each(Waker::wake);
        late
    }

    /// Workers with nothing to do, some moments ago.
    pub(super) fn idle(&self) -> usize {
        self.idle.load(Ordering::Relaxed)
    }

    /// Jobs in the queue, some moments ago.
    pub(super) fn queued(&self) -> usize {
        self.queued.load(Ordering::Relaxed)
    }

    /// Jobs now, and the most there ever were.
    pub(super) fn depths(&self) -> (usize, usize) {
        let state = sync::lock(&self.state);
        (state.jobs.len(), state.deepest)
    }

    /// Room that is nobody's.
    fn room(&self, state: &State) -> usize {
        self.depth.saturating_sub(state.jobs.len() + state.turns)
    }

    /// Gives turns to those that wait, as far as there is room; to all of them if nobody may put
    /// anything in any more.
    fn next_turns(&self, state: &mut State) -> Vec<Waker> {
        let room = if state.closed { usize::MAX } else { self.room(state) };
        let count = room.min(state.waiting_count);
        let mut woken = Vec::with_capacity(count);
        while woken.len() < count {
            state.turn = (state.turn + 1) % state.waiting.len();
            let next = state.waiting[state.turn].pop_front();
            woken.extend(next.map(|(_, waker)| waker));
        }
        state.waiting_count -= count;
        state.turns += count;
        woken
    }
}

impl State {
    /// Where a place stands in its lane; `None` once it has, or had, its turn.
    fn position(&self, place: Place) -> Option<usize> {
        let lane = self.waiting.get(place.lane)?;
        lane.iter().position(|(number, _)| *number == place.number)
    }

    fn remove(&mut self, lane: usize, at: usize) {
        self.waiting[lane].remove(at);
        self.waiting_count -= 1;
    }
}
