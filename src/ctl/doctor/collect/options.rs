//! The options of a daemon, from its command line and its configuration file.

use std::path::{Path, PathBuf};

use super::System;
use crate::doctor::facts::Options;

/// A size as the daemon takes it: bytes, or with a suffix K, M, G or T.
fn size(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" | "B" => 0,
        "K" | "KIB" => 10,
        "M" | "MIB" => 20,
        "G" | "GIB" => 30,
        "T" | "TIB" => 40,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// Flags, which have no value of their own.
const FLAGS: [&str; 7] = [
    "access-times",
    "fd-store",
    "mlock",
    "create",
    "read-only",
    "check-config",
    "print-capabilities",
];

/// Options as pairs of a name without its dashes and a value. A flag is on unless its value is `false`.
fn pairs(words: &[String]) -> Vec<(String, String)> {
    let mut pairs = Vec::new();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let Some(name) = word.strip_prefix("--").filter(|name| !name.is_empty()) else { continue };
        pairs.push(match name.split_once('=') {
            Some((name, value)) => (name.to_owned(), value.to_owned()),
            None if FLAGS.contains(&name) => (name.to_owned(), "true".to_owned()),
            None => (name.to_owned(), words.next().cloned().unwrap_or_default()),
        });
    }
    pairs
}

/// What a configuration file says, in the same form.
fn pairs_of_file(text: &str) -> Vec<(String, String)> {
    let Ok(table) = text.parse::<toml::Table>() else { return Vec::new() };
    let value = |value: toml::Value| match value {
        toml::Value::String(text) => Some(text),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Boolean(flag) => Some(flag.to_string()),
        _ => None,
    };
    table.into_iter().filter_map(|(name, found)| Some((name, value(found)?))).collect()
}

/// The options in the words of a command line, without the program's name. Relative paths begin at `base`.
pub fn parse(system: &System<'_>, words: &[String], base: &Path) -> Options {
    let given = pairs(words);
    let config = given.iter().rev().find(|(name, _)| name == "config");
    let config = config.and_then(|(_, path)| system.read(base.join(path)));
    let mut all = config.map_or_else(Vec::new, |text| pairs_of_file(&text));
    // What is given beats the file, so it comes last.
    all.extend(given);
    let mut options = Options::default();
    for (name, value) in all {
        let path = || Some(base.join(&value)).filter(|_| !value.is_empty());
        let on = value != "false";
        match name.as_str() {
            "name" => options.name = Some(value),
            "socket-path" => options.socket = path(),
            "api-socket" => options.api = path(),
            "state-dir" => options.state_dir = path(),
            "config" => options.config = path(),
            "size" => options.size = size(&value),
            "mem-limit" => options.mem_limit = size(&value),
            "fd-store" => options.fd_store = on,
            "mlock" => options.mlock = on,
            _ => {}
        }
    }
    if options.name.is_none() {
        options.name =
            derived(options.socket.as_ref()).or_else(|| derived(options.state_dir.as_ref()));
    }
    options
}

/// The daemon's own rule: the file name without its extension.
fn derived(path: Option<&PathBuf>) -> Option<String> {
    Some(path?.file_stem()?.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_line(line: &str) -> Options {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        let system = System { root: "/nonexistent".into(), run: &|_, _| None };
        parse(&system, &words, Path::new("/base"))
    }

    #[test]
    fn options_are_understood_in_both_forms() {
        let options = parse_line(
            "--socket-path /run/vm1.sock --size=4G --mlock --mem-limit 512M --state-dir state --api-socket /a",
        );
        assert_eq!(options.name.as_deref(), Some("vm1"));
        assert_eq!(options.socket, Some("/run/vm1.sock".into()));
        assert_eq!(options.state_dir, Some("/base/state".into()));
        assert_eq!((options.size, options.mem_limit), (Some(4 << 30), Some(512 << 20)));
        assert!(options.mlock && !options.fd_store);
        let options = parse_line("--fd-store --name x --mlock=false --size");
        assert!(options.fd_store && !options.mlock && options.size.is_none());
        assert_eq!(options.name.as_deref(), Some("x"));
        assert!(!parse_line("--serial --mlock").mlock, "it is the value of --serial");
    }

    /// Those that take a value would have the next option as theirs.
    #[test]
    fn flags_are_those_of_the_daemon() {
        let completions = include_str!(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/dist/completions/vhost-user-zram.fish"
        ));
        let mut flags: Vec<&str> = completions
            .lines()
            // What takes a value has "-r" behind its description.
            .filter(|line| line.ends_with('\''))
            .filter_map(|line| line.split_once(" -l ")?.1.split(' ').next())
            .filter(|name| !["help", "version"].contains(name))
            .collect();
        let mut known = FLAGS;
        flags.sort_unstable();
        known.sort_unstable();
        assert_eq!(flags, known);
    }

    #[test]
    fn sizes_are_those_of_the_daemon() {
        assert_eq!(
            (size("4097"), size("3k"), size("1TiB")),
            (Some(4097), Some(3072), Some(1 << 40))
        );
        assert_eq!((size("1X"), size(""), size("99999999T")), (None, None, None));
    }
}
