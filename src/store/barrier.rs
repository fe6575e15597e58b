//! A memory barrier that is paid for by the thread that rarely needs it, and not by all others.
#![allow(unsafe_code)]

use std::sync::atomic::{Ordering, compiler_fence, fence};

/// The two sides of a barrier between a thread that passes it often and one that does so rarely.
///
/// Each of them stores something, calls its side, and loads what the other one stores: at least one
/// of the two sees the other's store. Where the kernel helps (membarrier(2), Linux 4.14), the
/// frequent side costs no instruction at all.
#[derive(Debug, Clone, Copy)]
pub struct Barrier {
    by_the_kernel: bool,
}

impl Barrier {
    /// The kernel's, if it has one and lets this process use it; else both sides are fences.
    pub fn new() -> Self {
        Self { by_the_kernel: call(libc::MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED) }
    }

    /// Both sides are fences, whatever the kernel has.
    #[cfg(test)]
    pub(crate) fn fences() -> Self {
        Self { by_the_kernel: false }
    }

    /// The side that is passed often.
    #[inline]
    pub fn often(self) {
        if self.by_the_kernel {
            compiler_fence(Ordering::SeqCst);
        } else {
            fence(Ordering::SeqCst);
        }
    }

    /// The side that is passed rarely; some microseconds.
    pub fn rarely(self) {
        fence(Ordering::SeqCst);
        if self.by_the_kernel && !call(libc::MEMBARRIER_CMD_PRIVATE_EXPEDITED) {
            // It was registered, so the kernel has no reason to refuse it: better stop than continue.
            unreachable!("the kernel refuses a barrier that it had granted");
        }
    }
}

impl Default for Barrier {
    fn default() -> Self {
        Self::new()
    }
}

fn call(command: libc::c_int) -> bool {
    // SAFETY: a system call that takes numbers and touches no memory of ours.
    unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) == 0 }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;
    use std::thread;

    use super::*;

    /// Each of two threads stores its own and loads the other's: one of them sees the other.
    fn holds(barrier: Barrier) {
        const ROUNDS: u64 = 2_000;
        let (mine, its) = (AtomicU64::new(0), AtomicU64::new(0));
        for round in 1..=ROUNDS {
            let (seen_here, seen_there) = thread::scope(|scope| {
                let there = scope.spawn(|| {
                    its.store(round, Ordering::Relaxed);
                    barrier.often();
                    mine.load(Ordering::Relaxed)
                });
                mine.store(round, Ordering::Relaxed);
                barrier.rarely();
                (its.load(Ordering::Relaxed), there.join().unwrap_or(0))
            });
            assert!(seen_here == round || seen_there == round, "round {round}");
        }
    }

    #[test]
    fn one_of_two_threads_sees_the_other() {
        holds(Barrier::new());
        holds(Barrier::fences());
    }
}
