//! What an in-flight region records about a ring that is started: whether it can belong to that ring, which
//! requests were in flight, and which of them were given back already.
//!
//! A part is read once and judged as it was read. An impossible part is refused as a whole: if half of it
//! were used, requests would be done twice, or never.

use crate::virtq::part::{Contents, Part, VERSION};
use crate::virtq::region_log::RegionLog;

/// Why a part of a region cannot be of the ring that is started with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RecoveryError {
    #[error("its file was truncated")]
    Lost,
    #[error("it has unknown features {0:#x}")]
    Features(u64),
    #[error("its version is {0}")]
    Version(u16),
    #[error("its version is 0, but it has requests")]
    NotFresh,
    #[error("its header says {found} entries, its size {expected}")]
    Entries { found: u16, expected: u16 },
    #[error("it has requests in flight of a ring that does not have {ring} descriptors")]
    RingSize { ring: u16 },
    #[error("its used index {region} does not match the ring's used index {ring}")]
    UsedIndex { region: u16, ring: u16 },
    #[error("its last batch contains head {0}, which is not possible")]
    Batch(u16),
    #[error("it marks head {head} with {mark} instead of 0 or 1")]
    Mark { head: u16, mark: u8 },
    #[error("it has head {0} in flight, which is beyond the ring's size")]
    Head(u16),
    #[error("it has {in_flight} requests in flight, but the guest waits for {waiting}")]
    TooMany { in_flight: u16, waiting: u16 },
}

/// Where a ring stands, by its own indexes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Standing {
    pub(crate) size: u16,
    pub(crate) used: u16,
    pub(crate) available: u16,
}

/// What is to be done with a part when its ring starts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Recovery {
    /// It has to begin anew: no ring was started with it, or the ring was reset since.
    fresh: bool,
    /// Heads that are in the used ring, and may still be marked.
    finish: Vec<u16>,
    /// Heads in flight, in the order in which they were taken.
    pub(crate) resubmit: Vec<u16>,
    /// Requests that were taken later than one in flight, and completed.
    pub(crate) later: u64,
    /// The first counter that is not in use.
    counter: u64,
}

impl Contents {
    /// Whether the part was used: a request was taken, finished or not.
    pub(crate) fn shows_use(&self) -> bool {
        self.entries.iter().any(|entry| entry.in_flight != 0 || entry.counter != 0)
    }

    /// Whether a request is in flight.
    pub(crate) fn is_marked(&self) -> bool {
        self.entries.iter().any(|entry| entry.in_flight != 0)
    }

    /// What has to be done so that each request of a ring is done exactly once.
    pub(crate) fn recover(&self, ring: Standing) -> Result<Recovery, RecoveryError> {
        let entries = self.entries.len() as u16;
        if ring.size > entries {
            return Err(RecoveryError::RingSize { ring: ring.size });
        }
        if self.features != 0 {
            return Err(RecoveryError::Features(self.features));
        }
        match self.version {
            0 if self.shows_use() => Err(RecoveryError::NotFresh),
            0 => Ok(Recovery { fresh: true, counter: 1, ..Recovery::default() }),
            // The ring was reset by a front end that keeps its region across resets. It may have
            // another size now.
            VERSION if ring.used == 0 && !self.is_marked() => {
                Ok(Recovery { fresh: true, counter: self.next_counter(), ..Recovery::default() })
            }
            VERSION if self.size != entries => {
                Err(RecoveryError::Entries { found: self.size, expected: entries })
            }
            VERSION => self.resume(ring),
            other => Err(RecoveryError::Version(other)),
        }
    }

    fn resume(&self, ring: Standing) -> Result<Recovery, RecoveryError> {
        let finish = self.last_batch(ring)?;
        let mut marked: Vec<bool> = Vec::with_capacity(self.entries.len());
        for (head, entry) in (0..).zip(&self.entries) {
            match entry.in_flight {
                0 => {}
                1 if head >= ring.size => return Err(RecoveryError::Head(head)),
                1 => {}
                mark => return Err(RecoveryError::Mark { head, mark }),
            }
            marked.push(entry.in_flight == 1);
        }
        for head in &finish {
            marked[usize::from(*head)] = false;
        }
        let entries = self.entries.iter().zip(&marked).zip(0_u16..);
        let still = entries.filter(|((_, marked), _)| **marked);
        let mut resubmit: Vec<(u64, u16)> =
            still.map(|((entry, _), head)| (entry.counter, head)).collect();
        resubmit.sort_unstable();
        // Counters are handed out without a gap, so this counts also those whose heads the guest has
        // used again since.
        let most = self.entries.iter().map(|entry| entry.counter).max().unwrap_or_default();
        let taken_since = resubmit.first().map_or(0, |(least, _)| (most - least).saturating_add(1));
        let later = taken_since.saturating_sub(resubmit.len() as u64);
        // All that was taken was made available, and is not in the used ring.
        let (in_flight, waiting) = (resubmit.len() as u16, ring.available.wrapping_sub(ring.used));
        if in_flight > 0 && (in_flight > waiting || waiting > ring.size) {
            return Err(RecoveryError::TooMany { in_flight, waiting });
        }
        let counter = self.next_counter();
        let resubmit = resubmit.into_iter().map(|(_, head)| head).collect();
        Ok(Recovery { fresh: false, finish, resubmit, later, counter })
    }

    /// The first counter that is not in use. One that has counted to the end was not made by
    /// counting, so the values after it do not matter.
    fn next_counter(&self) -> u64 {
        let most = self.entries.iter().map(|entry| entry.counter).max();
        most.unwrap_or_default().wrapping_add(1).max(1)
    }

    /// Heads of the last batch, if it was put into the used ring and not ended.
    fn last_batch(&self, ring: Standing) -> Result<Vec<u16>, RecoveryError> {
        let count = ring.used.wrapping_sub(self.used_index);
        if count > ring.size {
            let region = self.used_index;
            return Err(RecoveryError::UsedIndex { region, ring: ring.used });
        }
        let mut seen = vec![false; usize::from(ring.size)];
        let mut heads = Vec::with_capacity(usize::from(count));
        let mut head = self.last_head;
        for _ in 0..count {
            match seen.get_mut(usize::from(head)) {
                Some(seen) if !*seen => *seen = true,
                _ => return Err(RecoveryError::Batch(head)),
            }
            heads.push(head);
            head = self.entries[usize::from(head)].next;
        }
        Ok(heads)
    }
}

impl Recovery {
    /// Brings the part up to date for a ring that starts at its used index. If the process dies meanwhile,
    /// the next one finds the same in the part.
    pub(crate) fn carry_out(self, part: Part, ring: Standing) -> RegionLog {
        if self.fresh {
            part.begin(ring.size, ring.used);
        } else {
            part.end_batch(self.finish, ring.used);
        }
        RegionLog::new(part, self.counter, self.resubmit)
    }
}
