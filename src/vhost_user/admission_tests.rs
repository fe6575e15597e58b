//! The tables of `docs/admission.md`: they equal those of the code, and each row holds for real rings,
//! in-flight regions and devices.

use std::fmt::Display;
use std::sync::Arc;

use vhost::vhost_user::message::VhostUserInflight;
use vhost_user_backend::VringT;
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};

use super::*;
use crate::blk::tests::rig::{AVAIL, Rig, SIZE, USED};
use crate::virtq::inflight::tests::{alarm, limits, overwrite, region};
use crate::virtq::inflight::{Inflight, create};
use crate::virtq::inflight_log::InflightLog;
use crate::virtq::part::Part as RegionPart;
use crate::virtq::position::{self, Position};

const PAGE: &str = include_str!("../../docs/admission.md");

/// A table as the page has it, by its first head.
struct Table {
    rows: Vec<Vec<String>>,
    /// Rows that applied to at least one case.
    hit: Vec<bool>,
}

impl Table {
    fn new(first_head: &str) -> Self {
        let cells = |line: &str| -> Vec<String> {
            line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect()
        };
        let lines = PAGE.lines().skip_while(|line| !line.starts_with(&format!("| {first_head} |")));
        let rows = lines.skip(2).take_while(|line| line.starts_with('|')).map(cells);
        let rows: Vec<_> = rows.collect();
        assert!(!rows.is_empty(), "{first_head}");
        Self { hit: vec![false; rows.len()], rows }
    }

    /// The last cell of the first row that applies to these values.
    fn expected(&mut self, values: &[String]) -> String {
        let applies = |row: &Vec<String>| {
            row.iter().zip(values).all(|(cell, value)| cell == "any" || cell == value)
        };
        let at = self.rows.iter().position(applies).expect("a row for all");
        self.hit[at] = true;
        self.rows[at].last().unwrap().clone()
    }

    fn expect_all_hit(&self) {
        let idle: Vec<_> = self.rows.iter().zip(&self.hit).filter(|(_, hit)| !**hit).collect();
        assert!(idle.is_empty(), "rows that nothing reaches: {idle:?}");
    }
}

fn cell<T: Display + PartialEq>(values: &[T], all: &[T]) -> String {
    match values {
        [one] => one.to_string(),
        _ => {
            assert!(values == all, "a cell has one value or any");
            "any".into()
        }
    }
}

#[test]
fn the_page_has_the_tables_of_the_code() {
    let rules = RULES.iter().map(|rule| {
        vec![
            cell(rule.disk, Disk::ALL),
            cell(rule.ring, Ring::ALL),
            cell(rule.region, Region::ALL),
            cell(rule.indexes, Indexes::ALL),
            rule.verdict.to_string(),
        ]
    });
    assert_eq!(Table::new("disk").rows, rules.collect::<Vec<_>>());
    let records = RECORDS.iter().map(|row| {
        vec![
            cell(row.part, Part::ALL),
            cell(row.other, OtherPart::ALL),
            cell(row.contents, Contents::ALL),
            row.record.map_or("refuse", name).into(),
        ]
    });
    assert_eq!(Table::new("part of the region for this ring").rows, records.collect::<Vec<_>>());
    let changes = CHANGES.iter().map(|change| {
        let (before, event) = (cell(change.before, Disk::ALL), cell(change.event, Event::ALL));
        vec![before, event, change.after.to_string()]
    });
    assert_eq!(Table::new("disk before").rows, changes.collect::<Vec<_>>());
}

/// A disk with this history, and the session that sees it so.
fn session(rig: &Rig, disk: Disk) -> Admission {
    let device = &rig.shared.device;
    assert!(!device.has_served());
    if disk == Disk::Served {
        device.mark_served();
    }
    Admission::new(Arc::clone(device), 2)
}

/// A part in which a request was taken and completed.
fn use_up(part: &RegionPart, used: u16) {
    part.begin(SIZE, used);
    let mut contents = part.read(SIZE).unwrap();
    contents.entries[4].counter = 1;
    overwrite(part, &contents);
}

fn name(record: Record) -> &'static str {
    match record {
        Record::Region => "region",
        Record::Order => "order",
        Record::None => "none",
    }
}

fn start(
    rig: &Rig,
    region: Option<&Inflight>,
    terms: Terms,
) -> Result<(Verdict, Record, Position), AdmissionError> {
    let parts = region.and_then(|region| region.parts(0));
    let shared = rig.map.shared();
    let shown = position::read(rig.vring.get_ref().get_queue(), &shared.memory(), parts).unwrap();
    let (verdict, record) = terms.judge(&shown)?;
    Ok((verdict, record, shown.begin(record)?))
}

fn terms(disk: Disk, contents: Contents) -> Terms {
    Terms { disk, ring: Ring::New, contents, foreign: false }
}

/// Starts a ring that shows all this, and checks how it continues.
fn expect_verdict(
    (disk, ring, shown, indexes): (Disk, Ring, Region, Indexes),
    (base, used): (u16, u16),
    with_region: bool,
    expected: &str,
) {
    let case = format!("{disk}, {ring}, {shown}, {indexes}: base {base}, used {used}");
    let rig = Rig::new();
    let mut admission = session(&rig, disk);
    let region = region(2, SIZE);
    match shown {
        Region::Unused => {}
        Region::Used => use_up(&region.part(0).unwrap(), used),
        // This queue was not used, and another one was.
        Region::Foreign => use_up(&region.part(1).unwrap(), used),
    }
    if shown != Region::Used {
        admission.region_given(region.shows_use());
    }
    if ring == Ring::Started {
        admission.started(0, Record::Order);
    }
    if disk == Disk::Begun {
        rig.shared.device.mark_served();
    }
    let memory = rig.map.shared().memory().clone();
    memory.write_obj(used, GuestAddress(USED + 2)).unwrap();
    memory.write_obj(used, GuestAddress(AVAIL + 2)).unwrap();
    rig.vring.set_queue_next_avail(base);
    if indexes == Indexes::Wrapped {
        for at in 0..u64::from(SIZE) {
            memory.write_obj(1_u64 << 32, GuestAddress(USED + 4 + 8 * at)).unwrap();
        }
    }
    let found = start(&rig, with_region.then_some(&region), admission.terms(0));
    match expected {
        "refuse" => {
            let trace = match (shown, indexes) {
                (Region::Unused, Indexes::Wrapped) => Some(Trace::UsedRing),
                (Region::Unused, _) => None,
                _ => Some(Trace::Region),
            };
            let error = AdmissionError::NeverServed { base, used, trace };
            assert_eq!(found.map(|found| found.0), Err(error), "{case}");
        }
        "serve" | "resume" => {
            let (verdict, _, found) = found.unwrap_or_else(|error| panic!("{case}: {error}"));
            assert_eq!(verdict.to_string(), expected, "{case}");
            assert_eq!((found.next_avail, found.next_used), (used, used), "{case}");
        }
        other => panic!("{other} is not a verdict"),
    }
}

#[test]
fn each_ring_is_treated_as_its_row_says() {
    let mut table = Table::new("disk");
    for disk in Disk::ALL {
        for ring in Ring::ALL {
            for shown in Region::ALL {
                // A region that is sent to a disk that served is its own.
                if (disk, shown) == (&Disk::Served, &Region::Foreign) {
                    continue;
                }
                for indexes in Indexes::ALL {
                    let values = [
                        disk.to_string(),
                        ring.to_string(),
                        shown.to_string(),
                        indexes.to_string(),
                    ];
                    let expected = table.expected(&values);
                    let standings: &[(u16, u16)] = match indexes {
                        Indexes::Zero | Indexes::Wrapped => &[(0, 0)],
                        Indexes::Counted => &[(3, 0), (0, 3), (3, 3), (0xffff, 0xffff)],
                    };
                    for standing in standings {
                        let shows = (*disk, *ring, *shown, *indexes);
                        expect_verdict(shows, *standing, true, &expected);
                        if *shown == Region::Unused {
                            expect_verdict(shows, *standing, false, &expected);
                        }
                    }
                }
            }
        }
    }
    table.expect_all_hit();
}

/// The same region, given to a disk that served a guest, is that guest's.
#[test]
fn a_region_is_foreign_only_if_the_disk_was_blank_when_it_was_given() {
    let rig = Rig::new();
    let mut admission = session(&rig, Disk::Served);
    admission.region_given(true);
    assert!(!admission.terms(0).foreign);
    let rig = Rig::new();
    let mut admission = session(&rig, Disk::Blank);
    admission.region_given(true);
    rig.shared.device.mark_served();
    assert!(admission.terms(1).foreign);
    // A front end that begins anew brings another one.
    admission.region_given(false);
    assert!(!admission.terms(1).foreign);
    admission.started(1, Record::Region);
    admission.reset();
    assert_eq!((admission.terms(1).ring, admission.terms(1).foreign), (Ring::New, false));
}

#[test]
fn each_ring_keeps_the_record_that_its_row_says() {
    let mut table = Table::new("part of the region for this ring");
    for part in Part::ALL {
        for other in OtherPart::ALL {
            for contents in Contents::ALL {
                let values = [part.to_string(), other.to_string(), contents.to_string()];
                let expected = table.expected(&values);
                let rig = Rig::new();
                // A part of 16 entries as it was asked for, and one for the ring's 64 behind it, or not.
                let max = if *part == Part::Fits { SIZE } else { 16 };
                let asked = VhostUserInflight::new(0, 0, 1, 16);
                let limits = limits(1, max);
                let (info, file) = create(&asked, limits).unwrap();
                let region = Inflight::map(&info, file, limits, &alarm()).unwrap();
                if *other == OtherPart::Marked {
                    let small = region.part(0).unwrap();
                    small.begin(16, 0);
                    small.mark(3, 1);
                }
                let terms = terms(Disk::Served, *contents);
                let started = start(&rig, Some(&region), terms);
                if expected == "refuse" {
                    let error = AdmissionError::Recovery(RecoveryError::RingSize { ring: SIZE });
                    assert_eq!(started.map(|_| ()), Err(error), "{values:?}");
                    continue;
                }
                let (_, record, position) = started.unwrap();
                assert_eq!(name(record), expected, "{values:?}");
                let kept = match position.inflight_log {
                    InflightLog::Region(_) => Record::Region,
                    InflightLog::Order(_) => Record::Order,
                    InflightLog::None => Record::None,
                };
                assert_eq!(kept, record, "{values:?}");
                if *part == Part::None {
                    // The same without a region.
                    assert_eq!(name(start(&rig, None, terms).unwrap().1), expected, "{values:?}");
                }
            }
        }
    }
    table.expect_all_hit();
}

#[test]
fn the_disk_remembers_what_its_row_says() {
    let mut table = Table::new("disk before");
    for before in Disk::ALL {
        for event in Event::ALL {
            let expected = table.expected(&[before.to_string(), event.to_string()]);
            let rig = Rig::new();
            let device = &rig.shared.device;
            let mut admission = session(&rig, *before);
            if *before == Disk::Begun {
                device.mark_served();
            }
            assert_eq!(admission.disk(), *before);
            admission.started(0, Record::Region);
            let died = match event {
                Event::Taken => {
                    device.mark_served();
                    assert_eq!(admission.disk().to_string(), expected);
                    continue;
                }
                Event::End => false,
                Event::DisputedEnd => {
                    admission.dispute();
                    false
                }
                Event::RecordedDeath => {
                    admission.started(1, Record::Order);
                    true
                }
                Event::UnrecordedDeath => {
                    admission.started(1, Record::None);
                    true
                }
            };
            admission.end(died);
            let next = Admission::new(Arc::clone(device), 2);
            assert_eq!(next.disk().to_string(), expected, "{before}, {event}");
        }
    }
    table.expect_all_hit();
}
