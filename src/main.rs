//! The `vhost-user-zram` daemon: arguments in, exit code out.

mod cli;

use std::io::Write;
use std::process::ExitCode;

use anyhow::Error;
use env_logger::Target;
use log::LevelFilter;
use vhost_user_zram::internals::{Console, current_disk, mark_start, run};

/// Required by the conventions of vhost-user back ends (QEMU, docs/interop/vhost-user.json).
const CAPABILITIES: &str = r#"{"type":"block","features":["read-only"]}"#;

fn main() -> ExitCode {
    mark_start();
    // All other arguments are ignored then, valid or not.
    if std::env::args_os().skip(1).any(|arg| arg == "--print-capabilities") {
        return cli::print(CAPABILITIES);
    }
    let invocation = match cli::parse() {
        Ok(invocation) => invocation,
        Err(code) => return code,
    };
    let console = match Console::start() {
        Ok(console) => console,
        Err(error) => {
            return cli::fail(
                &Error::new(error)
                    .context("cannot start the threads that write to stdout and stderr"),
            );
        }
    };
    env_logger::Builder::new()
        // The level can change later, and this one cannot.
        .filter_level(LevelFilter::max())
        .format(|line, record| {
            let disk = current_disk().map_or_else(String::new, |disk| format!(" {disk}"));
            writeln!(line, "[{} {:<5}{disk}] {}", line.timestamp(), record.level(), record.args())
        })
        .target(Target::Pipe(Box::new(console.log())))
        .init();
    log::set_max_level(invocation.log_level);
    Console::log_panics();
    match run(&invocation.settings, &console, invocation.reread) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            console.complain(format_args!("error: {:#}", Error::from(error)));
            ExitCode::FAILURE
        }
    }
}
