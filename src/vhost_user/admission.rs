//! May this disk serve this ring, and how does the ring continue? The tables of `docs/admission.md`.
//!
//! A disk that never served a guest must not serve one that has used its rings: the data of that guest
//! is not here, and it would read zeroes. So a disk remembers that it served ([`Disk`]), a ring that is
//! started is judged by what it shows of its past ([`RULES`]), and the end of a session decides what the
//! disk remembers ([`CHANGES`]). In each table the first row that applies decides.

use std::sync::Arc;

use crate::device::Device;
use crate::virtq::inflight_log::Record;
use crate::virtq::position::Shown;
use crate::virtq::recovery::RecoveryError;

/// Defines the values of a column of a table, with the words that the documentation uses for them.
macro_rules! column {
    ($(#[$doc:meta])* $name:ident { $($(#[$value_doc:meta])* $value:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum $name { $($(#[$value_doc])* $value,)+ }

        impl $name {
            #[allow(dead_code, reason = "the last column of a table has one value a row")]
            pub(crate) const ALL: &[Self] = &[$(Self::$value,)+];
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(match self { $(Self::$value => $text,)+ })
            }
        }
    };
}

column! {
    /// What the disk knows of guests.
    Disk {
        /// No guest has used it.
        Blank = "blank",
        /// A guest has used it first in this session.
        Begun = "begun",
        /// A guest has used it before this session.
        Served = "served",
    }
}

column! {
    /// What the session knows of a ring.
    Ring {
        New = "new",
        /// It was started before in this session.
        Started = "started",
    }
}

column! {
    /// What the in-flight region shows of the ring's queue.
    Region {
        /// No request was ever taken, or there is no region.
        Unused = "unused",
        /// A request was taken, finished or not.
        Used = "used",
        /// When the front end sent the region, it showed a request of some queue, and the disk was blank: the
        /// requests were another disk's.
        Foreign = "foreign",
    }
}

column! {
    /// What the ring itself shows.
    Indexes {
        /// The base of the front end and the used index are 0.
        Zero = "zero",
        /// Both are 0, and each element of the used ring was written: they have wrapped around.
        Wrapped = "wrapped",
        /// One of them is not 0.
        Counted = "counted",
    }
}

column! {
    /// How a ring that is started continues.
    Verdict {
        /// It is new to this disk and to its guest.
        Serve = "serve",
        /// It continues at its used index, with what is in flight.
        Resume = "resume",
        Refuse = "refuse",
    }
}

column! {
    /// The part of the in-flight region for a ring of this size.
    Part {
        None = "none that fits",
        Fits = "fits",
    }
}

column! {
    /// The part of the same queue for rings of other sizes.
    OtherPart {
        Unmarked = "nothing in flight",
        Marked = "in flight",
    }
}

column! {
    /// Whether the contents of the disk outlive the process.
    Contents {
        Outlive = "yes",
        End = "no",
    }
}

column! {
    /// What changes the history of a disk.
    Event {
        Taken = "a request is taken",
        End = "the session ends",
        /// A ring of this guest was refused as one of another disk. Another ring of the same guest must not
        /// make this disk its own.
        DisputedEnd = "the session ends, a ring was refused",
        RecordedDeath = "a queue thread dies, each ring has a record",
        /// It is not known which requests of a ring without a record were done.
        UnrecordedDeath = "a queue thread dies, a ring has no record",
    }
}

/// A row of the table of rings.
pub(crate) struct Rule {
    pub(crate) disk: &'static [Disk],
    pub(crate) ring: &'static [Ring],
    pub(crate) region: &'static [Region],
    pub(crate) indexes: &'static [Indexes],
    pub(crate) verdict: Verdict,
}

#[rustfmt::skip]
pub(crate) const RULES: &[Rule] = {
    use self::{Disk as D, Indexes as I, Region as G, Ring as R, Verdict as V};
    &[
        Rule { disk: D::ALL, ring: R::ALL, region: &[G::Foreign], indexes: I::ALL, verdict: V::Refuse },
        Rule { disk: &[D::Served], ring: R::ALL, region: G::ALL, indexes: I::ALL, verdict: V::Resume },
        Rule { disk: &[D::Begun], ring: &[R::Started], region: G::ALL, indexes: I::ALL, verdict: V::Resume },
        Rule { disk: D::ALL, ring: R::ALL, region: &[G::Used], indexes: I::ALL, verdict: V::Refuse },
        Rule { disk: D::ALL, ring: R::ALL, region: G::ALL, indexes: &[I::Counted], verdict: V::Refuse },
        Rule { disk: D::ALL, ring: R::ALL, region: G::ALL, indexes: &[I::Wrapped], verdict: V::Refuse },
        Rule { disk: D::ALL, ring: R::ALL, region: G::ALL, indexes: I::ALL, verdict: V::Serve },
    ]
};

/// A row of the table of records.
pub(crate) struct Recording {
    pub(crate) part: &'static [Part],
    pub(crate) other: &'static [OtherPart],
    pub(crate) contents: &'static [Contents],
    /// `None` is a ring that is refused.
    pub(crate) record: Option<Record>,
}

#[rustfmt::skip]
pub(crate) const RECORDS: &[Recording] = {
    use self::{Contents as C, OtherPart as O, Part as P, Record as R};
    &[
        Recording { part: P::ALL, other: &[O::Marked], contents: C::ALL, record: None },
        Recording { part: &[P::Fits], other: O::ALL, contents: C::ALL, record: Some(R::Region) },
        Recording { part: P::ALL, other: O::ALL, contents: &[C::Outlive], record: Some(R::Order) },
        Recording { part: P::ALL, other: O::ALL, contents: C::ALL, record: Some(R::None) },
    ]
};

/// A row of the table of the disk's history.
pub(crate) struct Change {
    pub(crate) before: &'static [Disk],
    pub(crate) event: &'static [Event],
    pub(crate) after: Disk,
}

#[rustfmt::skip]
pub(crate) const CHANGES: &[Change] = {
    use self::{Disk as D, Event as E};
    &[
        Change { before: D::ALL, event: &[E::UnrecordedDeath], after: D::Blank },
        Change { before: &[D::Served], event: E::ALL, after: D::Served },
        Change { before: D::ALL, event: &[E::Taken], after: D::Begun },
        Change { before: &[D::Blank], event: E::ALL, after: D::Blank },
        Change { before: D::ALL, event: &[E::DisputedEnd], after: D::Blank },
        Change { before: D::ALL, event: E::ALL, after: D::Served },
    ]
};

/// The decisions about a ring. The last row applies to all.
fn judge(disk: Disk, ring: Ring, region: Region, indexes: Indexes) -> Verdict {
    let applies = |rule: &&Rule| {
        rule.disk.contains(&disk)
            && rule.ring.contains(&ring)
            && rule.region.contains(&region)
            && rule.indexes.contains(&indexes)
    };
    RULES.iter().find(applies).map_or(Verdict::Refuse, |rule| rule.verdict)
}

/// How a ring records what it has in flight; `None` is a ring that is refused.
fn record(part: Part, other: OtherPart, contents: Contents) -> Option<Record> {
    let applies = |row: &&Recording| {
        row.part.contains(&part) && row.other.contains(&other) && row.contents.contains(&contents)
    };
    RECORDS.iter().find(applies).and_then(|row| row.record)
}

/// What a disk knows of guests after an event.
fn after(before: Disk, event: Event) -> Disk {
    let applies =
        |change: &&Change| change.before.contains(&before) && change.event.contains(&event);
    CHANGES.iter().find(applies).map_or(Disk::Blank, |change| change.after)
}

/// What is known of a ring before it is read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terms {
    pub(crate) disk: Disk,
    pub(crate) ring: Ring,
    pub(crate) contents: Contents,
    /// The in-flight region, if there is one, is another disk's.
    pub(crate) foreign: bool,
}

/// Why a ring is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AdmissionError {
    #[error(
        "the guest has used it before (base {base}, used index {used}{}), and this disk never served a \
         guest, so what the guest wrote is not here",
        .trace.map(Trace::text).unwrap_or_default()
    )]
    NeverServed { base: u16, used: u16, trace: Option<Trace> },
    #[error("its in-flight region does not match the ring: {0}")]
    Recovery(#[from] RecoveryError),
}

/// What a ring that was in use leaves, besides its indexes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trace {
    Region,
    /// Both indexes were here before, a multiple of 65536 requests ago.
    UsedRing,
}

impl Trace {
    fn text(self) -> &'static str {
        match self {
            Trace::Region => ", its in-flight region shows requests",
            Trace::UsedRing => ", each used element was written",
        }
    }
}

impl Terms {
    /// How a ring that shows this continues, and how it records what it has in flight.
    ///
    /// # Errors
    /// The ring is refused.
    pub(crate) fn judge(self, shown: &Shown) -> Result<(Verdict, Record), AdmissionError> {
        let region = match shown.region_shows_use() {
            _ if self.foreign => Region::Foreign,
            true => Region::Used,
            false => Region::Unused,
        };
        let (base, used) = (shown.base, shown.used);
        let indexes = match (base, used) {
            (0, 0) if shown.wrapped => Indexes::Wrapped,
            (0, 0) => Indexes::Zero,
            _ => Indexes::Counted,
        };
        let verdict = judge(self.disk, self.ring, region, indexes);
        if verdict == Verdict::Refuse {
            let trace = match (region, indexes) {
                (Region::Unused, Indexes::Wrapped) => Some(Trace::UsedRing),
                (Region::Unused, _) => None,
                _ => Some(Trace::Region),
            };
            return Err(AdmissionError::NeverServed { base, used, trace });
        }
        let part = if shown.has_part() { Part::Fits } else { Part::None };
        let other = match shown.is_marked_elsewhere() {
            true => OtherPart::Marked,
            false => OtherPart::Unmarked,
        };
        let record = record(part, other, self.contents);
        let record = record.ok_or(RecoveryError::RingSize { ring: shown.size })?;
        Ok((verdict, record))
    }
}

/// What the session knows of one ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Past {
    New,
    Started(Record),
}

/// What decides about the rings of one session.
pub(crate) struct Admission {
    device: Arc<Device>,
    /// The disk when the session began.
    before: Disk,
    foreign: bool,
    /// A ring was refused as one of another disk.
    disputed: bool,
    rings: Vec<Past>,
}

impl Admission {
    /// For a session with `rings` rings that begins now.
    pub(crate) fn new(device: Arc<Device>, rings: usize) -> Self {
        let before = if device.has_served() { Disk::Served } else { Disk::Blank };
        Self { device, before, foreign: false, disputed: false, rings: vec![Past::New; rings] }
    }

    /// What the disk knows of guests now.
    pub(crate) fn disk(&self) -> Disk {
        // The queue threads tell the device of the first request that they take.
        match self.device.has_served() {
            true if self.before == Disk::Blank => after(self.before, Event::Taken),
            true => self.before,
            // It was blank, or belonged to no guest any more.
            false => Disk::Blank,
        }
    }

    /// The front end sent an in-flight region, which replaces an earlier one. No ring may run.
    pub(crate) fn region_given(&mut self, shows_use: bool) {
        self.foreign = shows_use && self.disk() == Disk::Blank;
    }

    /// What is known of a ring that is about to be started.
    pub(crate) fn terms(&self, ring: usize) -> Terms {
        Terms {
            disk: self.disk(),
            ring: if self.rings[ring] == Past::New { Ring::New } else { Ring::Started },
            contents: match self.device.outlives_process() {
                true => Contents::Outlive,
                false => Contents::End,
            },
            foreign: self.foreign,
        }
    }

    /// A ring was started.
    pub(crate) fn started(&mut self, ring: usize, record: Record) {
        self.rings[ring] = Past::Started(record);
    }

    /// A ring was refused as one of another disk.
    pub(crate) fn dispute(&mut self) {
        self.disputed = true;
    }

    /// RESET_OWNER: the front end begins anew. That a ring was refused remains.
    pub(crate) fn reset(&mut self) {
        self.rings.fill(Past::New);
        self.foreign = false;
    }

    /// The session ends, and what it took is published, except what dead queue threads had taken.
    pub(crate) fn end(&mut self, threads_died: bool) {
        let end = if self.disputed { Event::DisputedEnd } else { Event::End };
        let mut disk = after(self.disk(), end);
        if threads_died {
            let unrecorded = self.rings.contains(&Past::Started(Record::None));
            let death = if unrecorded { Event::UnrecordedDeath } else { Event::RecordedDeath };
            disk = after(disk, death);
        }
        if disk == Disk::Blank && self.device.has_served() {
            self.device.forget_served();
        }
    }
}

#[cfg(test)]
#[path = "admission_tests.rs"]
mod tests;
