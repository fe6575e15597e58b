//! Failpoints: named steps at which a test can stop the process or one of its threads.
//!
//! A disk that outlives its process has to be consistent at every instruction. There is a step between any
//! two changes to what survives. Where one change takes several stores (marking heads in an in-flight
//! region), unit tests stop between the stores.
//!
//! Only debug builds have failpoints. The environment says what happens when the process reaches STEP, one
//! of [`STEPS`], [`RESETS`] or [`STALLS`], for the N-th time:
//!
//! * `VUZ_CRASH_AT=STEP:N`: the process kills itself by SIGKILL;
//! * `VUZ_PANIC_AT=STEP:N`: the thread panics;
//! * `VUZ_STALL_AT=STEP:N`: the thread sleeps for ever, as in a system call that does not return;
//! * `VUZ_HOLD_AT=STEP:N`: the thread creates the file that `VUZ_HOLD_FILE` names, and sleeps until it is
//!   removed.

/// All steps. A process dies after what is above the step in the code, and before what is below.
pub const STEPS: &[&str] = &[
    // A write of a whole page.
    "write.fetched",
    "write.prepared",
    "write.published",
    "write.freed",
    // A discard, or zeroing, of whole pages.
    "discard.locked",
    "discard.published",
    "discard.freed",
    // A change of a part of a page.
    "modify.locked",
    "modify.decoded",
    "modify.prepared",
    "modify.published",
    "modify.freed",
    // Storing an object, for a write or a change, or where it is moved to.
    "store.allocated",
    "store.written",
    "store.tagged",
    // Moving an object, and giving pages back.
    "compact.copied",
    "compact.published",
    "compact.vacated",
    "compact.trimmed",
    // A job replaces a page by what a slower codec made of it.
    "recompress.claimed",
    "recompress.stored",
    "recompress.published",
    "recompress.freed",
    "recompress.marked",
    // Giving a page of the slot table back.
    "table.hidden",
    "table.punched",
    "table.gone",
    // Making a state.
    "create.superblock",
    "create.table",
    "create.arena",
    "create.sealed",
    "create.filled",
    // Adding a codec to a state.
    "codec.freed",
    "codec.written",
    "codec.used",
    // Opening a state.
    "open.checked",
    "open.trimmed",
    "open.counted",
    "open.unlocked",
    // Growing.
    "grow.checked",
    "grow.prepared",
    "grow.noted",
    "grow.published",
    "grow.told",
    // Changing a slot and its check sum.
    "sum.intended",
    "sum.stored",
    "sum.published",
    // Taking requests from a ring, and giving them back.
    "ring.marked",
    "ring.chained",
    "ring.elements",
    "ring.index",
    "ring.cleared",
    "ring.synced",
];

/// Steps of the reset of a disk: what is above one was done when the process dies at it.
pub const RESETS: &[&str] = &[
    "reset.begun",
    "reset.freed",
    "reset.counted",
    "reset.done",
    // What an opening does with a reset that was not finished.
    "reset.found",
    "reset.table",
    "reset.arena",
    "reset.noted",
];

/// Steps that change nothing that survives, for threads that are to stall or to be held.
#[cfg(any(test, debug_assertions))]
pub const STALLS: &[&str] = &[
    // Before a piece of an image is read.
    "load.read",
    // Before the socket is created, with its lock held; before it gets its group and mode.
    "socket.checked",
    "socket.bound",
    // Before a wait: for the socket of a daemon that ends, its state, another daemon that creates the
    // same socket, room in the service manager's queue, and its answer.
    "wait.socket",
    "wait.state",
    "wait.turn",
    "wait.manager.room",
    "wait.manager.barrier",
    // Before a message of a session is handled.
    "session.message",
];

/// The steps of putting a new content in place of a slot's old one, as the caller names them.
#[derive(Clone, Copy)]
pub struct Steps {
    /// The slot names the new content, and is unlocked.
    pub published: &'static str,
    /// What it named before is free.
    pub freed: &'static str,
}

/// Steps of a write.
pub const WRITE: Steps = Steps { published: "write.published", freed: "write.freed" };
/// Steps of a discard.
pub const DISCARD: Steps = Steps { published: "discard.published", freed: "discard.freed" };
/// Steps of a change of a part of a page.
pub const MODIFY: Steps = Steps { published: "modify.published", freed: "modify.freed" };

/// Steps of a recompression.
pub const RECOMPRESS: Steps =
    Steps { published: "recompress.published", freed: "recompress.freed" };

/// Marks a step, one of [`STEPS`], [`RESETS`] or [`STALLS`].
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn reach(_: &'static str) {}

#[cfg(debug_assertions)]
pub use active::reach;

#[cfg(debug_assertions)]
mod active {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;

    use super::{RESETS, STALLS, STEPS};

    struct Plan {
        step: &'static str,
        left: AtomicU64,
        what: Fate,
    }

    /// What happens to the thread that reaches a step.
    #[derive(Clone, Copy, PartialEq, Eq)]
    enum Fate {
        /// It dies with its process.
        Killed,
        /// It panics.
        Panics,
        /// It sleeps for ever.
        Stalls,
        /// It creates a file, and sleeps until that is removed.
        Held,
    }

    static PLAN: OnceLock<Option<Plan>> = OnceLock::new();

    /// Marks a step, one of [`STEPS`], [`RESETS`] or [`STALLS`], and does what the environment says for it.
    pub fn reach(step: &'static str) {
        let listed = [STEPS, RESETS, STALLS].iter().any(|steps| steps.contains(&step));
        debug_assert!(listed, "{step} is not listed");
        let Some(plan) = PLAN.get_or_init(plan) else { return };
        if plan.step != step || plan.left.fetch_sub(1, Ordering::Relaxed) != 1 {
            return;
        }
        match plan.what {
            Fate::Killed => {
                let _ = kill(Pid::this(), Signal::SIGKILL);
            }
            Fate::Panics => panic!("told to die at {step}"),
            Fate::Stalls => {}
            Fate::Held => return hold(),
        }
        loop {
            // The signal may not have arrived yet, and the thread must do nothing before it does.
            std::thread::park();
        }
    }

    fn hold() {
        let Some(file) = std::env::var_os("VUZ_HOLD_FILE") else { panic!("no VUZ_HOLD_FILE") };
        if let Err(error) = std::fs::write(&file, "") {
            panic!("{}: {error}", file.display());
        }
        while std::path::Path::new(&file).exists() {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }

    /// The settings of the environment. A step that does not exist must not pass for one that is safe.
    fn plan() -> Option<Plan> {
        let fates = [
            ("VUZ_CRASH_AT", Fate::Killed),
            ("VUZ_PANIC_AT", Fate::Panics),
            ("VUZ_STALL_AT", Fate::Stalls),
            ("VUZ_HOLD_AT", Fate::Held),
        ];
        let told = |(name, what)| std::env::var(name).ok().map(|text| (text, what));
        let (text, what) = fates.into_iter().find_map(told)?;
        let (step, count) = text.split_once(':').unwrap_or((&text, "1"));
        let step = STEPS.iter().chain(RESETS).chain(STALLS).find(|known| **known == step);
        match (step, count.parse()) {
            (Some(step), Ok(count)) => Some(Plan { step, left: AtomicU64::new(count), what }),
            _ => panic!("{text} is not a failpoint"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_is_listed_once() {
        for (at, step) in STEPS.iter().enumerate() {
            assert!(!STEPS[at + 1..].contains(step), "{step}");
        }
        for steps in [WRITE, DISCARD, MODIFY] {
            assert!(STEPS.contains(&steps.published) && STEPS.contains(&steps.freed));
        }
    }
}
