//! The script of a conformance run, `guest-tests/conformance.txt`: steps, and where the two may differ.
//!
//! One line a step; a line below it that is indented says that the step differs, on which kernels, and why:
//!
//! ```text
//! # About what follows.
//! write mem_limit "16M\n"
//! read mm_stat columns ==*=
//! fill text 0 16
//!     differs before 7.1: the reason
//! ```

use std::fmt;

use anyhow::{Context, Result, bail, ensure};

/// What a step does on either side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Writes a text to an attribute.
    Write { name: String, text: String },
    /// Reads an attribute, and compares what the mask leaves of it.
    Read { name: String, mask: Mask },
    /// Writes pages of a content.
    Fill { kind: String, first: u64, count: u64 },
    /// Whether pages read as that content.
    Check { kind: String, first: u64, count: u64 },
    /// Discards pages.
    Discard { first: u64, count: u64 },
    /// Somebody uses the disk from here on.
    Open,
    /// Nobody does.
    Close,
}

/// What of a text is compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mask {
    /// All of it.
    Nothing,
    /// Of each line those columns that have `=`, and the width of those that have `*`.
    Columns(String),
    /// The word in brackets, and that there is a blank behind each word.
    Bracketed,
}

/// Since when, and until before when, a difference is there, by the kernel's version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Versions {
    from: Option<(u32, u32)>,
    before: Option<(u32, u32)>,
}

/// A known difference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    versions: Versions,
    pub reason: String,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    pub action: Action,
    differences: Vec<Difference>,
}

impl Step {
    /// Why the two sides differ here on this kernel, if they do.
    pub fn difference(&self, kernel: &str) -> Result<Option<&Difference>> {
        let version = version(kernel)?;
        let holds = |difference: &&Difference| {
            let Versions { from, before } = difference.versions;
            from.is_none_or(|from| version >= from) && before.is_none_or(|before| version < before)
        };
        Ok(self.differences.iter().find(holds))
    }
}

/// Reads a script.
pub fn parse(script: &str) -> Result<Vec<Step>> {
    let mut steps: Vec<Step> = Vec::new();
    for (number, line) in script.lines().enumerate() {
        let text = line.trim();
        if text.is_empty() || text.starts_with('#') {
            continue;
        }
        let wrong = || format!("line {}: {text}", number + 1);
        if line.starts_with([' ', '\t']) {
            let step = steps.last_mut().with_context(wrong)?;
            step.differences.push(difference(text).with_context(wrong)?);
        } else {
            steps.push(Step { action: action(text).with_context(wrong)?, differences: Vec::new() });
        }
    }
    Ok(steps)
}

fn action(text: &str) -> Result<Action> {
    let (verb, rest) = text.split_once(' ').unwrap_or((text, ""));
    let words: Vec<_> = rest.split_whitespace().collect();
    let pages = |first: &str, count: &str| {
        Ok::<(u64, u64), anyhow::Error>((first.parse()?, count.parse()?))
    };
    Ok(match (verb, &words[..]) {
        ("write", [name, ..]) => {
            let text = rest.strip_prefix(name).unwrap_or_default().trim();
            Action::Write { name: (*name).into(), text: unquoted(text)? }
        }
        ("read", [name]) => Action::Read { name: (*name).into(), mask: Mask::Nothing },
        ("read", [name, "bracketed"]) => {
            Action::Read { name: (*name).into(), mask: Mask::Bracketed }
        }
        ("read", [name, "columns", columns]) => {
            ensure!(columns.chars().all(|c| "=*".contains(c)), "columns are = or *");
            Action::Read { name: (*name).into(), mask: Mask::Columns((*columns).into()) }
        }
        ("fill", [kind, first, count]) => {
            let (first, count) = pages(first, count)?;
            Action::Fill { kind: (*kind).into(), first, count }
        }
        ("check", [kind, first, count]) => {
            let (first, count) = pages(first, count)?;
            Action::Check { kind: (*kind).into(), first, count }
        }
        ("discard", [first, count]) => {
            let (first, count) = pages(first, count)?;
            Action::Discard { first, count }
        }
        ("open", []) => Action::Open,
        ("close", []) => Action::Close,
        _ => bail!("not a step"),
    })
}

/// A text in quotes, with `\n` for a line end and `N*"TEXT"` for many of it.
fn unquoted(text: &str) -> Result<String> {
    let (times, text) = match text.split_once('*') {
        Some((times, text)) if !times.starts_with('"') => (times.parse()?, text),
        _ => (1, text),
    };
    let inner = text.strip_prefix('"').and_then(|text| text.strip_suffix('"'));
    Ok(inner.context("a text in quotes")?.replace("\\n", "\n").repeat(times))
}

fn difference(text: &str) -> Result<Difference> {
    let (when, reason) = text.split_once(": ").context("a reason behind a colon")?;
    let words: Vec<_> = when.split_whitespace().collect();
    let versions = match words[..] {
        ["differs"] => Versions { from: None, before: None },
        ["differs", "before", before] => Versions { from: None, before: Some(version(before)?) },
        ["differs", "from", from] => Versions { from: Some(version(from)?), before: None },
        _ => bail!("neither `differs:` nor `differs before VERSION:` nor `differs from VERSION:`"),
    };
    Ok(Difference { versions, reason: reason.trim().to_owned() })
}

fn version(text: &str) -> Result<(u32, u32)> {
    let (major, minor) = text.split_once('.').context("a version")?;
    Ok((major.parse()?, minor.parse()?))
}

impl Mask {
    /// What is compared of a text.
    ///
    /// # Errors
    /// The text does not have the form at all that the mask is for.
    pub fn of(&self, text: &str) -> Result<String> {
        match self {
            Self::Nothing => Ok(text.to_owned()),
            Self::Columns(columns) => {
                ensure!(text.is_empty() || text.ends_with('\n'), "no line end: {text:?}");
                text.lines().map(|line| columns_of(line, columns)).collect()
            }
            Self::Bracketed => {
                let words: Vec<_> = text.split_whitespace().collect();
                ensure!(text == words.join(" ") + " \n", "other blanks than one: {text:?}");
                let inner =
                    |word: &str| Some(word.strip_prefix('[')?.strip_suffix(']')?.to_owned());
                Ok(words.into_iter().filter_map(inner).collect::<Vec<_>>().join(" "))
            }
        }
    }
}

/// A line in which columns that are masked are as many stars as they are wide.
fn columns_of(line: &str, columns: &str) -> Result<String> {
    let (mut rest, mut masked) = (line, String::new());
    for column in columns.chars() {
        let word = rest.trim_start_matches(' ');
        let blanks = rest.len() - word.len();
        let end = word.find(' ').unwrap_or(word.len());
        ensure!(end > 0, "{line:?} has fewer than {} columns", columns.len());
        let (cell, behind) = rest.split_at(blanks + end);
        match column {
            '*' => masked.push_str(&"*".repeat(cell.len())),
            _ => masked.push_str(cell),
        }
        rest = behind;
    }
    ensure!(rest.is_empty(), "{line:?} has more than {} columns", columns.len());
    Ok(masked + "\n")
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Write { name, text } if text.len() > 40 => {
                write!(f, "write {name}, {} bytes", text.len())
            }
            Self::Write { name, text } => write!(f, "write {name} {text:?}"),
            Self::Read { name, .. } => write!(f, "read {name}"),
            Self::Fill { kind, first, count } => write!(f, "fill {kind} {first} {count}"),
            Self::Check { kind, first, count } => write!(f, "check {kind} {first} {count}"),
            Self::Discard { first, count } => write!(f, "discard {first} {count}"),
            Self::Open => f.write_str("open"),
            Self::Close => f.write_str("close"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCRIPT: &str = include_str!("../../conformance.txt");

    #[test]
    fn the_script_is_read() {
        let steps = parse(SCRIPT).unwrap();
        assert!(steps.len() > 50, "{} steps", steps.len());
    }

    #[test]
    fn steps_and_differences_are_what_they_say() {
        let script = "# a\nwrite mem_limit \"1 M\\n\"\n    differs before 7.1: older\n    differs from 7.2: newer\n\
                      \nread mm_stat columns =*\nwrite comp_algorithm 3*\"ab\"\nopen\n";
        let steps = parse(script).unwrap();
        let [limit, read, long, open] = &steps[..] else { panic!("{steps:?}") };
        assert_eq!(limit.action, Action::Write { name: "mem_limit".into(), text: "1 M\n".into() });
        let reason = |kernel| {
            let found = limit.difference(kernel).unwrap();
            found.map(|difference| difference.reason.as_str())
        };
        assert_eq!(
            [reason("6.12"), reason("7.1"), reason("7.2"), reason("7.10")],
            [Some("older"), None, Some("newer"), Some("newer")]
        );
        let mask = Mask::Columns("=*".into());
        assert_eq!(read.action, Action::Read { name: "mm_stat".into(), mask });
        assert_eq!(
            long.action,
            Action::Write { name: "comp_algorithm".into(), text: "ababab".into() }
        );
        assert_eq!((&open.action, open.difference("6.12").unwrap()), (&Action::Open, None));
        for wrong in
            ["fill text 1", "   differs: nothing above", "open\n  differs before x: y", "write x y"]
        {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn masks_keep_widths_and_what_is_not_masked() {
        let columns = Mask::Columns("=*=".into());
        assert_eq!(columns.of("  12    3 4\n").unwrap(), "  12***** 4\n");
        assert_ne!(columns.of("  12   3 4\n").unwrap(), columns.of("  12    3 4\n").unwrap());
        for wrong in ["1 2\n", "1 2 3 4\n", "1 2 3", "1 2 3 \n"] {
            assert!(columns.of(wrong).is_err(), "{wrong:?}");
        }
        assert_eq!(Mask::Bracketed.of("lzo [lz4] zstd \n").unwrap(), "lz4");
        assert!(Mask::Bracketed.of("lzo [lz4] zstd\n").is_err());
    }
}
