//! The configuration file: a TOML table with the long names of options as keys. Each becomes the word that says
//! the same on a command line, so the file knows no more of options than which there are.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use clap::{Arg, ArgAction, Command};
use toml::de::{DeTable, DeValue};

/// Options that are for the command line alone.
const NOT_IN_A_FILE: [&str; 5] =
    ["config", "check-config", "print-capabilities", "help", "version"];
/// Bytes of the longest file. A device or a pipe that never ends is not read for ever.
const LONGEST: u64 = 1 << 20;

/// Why a configuration file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum FileError {
    /// It cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A line has a mistake.
    #[error("{}:{line}: {text}", path.display())]
    Line {
        /// Its path.
        path: PathBuf,
        /// The line's number, from 1 on.
        line: usize,
        /// The mistake.
        text: String,
    },
}

/// A configuration file.
#[derive(Debug)]
pub(super) struct ConfigFile {
    path: PathBuf,
    /// In the order of the file.
    entries: Vec<Entry>,
}

/// A key with its value.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// The key: the option's long name.
    pub(super) key: String,
    /// The option's name in its definition.
    pub(super) id: String,
    /// Number of its line, from 1 on.
    pub(super) line: usize,
    /// What says the same on a command line; `None` for a flag that is off.
    pub(super) word: Option<OsString>,
}

impl ConfigFile {
    /// Reads the file at `path`, which may have the options of `command`.
    ///
    /// # Errors
    /// The file cannot be read, is not TOML, or has a key or a kind of value that no option has. The values
    /// themselves are not checked.
    pub(super) fn read(path: &Path, command: &Command) -> Result<Self, FileError> {
        let failed = |source| FileError::Read { path: path.to_owned(), source };
        let mut text = String::new();
        let file = File::open(path).map_err(failed)?;
        file.take(LONGEST + 1).read_to_string(&mut text).map_err(failed)?;
        if text.len() as u64 > LONGEST {
            return Err(failed(io::Error::other("it has more than 1 MiB")));
        }
        let entries = entries(&text, command).map_err(|(line, text)| FileError::Line {
            path: path.to_owned(),
            line,
            text,
        })?;
        Ok(Self { path: path.to_owned(), entries })
    }

    /// The file without the options for which `is_beaten` holds, by their names in the definition.
    pub(super) fn without(mut self, is_beaten: impl Fn(&str) -> bool) -> Self {
        self.entries.retain(|entry| !is_beaten(&entry.id));
        self
    }

    pub(super) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The entry that gives this option a value.
    pub(super) fn entry(&self, key: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.key == key && entry.word.is_some())
    }

    /// A mistake in the value of `entry`.
    pub(super) fn mistake(&self, entry: &Entry, text: String) -> FileError {
        FileError::Line { path: self.path.clone(), line: entry.line, text }
    }
}

/// The entries of a file with this text; or the number of the line that has a mistake, and the mistake.
fn entries(text: &str, command: &Command) -> Result<Vec<Entry>, (usize, String)> {
    let line = |at: usize| 1 + text.as_bytes()[..at].iter().filter(|byte| **byte == b'\n').count();
    let table = DeTable::parse(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start.min(text.len()));
        (line(at), error.message().replace('\n', ", "))
    })?;
    let mut entries = Vec::new();
    for (key, value) in table.get_ref() {
        let (line, key) = (line(key.span().start), key.get_ref().as_ref());
        let wrong = |text| (line, text);
        let arg = option(key, command).map_err(wrong)?;
        let word = word(key, arg, value.get_ref()).map_err(wrong)?;
        entries.push(Entry { key: key.into(), id: arg.get_id().to_string(), line, word });
    }
    entries.sort_by_key(|entry| entry.line);
    Ok(entries)
}

/// The option of this name.
fn option<'c>(key: &str, command: &'c Command) -> Result<&'c Arg, String> {
    if NOT_IN_A_FILE.contains(&key) {
        return Err(format!("`{key}` is for the command line only"));
    }
    let with_name = |name: &str| command.get_arguments().find(|arg| arg.get_long() == Some(name));
    with_name(key).ok_or_else(|| match with_name(&key.replace('_', "-")) {
        Some(_) => format!("`{key}` is not an option, but `{}` is", key.replace('_', "-")),
        None => format!("`{key}` is not an option (--help lists them)"),
    })
}

/// What says on a command line that the option `arg` has this value.
fn word(key: &str, arg: &Arg, value: &DeValue<'_>) -> Result<Option<OsString>, String> {
    let value = match (arg.get_action(), value) {
        (ArgAction::SetTrue, DeValue::Boolean(on)) => {
            return Ok(on.then(|| format!("--{key}").into()));
        }
        (ArgAction::SetTrue, _) => return Err(format!("`{key}` takes true or false")),
        (_, DeValue::String(text)) => text.as_ref(),
        // The options are text, and one takes octal digits: 0o660 would become 432.
        (_, DeValue::Integer(number)) if number.radix() != 10 => {
            return Err(format!("`{key}` takes a decimal number or a string, not {number}"));
        }
        (_, DeValue::Integer(number)) => number.as_str(),
        _ => return Err(format!("`{key}` takes a string or a whole number")),
    };
    if value.contains('\0') {
        return Err(format!("`{key}` has a NUL character"));
    }
    Ok(Some(format!("--{key}={value}").into()))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::super::args::Args;
    use super::*;

    fn entries_of(text: &str) -> Result<Vec<Entry>, (usize, String)> {
        entries(text, &Args::command())
    }

    /// Also those that are to come.
    #[test]
    fn each_option_can_be_in_a_file() {
        let command = Args::command();
        let mut kinds = [0, 0];
        for arg in command.get_arguments() {
            let key = arg.get_long().expect("a long name");
            let is_flag = matches!(arg.get_action(), ArgAction::SetTrue);
            let text = format!("{key} = {}", if is_flag { "true" } else { "'x'" });
            if NOT_IN_A_FILE.contains(&key) {
                entries_of(&text).unwrap_err();
                continue;
            }
            kinds[usize::from(is_flag)] += 1;
            let word = if is_flag { format!("--{key}") } else { format!("--{key}=x") };
            let id = arg.get_id().to_string();
            let expected = Entry { key: key.into(), id, line: 1, word: Some(word.into()) };
            assert_eq!(entries_of(&text), Ok(vec![expected]));
        }
        assert!(kinds.iter().all(|count| *count > 3), "{kinds:?}");
    }

    #[test]
    fn entries_are_words_of_a_command_line_in_the_order_of_the_file() {
        let text = "# Mine.\n\nsize = 4_096\n'name' = \"-x y\"\nmlock = false\ncreate=true\n";
        let entries = entries_of(text).unwrap();
        let words: Vec<_> = entries.iter().map(|entry| entry.word.as_ref()?.to_str()).collect();
        assert_eq!(words, [Some("--size=4096"), Some("--name=-x y"), None, Some("--create")]);
        let lines: Vec<_> = entries.iter().map(|entry| entry.line).collect();
        assert_eq!(lines, [3, 4, 5, 6]);
        assert_eq!(entries_of(""), Ok(Vec::new()));
    }

    #[test]
    fn a_number_is_taken_as_it_is_written() {
        let word = |value: &str| {
            let entries = entries_of(&format!("socket-mode = {value}"))?;
            Ok(entries[0].word.clone().unwrap().into_string().unwrap())
        };
        assert_eq!(word("660"), Ok("--socket-mode=660".into()));
        assert_eq!(word("'0660'"), Ok("--socket-mode=0660".into()));
        for number in ["0o660", "0x1b0", "0b1"] {
            let (line, text): (usize, String) = word(number).unwrap_err();
            assert!(line == 1 && text.contains(number), "{text}");
        }
    }
}
