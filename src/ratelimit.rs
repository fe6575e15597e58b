//! Warnings that a guest or a front end can cause as often as it likes: a few of each kind per period,
//! then a count. Each kind has its own limit, so that a flood of one cannot hide another.

use std::fmt::{self, Arguments};
use std::sync::Mutex;
use std::time::Duration;

use log::Level;

use crate::{clock, sync};

/// Lines of one kind that are printed in one period.
const PER_PERIOD: u32 = 10;
const PERIOD: Duration = Duration::from_secs(1);

/// What a line is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Front ends that connect and hang up.
    Connections,
    /// Front ends that are disconnected.
    Disconnections,
    /// Messages of a front end that are refused.
    Messages,
    /// Descriptors and memory of a front end that cannot be used.
    Descriptors,
    /// Queues that are stopped.
    Queues,
    /// Requests whose parts do not fit together, or do not lie in guest memory.
    Malformed,
    /// Requests for operations that are not offered.
    Unsupported,
    /// Requests that would change a read-only disk.
    ReadOnly,
    /// Requests for sectors that the disk does not have.
    Range,
    /// Requests that failed for lack of memory, the host's or the guest's.
    Failures,
    /// Pages that are damaged.
    Damage,
    /// Requests that do not end.
    Stalls,
}

const KINDS: usize = Kind::Stalls as usize + 1;

#[derive(Debug, Default)]
struct Period {
    since: Option<Duration>,
    printed: u32,
    held_back: u64,
}

/// Suppresses lines of a kind that repeat too often.
///
/// Each server has one, which outlives its sessions: a front end that reconnects starts no new
/// period.
pub struct Limiter {
    periods: [Mutex<Period>; KINDS],
    clock: Box<dyn Fn() -> Duration + Send + Sync>,
    sink: Box<dyn Fn(Level, Arguments<'_>) + Send + Sync>,
}

impl fmt::Debug for Limiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Limiter").field("periods", &self.periods).finish_non_exhaustive()
    }
}

impl Default for Limiter {
    fn default() -> Self {
        Self::with(clock::coarse, |level, line| log::log!(level, "{line}"))
    }
}

impl Limiter {
    /// A limiter with its own clock and its own place for lines.
    fn with(
        clock: impl Fn() -> Duration + Send + Sync + 'static,
        sink: impl Fn(Level, Arguments<'_>) + Send + Sync + 'static,
    ) -> Self {
        Self { periods: Default::default(), clock: Box::new(clock), sink: Box::new(sink) }
    }

    /// Logs a warning, unless there were too many of its kind lately.
    pub fn warn(&self, kind: Kind, message: Arguments<'_>) {
        self.say(kind, Level::Warn, message);
    }

    /// Logs a line that is not a warning, unless there were too many of its kind lately.
    pub fn info(&self, kind: Kind, message: Arguments<'_>) {
        self.say(kind, Level::Info, message);
    }

    fn say(&self, kind: Kind, level: Level, message: Arguments<'_>) {
        if !log::log_enabled!(level) && !cfg!(test) {
            return;
        }
        let mut period = sync::lock(&self.periods[kind as usize]);
        let now = (self.clock)();
        if period.since.is_none_or(|since| now.saturating_sub(since) >= PERIOD) {
            if period.held_back > 0 {
                (self.sink)(
                    level,
                    format_args!("{} more lines like the next one", period.held_back),
                );
            }
            *period = Period { since: Some(now), printed: 0, held_back: 0 };
        }
        if period.printed < PER_PERIOD {
            period.printed += 1;
            (self.sink)(level, message);
        } else {
            period.held_back += 1;
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    /// The lines that a limiter printed, and the time of its clock, in milliseconds.
    #[derive(Debug, Default)]
    pub(crate) struct Printed {
        lines: Mutex<Vec<String>>,
        time: AtomicU64,
    }

    impl Printed {
        /// A limiter whose time stands still until it is moved.
        pub(crate) fn limiter() -> (Arc<Limiter>, Arc<Self>) {
            let printed = Arc::<Self>::default();
            let (its, clock) = (Arc::clone(&printed), Arc::clone(&printed));
            let limiter = Limiter::with(
                move || Duration::from_millis(clock.time.load(Ordering::Relaxed)),
                move |_, line| sync::lock(&its.lines).push(line.to_string()),
            );
            (Arc::new(limiter), printed)
        }

        /// Takes all lines that were printed.
        pub(crate) fn take(&self) -> Vec<String> {
            std::mem::take(&mut sync::lock(&self.lines))
        }

        fn pass(&self, millis: u64) {
            self.time.fetch_add(millis, Ordering::Relaxed);
        }
    }

    #[test]
    fn ten_lines_of_a_kind_are_printed_in_a_second_and_the_rest_is_counted() {
        let (limiter, printed) = Printed::limiter();
        for n in 0..1000 {
            limiter.warn(Kind::Malformed, format_args!("line {n}"));
        }
        let first: Vec<String> = (0..10).map(|n| format!("line {n}")).collect();
        assert_eq!(printed.take(), first);
        printed.pass(999);
        limiter.warn(Kind::Malformed, format_args!("too early"));
        assert_eq!(printed.take(), [""; 0]);
        printed.pass(1);
        limiter.info(Kind::Malformed, format_args!("a second later"));
        assert_eq!(printed.take(), ["991 more lines like the next one", "a second later"]);
        printed.pass(5000);
        limiter.warn(Kind::Malformed, format_args!("long after"));
        assert_eq!(printed.take(), ["long after"]);
    }

    #[test]
    fn a_flood_of_one_kind_hides_no_other() {
        let (limiter, printed) = Printed::limiter();
        for _ in 0..1000 {
            limiter.info(Kind::Connections, format_args!("noise"));
            limiter.warn(Kind::Descriptors, format_args!("noise"));
        }
        assert_eq!(printed.take().len(), 20);
        limiter.warn(Kind::Damage, format_args!("page 7 is damaged"));
        assert_eq!(printed.take(), ["page 7 is damaged"]);
    }
}
