//! The policy, by a clock that the tests set.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Wake, Waker};
use std::time::Duration;

use proptest::prelude::*;

use super::gate::{LEAD, PATIENCE};
use super::{Demand, Rate, Rates, Throttle};

const SECOND: u64 = 1_000_000_000;
const MIB: u64 = 1 << 20;

fn rate(operations_per_second: u64, bytes_per_second: u64, burst_ms: u32) -> Rate {
    Rate { operations_per_second, bytes_per_second, burst_ms }
}

fn reads(read: Rate) -> Rates {
    Rates { read, write: Rate::default() }
}

fn limited(rates: &Rates) -> Throttle {
    let throttle = Throttle::default();
    throttle.set(rates, Duration::ZERO);
    throttle
}

/// Begins a request of queue `queue`, or returns when to ask again.
fn take(throttle: &Throttle, queue: usize, demand: Demand, now: u64) -> Result<(), u64> {
    let waker = || Waker::noop().clone();
    throttle.take(queue, demand, Duration::from_nanos(now), waker).map_err(|w| nanos(w.until))
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap()
}

/// Requests that begin at once, at `now`.
fn at_once(throttle: &Throttle, demand: Demand, now: u64) -> u64 {
    (0..).find(|_| take(throttle, 0, demand, now).is_err()).unwrap()
}

/// A queue that always has something to do, and its thread.
struct Busy {
    demand: Demand,
    /// When it asks next.
    next: u64,
    /// How late its thread wakes up, at most.
    late: u64,
    taken: u64,
}

impl Busy {
    fn new(demand: Demand, late: u64) -> Self {
        Self { demand, next: 0, late, taken: 0 }
    }
}

/// Lets queues take what they get until `end`. Threads wake up late by chance, from a fixed seed.
fn run(throttle: &Throttle, queues: &mut [Busy], end: u64) {
    let mut seed = 1_u64;
    loop {
        let next = queues.iter().enumerate().min_by_key(|(_, queue)| queue.next).unwrap();
        let (number, now) = (next.0, next.1.next);
        if now >= end {
            return;
        }
        let queue = &mut queues[number];
        match take(throttle, number, queue.demand, now) {
            Ok(()) => queue.taken += 1,
            Err(until) => {
                assert!(until > now, "it would spin");
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                queue.next = until + (seed >> 33) % (queue.late + 1);
            }
        }
    }
}

#[test]
fn without_limits_nothing_waits() {
    let throttle = Throttle::default();
    assert_eq!(throttle.version(), 0);
    for _ in 0..1000 {
        take(&throttle, 3, Demand::Write(u64::MAX), 0).unwrap();
    }
    // A limit of one kind is none of the other kind.
    throttle.set(&reads(rate(1, 1, 1)), Duration::ZERO);
    assert_ne!(throttle.version(), 0);
    for _ in 0..1000 {
        take(&throttle, 3, Demand::Write(u64::MAX), 0).unwrap();
    }
    take(&throttle, 3, Demand::Read(4096), 0).unwrap();
    take(&throttle, 3, Demand::Read(4096), 0).unwrap_err();
    throttle.set(&Rates::default(), Duration::ZERO);
    assert_eq!(throttle.version(), 0);
    take(&throttle, 3, Demand::Read(4096), 0).unwrap();
}

/// Not one too many and not one too few, over hours, with rates that do not divide a second.
#[test]
fn amounts_are_exact_over_long_times() {
    for (per_second, seconds) in [(7, 36_000), (1001, 300), (33_333, 10)] {
        let throttle = limited(&reads(rate(per_second, 0, 100)));
        let mut queue = [Busy::new(Demand::Read(0), 3_000_000)];
        run(&throttle, &mut queue, seconds * SECOND);
        let due = per_second * seconds + per_second / 10;
        assert!(queue[0].taken.abs_diff(due) <= per_second / 300 + 1, "{} {due}", queue[0].taken);
        // The thread that comes a moment before the end misses what comes after that.
    }
    // A thread that is never late takes all.
    let throttle = limited(&reads(rate(7, 0, 1000)));
    let mut queue = [Busy::new(Demand::Read(0), 0)];
    run(&throttle, &mut queue, 36_000 * SECOND + 1);
    assert_eq!(queue[0].taken, 7 * 36_000 + 7);
}

#[test]
fn what_is_saved_up_is_a_burst_and_no_more() {
    let throttle = limited(&reads(rate(1000, 0, 500)));
    for now in [0, 10 * SECOND, 3600 * SECOND] {
        assert_eq!(at_once(&throttle, Demand::Read(4096), now), 500);
        assert_eq!(at_once(&throttle, Demand::Read(4096), now + SECOND / 10), 100);
    }
    let throttle = limited(&Rates { write: rate(0, 10 * MIB, 1000), ..Rates::default() });
    assert_eq!(at_once(&throttle, Demand::Write(MIB), 0), 10);
    assert_eq!(take(&throttle, 0, Demand::Write(MIB), 0), Err(1));
    // A time that cannot be saved in is one of a millisecond.
    let throttle = limited(&reads(rate(1000, 0, 0)));
    assert_eq!(at_once(&throttle, Demand::Read(4096), 0), 1);
}

#[test]
fn a_request_larger_than_the_burst_is_served_and_paid_later() {
    let throttle = limited(&reads(rate(0, MIB, 1)));
    take(&throttle, 0, Demand::Read(126 * MIB), 0).unwrap();
    let until = take(&throttle, 0, Demand::Read(0), 0).unwrap_err();
    // All of it, but for the millisecond that there was.
    let due = 126 * SECOND - 1_000_000;
    assert_eq!(until, due + 1);
    take(&throttle, 0, Demand::Read(0), due).unwrap_err();
    take(&throttle, 0, Demand::Read(126 * MIB), until).unwrap();
}

#[test]
fn the_tighter_limit_holds() {
    for (bytes, per_second) in [(512, 100), (4096, 100), (MIB, 4)] {
        let throttle = limited(&reads(rate(100, 4 * MIB, 100)));
        let mut queue = [Busy::new(Demand::Read(bytes), 0)];
        run(&throttle, &mut queue, 1000 * SECOND);
        let taken = queue[0].taken;
        assert!((per_second * 1000..=per_second * 1000 + 11).contains(&taken), "{bytes}: {taken}");
    }
}

#[test]
fn reads_and_writes_do_not_wait_for_each_other() {
    let throttle = limited(&Rates { read: rate(10, 0, 100), write: rate(1000, 0, 100) });
    let mut queues = [Busy::new(Demand::Read(4096), 0), Busy::new(Demand::Write(4096), 0)];
    run(&throttle, &mut queues, 100 * SECOND);
    assert_eq!(queues.map(|queue| queue.taken.div_ceil(10) * 10), [1010, 100_100]);
}

/// Queues with the same sort of requests get the same number, and of different sizes the same number of bytes,
/// however many there are and whatever their threads do.
#[test]
fn busy_queues_get_equal_shares() {
    let ms = 1_000_000;
    let same = |count, late| (0..count).map(|_| (Demand::Read(4096), late)).collect();
    let mixes: Vec<Vec<(Demand, u64)>> = vec![
        same(2, 0),
        same(2, 3 * ms),
        same(64, 2 * ms),
        vec![(Demand::Read(4096), 0), (Demand::Read(MIB), 0)],
        vec![(Demand::Read(4096), 5 * ms), (Demand::Read(MIB), 0)],
        vec![(Demand::Read(4096), 0), (Demand::Read(MIB), 5 * ms)],
        vec![(Demand::Read(512), ms), (Demand::Read(65536), ms), (Demand::Read(8 * MIB), ms)],
    ];
    const SECONDS: u64 = 20;
    for limit in [rate(0, 4 * MIB, 100), rate(0, 16 * MIB, 100), rate(0, 16 * MIB, 1000)] {
        for mix in &mixes {
            let throttle = limited(&reads(limit));
            let mut queues: Vec<_> =
                mix.iter().map(|(demand, late)| Busy::new(*demand, *late)).collect();
            run(&throttle, &mut queues, SECONDS * SECOND);
            let bytes: Vec<_> = queues
                .iter()
                .map(|queue| {
                    let Demand::Read(bytes) = queue.demand else { unreachable!() };
                    bytes * queue.taken
                })
                .collect();
            let largest =
                bytes.iter().zip(&queues).map(|(bytes, queue)| bytes / queue.taken).max().unwrap();
            let (all, count) = (bytes.iter().sum::<u64>(), bytes.len() as u64);
            let burst = limit.bytes_per_second * u64::from(limit.burst_ms) / 1000;
            let due = limit.bytes_per_second * SECONDS + burst;
            // What came after the threads' last look is not used, and one request is owed.
            assert!(all > due - due / 50, "{limit:?} {mix:?}: {all} of {due} are used");
            assert!(all < due + 8 * MIB, "{limit:?} {mix:?}: {all} of {due} are used");
            for share in &bytes {
                let fair = share.abs_diff(all / count);
                // The first one has the burst, and each may be ahead by one request and some time.
                let most = burst + largest + limit.bytes_per_second / 50;
                assert!(fair < most, "{limit:?} {mix:?}: {bytes:?}");
            }
        }
    }
    // By operations, too.
    let throttle = limited(&reads(rate(1000, 0, 100)));
    let mut queues = [Busy::new(Demand::Read(4096), 0), Busy::new(Demand::Read(MIB), 2_000_000)];
    run(&throttle, &mut queues, 300 * SECOND);
    let [small, large] = queues.map(|queue| queue.taken);
    // The first one has the burst.
    assert!(small.abs_diff(large) < 100 + 20, "{small} {large}");
}

/// What a queue did not ask for while it was idle the others had.
#[test]
fn an_idle_queue_saves_nothing_up_and_owes_nothing() {
    let throttle = limited(&reads(rate(1000, 0, 100)));
    let mut queues = [Busy::new(Demand::Read(0), 0), Busy::new(Demand::Read(0), 0)];
    queues[1].next = 100 * SECOND;
    run(&throttle, &mut queues, 100 * SECOND);
    let before = queues[0].taken;
    assert!(before >= 100_000);
    run(&throttle, &mut queues, 110 * SECOND);
    let shares = [queues[0].taken - before, queues[1].taken];
    let lead = u64::try_from(LEAD).unwrap() / 1_000_000;
    assert!(shares[0].abs_diff(shares[1]) <= 2 * lead + 2, "{shares:?}");
}

#[test]
fn a_queue_that_does_not_come_holds_up_the_others_for_a_moment() {
    let throttle = limited(&reads(rate(1000, 0, 1)));
    let mut queues = [Busy::new(Demand::Read(0), 0)];
    // The others wait, and are not seen again.
    while take(&throttle, 0, Demand::Read(0), 0).is_ok() {}
    take(&throttle, 1, Demand::Read(0), 0).unwrap_err();
    take(&throttle, 2, Demand::Read(0), 0).unwrap_err();
    run(&throttle, &mut queues, SECOND);
    let lost = PATIENCE / 1_000_000 + 5;
    assert!(queues[0].taken >= 1000 - lost, "{}", queues[0].taken);
    // One that leaves holds up nothing, however long it would have waited.
    let throttle = limited(&reads(rate(0, MIB, 1)));
    let mut queues = [Busy::new(Demand::Read(4096), 0)];
    take(&throttle, 0, Demand::Read(10 * MIB), 0).unwrap();
    take(&throttle, 1, Demand::Read(4096), 0).unwrap_err();
    throttle.leave(1);
    run(&throttle, &mut queues, 20 * SECOND);
    assert!(queues[0].taken.abs_diff(10 * 256) < 4, "{}", queues[0].taken);
}

/// Counts wake-ups.
#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn a_change_wakes_those_that_wait_and_holds_at_once() {
    let throttle = limited(&reads(rate(0, 1, 1)));
    let woken = Arc::new(Woken::default());
    let waker = || Waker::from(Arc::clone(&woken));
    let ask = |queue, now| throttle.ask(queue, Demand::Read(1), Duration::from_nanos(now), waker);
    take(&throttle, 0, Demand::Read(MIB), 0).unwrap();
    let version = throttle.version();
    for _ in 0..3 {
        assert_eq!(ask(1, 1).unwrap_err().version, version);
        assert!(ask(2, 1).unwrap_err().until > Duration::from_secs(1_000_000));
    }
    // The same again is no change.
    throttle.set(&reads(rate(0, 1, 1)), Duration::from_nanos(2));
    assert_eq!((woken.0.load(Ordering::Relaxed), throttle.version()), (0, version));
    throttle.set(&reads(rate(0, MIB, 1)), Duration::from_nanos(2));
    assert_eq!(woken.0.load(Ordering::Relaxed), 2);
    assert_ne!(throttle.version(), version);
    assert_eq!(throttle.rates(), reads(rate(0, MIB, 1)));
    // What was taken is owed still, at the new rate.
    let wait = ask(1, 2).unwrap_err();
    assert!(wait.until < Duration::from_millis(1001), "{wait:?}");
    assert!(wait.until > Duration::from_millis(990), "{wait:?}");
    throttle.set(&Rates::default(), Duration::from_nanos(3));
    assert_eq!((woken.0.load(Ordering::Relaxed), throttle.version()), (3, 0));
    ask(1, 3).unwrap();
}

#[test]
fn a_change_gives_no_new_burst_and_makes_no_debt_longer() {
    let throttle = limited(&reads(rate(1000, 0, 1000)));
    assert_eq!(at_once(&throttle, Demand::Read(0), 0), 1000);
    // What is left stays, whatever the new limit would save up.
    throttle.set(&reads(rate(2000, 0, 1000)), Duration::from_nanos(SECOND / 2));
    assert_eq!(at_once(&throttle, Demand::Read(0), SECOND / 2), 500);
    throttle.set(&reads(rate(2000, 0, 10)), Duration::from_nanos(SECOND));
    assert_eq!(at_once(&throttle, Demand::Read(0), SECOND), 20);
    // A debt of 10 seconds: so it stays at a lower rate, and is less at a higher one.
    let debts = [(1, 10 * SECOND), (MIB / 2, 10 * SECOND), (MIB, 10 * SECOND), (10 * MIB, SECOND)];
    for (per_second, owed) in debts {
        let throttle = limited(&reads(rate(0, MIB, 1)));
        take(&throttle, 0, Demand::Read(10 * MIB), 0).unwrap();
        throttle.set(&reads(rate(0, per_second, 1)), Duration::ZERO);
        let until = take(&throttle, 0, Demand::Read(0), 0).unwrap_err();
        assert!(until.abs_diff(owed) <= 1_000_001, "{per_second}: {until}");
    }
}

/// The generic cell rate algorithm, which is the same in other terms: a request conforms if it comes at most
/// the tolerance before its theoretical arrival time. Times are in parts of tokens.
struct Model {
    per_second: i128,
    tolerance: i128,
    theoretical: i128,
}

impl Model {
    fn new(per_second: u64, burst_ms: u32) -> Self {
        let per_second = i128::from(per_second);
        Self {
            per_second,
            tolerance: per_second * i128::from(burst_ms) * 1_000_000,
            theoretical: 0,
        }
    }

    fn conforms(&self, now: u64) -> bool {
        self.per_second == 0
            || self.theoretical - i128::from(now) * self.per_second < self.tolerance
    }

    fn begin(&mut self, tokens: u64, now: u64) {
        let now = i128::from(now) * self.per_second;
        self.theoretical = self.theoretical.max(now) + i128::from(tokens) * 1_000_000_000;
    }
}

fn limit() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0), 1..100_u64, 1..1_000_000_u64, 1..=u64::MAX]
}

proptest! {
    /// Each request begins when a plain model says so, and is told exactly when that is.
    #[test]
    fn one_queue_is_served_as_the_model_says(
        operations in limit(),
        bytes in limit(),
        burst in 1..5000_u32,
        steps in prop::collection::vec((0..3_u8, 0..2 * SECOND, prop_oneof![0..1_u64 << 20, 0..=132_120_576_u64]), 1..200),
    ) {
        let throttle = limited(&reads(rate(operations, bytes, burst)));
        let (mut by_operations, mut by_bytes) = (Model::new(operations, burst), Model::new(bytes, burst));
        let mut now = 0_u64;
        for (step, time, size) in steps {
            let conforms = |now| by_operations.conforms(now) && by_bytes.conforms(now);
            let asked = take(&throttle, 0, Demand::Read(size), now);
            prop_assert_eq!(asked.is_ok(), conforms(now));
            match asked {
                Ok(()) => {
                    by_operations.begin(1, now);
                    by_bytes.begin(size, now);
                }
                Err(until) => {
                    prop_assert!(conforms(until) || until == u64::MAX);
                    prop_assert!(!conforms(until - 1));
                    if step == 2 && until < 1 << 60 {
                        now = until;
                    }
                }
            }
            if step == 1 {
                now += time;
            }
        }
    }

    /// However many queues ask and change their minds, no more is taken in all than one burst, what has come,
    /// and one request; and some queue may always begin when the limits allow it.
    #[test]
    fn queues_together_get_what_has_come(
        per_second in 1..1_000_000_u64,
        burst in 1..2000_u32,
        steps in prop::collection::vec((0..4_usize, 0..50_000_000_u64, 0..1_000_000_u64, any::<bool>()), 1..300),
    ) {
        let throttle = limited(&reads(rate(0, per_second, burst)));
        let mut model = Model::new(per_second, burst);
        let mut now = 0;
        for (queue, time, size, leaves) in steps {
            now += time;
            let taken = take(&throttle, queue, Demand::Read(size), now);
            if taken.is_ok() {
                prop_assert!(model.conforms(now));
                model.begin(size, now);
            } else if model.conforms(now) {
                // Another one goes first, unless it does not come.
                let late = now + 2 * PATIENCE + 1_000_001;
                prop_assert!(taken.unwrap_err() <= late);
                let all = (0..4).any(|queue| {
                    let waker = || Waker::noop().clone();
                    throttle.ask(queue, Demand::Read(0), Duration::from_nanos(now), waker).is_ok()
                });
                prop_assert!(all);
            }
            if leaves {
                throttle.leave(queue);
            }
        }
    }
}
