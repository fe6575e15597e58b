//! The `vhost-user-zram` daemon: arguments in, exit code out.

mod cli;

use std::process::ExitCode;

use anyhow::Error;

/// What conventions of vhost-user back ends ask for (QEMU, docs/interop/vhost-user.json).
const CAPABILITIES: &str = r#"{"type":"block","features":["read-only"]}"#;

fn main() -> ExitCode {
    vhost_user_zram::clock::mark_start();
    // Whatever else is asked for is ignored then, also if it makes no sense.
    if std::env::args_os().skip(1).any(|arg| arg == "--print-capabilities") {
        return cli::print(CAPABILITIES);
    }
    let args = match cli::parse() {
        Ok(args) => args,
        Err(code) => return code,
    };
    env_logger::Builder::new().filter_level(args.log_level()).format_target(false).init();
    let settings = args.settings();
    match vhost_user_zram::daemon::run(&settings).map_err(Error::from) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => cli::fail(&error),
    }
}
