//! What reading an attribute gives: the kernel's columns, widths and line ends.

use crate::codec::{ALGORITHMS, CodecSpec};
use crate::device::{Report, SlotState};

/// All algorithms, the one in use in brackets, each with a blank behind it.
pub(super) fn comp_algorithm(current: CodecSpec) -> String {
    let mut text = String::new();
    push_algorithms(&mut text, current);
    text + "\n"
}

/// A line for each priority that has an algorithm: all algorithms, that one in brackets.
pub(super) fn recomp_algorithm(secondaries: &[Option<CodecSpec>]) -> String {
    let mut text = String::new();
    for (priority, codec) in (1..).zip(secondaries) {
        if let Some(codec) = codec {
            text += &format!("#{priority}: ");
            push_algorithms(&mut text, *codec);
            text.push('\n');
        }
    }
    text
}

fn push_algorithms(text: &mut String, current: CodecSpec) {
    for name in ALGORITHMS {
        let (open, close) = if *name == current.algorithm() { ("[", "]") } else { ("", "") };
        text.push_str(&format!("{open}{name}{close} "));
    }
}

/// One number on a line.
pub(super) fn number(value: u64) -> String {
    format!("{value}\n")
}

/// The nine columns that `zramctl` and others read.
pub(super) fn mm_stat(report: &Report) -> String {
    columns(&[
        report.orig_data_size,
        report.compr_data_size,
        report.mem_used_total,
        report.mem_limit,
        report.mem_used_max,
        report.same_pages,
        report.pages_compacted,
        report.huge_pages,
        report.huge_pages_since,
    ])
}

/// Failed reads, failed writes, a constant, pages freed. The kernel's third column once were invalid requests,
/// which its block layer stops before they come to zram; here they are among the failed ones.
pub(super) fn io_stat(report: &Report) -> String {
    let Report { failed_reads, failed_writes, notify_free, .. } = report;
    format!("{failed_reads:8} {failed_writes:8} 0 {notify_free:8}\n")
}

/// A version, a constant, and frees that gave up as their slot was locked: none, since a discard waits.
pub(super) fn debug_stat() -> String {
    format!("version: 1\n0 {:8}\n", 0)
}

fn columns(values: &[u64]) -> String {
    let columns: Vec<_> = values.iter().map(|value| format!("{value:8}")).collect();
    columns.join(" ") + "\n"
}

/// A line of `block_state`: number of the slot, time of the last access (0 if that is not kept), flags.
pub(super) fn push_slot(text: &mut String, index: u64, state: SlotState) {
    let flag = |is_set, letter| if is_set { letter } else { '.' };
    let SlotState { same, huge, idle, recompressed, incompressible, accessed } = state;
    let flags = [
        flag(same, 's'),
        // Written back: nothing is.
        '.',
        flag(huge, 'h'),
        flag(idle, 'i'),
        flag(recompressed, 'r'),
        flag(incompressible, 'n'),
    ];
    let flags = String::from_iter(flags);
    let (seconds, micros) = (accessed.as_secs(), accessed.subsec_micros());
    text.push_str(&format!("{index:12} {seconds:12}.{micros:06} {flags}\n"));
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_algorithm_in_use_is_in_brackets() {
        let spec: CodecSpec = "zstd(level=9)".parse().unwrap();
        assert_eq!(comp_algorithm(spec), "lz4 lz4-flex lz4hc [zstd] deflate lzo \n");
        assert_eq!(
            comp_algorithm(CodecSpec::default()),
            "[lz4] lz4-flex lz4hc zstd deflate lzo \n"
        );
    }

    #[test]
    fn secondary_algorithms_have_a_line_each() {
        let spec = |text: &str| Some(text.parse().unwrap());
        assert_eq!(recomp_algorithm(&[None; 3]), "");
        assert_eq!(
            recomp_algorithm(&[spec("zstd(level=9)"), None, spec("deflate")]),
            "#1: lz4 lz4-flex lz4hc [zstd] deflate lzo \n\
             #3: lz4 lz4-flex lz4hc zstd [deflate] lzo \n"
        );
    }

    #[test]
    fn columns_are_eight_wide_and_grow() {
        let report = Report {
            orig_data_size: 8192,
            compr_data_size: 74,
            mem_used_total: 12288,
            mem_limit: 1 << 40,
            mem_used_max: 16384,
            same_pages: 2,
            pages_compacted: 3,
            huge_pages: 4,
            huge_pages_since: 5,
            failed_reads: 6,
            failed_writes: 7,
            invalid_io: 8,
            notify_free: 123_456_789,
            ..Report::default()
        };
        assert_eq!(
            mm_stat(&report),
            "    8192       74    12288 1099511627776    16384        2        3        4        5\n"
        );
        assert_eq!(io_stat(&report), "       6        7 0 123456789\n");
        assert_eq!(debug_stat(), "version: 1\n0        0\n");
        assert_eq!(number(report.mem_limit), "1099511627776\n");
    }

    #[test]
    fn a_slot_is_a_line() {
        let none = SlotState::default();
        let mut text = String::new();
        push_slot(&mut text, 300, SlotState { same: true, ..none });
        push_slot(
            &mut text,
            4_294_967_295,
            SlotState { huge: true, idle: true, incompressible: true, ..none },
        );
        let accessed = Duration::from_micros(123_456_000_078);
        push_slot(&mut text, 1, SlotState { recompressed: true, accessed, ..none });
        assert_eq!(
            text,
            "         300            0.000000 s.....\n  4294967295            0.000000 ..hi.n\n\
             \x20          1       123456.000078 ....r.\n"
        );
    }
}
