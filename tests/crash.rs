//! The daemon dies by SIGKILL under load, and what a new one on the same state finds is compared
//! with a model of all that was acknowledged, and of what may have happened beside that.
//!
//! `VUZ_CRASHES` says how often it is killed at random moments (100 times without), `VUZ_STEPS` limits
//! the named steps to those that begin so, `VUZ_SEED`
//! repeats a run's choices; the moments of threads are not repeated.

mod common;
#[path = "crash/contents.rs"]
mod contents;
#[path = "crash/life.rs"]
mod life;
#[path = "crash/load.rs"]
mod load;
#[path = "crash/model.rs"]
mod model;

use std::{
    env,
    time::{Duration, SystemTime},
};

use common::daemon::TempDir;
use life::{Life, Mode, Setup};
use load::Mix;
use nix::sys::signal::Signal;
use vhost_user_zram::internals::STEPS;
use vhost_user_zram_frontend::{Op, Random, Shape, Status};

/// Kills that one state has to bear.
const KILLS_PER_STATE: u64 = 25;
/// Requests that a load makes until it gives a step up.
const LONG: u64 = 20_000;

const SETUPS: [Setup; 4] = [
    Setup { algorithm: "lz4", arguments: &["--engine", "inline"], limited: false },
    Setup {
        algorithm: "zstd(level=1)",
        arguments: &["--engine", "offload", "--engine-workers", "2", "--engine-model", MODEL],
        limited: false,
    },
    Setup {
        algorithm: "zstd(level=1)",
        arguments: &["--engine", "inline", "--mem-limit", "1200K"],
        limited: true,
    },
    Setup {
        algorithm: "lz4",
        arguments: &[
            "--engine",
            "offload",
            "--engine-workers",
            "2",
            "--engine-model",
            MODEL,
            "--mem-limit",
            "1200K",
        ],
        limited: true,
    },
];
/// Codecs that are added to states, one after the other.
const ALGORITHMS: [&str; 9] = [
    "zstd(level=-1)",
    "lz4(acceleration=2)",
    "zstd(level=2)",
    "lz4-flex",
    "zstd(level=-7)",
    "lz4(acceleration=3)",
    "zstd(level=4)",
    "zstd(level=-2)",
    "zstd(level=5)",
];
const MODEL: &str = "reorder=8,refuse=10%,fail=1%,seed=5";

/// What follows the deaths of a state, in turn, so that a front end outlives more than one of them.
const MODES: [Mode; 6] =
    [Mode::Resume, Mode::Resume, Mode::Cold, Mode::Ordered, Mode::Ordered, Mode::Cold];

/// Whether the front end that meets the next death has to have an in-flight region.
fn is_tracked(death: u64) -> bool {
    let mode = |death| MODES[death as usize % MODES.len()];
    // After a cold start the front end is that of the mode that comes then.
    match mode(death) {
        Mode::Cold => mode(death + 1) == Mode::Resume,
        mode => mode == Mode::Resume,
    }
}

fn number(name: &str) -> Option<u64> {
    env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text}")))
}

fn seed() -> u64 {
    let now = || SystemTime::UNIX_EPOCH.elapsed().map_or(0, |now| now.as_nanos() as u64);
    let seed = number("VUZ_SEED").unwrap_or_else(now);
    eprintln!("VUZ_SEED={seed}");
    seed
}

/// What random kills have found.
#[derive(Debug, Default)]
struct Found {
    kills: u64,
    /// Kills with something in flight.
    busy: u64,
    in_flight: usize,
    /// What of that in-flight regions showed.
    taken: usize,
    /// Kills for which they showed requests completed out of order.
    out_of_order: u64,
    /// Ends of daemons that had not even finished what one before them had left.
    stumbles: u64,
    requests: u64,
    failed: u64,
}

impl Life {
    /// One random kill, and what comes after it.
    fn death(&mut self, mode: Mode, next_tracked: bool, found: &mut Found) {
        let requests = 1 + self.load.random.below(1200);
        let alive = self.load.run(&mut self.client, requests, || self.daemon.is_alive());
        assert!(alive, "the daemon died by itself: {:?}", self.daemon.stderr.all());
        if self.load.random.below(4) == 0 {
            self.daemon.signal(Signal::SIGUSR2);
        }
        self.load.fill(&mut self.client);
        // The queues are full now: it dies somewhere in the next few dozens of requests.
        life::spin(Duration::from_micros(self.load.random.below(800)));
        let left = self.kill();
        found.kills += 1;
        found.busy += u64::from(left.requests > 0);
        found.in_flight += left.requests;
        found.taken += left.taken;
        found.out_of_order += u64::from(left.out_of_order > 0);
        while self.load.random.below(4) == 0 {
            self.stumble(mode);
            found.stumbles += 1;
        }
        self.revive(mode, next_tracked);
    }
}

#[test]
fn nothing_acknowledged_is_lost_at_random_moments() {
    let seed = seed();
    let kills = number("VUZ_CRASHES").unwrap_or(100);
    let mut found = Found::default();
    for state in 0.. {
        let left = kills - found.kills;
        if left == 0 {
            break;
        }
        let setup = SETUPS[state % SETUPS.len()];
        eprintln!("state {state}: {} {:?}", setup.algorithm, setup.arguments);
        let mut life = Life::new(setup, seed.wrapping_add(state as u64));
        for death in 0..left.min(KILLS_PER_STATE) {
            let mode = MODES[death as usize % MODES.len()];
            eprintln!("death {death}: {mode:?}");
            life.death(mode, is_tracked(death + 1), &mut found);
        }
        found.requests += life.load.completed;
        found.failed += life.load.failed;
        life.end();
    }
    eprintln!("{found:?}");
    // Else it tests nothing. How many more there are depends on the machine, and is said above.
    assert!(found.busy > 0, "{found:?}");
}

/// The load that comes to the steps of a prefix.
enum Way {
    Load(Mix),
    /// A load, and now and then a compaction.
    Compaction,
    /// A load, and now and then a recompression.
    Recompression,
    /// The same, when nothing is left on the disk or half of it: a page of the slot table each.
    EmptyTable,
    /// The start of a daemon on a state that is there.
    Open,
    /// The same with another algorithm.
    Codec,
    /// A load, under which the disk grows.
    Grow,
    /// The start that makes a state.
    Create,
}

fn way_to(step: &str) -> Way {
    match step.split_once('.').map_or(step, |(prefix, _)| prefix) {
        "write" | "store" | "sum" => Way::Load(Mix::WRITES),
        "modify" => Way::Load(Mix::PARTS),
        "discard" => Way::Load(Mix::DISCARDS),
        "ring" => Way::Load(Mix::ALL),
        "compact" => Way::Compaction,
        "recompress" => Way::Recompression,
        "table" => Way::EmptyTable,
        "open" => Way::Open,
        "codec" => Way::Codec,
        "grow" => Way::Grow,
        "create" => Way::Create,
        _ => panic!("{step}: this test has to be told how to get there"),
    }
}

/// Whether only a queue with an in-flight region comes to the step.
fn needs_region(step: &str) -> bool {
    matches!(step, "ring.marked" | "ring.chained" | "ring.cleared" | "ring.synced")
}

/// When a load has the daemon compact.
#[derive(Clone, Copy)]
enum Compact {
    Never,
    NowAndThen,
    /// And recompress what there is, instead.
    Recompress,
    /// When the disk was discarded, and not before that is done.
    Emptied,
}

/// Has the daemon die where it comes to `step` for the `nth` time under load.
fn die_under_load(life: &mut Life, step: &str, nth: u64, mode: Mode, mix: Mix, compact: Compact) {
    let tracked = mode == Mode::Resume || needs_region(step);
    life.renew(Some(&format!("{step}:{nth}")), tracked);
    life.load.mix = mix;
    let end = life.load.completed + LONG;
    while life.load.run(&mut life.client, 100, || life.daemon.is_alive()) {
        assert!(life.load.completed < end, "{step}:{nth}: no process comes there");
        match compact {
            Compact::Never => {}
            Compact::NowAndThen => life.daemon.signal(Signal::SIGUSR2),
            Compact::Recompress => life.recompress(),
            Compact::Emptied => {
                // So many that none but these are in flight in the end.
                life.load.mix = Mix::SWEEPS;
                if life.load.run(&mut life.client, 600, || life.daemon.is_alive()) {
                    life.compact();
                }
                life.load.mix = mix;
            }
        }
    }
    life.bury();
    life.revive(mode, true);
}

/// Has `times` daemons die one after the other at `step`, while they open what one has left that was
/// killed under load.
fn die_at_open(life: &mut Life, step: &str, times: u64, mode: Mode) {
    life.renew(None, mode == Mode::Resume);
    life.load.mix = Mix::PARTS;
    assert!(life.load.run(&mut life.client, 500, || life.daemon.is_alive()));
    life.load.fill(&mut life.client);
    life.kill();
    for _ in 0..times {
        life.start_and_die(&format!("{step}:1"));
    }
    life.revive(mode, true);
}

/// Has a daemon die at `step` while it adds a codec to what one has left that was killed under load.
/// The next one has the same codec and finds pages of the old ones; new ones are written on the way to
/// the next step.
fn die_at_codec(life: &mut Life, step: &str, algorithm: &'static str, mode: Mode) {
    life.renew(None, mode == Mode::Resume);
    assert!(life.load.run(&mut life.client, 500, || life.daemon.is_alive()));
    life.load.fill(&mut life.client);
    life.kill();
    life.set_algorithm(algorithm);
    life.start_and_die(&format!("{step}:1"));
    life.revive(mode, true);
}

/// Has a daemon die at `step` while the disk grows under load.
fn die_at_growth(life: &mut Life, step: &str, mode: Mode) {
    // A part of a page of the table, and more than one.
    const MORE: [usize; 2] = [37 * contents::PAGE, 601 * contents::PAGE];
    life.renew(Some(&format!("{step}:1")), mode == Mode::Resume);
    assert!(life.load.run(&mut life.client, 300, || life.daemon.is_alive()));
    let before = life.load.model.len();
    let wanted = before + MORE[life.load.random.below(2) as usize];
    let _http = life.tell_to_grow(wanted);
    let end = life.load.completed + LONG;
    while life.load.run(&mut life.client, 100, || life.daemon.is_alive()) {
        assert!(life.load.completed < end, "{step}: no process comes there");
    }
    life.bury();
    // With the command line of the first.
    life.revive(mode, true);
    let is_noted = !matches!(step, "grow.checked" | "grow.prepared");
    let expected = if is_noted { wanted } else { before };
    assert_eq!(life.load.model.len(), expected, "{step}");
    // The same guest can use what is new, or cannot.
    let last = (wanted - contents::PAGE) as u64;
    let done = life.client.blk().run(Op::In, last, 4096, &Shape::default()).expect("an answer");
    assert_eq!(done.status == Status::Ok, is_noted, "{step}: {done:?}");
    assert!(life.load.run(&mut life.client, 500, || life.daemon.is_alive()));
    life.load.drain(&mut life.client);
}

/// Has `times` daemons die at `step`, while they make a state.
fn die_at_creation(step: &str, times: u64, setup: Setup, seed: u64) {
    let state = TempDir::in_memory();
    for _ in 0..times {
        setup.start_and_die(&state, &format!("{step}:1"));
        // Half of a state is refused where a whole one is expected.
        setup.is_refused(&state);
    }
    let mut life = Life::in_state(setup, seed, state);
    assert!(life.load.run(&mut life.client, 500, || life.daemon.is_alive()));
    life.kill();
    life.revive(Mode::Resume, true);
    life.end();
}

#[test]
#[cfg_attr(not(debug_assertions), ignore = "there are no steps in release builds")]
fn nothing_acknowledged_is_lost_at_any_named_step() {
    let seed = seed();
    let mut random = Random::new(seed);
    let mut lives = SETUPS.map(|setup| Life::new(setup, random.next_u64()));
    let modes = [Mode::Cold, Mode::Resume, Mode::Ordered];
    let mut algorithms = ALGORITHMS.into_iter();
    let only = env::var("VUZ_STEPS").unwrap_or_default();
    let steps = STEPS.iter().enumerate().filter(|(_, step)| step.starts_with(&only));
    for (turn, step) in steps {
        for (at, nth) in [1, 2, 3 + random.below(48)].into_iter().enumerate() {
            // Each step with each mode, and the steps of each path with each setup.
            let mode = modes[(turn + at) % modes.len()];
            let setup = (turn * modes.len() + at) % SETUPS.len();
            let mode =
                if needs_region(step) && mode == Mode::Ordered { Mode::Resume } else { mode };
            eprintln!("{step}:{nth}, then {mode:?}, setup {setup}");
            let life = &mut lives[setup];
            match way_to(step) {
                Way::Load(mix) => die_under_load(life, step, nth, mode, mix, Compact::Never),
                Way::Compaction => {
                    die_under_load(life, step, nth, mode, Mix::DISCARDS, Compact::NowAndThen);
                }
                Way::Recompression => {
                    die_under_load(life, step, nth, mode, Mix::ALL, Compact::Recompress);
                }
                Way::EmptyTable => {
                    // Each time comes to a step once.
                    die_under_load(life, step, nth.min(8), mode, Mix::ALL, Compact::Emptied);
                }
                // A start comes to each of its steps once.
                Way::Open => die_at_open(life, step, nth.min(3), mode),
                Way::Codec => {
                    let algorithm = algorithms.next().expect("one that no state has");
                    die_at_codec(life, step, algorithm, mode);
                }
                Way::Grow => die_at_growth(life, step, mode),
                Way::Create => {
                    die_at_creation(step, nth.min(3), SETUPS[setup], random.next_u64());
                }
            }
        }
    }
    lives.into_iter().for_each(Life::end);
}
