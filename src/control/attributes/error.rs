//! Why an attribute is not read or written.

use super::table::Attribute;
use crate::codec::SpecError;

/// Why an attribute is not read or written: an error number as the kernel's file would give it, and a sentence
/// that says what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AttributeError {
    /// There is no such attribute.
    #[error("there is no attribute `{0}`: GET /v1/attributes lists all")]
    Unknown(String),
    /// It has nothing to be read.
    #[error("`{0}` can only be written")]
    WriteOnly(&'static str),
    /// It cannot be written.
    #[error("`{0}` can only be read")]
    ReadOnly(&'static str),
    /// The disk does not do what it is for.
    #[error("`{0}` belongs to what this version of the daemon does not do yet: {1}")]
    NotSupported(&'static str, &'static str),
    /// The text is not what the attribute takes.
    #[error("`{text}` is nothing for `{name}`: write {wanted}")]
    Invalid {
        /// The attribute.
        name: &'static str,
        /// What was written, shortened.
        text: String,
        /// What it takes.
        wanted: &'static str,
    },
    /// There is no such algorithm, or not with such parameters.
    #[error("`{name}` is not changed: {error}")]
    Algorithm {
        /// The attribute.
        name: &'static str,
        /// What is wrong.
        error: SpecError,
    },
    /// The number does not fit.
    #[error("`{text}` is too large for `{name}`: write {wanted}")]
    Range {
        /// The attribute.
        name: &'static str,
        /// What was written, shortened.
        text: String,
        /// What it takes.
        wanted: &'static str,
    },
    /// The text is longer than any that makes sense.
    #[error("`{name}` takes at most {most} bytes")]
    TooLong {
        /// The attribute.
        name: &'static str,
        /// Most bytes.
        most: usize,
    },
    /// It is fixed for the disk's life.
    #[error("`{name}` is fixed while the disk exists: {instead}")]
    Fixed {
        /// The attribute.
        name: &'static str,
        /// What to do instead.
        instead: &'static str,
    },
}

/// Bytes of a text that an error repeats.
const SHOWN: usize = 40;

impl AttributeError {
    /// The name of the error's number.
    pub fn errno(&self) -> &'static str {
        match self {
            Self::Unknown(_) => "ENOENT",
            Self::WriteOnly(_) | Self::ReadOnly(_) => "EACCES",
            Self::NotSupported(..) => "ENOTSUP",
            // The algorithm has nothing of the kind.
            Self::Algorithm { error: SpecError::Parameter { .. }, .. } => "EOPNOTSUPP",
            Self::Invalid { .. } | Self::Algorithm { .. } => "EINVAL",
            Self::Range { .. } => "ERANGE",
            Self::TooLong { .. } => "E2BIG",
            Self::Fixed { .. } => "EBUSY",
        }
    }

    pub(super) fn invalid(attribute: &Attribute, text: &str) -> Self {
        Self::Invalid { name: attribute.name, text: shortened(text), wanted: attribute.takes }
    }

    pub(super) fn algorithm(attribute: &Attribute, error: SpecError) -> Self {
        Self::Algorithm { name: attribute.name, error }
    }

    pub(super) fn range(attribute: &Attribute, text: &str) -> Self {
        Self::Range { name: attribute.name, text: shortened(text), wanted: attribute.takes }
    }
}

/// A text as it can stand in a line.
fn shortened(text: &str) -> String {
    let text = text.strip_suffix('\n').unwrap_or(text);
    let mut short: String = text.escape_debug().take(SHOWN).collect();
    if text.escape_debug().nth(SHOWN).is_some() {
        short.push_str("...");
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_repeated_in_one_short_line() {
        assert_eq!(shortened("lzo\n"), "lzo");
        assert_eq!(shortened("a\nb\u{1b}"), "a\\nb\\u{1b}");
        assert_eq!(shortened(&"x".repeat(40)), "x".repeat(40));
        assert_eq!(shortened(&"x".repeat(41)), "x".repeat(40) + "...");
    }
}
