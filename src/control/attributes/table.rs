//! Which attributes there are.

/// What can be done with an attribute, as its file's permissions say it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// `0444`.
    Read,
    /// `0200`.
    Write,
    /// `0644`.
    Both,
}

impl Mode {
    /// Its permissions, as octal digits.
    pub fn digits(self) -> &'static str {
        match self {
            Self::Read => "0444",
            Self::Write => "0200",
            Self::Both => "0644",
        }
    }

    pub(super) fn reads(self) -> bool {
        self != Self::Write
    }

    pub(super) fn writes(self) -> bool {
        self != Self::Read
    }
}

/// One attribute of a zram device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attribute {
    /// The kernel's name of it.
    pub name: &'static str,
    /// What can be done with it.
    pub mode: Mode,
    /// What of the daemon it would need that is not there; it answers `ENOTSUP`.
    pub missing: Option<&'static str>,
    /// What can be written, as the end of a sentence.
    pub(super) takes: &'static str,
}

const fn here(name: &'static str, mode: Mode, takes: &'static str) -> Attribute {
    Attribute { name, mode, missing: None, takes }
}

const fn missing(name: &'static str, mode: Mode, what: &'static str) -> Attribute {
    Attribute { name, mode, missing: Some(what), takes: "" }
}

const WRITEBACK: &str = "it does not write pages back to a device";

/// All attributes, in the order of their names. Those of the kernel's driver, and `block_state`, which the
/// kernel has in debugfs.
pub const ATTRIBUTES: &[Attribute] = &[
    here(
        "algorithm_params",
        Mode::Write,
        "`level=N` or `deflate.winbits=N`, with `algo=NAME` or `priority=N` if you like",
    ),
    missing("backing_dev", Mode::Both, WRITEBACK),
    missing("bd_stat", Mode::Read, WRITEBACK),
    here("block_state", Mode::Read, ""),
    here("comp_algorithm", Mode::Both, "the name of an algorithm that a read of it lists"),
    here("compact", Mode::Write, "anything, such as `1`"),
    missing("compressed_writeback", Mode::Both, WRITEBACK),
    here("debug_stat", Mode::Read, ""),
    here("disksize", Mode::Both, "a size above 0 in bytes, such as `4G`"),
    here("idle", Mode::Write, "`all`, or a number of seconds without an access"),
    here("initstate", Mode::Read, ""),
    here("io_stat", Mode::Read, ""),
    here("mem_limit", Mode::Write, "a number of bytes, such as `512M`; `0` is no limit"),
    here("mem_used_max", Mode::Write, "`0`, which sets the maximum to what is used now"),
    here("mm_stat", Mode::Read, ""),
    here("recomp_algorithm", Mode::Both, "`algo=NAME`, with `priority=1`, 2 or 3 if you like"),
    here(
        "recompress",
        Mode::Write,
        "any of `type=idle`, `huge` or `huge_idle`, `threshold=BYTES` below 3840, `max_pages=N`, and `algo=NAME` or \
         `priority=N` as recomp_algorithm has them",
    ),
    here("reset", Mode::Write, "a whole number from 1 to 65535"),
    missing("writeback", Mode::Write, WRITEBACK),
    missing("writeback_batch_size", Mode::Both, WRITEBACK),
    missing("writeback_limit", Mode::Both, WRITEBACK),
    missing("writeback_limit_enable", Mode::Both, WRITEBACK),
];

/// The attribute of this name.
pub fn find(name: &str) -> Option<&'static Attribute> {
    ATTRIBUTES.iter().find(|attribute| attribute.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_stand_in_the_order_of_their_names() {
        assert!(ATTRIBUTES.is_sorted_by(|a, b| a.name < b.name));
        assert_eq!(find("disksize").map(|found| found.mode.digits()), Some("0644"));
        assert_eq!(find("disk"), None);
    }
}
