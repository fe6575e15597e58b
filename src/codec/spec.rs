use std::{fmt, str::FromStr};

use thiserror::Error;

/// The names that a [`CodecSpec`] may begin with, the default first.
pub const ALGORITHMS: &[&str] = &[LZ4, LZ4_FLEX, LZ4HC, ZSTD, DEFLATE, LZO];

pub(super) const LZ4: &str = "lz4";
pub(super) const LZ4_FLEX: &str = "lz4-flex";
pub(super) const LZ4HC: &str = "lz4hc";
pub(super) const ZSTD: &str = "zstd";
pub(super) const DEFLATE: &str = "deflate";
pub(super) const LZO: &str = "lzo";

/// Algorithms of the kernel's zram that are not here, and why.
const NOT_HERE: &[(&str, &str)] = &[
    ("lzo-rle", "it is a dialect of lzo that the kernel alone has, and lzo takes its place"),
    ("842", "it is made for a coprocessor of POWER machines, and zstd takes its place"),
];

const ACCELERATION: &str = "acceleration";
const LEVEL: &str = "level";
const WINBITS: &str = "winbits";

/// The kernel driver's defaults, which are the libraries' too.
const DEFAULT_ACCELERATION: i32 = 1;
const DEFAULT_LZ4HC_LEVEL: i32 = 9;
const DEFAULT_ZSTD_LEVEL: i32 = 3;
const DEFAULT_DEFLATE_LEVEL: i32 = -1;
const DEFAULT_WINBITS: i32 = -11;

/// `LZ4_ACCELERATION_MAX` of the C library, which takes more and less for the nearest it knows.
const ACCELERATIONS: Values = Values { first: 1, last: 65537, from_zero: 0 };
/// Up to `LZ4HC_CLEVEL_MAX`.
const LZ4HC_LEVELS: Values = Values { first: 1, last: 12, from_zero: 0 };
const DEFLATE_LEVELS: Values = Values { first: -1, last: 9, from_zero: 0 };
/// Those of zlib but 8, which it takes for 9.
const WINDOWS: Values = Values { first: -15, last: 15, from_zero: 9 };

/// The values of a parameter: whole numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Values {
    first: i32,
    last: i32,
    /// Values nearer to 0 than this are not among them.
    from_zero: u32,
}

impl Values {
    fn contains(self, value: i32) -> bool {
        (self.first..=self.last).contains(&value) && value.unsigned_abs() >= self.from_zero
    }
}

impl fmt::Display for Values {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { first, last, from_zero } = self;
        match from_zero {
            0 => write!(f, "{first} to {last}"),
            _ => write!(f, "{first} to -{from_zero} or {from_zero} to {last}"),
        }
    }
}

/// An algorithm and its parameters, as the user writes them: `lz4`, `lz4(acceleration=2)`,
/// `lz4-flex`, `zstd`, `zstd(level=3)`, `deflate(level=9,winbits=-12)`.
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
    /// `lz4hc`: the LZ4 block format, smaller and much slower to make, as fast to read.
    Lz4Hc {
        /// 1 to 12, default 9: more is smaller and slower.
        level: i32,
    },
    /// `zstd`: smaller and slower than LZ4.
    Zstd {
        /// -131072 to 22, default 3: more is smaller and slower. 0 stands for 3.
        level: i32,
    },
    /// `deflate`: that of zlib and gzip.
    Deflate {
        /// -1 to 9, default -1, which stands for 6: more is smaller and slower.
        level: i32,
        /// -15 to -9 or 9 to 15, default -11: the window is 2 to the power of it in bytes. Objects of
        /// those above 0 have zlib's header and check sum, 6 bytes.
        winbits: i32,
    },
    /// `lzo`: the LZO1X format. No parameters.
    Lzo,
}

impl CodecSpec {
    /// The name of the algorithm, without parameters: one of [`ALGORITHMS`].
    pub fn algorithm(self) -> &'static str {
        match self {
            Self::Lz4 { .. } => LZ4,
            Self::Lz4Flex => LZ4_FLEX,
            Self::Lz4Hc { .. } => LZ4HC,
            Self::Zstd { .. } => ZSTD,
            Self::Deflate { .. } => DEFLATE,
            Self::Lzo => LZO,
        }
    }

    /// The number that goes with the algorithm: its level, lz4's acceleration, 0 if it has none.
    pub fn level(self) -> i32 {
        self.knobs().next().map_or(0, |knob| knob.value)
    }

    /// Its other parameters as a number: deflate's `winbits`, 0 for all others.
    pub fn parameters(self) -> u32 {
        self.knobs().nth(1).map_or(0, |knob| knob.value.cast_unsigned())
    }

    /// The algorithm of this name at this level and with these other parameters; `None` if there is no
    /// such algorithm, or it does not have them.
    pub fn of(algorithm: &str, level: i32, parameters: u32) -> Option<Self> {
        let mut spec = Self::named(algorithm)?;
        let values = [level, parameters.cast_signed()];
        let names: Vec<_> = spec.knobs().map(|knob| knob.name).collect();
        for (name, value) in names.into_iter().zip(values) {
            spec = spec.turned_to(name, value);
        }
        let same = spec.level() == level && spec.parameters() == parameters;
        (same && spec.check().is_ok()).then_some(spec)
    }

    /// Whether every parameter is in its range. True of all that was parsed.
    pub(super) fn check(self) -> Result<(), SpecError> {
        let wrong = self.knobs().find(|knob| !knob.values.contains(knob.value));
        wrong.map_or(Ok(()), |Knob { name, value, values, .. }| {
            let value = value.to_string();
            Err(SpecError::Value { algorithm: self.algorithm(), name, value, values })
        })
    }

    /// The spec of an algorithm with its default parameters; `None` if it is none of [`ALGORITHMS`].
    pub fn named(algorithm: &str) -> Option<Self> {
        match algorithm {
            LZ4 => Some(Self::Lz4 { acceleration: DEFAULT_ACCELERATION }),
            LZ4_FLEX => Some(Self::Lz4Flex),
            LZ4HC => Some(Self::Lz4Hc { level: DEFAULT_LZ4HC_LEVEL }),
            ZSTD => Some(Self::Zstd { level: DEFAULT_ZSTD_LEVEL }),
            DEFLATE => {
                Some(Self::Deflate { level: DEFAULT_DEFLATE_LEVEL, winbits: DEFAULT_WINBITS })
            }
            LZO => Some(Self::Lzo),
            _ => None,
        }
    }

    /// The same algorithm with a parameter of another value, by the parameter's own name or as `level`.
    ///
    /// # Errors
    /// The algorithm has no such parameter, or the parameter no such value.
    pub fn with(self, name: &str, value: i32) -> Result<Self, SpecError> {
        let algorithm = self.algorithm();
        let knob = self.knob(name);
        let knob = knob.ok_or_else(|| SpecError::Parameter { algorithm, name: name.to_owned() })?;
        let spec = self.turned_to(knob.name, value);
        spec.check().map(|()| spec)
    }

    /// What can be turned on the algorithm, and where it stands; its level first.
    fn knobs(self) -> impl Iterator<Item = Knob> {
        let knob = |name, value, default, values| Some(Knob { name, value, default, values });
        let knobs = match self {
            Self::Lz4 { acceleration } => {
                [knob(ACCELERATION, acceleration, DEFAULT_ACCELERATION, ACCELERATIONS), None]
            }
            Self::Lz4Hc { level } => [knob(LEVEL, level, DEFAULT_LZ4HC_LEVEL, LZ4HC_LEVELS), None],
            Self::Zstd { level } => {
                let (first, last) =
                    (zstd::zstd_safe::min_c_level(), zstd::zstd_safe::max_c_level());
                let values = Values { first, last, from_zero: 0 };
                [knob(LEVEL, level, DEFAULT_ZSTD_LEVEL, values), None]
            }
            Self::Deflate { level, winbits } => [
                knob(LEVEL, level, DEFAULT_DEFLATE_LEVEL, DEFLATE_LEVELS),
                knob(WINBITS, winbits, DEFAULT_WINBITS, WINDOWS),
            ],
            Self::Lz4Flex | Self::Lzo => [None, None],
        };
        knobs.into_iter().flatten()
    }

    /// The knob of this name; `level` is the first one, whatever its name.
    fn knob(self, name: &str) -> Option<Knob> {
        let mut knobs = self.knobs();
        if name == LEVEL { knobs.next() } else { knobs.find(|knob| knob.name == name) }
    }

    fn turned_to(self, name: &str, value: i32) -> Self {
        match self {
            Self::Lz4 { .. } => Self::Lz4 { acceleration: value },
            Self::Lz4Hc { .. } => Self::Lz4Hc { level: value },
            Self::Zstd { .. } => Self::Zstd { level: value },
            Self::Deflate { level, .. } if name == WINBITS => {
                Self::Deflate { level, winbits: value }
            }
            Self::Deflate { winbits, .. } => Self::Deflate { level: value, winbits },
            Self::Lz4Flex | Self::Lzo => self,
        }
    }
}

/// A numeric parameter of an algorithm.
struct Knob {
    name: &'static str,
    value: i32,
    default: i32,
    values: Values,
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
        let mut before = '(';
        for Knob { name, value, .. } in self.knobs().filter(|knob| knob.value != knob.default) {
            write!(f, "{before}{name}={value}")?;
            before = ',';
        }
        if before == ',' { f.write_str(")") } else { Ok(()) }
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
        let mut spec = Self::named(name).ok_or_else(|| SpecError::unknown(name))?;
        let Some(parameters) = parameters else { return Ok(spec) };

        let algorithm = spec.algorithm();
        let mut given = Vec::new();
        for parameter in parameters.split(',') {
            let (name, value) = parameter.split_once('=').ok_or_else(malformed)?;
            let (name, value) = (name.trim(), value.trim());
            let Knob { name, values, .. } = spec
                .knob(name)
                .ok_or_else(|| SpecError::Parameter { algorithm, name: name.to_owned() })?;
            if given.contains(&name) {
                return Err(SpecError::Twice { algorithm, name });
            }
            given.push(name);
            let wrong = || SpecError::Value { algorithm, name, value: value.to_owned(), values };
            spec = spec.with(name, value.parse().map_err(|_| wrong())?)?;
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
    /// An algorithm that the kernel's zram has.
    #[error("`{name}` is not here: {why} (choose one of {})", ALGORITHMS.join(", "))]
    NotHere {
        /// Its name.
        name: &'static str,
        /// Why not.
        why: &'static str,
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
    #[error("{algorithm}'s {name} is a whole number from {values}, which `{value}` is not")]
    Value {
        /// Name of the algorithm.
        algorithm: &'static str,
        /// Name of the parameter.
        name: &'static str,
        /// The value that was given.
        value: String,
        /// The values there are.
        values: Values,
    },
}

impl SpecError {
    /// There is no algorithm of this name.
    pub fn unknown(name: &str) -> Self {
        match NOT_HERE.iter().find(|(not_here, _)| *not_here == name) {
            Some((name, why)) => Self::NotHere { name, why },
            None => Self::Algorithm { name: name.to_owned() },
        }
    }
}

/// What an algorithm takes, as the end of an error message.
fn parameters_of(algorithm: &str) -> String {
    let knobs = CodecSpec::named(algorithm).into_iter().flat_map(CodecSpec::knobs);
    let taken: Vec<_> = knobs.map(|knob| format!("{}={}", knob.name, knob.values)).collect();
    match taken.is_empty() {
        true => "it takes none".to_owned(),
        false => format!("it takes {}", taken.join(" and ")),
    }
}
