//! Moving objects while requests are served: what compaction has to know of slots.

use std::sync::Mutex;
use std::task::Waker;
use std::thread;
use std::time::{Duration, Instant};

use super::{Device, IoError};
use crate::checker::Class;
use crate::events::Tally;
use crate::pool::{Compaction, Effort, LastRound, Owned, PoolError};
use crate::slot::{GivenBack, Reader};
use crate::store::HOST_PAGE;
use crate::sync::{self, AtomicBool, Ordering};

/// Bytes that a writer that meets a limit gives back at least, before it stores its own page.
const RECLAIM_BYTES: u64 = 64 * 1024;

/// Objects that it tries for that at most: some hundred microseconds.
const RECLAIM_MOVES: u64 = 1024;

/// How long upkeep waits for threads to leave the slots they read, before it takes no part of the
/// table away; and how long a writer that meets a limit does.
const UPKEEP_WAITS: Duration = Duration::from_millis(50);
const WRITER_WAITS: Duration = Duration::from_millis(2);

/// Times that it tries, as long as any thread gives memory back.
const RECLAIM_ROUNDS: usize = 4;

/// Least time between two readings of a host that had nothing to spare.
const REREAD_AFTER: Duration = Duration::from_millis(50);

/// The mutexes of writers that reclaim, to the lock checker.
static RECLAIMING: Class = Class::mutex("reclaiming");

/// What a series of compactions remembers.
#[derive(Default)]
pub struct Compactor {
    last: LastRound,
    reader: Option<Reader>,
}

/// Why memory is not available.
struct Short {
    /// By what was last seen of the host, not by the disk's own limit.
    of_the_host: bool,
}

/// How to find out what the host can spare.
pub(super) struct HostWatch {
    spare: Box<dyn Fn() -> Option<u64> + Send + Sync>,
    /// When it was last done.
    looked: Mutex<Instant>,
    /// Whether there was anything to spare then.
    roomy: AtomicBool,
}

impl Device {
    /// Moves objects out of sparse pages and gives the pages back to the host, and parts of the table
    /// without content, while requests continue. Slots in use are passed over, not waited for.
    /// `go_on` is asked every now and then, and told what was done so far.
    pub fn compact(
        &self,
        compactor: &mut Compactor,
        effort: Effort,
        mut go_on: impl FnMut(&Compaction) -> bool,
    ) -> Compaction {
        let reader = compactor.reader.get_or_insert_with(|| self.table.reader());
        let relocate = |owner, from| reader.inside(|| self.relocate(owner, from));
        let mut done = self.pool.compact(effort, &mut compactor.last, relocate, &mut go_on);
        let began = Instant::now();
        let so_far = done;
        let wait = || {
            thread::sleep(Duration::from_micros(100));
            began.elapsed() < UPKEEP_WAITS && go_on(&so_far)
        };
        let table = self.give_table_back(true, wait);
        done.pages += table.bytes / HOST_PAGE;
        done.more |= table.more;
        done
    }

    fn give_table_back(&self, all: bool, wait: impl FnMut() -> bool) -> GivenBack {
        let given = self.table.give_back(all, wait);
        self.pool.release_table(given.bytes);
        given
    }

    /// Sets the waker that is woken when something was stored or freed, once for each
    /// [`Device::answer`].
    pub fn set_upkeep_waker(&self, waker: Waker) {
        self.pool.set_waker(waker);
    }

    /// Has upkeep look at the disk soon.
    pub fn ring_upkeep(&self) {
        self.pool.notify();
    }

    /// Whether the host had nothing to spare when it was last read.
    pub fn host_is_short(&self) -> bool {
        self.host.get().is_some_and(|host| !host.roomy.load(Ordering::Relaxed))
    }

    /// Whether anything was stored or freed since the last call.
    pub fn answer(&self) -> bool {
        self.pool.answer()
    }

    /// From now on the disk asks `spare` for the bytes that the host can spare, and takes a share of
    /// them until it asks again. Writes fail that exceed the share. To be set once.
    pub fn watch_host(&self, spare: impl Fn() -> Option<u64> + Send + Sync + 'static) {
        let looked = Mutex::new(Instant::now());
        let roomy = AtomicBool::new(true);
        if self.host.set(HostWatch { spare: Box::new(spare), looked, roomy }).is_ok() {
            self.read_host();
        }
    }

    /// Reads what the host can spare.
    pub fn read_host(&self) {
        let Some(host) = self.host.get() else { return };
        *sync::lock(&host.looked) = Instant::now();
        // What others of this process take meanwhile counts as ours.
        let before = self.pool.committed();
        if let Some(bytes) = (host.spare)() {
            let roomy = self.pool.share(before, bytes);
            host.roomy.store(roomy, Ordering::Relaxed);
        }
    }

    /// Nothing is stored at present. Others may take what the host can spare, so the disk's share
    /// shrinks to what it may take without a check.
    pub fn rest(&self) {
        self.pool.rest();
    }

    /// Reads it again, since the disk has taken its share, or there was none at the last reading
    /// and that was not just now. False if it did not read it.
    fn reread_host(&self) -> bool {
        let due = |host: &HostWatch| {
            host.roomy.load(Ordering::Relaxed) || sync::lock(&host.looked).elapsed() >= REREAD_AFTER
        };
        let due = self.host.get().is_some_and(due);
        if due {
            self.read_host();
        }
        due
    }

    /// Makes the slot `index` exist.
    pub(super) fn ensure(&self, index: u64, reader: &Reader) -> Result<(), IoError> {
        if self.table.exists(index) { Ok(()) } else { self.make_part(index, reader) }
    }

    /// Has the table grow by the part of the slot `index`. Where there is no room, it first compacts.
    #[cold]
    fn make_part(&self, index: u64, reader: &Reader) -> Result<(), IoError> {
        let reserve = |bytes| self.pool.reserve_table(bytes).map_err(IoError::from);
        let release = |bytes| self.pool.release_table(bytes);
        let refused = |error: &IoError| match error {
            IoError::Pool(error) => Short { of_the_host: matches!(error, PoolError::HostShort) },
            _ => Short { of_the_host: false },
        };
        let grown = self.make_room(reader, || self.table.ensure(index, reserve, release), refused);
        // It may stay without content, and the host has less.
        self.pool.notify();
        grown
    }

    /// Stores an object for the slot `index`. Where there is no room, it first compacts.
    pub(super) fn store(
        &self,
        index: u64,
        bytes: &[u8],
        reader: &Reader,
    ) -> Result<Owned<'_>, PoolError> {
        // Slots are numbered in 32 bits: a disk has less than 16 TiB.
        let owner = index as u32;
        let refused =
            |error: &PoolError| Short { of_the_host: matches!(error, PoolError::HostShort) };
        self.make_room(reader, || self.pool.store(bytes, owner), refused)
    }

    /// As [`Self::store`] for what may be left undone: it is tried once more after memory was given back.
    pub(super) fn store_behind(
        &self,
        index: u64,
        bytes: &[u8],
        reader: &Reader,
    ) -> Result<Owned<'_>, PoolError> {
        self.pool.store(bytes, index as u32).or_else(|_| {
            self.reclaim(reader);
            self.pool.store(bytes, index as u32)
        })
    }

    /// Does something that takes memory. If it is refused, memory is given back first, and it is done
    /// again, as long as that gives anything. The thread is inside of `reader`, with no slot that it
    /// found and does not hold.
    fn make_room<T, E>(
        &self,
        reader: &Reader,
        take: impl Fn() -> Result<T, E>,
        why: impl Fn(&E) -> Short,
    ) -> Result<T, E> {
        let mut refused = match take() {
            Ok(taken) => return Ok(taken),
            Err(refused) => refused,
        };
        for _ in 0..RECLAIM_ROUNDS {
            if why(&refused).of_the_host
                && reader.outside(|| self.reread_host())
                && let Ok(taken) = take()
            {
                return Ok(taken);
            }
            let progress = reader.outside(|| self.reclaim(reader));
            // Also without: what other threads had at hand is free now, and they free more.
            match take() {
                Ok(taken) => return Ok(taken),
                Err(again) => refused = again,
            }
            if !progress {
                break;
            }
        }
        self.events().count(Tally::WritesRefused);
        Err(refused)
    }

    /// Gives back what can be had without much work. True if that was anything, or if another
    /// writer was at it. The thread is outside of `reader`: others may wait for it to be.
    fn reclaim(&self, reader: &Reader) -> bool {
        let Some(mut last) = sync::try_lock_as(&RECLAIMING, &self.reclaiming) else {
            // Waiting for the other one costs no more than working beside it.
            drop(sync::lock_as(&RECLAIMING, &self.reclaiming));
            return true;
        };
        let effort = Effort::Enough { bytes: RECLAIM_BYTES, moves: RECLAIM_MOVES };
        let relocate = |owner, from| reader.inside(|| self.relocate(owner, from));
        let progress = self.pool.compact(effort, &mut last, relocate, |_| true).pages > 0;
        let began = Instant::now();
        let wait = || {
            thread::yield_now();
            began.elapsed() < WRITER_WAITS
        };
        progress || self.give_table_back(false, wait).bytes > 0
    }
}
