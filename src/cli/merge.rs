//! Command line and configuration file together: the file's options are put before those of the command line,
//! but for the ones that the command line has itself. So one parser checks all values, and all that options
//! require of each other, wherever they come from.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, CommandFactory, FromArgMatches};

use vhost_user_zram::internals::{Change, Keep, Settings};

use super::args::{Args, CHANGEABLE};
use super::file::{ConfigFile, FileError};

/// Why there are no settings.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    /// Help or the version was asked for, which is this.
    #[error("{0}")]
    Help(String),
    /// A mistake in the command line, or in both together.
    #[error("{0}")]
    Line(String),
    /// A mistake in the file.
    #[error(transparent)]
    File(#[from] FileError),
}

/// What the user said.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) args: Args,
    /// The same by the names of options.
    matches: ArgMatches,
    file: Option<ConfigFile>,
}

/// Reads a command line, the program's name first, and the configuration file that it names.
///
/// # Errors
/// Either has a mistake, or they are not valid together; or help was asked for.
pub(super) fn read(words: &[OsString]) -> Result<Told, Refusal> {
    let (words, off) = without_false_flags(words);
    // What is wrong is reported below, in the order of the words.
    let command = Args::command();
    let first = command.clone().ignore_errors(true).args_override_self(true);
    let first = first.try_get_matches_from(&words);
    let first = first.map_err(|error| refusal(&error, None))?;
    let path = first.get_one::<PathBuf>("config");
    let file = path.map(|path| ConfigFile::read(path, &command)).transpose()?.map(|file| {
        file.without(|id| {
            let on_line = first.value_source(id) == Some(ValueSource::CommandLine);
            on_line || off.iter().any(|off| off == id)
        })
    });
    let of_file = file.iter().flat_map(ConfigFile::entries).filter_map(|entry| entry.word.clone());
    let all: Vec<OsString> =
        words.iter().take(1).cloned().chain(of_file).chain(words.iter().skip(1).cloned()).collect();
    let refused = |error: clap::Error| refusal(&error, file.as_ref());
    let matches = command.try_get_matches_from(all).map_err(refused)?;
    let args = Args::from_arg_matches(&matches).and_then(Args::check).map_err(refused)?;
    Ok(Told { args, matches, file })
}

impl Told {
    /// Reads the same command line again, with the file as it is now: what of it may change.
    ///
    /// # Errors
    /// There is a mistake, or an option differs that cannot change.
    pub(super) fn again(&self, words: &[OsString]) -> Result<Change, Refusal> {
        let now = read(words)?;
        let raw = |told: &Self, id: &str| -> Option<Vec<OsString>> {
            let values = told.matches.get_raw(id)?;
            Some(values.map(OsString::from).collect())
        };
        let command = Args::command();
        let differ = command.get_arguments().filter(|arg| {
            let id = arg.get_id().as_str();
            !CHANGEABLE.contains(&id) && raw(self, id) != raw(&now, id)
        });
        let fixed: Vec<&str> = differ.filter_map(Arg::get_long).collect();
        if fixed.is_empty() {
            let change = now.args.change();
            // One that is as it was may be less than the disk has by now.
            let size = change.size.filter(|size| Some(*size) != self.args.change().size);
            return Ok(Change { size, ..change });
        }
        let names = fixed.join(", ");
        Err(Refusal::Line(format!("a disk that is served keeps its {names} (restart the daemon)")))
    }

    /// What the settings are, in one line.
    ///
    /// # Errors
    /// They cannot be those of a disk.
    pub(super) fn summary(self) -> Result<String, Refusal> {
        let Self { args, file, .. } = self;
        let Settings { endpoint, disk, keep, .. } = args.settings();
        let device = &disk.device;
        let worst = device.worst_case(keep != Keep::Process).map_err(|error| {
            let line = error.to_string();
            let entry = file.as_ref().and_then(|file| Some((file, file.entry("size")?)));
            entry.map_or(Refusal::Line(line.clone()), |(file, at)| file.mistake(at, line).into())
        })?;
        Ok(format!(
            "ok: socket={endpoint} size={} algorithm={} queues={} mem_limit={} worst_case={} name={}",
            device.size,
            device.codec,
            disk.guest.num_queues,
            device.mem_limit,
            worst.total_bytes,
            disk.name
        ))
    }
}

/// Takes words of the form `--FLAG=false` out of a command line, and makes `--FLAG` of `--FLAG=true`.
/// Returns the names of the flags that are off, too.
fn without_false_flags(words: &[OsString]) -> (Vec<OsString>, Vec<String>) {
    let command = Args::command();
    let flags =
        || command.get_arguments().filter(|arg| matches!(arg.get_action(), ArgAction::SetTrue));
    let (mut others, mut off) = (Vec::new(), Vec::new());
    for word in words {
        let named = word.to_str().and_then(|word| word.strip_prefix("--")?.split_once('='));
        let flag = named.and_then(|(name, _)| flags().find(|arg| arg.get_long() == Some(name)));
        match (flag, named) {
            (Some(flag), Some((_, "false"))) => off.push(flag.get_id().to_string()),
            (Some(_), Some((name, "true"))) => others.push(format!("--{name}").into()),
            _ => others.push(word.clone()),
        }
    }
    (others, off)
}

/// The mistake that clap found, with its line in the file if it is there.
fn refusal(error: &clap::Error, file: Option<&ConfigFile>) -> Refusal {
    let text = error.render().to_string();
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        return Refusal::Help(text);
    }
    // The first paragraph of clap's message is the mistake. Usage and hints follow after a blank line.
    let lines: Vec<_> = text.lines().take_while(|line| !line.is_empty()).collect();
    let line = lines.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ");
    let line = line.strip_prefix("error: ").unwrap_or(&line).to_owned();
    let Some(file) = file else { return Refusal::Line(line) };
    let named = [ContextKind::InvalidArg, ContextKind::PriorArg];
    let named =
        named.into_iter().filter_map(|kind| error.get(kind)).flat_map(|value| match value {
            ContextValue::String(text) => vec![text.as_str()],
            ContextValue::Strings(texts) => texts.iter().map(String::as_str).collect(),
            _ => Vec::new(),
        });
    let key = |text: &'_ str| {
        let name = text.strip_prefix("--")?;
        Some(name[..name.find([' ', '=', '[']).unwrap_or(name.len())].to_owned())
    };
    match named.filter_map(key).find_map(|key| file.entry(&key)) {
        Some(entry) => file.mistake(entry, line).into(),
        None => Refusal::Line(line),
    }
}
