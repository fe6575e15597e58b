//! The command line and the configuration file. Parsing only: nothing here touches the system, but that
//! the file is read.
//!
//! * `args`: the options
//! * `values`: values of options, from text
//! * `file`: the configuration file, as options and their values
//! * `merge`: both together

pub mod args;
mod file;
mod merge;
mod values;

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use vhost_user_zram::internals::{Reread, Settings};

use self::merge::Refusal;

/// Exit code for an invalid command line or configuration file, as with most programs.
const USAGE: u8 = 2;

/// What the user asked for.
pub struct Invocation {
    /// The settings of the daemon.
    pub settings: Settings,
    /// Level of the log.
    pub log_level: log::LevelFilter,
    /// Reads the configuration file again, if there is one.
    pub reread: Option<Reread>,
}

/// Reads the command line and the configuration file that it names. Reports a mistake in one line, and
/// returns the exit code; also if no daemon is to run, as with `--help` and `--check-config`.
pub fn parse() -> Result<Invocation, ExitCode> {
    let words: Vec<OsString> = std::env::args_os().collect();
    let told = merge::read(&words).map_err(answer)?;
    if told.args.check_config() {
        return Err(told.summary().map_or_else(answer, print));
    }
    let args = told.args.clone();
    let reread: Option<Reread> = if args.has_config() {
        Some(Box::new(move || told.again(&words).map_err(|refusal| refusal.to_string())))
    } else {
        None
    };
    Ok(Invocation { log_level: args.log_level(), settings: args.settings(), reread })
}

/// Prints help, or a mistake.
fn answer(refusal: Refusal) -> ExitCode {
    if let Refusal::Help(text) = refusal {
        return print(text);
    }
    let _ = writeln!(std::io::stderr(), "error: {refusal}");
    ExitCode::from(USAGE)
}

/// Reports in one line why the daemon failed.
pub fn fail(error: &anyhow::Error) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "error: {error:#}");
    ExitCode::FAILURE
}

/// Prints `text` to stdout, and returns the exit code.
pub fn print(text: impl std::fmt::Display) -> ExitCode {
    let text = text.to_string();
    match writeln!(std::io::stdout(), "{}", text.trim_end()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
