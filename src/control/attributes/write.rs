//! What writing an attribute is to do, by the text alone.

use super::error::AttributeError;
use super::parse::{self, NoNumber};
use super::table::Attribute;
use crate::codec::{CodecSpec, SpecError};

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Write {
    /// New pages are compressed by this codec.
    Algorithm(CodecSpec),
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

const SIZE_INSTEAD: &str = "PATCH /v1/disk with size_bytes lets it grow";
const DICTIONARIES: &str = "it has no dictionaries";

/// What writing `text` to `attribute` does. `codec` is that of the disk's new pages.
pub(super) fn parse(
    attribute: &Attribute,
    text: &str,
    codec: CodecSpec,
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
            match CodecSpec::named(name) {
                Some(codec) => Ok(Write::Algorithm(codec)),
                None => Err(AttributeError::algorithm(attribute, SpecError::unknown(name))),
            }
        }
        "algorithm_params" => parameters(attribute, text, codec).map(Write::Algorithm),
        // Each attribute that can be written has its line above; a test walks them.
        _ => Err(AttributeError::ReadOnly(attribute.name)),
    }
}

/// The algorithm of `codec` with the parameters of a list; those that it does not name are the usual ones.
fn parameters(
    attribute: &Attribute,
    text: &str,
    codec: CodecSpec,
) -> Result<CodecSpec, AttributeError> {
    let invalid = || AttributeError::invalid(attribute, text);
    let number = |value| {
        parse::signed(value).map_err(|error| match error {
            NoNumber::Malformed => invalid(),
            NoNumber::TooLarge => AttributeError::range(attribute, text),
        })
    };
    let algorithm = codec.algorithm();
    let mut codec = CodecSpec::named(algorithm).unwrap_or(codec);
    for (key, value) in parse::words(text) {
        let value = value.filter(|value| !value.is_empty()).ok_or_else(invalid)?;
        let parameter = match key {
            "level" => "level",
            // To the kernel it says nothing of other algorithms.
            "deflate.winbits" if algorithm == "deflate" => "winbits",
            "deflate.winbits" => {
                number(value)?;
                continue;
            }
            "priority" if number(value)? == 0 => continue,
            "algo" if value == algorithm => continue,
            "priority" | "algo" => return Err(invalid()),
            "dict" => return Err(AttributeError::NotSupported(attribute.name, DICTIONARIES)),
            // The kernel ignores what it does not know.
            _ => continue,
        };
        codec = codec
            .with(parameter, number(value)?)
            .map_err(|error| AttributeError::algorithm(attribute, error))?;
    }
    Ok(codec)
}

#[cfg(test)]
mod tests {
    use super::super::table::{ATTRIBUTES, find};
    use super::*;

    fn write(name: &str, text: &str) -> Result<Write, &'static str> {
        write_to(name, text, "lz4")
    }

    fn write_to(name: &str, text: &str, codec: &str) -> Result<Write, &'static str> {
        parse(find(name).unwrap(), text, codec.parse().unwrap()).map_err(|error| error.errno())
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
    }

    #[test]
    fn an_algorithm_is_one_that_a_read_lists() {
        let by = |text: &str| Ok(Write::Algorithm(text.parse().unwrap()));
        for text in ["lz4", "zstd\n", "lz4-flex", "lz4hc", "deflate\n", "lzo"] {
            assert_eq!(write("comp_algorithm", text), by(text.trim_end()), "{text}");
        }
        for text in ["", "lzo-rle", "842", "zstd ", " lz4", "lz4\n\n", &"x".repeat(127)] {
            assert_eq!(write("comp_algorithm", text), Err("EINVAL"), "{text}");
        }
        assert_eq!(write("comp_algorithm", &"x".repeat(128)), Err("E2BIG"));
        let error = parse(find("comp_algorithm").unwrap(), "842\n", CodecSpec::default());
        assert!(error.unwrap_err().to_string().contains("coprocessor of POWER"));
    }

    #[test]
    fn parameters_are_those_of_the_algorithm_and_replace_the_earlier_ones() {
        let by = |text: &str| Ok(Write::Algorithm(text.parse().unwrap()));
        for (codec, text, then) in [
            ("lz4", "level=3", "lz4(acceleration=3)"),
            ("lz4(acceleration=3)", "", "lz4"),
            ("lz4", "algo=lz4 priority=0 level=7 new=1\n", "lz4(acceleration=7)"),
            ("zstd(level=9)", "level=-5", "zstd(level=-5)"),
            ("zstd(level=9)", "deflate.winbits=99", "zstd"),
            ("deflate(level=9)", "deflate.winbits=15", "deflate(winbits=15)"),
            ("deflate", "deflate.winbits=-15 level=1", "deflate(level=1,winbits=-15)"),
            ("lzo", "priority=0", "lzo"),
        ] {
            assert_eq!(write_to("algorithm_params", text, codec), by(then), "{codec}: {text}");
        }
        for (codec, text, errno) in [
            ("lz4", "level", "EINVAL"),
            ("lz4", "level=", "EINVAL"),
            ("lz4", "level=fast", "EINVAL"),
            ("lz4", "level=-1", "EINVAL"),
            ("lz4", "algo=zstd", "EINVAL"),
            ("lz4", "priority=4", "EINVAL"),
            ("lz4", "priority=-1", "EINVAL"),
            ("lz4", "priority=1 level=2", "EINVAL"),
            ("lz4", "level=3000000000", "ERANGE"),
            ("zstd", "level=23", "EINVAL"),
            ("deflate", "level=10", "EINVAL"),
            ("deflate", "deflate.winbits=8", "EINVAL"),
            ("deflate", "deflate.winbits=-16", "EINVAL"),
            ("lzo", "level=1", "EOPNOTSUPP"),
            ("zstd", "dict=/none", "ENOTSUP"),
        ] {
            assert_eq!(write_to("algorithm_params", text, codec), Err(errno), "{codec}: {text}");
        }
    }

    #[test]
    fn each_attribute_that_can_be_written_is_known_here() {
        let writable = ATTRIBUTES.iter().filter(|attribute| attribute.mode.writes());
        for attribute in writable.filter(|attribute| attribute.missing.is_none()) {
            let error = parse(attribute, "", CodecSpec::default()).err();
            let is_read_only = matches!(error, Some(AttributeError::ReadOnly(_)));
            assert!(!is_read_only, "{} cannot be written", attribute.name);
        }
    }
}
