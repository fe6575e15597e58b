use std::{fmt, ops::RangeInclusive, str::FromStr};

use thiserror::Error;

/// The names that a [`CodecSpec`] may begin with, the default first.
pub const ALGORITHMS: &[&str] = &[LZ4, LZ4_FLEX, ZSTD];

pub(super) const LZ4: &str = "lz4";
pub(super) const LZ4_FLEX: &str = "lz4-flex";
pub(super) const ZSTD: &str = "zstd";

const ACCELERATION: &str = "acceleration";
const LEVEL: &str = "level";

/// The kernel driver's defaults, which are the libraries' too.
const DEFAULT_ACCELERATION: i32 = 1;
const DEFAULT_ZSTD_LEVEL: i32 = 3;

/// `LZ4_ACCELERATION_MAX` of the C library, which takes more and less for the nearest it knows.
const ACCELERATIONS: RangeInclusive<i32> = 1..=65537;

/// An algorithm and its parameters, as the user writes them: `lz4`, `lz4(acceleration=2)`,
/// `lz4-flex`, `zstd`, `zstd(level=3)`.
///
/// Printing gives the shortest text that parses to the same spec. Names are those of the kernel's
/// zram where it has the algorithm; it calls lz4's acceleration `level`, so that is accepted too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CodecSpec {
    /// `lz4`: the LZ4 block format, by the reference library.
    Lz4 {
        /// 1 to 65537, default 1: how readily the search skips ahead. More is faster and worse.
        acceleration: i32,
    },
    /// `lz4-flex`: the LZ4 block format, by a library in Rust. No parameters.
    Lz4Flex,
    /// `zstd`: smaller and slower than LZ4.
    Zstd {
        /// -131072 to 22, default 3: more is smaller and slower. 0 stands for 3.
        level: i32,
    },
}

impl CodecSpec {
    /// The name of the algorithm, without parameters: one of [`ALGORITHMS`].
    pub fn algorithm(self) -> &'static str {
        match self {
            Self::Lz4 { .. } => LZ4,
            Self::Lz4Flex => LZ4_FLEX,
            Self::Zstd { .. } => ZSTD,
        }
    }

    /// The number that goes with the algorithm: zstd's level, lz4's acceleration, 0 for lz4-flex.
    pub fn level(self) -> i32 {
        self.knob().map_or(0, |knob| knob.value)
    }

    /// The algorithm of this name at this level; `None` if there is no such algorithm, or no such level
    /// of it.
    pub fn with_level(algorithm: &str, level: i32) -> Option<Self> {
        let spec = Self::named(algorithm)?.turned_to(level);
        (spec.check().is_ok() && spec.level() == level).then_some(spec)
    }

    /// Whether every parameter is in its range. True of all that was parsed.
    pub(super) fn check(self) -> Result<(), SpecError> {
        let Some(Knob { name, value, range, .. }) = self.knob() else { return Ok(()) };
        if range.contains(&value) {
            Ok(())
        } else {
            let value = value.to_string();
            Err(SpecError::Value { algorithm: self.algorithm(), name, value, range })
        }
    }

    /// The spec of an algorithm with its default parameters.
    fn named(algorithm: &str) -> Option<Self> {
        match algorithm {
            LZ4 => Some(Self::Lz4 { acceleration: DEFAULT_ACCELERATION }),
            LZ4_FLEX => Some(Self::Lz4Flex),
            ZSTD => Some(Self::Zstd { level: DEFAULT_ZSTD_LEVEL }),
            _ => None,
        }
    }

    /// What can be turned on the algorithm, and where it stands.
    fn knob(self) -> Option<Knob> {
        match self {
            Self::Lz4 { acceleration } => Some(Knob {
                name: ACCELERATION,
                value: acceleration,
                default: DEFAULT_ACCELERATION,
                range: ACCELERATIONS,
            }),
            Self::Lz4Flex => None,
            Self::Zstd { level } => Some(Knob {
                name: LEVEL,
                value: level,
                default: DEFAULT_ZSTD_LEVEL,
                range: zstd::zstd_safe::min_c_level()..=zstd::zstd_safe::max_c_level(),
            }),
        }
    }

    fn turned_to(self, value: i32) -> Self {
        match self {
            Self::Lz4 { .. } => Self::Lz4 { acceleration: value },
            Self::Lz4Flex => Self::Lz4Flex,
            Self::Zstd { .. } => Self::Zstd { level: value },
        }
    }
}

/// A numeric parameter of an algorithm.
struct Knob {
    name: &'static str,
    value: i32,
    default: i32,
    range: RangeInclusive<i32>,
}

impl Default for CodecSpec {
    /// `lz4`.
    fn default() -> Self {
        Self::Lz4 { acceleration: DEFAULT_ACCELERATION }
    }
}

impl fmt::Display for CodecSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.algorithm())?;
        match self.knob() {
            Some(knob) if knob.value != knob.default => {
                write!(f, "({}={})", knob.name, knob.value)
            }
            _ => Ok(()),
        }
    }
}

impl FromStr for CodecSpec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let malformed = || SpecError::Malformed { text: text.to_owned() };
        let (name, parameters) = match text.split_once('(') {
            Some((name, rest)) => (name, Some(rest.strip_suffix(')').ok_or_else(malformed)?)),
            None => (text, None),
        };
        let mut spec =
            Self::named(name).ok_or_else(|| SpecError::Algorithm { name: name.to_owned() })?;
        let Some(parameters) = parameters else { return Ok(spec) };

        let algorithm = spec.algorithm();
        let mut given = false;
        for parameter in parameters.split(',') {
            let (name, value) = parameter.split_once('=').ok_or_else(malformed)?;
            let (name, value) = (name.trim(), value.trim());
            let knob = spec
                .knob()
                .filter(|knob| name == knob.name || name == LEVEL)
                .ok_or_else(|| SpecError::Parameter { algorithm, name: name.to_owned() })?;
            if given {
                return Err(SpecError::Twice { algorithm, name: knob.name });
            }
            given = true;
            let number = value.parse().ok().filter(|number| knob.range.contains(number));
            spec = spec.turned_to(number.ok_or_else(|| SpecError::Value {
                algorithm,
                name: knob.name,
                value: value.to_owned(),
                range: knob.range,
            })?);
        }
        Ok(spec)
    }
}

/// Why a text is not a [`CodecSpec`], or a spec not a codec.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum SpecError {
    /// Not of the form `NAME` or `NAME(PARAMETER=VALUE)`.
    #[error("`{text}` is not of the form NAME or NAME(PARAMETER=VALUE), such as zstd(level=3)")]
    Malformed {
        /// What was given.
        text: String,
    },
    /// No such algorithm.
    #[error("there is no algorithm `{name}`: choose one of {}", ALGORITHMS.join(", "))]
    Algorithm {
        /// The name that was given.
        name: String,
    },
    /// The algorithm has no such parameter.
    #[error("{algorithm} has no parameter `{name}`: {}", parameters_of(algorithm))]
    Parameter {
        /// Name of the algorithm.
        algorithm: &'static str,
        /// The name that was given.
        name: String,
    },
    /// A parameter is given more than once.
    #[error("{algorithm}'s {name} is given twice")]
    Twice {
        /// Name of the algorithm.
        algorithm: &'static str,
        /// Name of the parameter.
        name: &'static str,
    },
    /// A parameter is not a number, or out of its range.
    #[error(
        "{algorithm}'s {name} is a whole number from {} to {}, which `{value}` is not",
        range.start(), range.end()
    )]
    Value {
        /// Name of the algorithm.
        algorithm: &'static str,
        /// Name of the parameter.
        name: &'static str,
        /// The value that was given.
        value: String,
        /// The values there are.
        range: RangeInclusive<i32>,
    },
}

/// What an algorithm takes, as the end of an error message.
fn parameters_of(algorithm: &str) -> String {
    match CodecSpec::named(algorithm).and_then(CodecSpec::knob) {
        Some(knob) => {
            format!("it takes {}={} to {}", knob.name, knob.range.start(), knob.range.end())
        }
        None => "it takes none".to_owned(),
    }
}
