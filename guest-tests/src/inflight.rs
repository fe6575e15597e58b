//! The in-flight region of a disk, as QEMU keeps it while no daemon is there: the one witness of what a daemon
//! left that is not the daemon's own word.
//!
//! The layout is that of the vhost-user specification, "In-flight I/O tracking" for split virtqueues: for
//! each queue a header of 16 bytes (features, version, number of entries, last head, used index) and an
//! entry of 16 bytes for each descriptor (in flight, next, counter), rounded up to 64 bytes. A region of
//! vhost-user-zram has a second part for each queue behind them, for rings that are larger than QEMU said.

use std::{
    fs::{self, File},
    io::Read,
    path::Path,
};

use anyhow::{Context, Result, bail, ensure};

const HEADER: usize = 16;
const ENTRY: usize = 16;
const ALIGN: usize = 64;

/// What a region says of all queues of a disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct InFlight {
    /// Requests that were taken and not completed.
    pub requests: usize,
    /// Requests that were taken after one of those, and completed.
    pub later: usize,
}

/// Reads the region that process `qemu` keeps of its disk with `queues` queues.
pub fn of_process(qemu: u32, queues: usize, queue_size: usize) -> Result<InFlight> {
    let fds = format!("/proc/{qemu}/fd");
    let mut found: Option<Vec<u8>> = None;
    for entry in fs::read_dir(&fds).with_context(|| fds.clone())? {
        let path = entry.with_context(|| fds.clone())?.path();
        // A descriptor may be closed meanwhile.
        let is_region = fs::read_link(&path).is_ok_and(|to| is_region(&to));
        if !is_region {
            continue;
        }
        let mut bytes = Vec::new();
        let mut file = File::open(&path).with_context(|| path.display().to_string())?;
        file.read_to_end(&mut bytes).with_context(|| path.display().to_string())?;
        match &found {
            None => found = Some(bytes),
            Some(other) => ensure!(*other == bytes, "QEMU keeps two in-flight regions"),
        }
    }
    let Some(bytes) = found else { bail!("QEMU keeps no in-flight region") };
    parse(&bytes, queues, queue_size)
}

fn is_region(link: &Path) -> bool {
    link.to_string_lossy().starts_with("/memfd:vhost-user-inflight")
}

/// Reads a region with parts of `queue_size` entries for each of `queues`, and larger ones behind them.
fn parse(bytes: &[u8], queues: usize, queue_size: usize) -> Result<InFlight> {
    let asked = (HEADER + ENTRY * queue_size).next_multiple_of(ALIGN);
    ensure!(
        bytes.len() >= queues * asked,
        "an in-flight region of {} bytes is too short for {queues} queues of {queue_size}",
        bytes.len()
    );
    let large = (bytes.len() - queues * asked) / queues;
    let mut all = InFlight::default();
    for queue in 0..queues {
        let mut add = |at: usize, len: usize| {
            let part = part(&bytes[at..at + len]);
            all.requests += part.requests;
            all.later += part.later;
        };
        add(queue * asked, asked);
        if large >= HEADER {
            add(queues * asked + queue * large, large);
        }
    }
    Ok(all)
}

/// One queue's part. A head that was taken again since is not seen among the later ones.
fn part(bytes: &[u8]) -> InFlight {
    let entries = bytes[HEADER..].as_chunks::<ENTRY>().0;
    let counter = |entry: &[u8; ENTRY]| {
        let mut counter = [0; 8];
        counter.copy_from_slice(&entry[8..]);
        u64::from_le_bytes(counter)
    };
    let is_taken = |entry: &&[u8; ENTRY]| entry[0] != 0;
    let Some(first) = entries.iter().filter(is_taken).map(counter).min() else {
        return InFlight::default();
    };
    InFlight {
        requests: entries.iter().filter(is_taken).count(),
        later: entries.iter().filter(|e| !is_taken(e) && counter(e) > first).count(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUEUES: usize = 2;
    const ENTRIES: usize = 8;
    const ASKED: usize = 192;

    fn set(bytes: &mut [u8], part: usize, head: usize, in_flight: u8, counter: u64) {
        let at = part + HEADER + head * ENTRY;
        bytes[at] = in_flight;
        bytes[at + 8..at + 16].copy_from_slice(&counter.to_le_bytes());
    }

    #[test]
    fn requests_in_flight_and_later_ones_are_counted_by_queue() {
        let mut bytes = vec![0; QUEUES * ASKED];
        assert_eq!(parse(&bytes, QUEUES, ENTRIES).unwrap(), InFlight::default());
        set(&mut bytes, 0, 3, 1, 10);
        set(&mut bytes, 0, 4, 0, 11);
        set(&mut bytes, 0, 5, 0, 9);
        set(&mut bytes, ASKED, 7, 1, 20);
        set(&mut bytes, ASKED, 0, 1, 22);
        let found = parse(&bytes, QUEUES, ENTRIES).unwrap();
        assert_eq!(found, InFlight { requests: 3, later: 1 });
    }

    #[test]
    fn larger_parts_behind_the_others_count() {
        let large = (HEADER + ENTRY * 64).next_multiple_of(ALIGN);
        let mut bytes = vec![0; QUEUES * (ASKED + large)];
        set(&mut bytes, QUEUES * ASKED + large, 63, 1, 1);
        assert_eq!(parse(&bytes, QUEUES, ENTRIES).unwrap().requests, 1);
    }

    #[test]
    fn a_short_region_is_an_error() {
        assert!(parse(&[0; ASKED], QUEUES, ENTRIES).is_err());
    }

    #[test]
    fn a_region_is_known_by_its_name() {
        assert!(is_region(Path::new("/memfd:vhost-user-inflight (deleted)")));
        assert!(!is_region(Path::new("/memfd:zram-table (deleted)")));
    }
}
