//! Warnings that a guest can cause as often as it likes: some a second, then a count.

use std::fmt::Arguments;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::sync;

/// Warnings of one period that are printed.
const PER_PERIOD: u32 = 10;
const PERIOD: Duration = Duration::from_secs(1);

struct State {
    since: Option<Instant>,
    printed: u32,
    held_back: u64,
}

static STATE: Mutex<State> = Mutex::new(State { since: None, printed: 0, held_back: 0 });

/// Logs a warning, unless there were too many of them lately.
pub(super) fn warn(message: Arguments<'_>) {
    let mut state = sync::lock(&STATE);
    let now = Instant::now();
    if state.since.is_none_or(|since| now.duration_since(since) >= PERIOD) {
        if state.held_back > 0 {
            log::warn!("{} more warnings like these", state.held_back);
        }
        *state = State { since: Some(now), printed: 0, held_back: 0 };
    }
    if state.printed < PER_PERIOD {
        state.printed += 1;
        log::warn!("{message}");
    } else {
        state.held_back += 1;
    }
}
