//! What writing an attribute is to do, by the text alone.

use super::error::AttributeError;
use super::parse::{self, NoNumber};
use super::table::Attribute;
use crate::codec::ALGORITHMS;

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Write {
    /// The memory limit becomes so many bytes; 0 is no limit.
    Limit(u64),
    /// The most memory there ever was becomes what is used now.
    ForgetMost,
    /// All memory is compacted.
    Compact,
    /// The disk becomes blank.
    Reset,
}

/// Longest name of an algorithm, its line end included; longer ones are refused before they are looked for.
const LONGEST_NAME: usize = 127;

/// Most and primary of the priorities that algorithms have in the kernel.
const PRIORITIES: std::ops::RangeInclusive<i32> = 0..=3;

const SIZE_INSTEAD: &str = "PATCH /v1/disk with size_bytes lets it grow";
const ALGORITHM_INSTEAD: &str =
    "start a disk with --algorithm, such as --algorithm 'zstd(level=3)'";

/// What writing `text` to `attribute` does. `algorithm` is the disk's.
pub(super) fn parse(
    attribute: &Attribute,
    text: &str,
    algorithm: &str,
) -> Result<Write, AttributeError> {
    // The kernel's text is a string of C.
    let text = text.split('\0').next().unwrap_or_default();
    let refused = |error| match error {
        NoNumber::Malformed => AttributeError::invalid(attribute, text),
        NoNumber::TooLarge => AttributeError::range(attribute, text),
    };
    let fixed = |instead| AttributeError::Fixed { name: attribute.name, instead };
    match attribute.name {
        "mem_limit" => Ok(Write::Limit(parse::bytes(text).map_err(refused)?)),
        "mem_used_max" => match parse::whole(text, u64::MAX) {
            Ok(0) => Ok(Write::ForgetMost),
            _ => Err(AttributeError::invalid(attribute, text)),
        },
        "compact" => Ok(Write::Compact),
        "reset" => match parse::whole(text, u16::MAX.into()).map_err(refused)? {
            0 => Err(AttributeError::invalid(attribute, text)),
            _ => Ok(Write::Reset),
        },
        "disksize" => match parse::bytes(text) {
            Ok(0) | Err(NoNumber::Malformed) => Err(AttributeError::invalid(attribute, text)),
            _ => Err(fixed(SIZE_INSTEAD)),
        },
        "comp_algorithm" => {
            if text.len() > LONGEST_NAME {
                return Err(AttributeError::TooLong { name: attribute.name, most: LONGEST_NAME });
            }
            let name = text.strip_suffix('\n').unwrap_or(text);
            if !ALGORITHMS.contains(&name) {
                return Err(AttributeError::invalid(attribute, text));
            }
            Err(fixed(ALGORITHM_INSTEAD))
        }
        "algorithm_params" => {
            check_parameters(attribute, text, algorithm)?;
            Err(fixed(ALGORITHM_INSTEAD))
        }
        // Each attribute that can be written has its line above; a test walks them.
        _ => Err(AttributeError::ReadOnly(attribute.name)),
    }
}

/// Whether the parameters make sense for a disk that has this one algorithm.
fn check_parameters(
    attribute: &Attribute,
    text: &str,
    algorithm: &str,
) -> Result<(), AttributeError> {
    let invalid = || AttributeError::invalid(attribute, text);
    let number = |value| {
        parse::signed(value).map_err(|error| match error {
            NoNumber::Malformed => invalid(),
            NoNumber::TooLarge => AttributeError::range(attribute, text),
        })
    };
    let mut priority = 0;
    for (key, value) in parse::words(text) {
        let value = value.filter(|value| !value.is_empty()).ok_or_else(invalid)?;
        match key {
            "priority" => priority = number(value)?,
            "level" | "deflate.winbits" => drop(number(value)?),
            "algo" if value != algorithm => return Err(invalid()),
            // A dictionary's path is looked at when it is used, and the kernel ignores what it does not know.
            _ => {}
        }
    }
    if PRIORITIES.contains(&priority) { Ok(()) } else { Err(invalid()) }
}

#[cfg(test)]
mod tests {
    use super::super::table::{ATTRIBUTES, find};
    use super::*;

    fn write(name: &str, text: &str) -> Result<Write, &'static str> {
        parse(find(name).unwrap(), text, "lz4").map_err(|error| error.errno())
    }

    #[test]
    fn limits_and_counters_take_what_the_kernel_takes() {
        assert_eq!(write("mem_limit", "16M\n"), Ok(Write::Limit(16 << 20)));
        assert_eq!(write("mem_limit", "0"), Ok(Write::Limit(0)));
        assert_eq!(write("mem_limit", "5000\0junk"), Ok(Write::Limit(5000)));
        assert_eq!(write("mem_limit", "none"), Err("EINVAL"));
        assert_eq!(write("mem_limit", ""), Err("EINVAL"));
        assert_eq!(write("mem_limit", "99999999999999999999"), Err("ERANGE"));
        assert_eq!(write("mem_used_max", "0\n"), Ok(Write::ForgetMost));
        for text in ["1", "0x0", "x", "", "99999999999999999999"] {
            assert_eq!(write("mem_used_max", text), Err("EINVAL"), "{text}");
        }
        assert_eq!(write("compact", ""), Ok(Write::Compact));
        assert_eq!(write("compact", "now please"), Ok(Write::Compact));
        assert_eq!(write("reset", "1\n"), Ok(Write::Reset));
        assert_eq!(write("reset", "65535"), Ok(Write::Reset));
        assert_eq!(write("reset", "65536"), Err("ERANGE"));
        for text in ["0", "", "yes", "-1", "1 1"] {
            assert_eq!(write("reset", text), Err("EINVAL"), "{text}");
        }
    }

    /// What makes no sense is told before what cannot be done now, as in the kernel.
    #[test]
    fn what_is_fixed_is_busy_and_what_makes_no_sense_is_invalid() {
        for text in ["1G\n", "4096", "99999999999999999999"] {
            assert_eq!(write("disksize", text), Err("EBUSY"), "{text}");
        }
        for text in ["0", "", "big", "-1"] {
            assert_eq!(write("disksize", text), Err("EINVAL"), "{text}");
        }
        for text in ["lz4", "zstd\n", "lz4-flex"] {
            assert_eq!(write("comp_algorithm", text), Err("EBUSY"), "{text}");
        }
        for text in ["", "lzo-rle", "zstd ", " lz4", "lz4\n\n", &"x".repeat(127)] {
            assert_eq!(write("comp_algorithm", text), Err("EINVAL"), "{text}");
        }
        assert_eq!(write("comp_algorithm", &"x".repeat(128)), Err("E2BIG"));
        for text in ["level=3", "algo=lz4 priority=0 level=-1\n", "", "new=1 dict=/none"] {
            assert_eq!(write("algorithm_params", text), Err("EBUSY"), "{text}");
        }
        for text in ["level", "level=", "level=fast", "algo=zstd", "priority=4", "priority=-1"] {
            assert_eq!(write("algorithm_params", text), Err("EINVAL"), "{text}");
        }
        assert_eq!(write("algorithm_params", "level=3000000000"), Err("ERANGE"));
    }

    #[test]
    fn each_attribute_that_can_be_written_is_known_here() {
        let writable = ATTRIBUTES.iter().filter(|attribute| attribute.mode.writes());
        for attribute in writable.filter(|attribute| attribute.missing.is_none()) {
            let error = parse(attribute, "", "lz4").err();
            let is_read_only = matches!(error, Some(AttributeError::ReadOnly(_)));
            assert!(!is_read_only, "{} cannot be written", attribute.name);
        }
    }
}
