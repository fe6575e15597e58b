//! How many descriptors the daemon may have open.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Descriptors of a daemon that serves a front end, without its queues: three standard streams, about
/// thirty of its disk, its signals, its socket and its control API, eight regions of guest memory, and the eight of the
/// largest message.
const OTHERS: u64 = 58;
/// Descriptors of a queue: for kicks, calls and errors, and a second one for kicks and for errors in
/// its thread.
const A_QUEUE: u64 = 5;
/// Descriptors of a queue thread: one that wakes it up, its epoll, and one that reports its end.
const A_THREAD: u64 = 3;

/// Raises the limit as far as it may be raised. Logs a warning if it is too low for a front end that
/// uses all `queues` with `threads` threads. Returns how many descriptors there are beside those.
pub(super) fn raise_open_files(queues: u16, threads: u16) -> u64 {
    let needed = OTHERS + A_QUEUE * u64::from(queues) + A_THREAD * u64::from(threads);
    let (soft, hard) = match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok(limits) => limits,
        Err(errno) => {
            log::debug!("cannot read the limit of open files: {errno}");
            return 0;
        }
    };
    let allowed = match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => hard,
        Err(errno) => {
            log::debug!("cannot raise the limit of open files above {soft}: {errno}");
            soft
        }
    };
    if allowed < needed {
        log::warn!(
            "{allowed} open files are allowed, and {needed} are needed for {queues} queues: raise \
             RLIMIT_NOFILE (ulimit -n, LimitNOFILE=) or lower --num-queues"
        );
    }
    allowed.saturating_sub(needed)
}
