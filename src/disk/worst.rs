//! What a disk can cost its host at most, as it is said at the start.

use crate::device::{Device, WorstCase};
use crate::upkeep::Host;

/// Logs the most that the disk can take, and warns if `host` cannot spare as much.
pub(super) fn announce(device: &Device, host: &Host) {
    let (worst, report) = (device.worst_case(), device.report());
    log::info!("{}", summary(&worst, report.mem_limit));
    let taken = report.mem_used_total + report.metadata_bytes;
    if let Some(warning) = warning(worst.total_bytes.saturating_sub(taken), host.spare()) {
        log::warn!("{warning}");
    }
}

fn summary(worst: &WorstCase, limit: u64) -> String {
    let WorstCase { table_bytes, arena_bytes, notes_bytes, total_bytes } = *worst;
    let limit = match limit {
        0 => "no --mem-limit".to_owned(),
        limit => format!("--mem-limit {}", mib(limit)),
    };
    format!(
        "the disk takes at most {} of memory, if no page compresses: table {}, arena {}, notes {}, {limit}",
        mib(total_bytes),
        mib(table_bytes),
        mib(arena_bytes),
        mib(notes_bytes)
    )
}

/// What is to be said if a disk may come to need `more` bytes than it has, and the host can spare this.
fn warning(more: u64, spare: Option<u64>) -> Option<String> {
    let spare = spare.filter(|spare| *spare < more)?;
    Some(format!(
        "the host can spare {} now, which is less than the {} that the disk may come to need: writes fail \
         when nothing is left (--mem-limit, --host-reserve)",
        mib(spare),
        mib(more)
    ))
}

fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(1 << 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn the_worst_case_is_said_with_its_limit() {
        let worst = WorstCase {
            table_bytes: 3 * MIB,
            arena_bytes: 300 * MIB,
            notes_bytes: 1,
            total_bytes: 304 * MIB,
        };
        let text = "the disk takes at most 304 MiB of memory, if no page compresses: table 3 MiB, \
                    arena 300 MiB, notes 1 MiB, ";
        assert_eq!(summary(&worst, 0), format!("{text}no --mem-limit"));
        assert_eq!(summary(&worst, MIB), format!("{text}--mem-limit 1 MiB"));
    }

    #[test]
    fn a_host_without_room_for_it_is_a_warning() {
        assert_eq!(warning(5, Some(5)), None);
        assert_eq!(warning(5, None), None);
        let said = warning(5 * MIB, Some(3 * MIB)).unwrap();
        assert!(said.contains("spare 3 MiB") && said.contains("the 5 MiB"), "{said}");
    }
}
