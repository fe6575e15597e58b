//! `vhost-user-zramctl`: sees and controls the daemons of a host by their APIs.
//!
//! * `cli`: the command line
//! * `client`, `http`: a daemon's API
//! * `fleet`: the daemons of a run directory
//! * `list`, `show`, `act`, `instance`, `metrics`, `top`, `doctor`: the commands
//! * `table`, `units`, `report`: text for people
//!
//! It is a client: of the library it uses the types of the API and nothing else.

mod act;
mod cli;
mod client;
mod doctor;
mod fleet;
mod http;
mod instance;
mod list;
mod metrics;
mod report;
#[cfg(test)]
mod samples;
mod show;
mod table;
mod top;
mod units;

use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;
use vhost_user_zram::internals::api::{Disk, Job};

use crate::cli::{Add, Cli, Command, Doctor, List, Top};
use crate::client::Client;
use crate::fleet::{Daemon, Search, each};
use crate::instance::{Host, InstanceError};
use crate::report::with_causes;

/// Something is wrong, or was found.
const FAILURE: u8 = 1;
/// A mistake in the command line.
const USAGE: u8 = 2;

/// What a command ends with: its exit status, or what is wrong.
type End = Result<u8, Box<dyn Error>>;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return ExitCode::from(usage(&error)),
    };
    match run(cli) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            complain(error.as_ref());
            ExitCode::from(FAILURE)
        }
    }
}

/// Says what is wrong with the command line in one line; help is printed whole.
fn usage(error: &clap::Error) -> u8 {
    let text = error.render().to_string();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            return print(&text).unwrap_or(FAILURE);
        }
        _ => {
            // The first paragraph is the mistake.
            let lines: Vec<_> = text.lines().take_while(|line| !line.is_empty()).collect();
            let line = lines.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ");
            let _ = writeln!(io::stderr(), "{line}");
        }
    }
    USAGE
}

fn complain(error: &dyn Error) {
    let _ = writeln!(io::stderr(), "error: {}", with_causes(error));
}

/// Prints what a command has to say.
fn print(text: &str) -> End {
    let mut stdout = io::stdout().lock();
    let printed = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
    match printed {
        // The reader has seen enough, as `head` has.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(0),
        printed => Ok(printed.map(|()| 0)?),
    }
}

fn run(cli: Cli) -> End {
    let Cli { run_dir, apis, disk, timeout, command } = cli;
    let search = Search { run_dir, apis, limit: timeout };
    let name = disk.as_deref();
    let one = || search.one(name);
    let client = || -> Result<Client, Box<dyn Error>> { Ok(one()?.client) };
    match command.unwrap_or(Command::List(List::default())) {
        Command::List(options) => list(&search, name, &options),
        Command::Show { json } => show(&client()?, json),
        Command::Get { attribute: Some(attribute) } => {
            act::get(&client()?, &attribute, &mut io::stdout().lock())?;
            Ok(0)
        }
        Command::Get { attribute: None } => print(&act::attributes(&client()?)?),
        Command::Set { attribute, value } => {
            let daemon = one()?;
            print(&act::set(&daemon.client, &daemon.name, &attribute, &value)?)
        }
        Command::Resize { size } => print(&act::resize(&client()?, size)?),
        Command::Reset => print(&act::reset(&client()?)?),
        Command::Compact { no_wait } => {
            let daemon = one()?;
            print(&act::compact(&daemon.client, &daemon.name, !no_wait)?)
        }
        Command::Jobs { cancel, json } => jobs(&client()?, cancel, json),
        Command::Add(options) => add(&search, &options),
        Command::Remove { name, force } => remove(&search, &name, force),
        Command::Top(options) => top(&search, &options),
        Command::Metrics => metrics(&search, name),
        Command::Doctor(options) => doctor(&search, name, &options),
    }
}

/// All daemons, or the one that is meant.
fn chosen(search: &Search, name: Option<&str>) -> Result<Vec<Daemon>, Box<dyn Error>> {
    Ok(match name {
        Some(_) => vec![search.one(name)?],
        None => search.all()?,
    })
}

fn list(search: &Search, name: Option<&str>, options: &List) -> End {
    let rows = list::ask(&chosen(search, name)?);
    match list::render(&rows, options) {
        Ok(text) => print(&text),
        Err(error) => {
            complain(&error);
            Ok(USAGE)
        }
    }
}

fn show(client: &Client, json: bool) -> End {
    if json {
        // As the daemon has it, with what this version does not know.
        let value: serde_json::Value = client.get("/v1/disk")?;
        return print(&(serde_json::to_string_pretty(&value)? + "\n"));
    }
    let disk: Disk = client.get("/v1/disk")?;
    print(&show::disk(&disk))
}

fn jobs(client: &Client, cancel: Option<u64>, json: bool) -> End {
    if let Some(id) = cancel {
        client.delete(&format!("/v1/jobs/{id}"))?;
        return Ok(0);
    }
    if json {
        let value: serde_json::Value = client.get("/v1/jobs")?;
        return print(&(serde_json::to_string_pretty(&value)? + "\n"));
    }
    let jobs: Vec<Job> = client.get("/v1/jobs")?;
    print(&show::jobs(&jobs))
}

/// This host, with systemd if it runs here.
fn host() -> Host<'static> {
    Host { root: "/".into(), systemctl: &instance::systemctl }
}

fn add(search: &Search, options: &Add) -> End {
    let host = host();
    if host.has_systemd() {
        host.add(options)?;
        return Ok(0);
    }
    let command = host.start_command(options, &search.run_dir)?;
    let _ = writeln!(io::stderr(), "systemd does not run here; this starts the daemon:");
    print(&(command + "\n"))
}

fn remove(search: &Search, name: &str, force: bool) -> End {
    let daemon = search.all()?.into_iter().find(|daemon| daemon.name == name);
    let disk = daemon.map(|daemon| daemon.client.get::<Disk>("/v1/disk"));
    match &disk {
        _ if force => {}
        Some(Ok(disk)) if disk.session.connected => {
            return Err(InstanceError::InUse(name.into()).into());
        }
        Some(Err(client::ClientError::Stale(_) | client::ClientError::Missing(_))) => {}
        Some(Err(_)) => return Err(InstanceError::Unknown(name.into()).into()),
        // Without a socket no daemon runs, or it was told not to have an API.
        Some(Ok(_)) | None => {}
    }
    let host = host();
    if host.has_systemd() {
        host.remove(name)?;
        return Ok(0);
    }
    let _ = writeln!(io::stderr(), "systemd does not run here; this ends the daemon:");
    match disk {
        Some(Ok(disk)) => print(&format!("kill {}\n", disk.daemon.pid)),
        _ => Err(fleet::FleetError::None(search.run_dir.clone()).into()),
    }
}

fn top(search: &Search, options: &Top) -> End {
    if options.once {
        return print(&top::once(search, options)?);
    }
    top::live(search, options)?;
    Ok(0)
}

/// All pages as one. A daemon that does not answer, or whose page cannot be added, is complained of, and the
/// rest is printed.
fn metrics(search: &Search, name: Option<&str>) -> End {
    let daemons = chosen(search, name)?;
    let pages = each(&daemons, |daemon| daemon.client.get_text("/metrics"));
    let mut all = metrics::Page::default();
    let mut status = 0;
    let mut answers = Vec::new();
    for (daemon, page) in daemons.iter().zip(pages) {
        let added = match page {
            Ok(page) => all.add(&page).map_err(Box::<dyn Error>::from),
            Err(error) => Err(error.into()),
        };
        answers.push((daemon.name.as_str(), added.is_ok()));
        if let Err(error) = added {
            let _ =
                writeln!(io::stderr(), "error: {}: {}", daemon.name, with_causes(error.as_ref()));
            status = FAILURE;
        }
    }
    all.add_answers(answers);
    print(&all.text())?;
    Ok(status)
}

fn doctor(search: &Search, name: Option<&str>, options: &Doctor) -> End {
    let report = doctor::examine(options, search, name)?;
    print(&if options.json { report.json() } else { report.text() })?;
    Ok(if report.is_good() { 0 } else { FAILURE })
}
