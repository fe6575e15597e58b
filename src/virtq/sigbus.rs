//! Guest memory that vanishes under its mapping.
//!
//! Guest memory is a file of the front end. If the file is truncated, an access to the part that was cut
//! off raises SIGBUS, which would end the daemon and its disk. Instead, the handler here marks the region as
//! lost, signals the session, and replaces the region by zeroes. The thread continues, and a thread that
//! copies from a marked region discards the bytes.
//!
//! Which signal is what (`si_code`, sigaction(2)):
//!
//! * sent by a process (0 and below): no memory is lost, and the handler does nothing;
//! * `BUS_MCEERR_AO`, a broken page of memory that no thread has touched: the handler does nothing. A
//!   thread that touches it receives another signal;
//! * anything else, `BUS_MCEERR_AR` for a touched broken page among it, is a fault at its address. In
//!   a watched region that region is lost. Anywhere else it ends the process, as it would without
//!   a handler.
//!
//! The handler stays installed for the life of the process. It and its table belong to the process, not to
//! a disk: a handler receives an address and nothing else.
//!
//! The handler reads **the table of regions** while other threads change it. It takes no lock, because a
//! signal handler cannot. These rules make that correct:
//!
//! * a slot belongs to the [`Watch`] that set `taken`; only that one writes to it, and only while
//!   `len` is 0 but for `len` itself;
//! * a thread that touches guest memory holds the mapping, and the mapping's owner drops the `Watch`
//!   first. So the slot of the region that a thread faults in does not change meanwhile;
//! * slots of other regions may change. `len` is read before and after `start`, so the two are of one
//!   region, or the slot is skipped;
//! * a watched range is whole pages of its mapping, huge ones included: `handed` maps no other. So
//!   `MAP_FIXED` over it never cuts a page in two, which the kernel refuses.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering, fence};
use std::sync::{Arc, OnceLock};

use nix::errno::Errno;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use vmm_sys_util::eventfd::EventFd;

/// Regions that can be watched at once: a session maps at most 509, as many again while it replaces
/// them, and in-flight regions; two sessions never overlap.
const REGIONS: usize = 1152;

/// One watched range. `len` is 0 while the rest is not valid, and is written last.
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

/// Whether any range was ever lost. It stays set: a process that lost one reads all of them from then on.
static FAULTED: AtomicBool = AtomicBool::new(false);

/// Whether a range of this process was ever lost, so that it makes sense to ask which one: each request asks
/// for all of its memory. To be called after the access in question, as [`Watch::faulted`] is.
#[inline]
pub(crate) fn has_faulted() -> bool {
    // Not before the access, which may have been a plain load.
    fence(Ordering::Acquire);
    FAULTED.load(Ordering::Acquire)
}

/// Keeps one range of addresses watched; dropped before the range is unmapped.
#[derive(Debug)]
pub(crate) struct Watch {
    slot: usize,
    /// Kept open: the handler writes to its raw descriptor.
    _alarm: Arc<EventFd>,
}

impl Watch {
    /// Watches the pages of `page` bytes in the `len` bytes from `start` on; a fault there is
    /// signalled through `alarm`. `start` and `len` are multiples of `page`.
    ///
    /// # Errors
    /// The handler cannot be installed, or too many ranges are watched.
    pub(crate) fn new(
        start: usize,
        len: usize,
        page: usize,
        alarm: &Arc<EventFd>,
    ) -> io::Result<Self> {
        debug_assert!(start.is_multiple_of(page) && len.is_multiple_of(page));
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
    pub(crate) fn faulted(&self) -> bool {
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
///
/// # Errors
/// The kernel refuses it.
pub(crate) fn install() -> io::Result<()> {
    static DONE: OnceLock<Result<(), nix::Error>> = OnceLock::new();
    let done = DONE.get_or_init(|| {
        let handler = SigHandler::SigAction(on_sigbus);
        // A signal that a process sent is not a reason for a system call to fail.
        let flags = SaFlags::SA_SIGINFO | SaFlags::SA_RESTART;
        let action = SigAction::new(handler, flags, SigSet::empty());
        // SAFETY: the handler calls nothing but async-signal-safe functions and atomics.
        unsafe { sigaction(Signal::SIGBUS, &action) }.map(|_| ())
    });
    done.map_err(Into::into)
}

/// Runs on the thread that touched the lost memory, or on any thread if a process sent the signal.
extern "C" fn on_sigbus(signal: c_int, info: *mut libc::siginfo_t, _context: *mut c_void) {
    // SAFETY: the kernel passes a valid siginfo, which no other code has.
    let info = unsafe { &*info };
    if info.si_code <= 0 || info.si_code == libc::BUS_MCEERR_AO {
        return;
    }
    // SAFETY: SIGBUS by a fault is one of the signals whose siginfo has a fault address.
    let address = unsafe { info.si_addr() } as usize;
    let errno = Errno::last_raw();
    let replaced = WATCHED.iter().any(|watched| watched.abandon(address));
    if !replaced {
        // Not a watched region. The signal ends the process as it should; it is pending until the
        // handler returns.
        // SAFETY: resetting a disposition is async-signal-safe.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
        // SAFETY: so is raising a signal.
        unsafe { libc::raise(signal) };
    }
    Errno::set_raw(errno);
}

impl Watched {
    /// If `address` lies in this region, marks the region as lost and makes it accessible again. Returns
    /// false if it does not, or if that fails.
    fn abandon(&self, address: usize) -> bool {
        let len = self.len.load(Ordering::Acquire);
        let start = self.start.load(Ordering::Acquire);
        if len == 0 || !(start..start + len).contains(&address) {
            return false;
        }
        if self.len.load(Ordering::Relaxed) != len {
            return false;
        }
        self.faulted.store(true, Ordering::Release);
        // Behind it: a thread that sees this one finds the other. Both are set before a byte can be read
        // that is not the guest's.
        FAULTED.store(true, Ordering::Release);
        let replaced = replace_by_zeroes(start, len);
        if replaced {
            alarm(self.alarm.load(Ordering::Relaxed));
        }
        replaced
    }
}

/// Puts private zero pages over a whole region, huge pages included, so that every access to
/// it succeeds from now on.
fn replace_by_zeroes(start: usize, len: usize) -> bool {
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
    // SAFETY: the range is whole pages of one mapping of guest memory, which outlives its `Watch`;
    // what replaces it has the same size and protection, and is unmapped with it.
    let mapped = unsafe { libc::mmap(start as *mut c_void, len, prot, flags, -1, 0) };
    mapped != libc::MAP_FAILED
}

fn alarm(fd: RawFd) {
    #[expect(clippy::disallowed_methods, reason = "the kernel counts in its own byte order")]
    let one = 1_u64.to_ne_bytes();
    // SAFETY: writes 8 bytes of a local array; a descriptor that is closed by now is an error
    // that no caller needs to know of.
    let _ = unsafe { libc::write(fd, one.as_ptr().cast(), one.len()) };
}
