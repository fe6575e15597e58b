//! Guest memory that vanishes under its mapping.
//!
//! Guest memory is a file of the front end's. If the file is truncated, touching what was cut off
//! raises SIGBUS, which would end the daemon and with it everybody's disk. Here the signal becomes
//! a mark on the region and a word to the session: the lost region is replaced by zeroes, the
//! thread goes on, and who copies from a marked region throws the bytes away.
//!
//! A SIGBUS anywhere else is fatal, as it was.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use nix::errno::Errno;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use vmm_sys_util::eventfd::EventFd;

/// Regions that can be watched at once: a session maps at most 512 and in-flight regions, and
/// overlaps its successor never.
const REGIONS: usize = 1024;

/// One watched range. The handler reads it while other threads change it, so: `len` is 0 while
/// the rest is not valid, and is written last.
struct Watched {
    len: AtomicUsize,
    start: AtomicUsize,
    faulted: AtomicBool,
    /// Raw descriptor of the eventfd to be signalled.
    alarm: AtomicI32,
    taken: AtomicBool,
}

static WATCHED: [Watched; REGIONS] = [const {
    Watched {
        len: AtomicUsize::new(0),
        start: AtomicUsize::new(0),
        faulted: AtomicBool::new(false),
        alarm: AtomicI32::new(-1),
        taken: AtomicBool::new(false),
    }
}; REGIONS];

/// Keeps one range of addresses watched; dropped before the range is unmapped.
#[derive(Debug)]
pub(super) struct Watch {
    slot: usize,
    /// Kept open: the handler writes to its raw descriptor.
    _alarm: Arc<EventFd>,
}

impl Watch {
    /// Watches `len` bytes from `start` on; a fault there is signalled through `alarm`.
    ///
    /// # Errors
    /// The handler cannot be installed, or too many ranges are watched.
    pub(super) fn new(start: usize, len: usize, alarm: &Arc<EventFd>) -> io::Result<Self> {
        install()?;
        let free = WATCHED.iter().position(|watched| !watched.taken.swap(true, Ordering::AcqRel));
        let slot = free.ok_or_else(|| io::Error::other("too many guest memory regions"))?;
        let watched = &WATCHED[slot];
        watched.faulted.store(false, Ordering::Relaxed);
        watched.alarm.store(alarm.as_raw_fd(), Ordering::Relaxed);
        watched.start.store(start, Ordering::Relaxed);
        watched.len.store(len, Ordering::Release);
        Ok(Self { slot, _alarm: Arc::clone(alarm) })
    }

    /// Whether the range, or a part of it, was lost.
    pub(super) fn faulted(&self) -> bool {
        WATCHED[self.slot].faulted.load(Ordering::Acquire)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let watched = &WATCHED[self.slot];
        watched.len.store(0, Ordering::Release);
        watched.taken.store(false, Ordering::Release);
    }
}

/// Installs the handler, once for the process.
fn install() -> io::Result<()> {
    static DONE: OnceLock<Result<(), nix::Error>> = OnceLock::new();
    let done = DONE.get_or_init(|| {
        let handler = SigHandler::SigAction(on_sigbus);
        let action = SigAction::new(handler, SaFlags::SA_SIGINFO, SigSet::empty());
        // SAFETY: the handler calls nothing but async-signal-safe functions and atomics.
        unsafe { sigaction(Signal::SIGBUS, &action) }.map(|_| ())
    });
    done.map_err(Into::into)
}

/// Runs on the thread that touched the lost memory.
extern "C" fn on_sigbus(signal: c_int, info: *mut libc::siginfo_t, _context: *mut c_void) {
    // SAFETY: the kernel passes a valid siginfo, which nobody else has.
    let info = unsafe { &*info };
    // SAFETY: SIGBUS is one of the signals whose siginfo has a fault address.
    let address = unsafe { info.si_addr() } as usize;
    for watched in &WATCHED {
        let len = watched.len.load(Ordering::Acquire);
        let start = watched.start.load(Ordering::Relaxed);
        if len != 0 && (start..start + len).contains(&address) {
            let errno = Errno::last_raw();
            watched.faulted.store(true, Ordering::Release);
            if replace_by_zeroes(start, len) {
                alarm(watched.alarm.load(Ordering::Relaxed));
                Errno::set_raw(errno);
                return;
            }
        }
    }
    // Not ours: returning runs the access again, and now it ends the process as it should.
    // SAFETY: resetting a disposition is async-signal-safe.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
}

/// Puts private zero pages over the whole region, huge pages included, so that every access to it
/// succeeds from now on.
fn replace_by_zeroes(start: usize, len: usize) -> bool {
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
    // SAFETY: the range is one whole mapping of guest memory, which its `Watch` outlives; what
    // replaces it has the same size and protection, and is unmapped with it.
    let mapped = unsafe { libc::mmap(start as *mut c_void, len, prot, flags, -1, 0) };
    mapped != libc::MAP_FAILED
}

fn alarm(fd: RawFd) {
    let one = 1_u64.to_ne_bytes();
    // SAFETY: writes 8 bytes of a local array; a descriptor that is closed by now is an error
    // that nobody needs to know of.
    let _ = unsafe { libc::write(fd, one.as_ptr().cast(), one.len()) };
}
