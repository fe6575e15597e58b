//! What writing an attribute is to do, by the text alone.

use super::Codecs;
use super::error::AttributeError;
use super::parse::{self, NoNumber};
use super::table::Attribute;
use crate::codec::{CodecSpec, SpecError};
use crate::device::{Pages, SECONDARIES, Wanted};

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Write {
    /// New pages are compressed by this codec.
    Algorithm(CodecSpec),
    /// Pages are recompressed by this codec from now on, where that priority is asked for.
    Secondary(usize, CodecSpec),
    /// Pages are recompressed.
    Recompress(Wanted),
    /// All pages are marked as idle, or those that were not accessed for so many seconds.
    Idle(Option<u64>),
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

/// What writing `text` to `attribute` does, on a disk with these codecs.
pub(super) fn parse(
    attribute: &'static Attribute,
    text: &str,
    codecs: &Codecs,
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
        "algorithm_params" => parameters(attribute, text, codecs),
        "recomp_algorithm" => secondary(attribute, text),
        "recompress" => recompression(attribute, text, codecs).map(Write::Recompress),
        "idle" => match text.strip_suffix('\n').unwrap_or(text) {
            "all" => Ok(Write::Idle(None)),
            // To the kernel a number that is too large is none.
            _ => match parse::of_any_base(text) {
                Ok(age) => Ok(Write::Idle(Some(age))),
                Err(_) => Err(AttributeError::invalid(attribute, text)),
            },
        },
        // Each attribute that can be written has its line above; a test walks them.
        _ => Err(AttributeError::ReadOnly(attribute.name)),
    }
}

/// The `KEY=VALUE` words of a list; one without a value is refused, as is an empty value.
fn pairs<'t>(
    attribute: &'static Attribute,
    text: &'t str,
) -> Result<Vec<(&'t str, &'t str)>, AttributeError> {
    let pair = |(key, value): (&'t str, Option<&'t str>)| {
        let value = value.filter(|value| !value.is_empty());
        value.map(|value| (key, value)).ok_or_else(|| AttributeError::invalid(attribute, text))
    };
    parse::words(text).map(pair).collect()
}

/// A number in a list.
fn number(attribute: &'static Attribute, text: &str, value: &str) -> Result<i32, AttributeError> {
    parse::signed(value).map_err(|error| match error {
        NoNumber::Malformed => AttributeError::invalid(attribute, text),
        NoNumber::TooLarge => AttributeError::range(attribute, text),
    })
}

/// Which of some priorities a list is about: by its number, or by the name of its algorithm, or by both, which have
/// to agree; `None` if it says neither.
fn priority(
    attribute: &'static Attribute,
    text: &str,
    codecs: &Codecs,
    possible: std::ops::RangeInclusive<usize>,
) -> Result<Option<usize>, AttributeError> {
    let invalid = || AttributeError::invalid(attribute, text);
    let (mut named, mut algorithm) = (None, None);
    for (key, value) in pairs(attribute, text)? {
        match key {
            "priority" => {
                let number = usize::try_from(number(attribute, text, value)?).ok();
                named = Some(number.filter(|it| possible.contains(it)).ok_or_else(invalid)?);
            }
            "algo" => algorithm = Some(value),
            _ => {}
        }
    }
    let found = match (named, algorithm) {
        (Some(named), Some(algorithm)) => codecs.find(algorithm, named..=named),
        (None, Some(algorithm)) => codecs.find(algorithm, possible),
        (named, None) => return Ok(named),
    };
    found.map(Some).ok_or_else(invalid)
}

/// An algorithm of the disk with the parameters of a list; those that it does not name are the usual ones.
fn parameters(
    attribute: &'static Attribute,
    text: &str,
    codecs: &Codecs,
) -> Result<Write, AttributeError> {
    let invalid = || AttributeError::invalid(attribute, text);
    let priority = priority(attribute, text, codecs, 0..=SECONDARIES)?.unwrap_or(0);
    let algorithm = codecs.of(priority).ok_or_else(invalid)?.algorithm();
    let mut codec = CodecSpec::named(algorithm).ok_or_else(invalid)?;
    for (key, value) in pairs(attribute, text)? {
        let parameter = match key {
            "level" => "level",
            // To the kernel it says nothing of other algorithms.
            "deflate.winbits" if algorithm == "deflate" => "winbits",
            "deflate.winbits" => {
                number(attribute, text, value)?;
                continue;
            }
            "dict" => return Err(AttributeError::NotSupported(attribute.name, DICTIONARIES)),
            // The kernel ignores what it does not know.
            _ => continue,
        };
        codec = codec
            .with(parameter, number(attribute, text, value)?)
            .map_err(|error| AttributeError::algorithm(attribute, error))?;
    }
    Ok(match priority {
        0 => Write::Algorithm(codec),
        _ => Write::Secondary(priority, codec),
    })
}

/// An algorithm of recompression, and its priority.
fn secondary(attribute: &'static Attribute, text: &str) -> Result<Write, AttributeError> {
    let invalid = || AttributeError::invalid(attribute, text);
    let (mut priority, mut algorithm) = (1, None);
    for (key, value) in pairs(attribute, text)? {
        match key {
            "algo" => algorithm = Some(value),
            "priority" => {
                let number = usize::try_from(number(attribute, text, value)?).ok();
                priority =
                    number.filter(|it| (1..=SECONDARIES).contains(it)).ok_or_else(invalid)?;
            }
            _ => {}
        }
    }
    let name = algorithm.ok_or_else(invalid)?;
    match CodecSpec::named(name) {
        Some(codec) => Ok(Write::Secondary(priority, codec)),
        None => Err(AttributeError::algorithm(attribute, SpecError::unknown(name))),
    }
}

/// What is to be recompressed.
fn recompression(
    attribute: &'static Attribute,
    text: &str,
    codecs: &Codecs,
) -> Result<Wanted, AttributeError> {
    let invalid = || AttributeError::invalid(attribute, text);
    let refused = |error| match error {
        NoNumber::Malformed => AttributeError::invalid(attribute, text),
        NoNumber::TooLarge => AttributeError::range(attribute, text),
    };
    let priority = priority(attribute, text, codecs, 1..=SECONDARIES)?.unwrap_or(1);
    codecs.of(priority).ok_or_else(invalid)?;
    let mut wanted = Wanted { pages: Pages::All, threshold: 0, max_pages: None, priority };
    for (key, value) in pairs(attribute, text)? {
        match key {
            "type" => {
                wanted.pages = match value {
                    "idle" => Pages::Idle,
                    "huge" => Pages::Huge,
                    "huge_idle" => Pages::HugeIdle,
                    _ => return Err(invalid()),
                }
            }
            "threshold" => {
                let bytes = parse::whole(value, u32::MAX.into()).map_err(refused)? as usize;
                wanted.threshold = bytes;
                if bytes >= Wanted::MOST_THRESHOLD {
                    return Err(invalid());
                }
            }
            "max_pages" => {
                wanted.max_pages = Some(parse::whole(value, u64::MAX).map_err(refused)?);
            }
            _ => {}
        }
    }
    Ok(wanted)
}

#[cfg(test)]
mod tests {
    use super::super::table::{ATTRIBUTES, find};
    use super::*;

    fn write(name: &str, text: &str) -> Result<Write, &'static str> {
        write_to(name, text, "lz4")
    }

    fn write_to(name: &str, text: &str, codec: &str) -> Result<Write, &'static str> {
        let primary = codec.parse().unwrap();
        write_with(name, text, Codecs { primary, ..Codecs::default() })
    }

    fn write_with(name: &str, text: &str, codecs: Codecs) -> Result<Write, &'static str> {
        parse(find(name).unwrap(), text, &codecs).map_err(|error| error.errno())
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
        let error = parse(find("comp_algorithm").unwrap(), "842\n", &Codecs::default());
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

    fn with_two() -> Codecs {
        let spec = |text: &str| Some(text.parse().unwrap());
        let secondaries = [spec("zstd"), None, spec("deflate(level=9)")];
        Codecs { primary: CodecSpec::default(), secondaries }
    }

    #[test]
    fn algorithms_of_recompression_have_priorities() {
        let by = |priority, text: &str| Ok(Write::Secondary(priority, text.parse().unwrap()));
        for (text, then) in [
            ("algo=zstd", by(1, "zstd")),
            ("algo=lzo priority=3\n", by(3, "lzo")),
            ("priority=2 algo=deflate new=1", by(2, "deflate")),
            ("algo=842", Err("EINVAL")),
            ("priority=1", Err("EINVAL")),
            ("algo=zstd priority=0", Err("EINVAL")),
            ("algo=zstd priority=4", Err("EINVAL")),
            ("algo=zstd priority", Err("EINVAL")),
            ("zstd", Err("EINVAL")),
            ("", Err("EINVAL")),
        ] {
            assert_eq!(write("recomp_algorithm", text), then, "{text}");
        }
        for (text, then) in [
            ("priority=1 level=5", by(1, "zstd(level=5)")),
            ("algo=deflate level=1 deflate.winbits=15", by(3, "deflate(level=1,winbits=15)")),
            ("algo=zstd priority=1", by(1, "zstd")),
            ("algo=lz4 level=2", Ok(Write::Algorithm("lz4(acceleration=2)".parse().unwrap()))),
            ("priority=2 level=1", Err("EINVAL")),
            ("priority=3 algo=zstd", Err("EINVAL")),
            ("priority=3 level=10", Err("EINVAL")),
        ] {
            assert_eq!(write_with("algorithm_params", text, with_two()), then, "{text}");
        }
    }

    #[test]
    fn a_recompression_says_which_pages_and_by_what() {
        let all = Wanted { pages: Pages::All, threshold: 0, max_pages: None, priority: 1 };
        for (text, then) in [
            ("", Ok(all)),
            ("type=idle", Ok(Wanted { pages: Pages::Idle, ..all })),
            ("type=huge max_pages=7", Ok(Wanted { pages: Pages::Huge, max_pages: Some(7), ..all })),
            (
                "type=huge_idle threshold=3839\n",
                Ok(Wanted { pages: Pages::HugeIdle, threshold: 3839, ..all }),
            ),
            ("algo=deflate", Ok(Wanted { priority: 3, ..all })),
            (
                "priority=3 max_pages=0 unknown=1",
                Ok(Wanted { priority: 3, max_pages: Some(0), ..all }),
            ),
            ("priority=1 algo=zstd", Ok(all)),
            ("type=all", Err("EINVAL")),
            ("type=", Err("EINVAL")),
            ("idle", Err("EINVAL")),
            ("threshold=3840", Err("EINVAL")),
            ("threshold=-1", Err("EINVAL")),
            ("threshold=4294967296", Err("ERANGE")),
            ("max_pages=x", Err("EINVAL")),
            ("priority=2", Err("EINVAL")),
            ("priority=0", Err("EINVAL")),
            ("priority=4", Err("EINVAL")),
            ("algo=lz4", Err("EINVAL")),
            ("algo=lzo", Err("EINVAL")),
            ("priority=3 algo=zstd", Err("EINVAL")),
        ] {
            let found = write_with("recompress", text, with_two());
            assert_eq!(found, then.map(Write::Recompress), "{text}");
        }
        assert_eq!(write("recompress", "type=idle"), Err("EINVAL"), "there is no algorithm");
    }

    #[test]
    fn all_pages_can_be_marked_as_idle_or_those_of_an_age() {
        let ages = [
            ("all", None),
            ("all\n", None),
            ("60", Some(60)),
            ("0\n", Some(0)),
            ("+0x10", Some(16)),
            ("010", Some(8)),
            ("18446744073709551615", Some(u64::MAX)),
        ];
        for (text, age) in ages {
            assert_eq!(write("idle", text), Ok(Write::Idle(age)), "{text}");
        }
        for text in ["", "60s", "-1", "18446744073709551616", "none", "all ", "all\n\n"] {
            assert_eq!(write("idle", text), Err("EINVAL"), "{text}");
        }
    }

    #[test]
    fn each_attribute_that_can_be_written_is_known_here() {
        let writable = ATTRIBUTES.iter().filter(|attribute| attribute.mode.writes());
        for attribute in writable.filter(|attribute| attribute.missing.is_none()) {
            let error = parse(attribute, "", &Codecs::default()).err();
            let is_read_only = matches!(error, Some(AttributeError::ReadOnly(_)));
            assert!(!is_read_only, "{} cannot be written", attribute.name);
        }
    }
}
