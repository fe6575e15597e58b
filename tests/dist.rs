//! The files of `dist/` say what the program does: man page and completions are those of its command
//! line, the units' command line starts a daemon that tells systemd so, systemd finds neither faults nor
//! much exposure in them, and the description for QEMU agrees with what the binary says of itself.

mod common;

// Definitions only: parsing itself has its tests in the binary.
#[allow(dead_code, reason = "only the definition is of use here")]
#[path = "../src/cli/mod.rs"]
mod cli;

use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use clap::CommandFactory;
use clap_complete::Shell;
use common::daemon::{BINARY, Daemon, TempDir, client_options, output};
use common::disk::{expect_pattern, write_pattern};
use common::manager::Manager;
use nix::sys::signal::Signal;
use serde_json::Value;
use vhost_user_zram_frontend::Client;

// The same for the tool's.
#[allow(dead_code, reason = "only the definition is of use here")]
#[path = "../src/ctl/cli.rs"]
mod tool;

/// Name of the program and of what is generated for it.
const NAME: &str = "vhost-user-zram";
/// Name of the tool.
const TOOL: &str = "vhost-user-zramctl";
/// The unit's file.
const UNIT: &str = "vhost-user-zram@.service";
/// The file of the unit that makes its socket.
const SOCKET_UNIT: &str = "vhost-user-zram@.socket";
/// The files of the unit that writes the figures of all disks, and of its timer.
const METRICS_UNIT: &str = "vhost-user-zram-metrics.service";
const METRICS_TIMER: &str = "vhost-user-zram-metrics.timer";
/// The instance of the unit that is started.
const INSTANCE: &str = "vm1";

fn dist(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("dist").join(name)
}

fn text(name: &str) -> String {
    fs::read_to_string(dist(name)).unwrap_or_else(|error| panic!("dist/{name}: {error}"))
}

/// Whether `dist/NAME` has these bytes; with `VUZ_UPDATE=1` it gets them.
fn is_generated(name: &str, bytes: &[u8]) -> bool {
    if std::env::var_os("VUZ_UPDATE").is_some() {
        fs::write(dist(name), bytes).expect("write");
    }
    fs::read(dist(name)).is_ok_and(|found| found == bytes)
}

/// Compares the completions of a program, or writes them; adds the names of those that differ to `old`.
fn complete(mut command: clap::Command, name: &str, old: &mut Vec<String>) {
    for (shell, file) in [
        (Shell::Bash, format!("{name}.bash")),
        (Shell::Zsh, format!("_{name}")),
        (Shell::Fish, format!("{name}.fish")),
    ] {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut command, name, &mut script);
        let name = format!("completions/{file}");
        if !is_generated(&name, &script) {
            old.push(name);
        }
    }
}

fn assert_none(old: &[String]) {
    assert!(
        old.is_empty(),
        "{old:?} in dist/ differ from the command line: VUZ_UPDATE=1 cargo test --test dist"
    );
}

#[test]
fn man_page_and_completions_are_those_of_the_command_line() {
    let command = cli::args::Args::command().name(NAME);
    let mut page = Vec::new();
    clap_mangen::Man::new(command.clone()).render(&mut page).expect("a man page");
    page.extend_from_slice(text("man-end.roff").as_bytes());
    let mut old = Vec::new();
    if !is_generated("vhost-user-zram.1", &page) {
        old.push("vhost-user-zram.1".to_owned());
    }
    complete(command, NAME, &mut old);
    assert_none(&old);
}

/// The tool's manual: one page with a section for each command.
fn tool_page() -> Vec<u8> {
    let command = tool::Cli::command().name(TOOL);
    let man = clap_mangen::Man::new(command.clone());
    let mut page = Vec::new();
    for render in [
        clap_mangen::Man::render_title,
        clap_mangen::Man::render_name_section,
        clap_mangen::Man::render_synopsis_section,
        clap_mangen::Man::render_description_section,
        clap_mangen::Man::render_options_section,
    ] {
        render(&man, &mut page).expect("a section");
    }
    page.extend_from_slice(b".SH COMMANDS\n");
    for command in command.get_subcommands() {
        let name = command.get_name().to_owned();
        let man = clap_mangen::Man::new(command.clone().bin_name(&name).disable_help_flag(true));
        let mut section = Vec::new();
        man.render_synopsis_section(&mut section).expect("a section");
        man.render_description_section(&mut section).expect("a section");
        if command.get_arguments().next().is_some() {
            man.render_options_section(&mut section).expect("a section");
        }
        let section = String::from_utf8(section).expect("text");
        // Its parts have no headings of their own.
        let lines = section.lines().map(|line| if line.starts_with(".SH ") { ".PP" } else { line });
        page.extend(format!(".SS {name}\n").bytes());
        lines.for_each(|line| page.extend(line.bytes().chain([b'\n'])));
    }
    page.extend_from_slice(text("ctl-man-end.roff").as_bytes());
    page
}

#[test]
fn the_tools_man_page_and_completions_are_those_of_its_command_line() {
    let mut old = Vec::new();
    if !is_generated("vhost-user-zramctl.1", &tool_page()) {
        old.push("vhost-user-zramctl.1".to_owned());
    }
    complete(tool::Cli::command().name(TOOL), TOOL, &mut old);
    assert_none(&old);
}

/// What the binary says of itself.
fn capabilities() -> Value {
    let output = output(Command::new(BINARY).arg("--print-capabilities"));
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

#[test]
fn the_description_for_qemu_agrees_with_the_binary() {
    let described: Value = serde_json::from_str(&text("50-vhost-user-zram.json")).expect("JSON");
    let described = described.as_object().expect("one object");
    let known = ["description", "type", "binary", "tags"];
    assert!(described.keys().all(|key| known.contains(&key.as_str())), "{described:?}");
    assert!(described["description"].as_str().is_some_and(|text| !text.is_empty()));
    // It is the program that the unit starts, and that is tested here.
    let binary = Path::new(described["binary"].as_str().expect("a path"));
    assert!(binary.is_absolute());
    assert_eq!(binary.file_name(), Path::new(BINARY).file_name());
    assert_eq!(binary, Path::new(&Unit::read(UNIT).words("ExecStart")[0]));

    let capable = capabilities();
    assert_eq!(described["type"], "block");
    assert_eq!(capable["type"], described["type"]);
    // Each feature promises an option of the same name.
    let features = capable["features"].as_array().expect("features");
    assert!(features.contains(&Value::from("read-only")), "{features:?}");
    let command = cli::args::Args::command();
    for feature in features {
        let option = feature.as_str().expect("a name");
        assert!(["read-only", "blk-file"].contains(&option), "QEMU knows no feature {option}");
        assert!(command.get_arguments().any(|arg| arg.get_long() == Some(option)), "no --{option}");
    }
}

/// The unit's settings, by their names.
struct Unit(HashMap<String, String>);

impl Unit {
    fn read(file: &str) -> Self {
        let text = text(file);
        let settings = text.lines().filter(|line| !line.starts_with(['#', '[']));
        let settings = settings.filter_map(|line| line.split_once('='));
        Self(settings.map(|(name, value)| (name.into(), value.into())).collect())
    }

    fn words(&self, name: &str) -> Vec<String> {
        self.0[name].split_whitespace().map(str::to_owned).collect()
    }

    /// The command line as systemd makes it (systemd.service(5), "Command lines"): specifiers are
    /// replaced first, `${NAME}` becomes a part of its word, and `$NAME` as many words as it has.
    fn command_line(&self, run: &Path, environment: &HashMap<&str, &str>) -> Vec<String> {
        let run = run.to_str().expect("a name in UTF-8");
        let mut line = Vec::new();
        for word in self.words("ExecStart") {
            let word = word.replace("%t", run).replace("%i", INSTANCE);
            if let Some(name) = word.strip_prefix('$').filter(|name| !name.starts_with('{')) {
                line.extend(environment[name].split_whitespace().map(str::to_owned));
                continue;
            }
            let replaced = environment
                .iter()
                .fold(word, |word, (name, value)| word.replace(&format!("${{{name}}}"), value));
            assert!(!replaced.contains(['%', '$']), "{replaced}: is not replaced");
            line.push(replaced);
        }
        line
    }
}

#[test]
fn the_units_command_line_starts_a_disk_that_outlives_its_daemon() {
    let unit = Unit::read(UNIT);
    assert_eq!(unit.0["Type"], "notify");
    let most = unit.0["FileDescriptorStoreMax"].parse().expect("a number");
    let manager = Manager::new(most);
    let environment = HashMap::from([("SIZE", "16M"), ("OPTIONS", "--algorithm zstd --serial u1")]);

    let start = |held: Vec<(String, OwnedFd)>| {
        let dir = TempDir::new();
        // What systemd makes before it starts the daemon (RuntimeDirectory=).
        let runtime = dir.join(&unit.0["RuntimeDirectory"].replace("%i", INSTANCE));
        fs::create_dir_all(&runtime).expect("the unit's directory");
        let line = unit.command_line(&dir.join(""), &environment);
        let at = line.iter().position(|word| word == "--socket-path").expect("a socket");
        let socket = Path::new(&line[at + 1]);
        assert_eq!(socket.parent(), Some(runtime.as_path()), "systemd makes no other directory");
        symlink(socket, dir.join("socket")).expect("a link");
        // As it is, but for the place of the program.
        Daemon::spawn(manager.launch(held, line[1..].iter().map(String::as_str)), dir)
    };
    let daemon = start(Vec::new());
    manager.wait_for("READY=1", 1);
    assert_eq!(daemon.origin(), "new");
    assert_eq!(manager.inner().held.len(), most);
    write_pattern(daemon.client().blk(), 0, 1000, 1);
    daemon.end(Signal::SIGKILL);

    let daemon = start(manager.held());
    manager.wait_for("READY=1", 2);
    assert_eq!(daemon.origin(), "opened");
    expect_pattern(daemon.client().blk(), 0, 1000, 1);
    daemon.end(Signal::SIGTERM);
    manager.wait_for("STOPPING=1", 1);
}

#[test]
fn the_socket_units_socket_is_taken_by_the_units_command_line() {
    let (unit, socket) = (Unit::read(UNIT), Unit::read(SOCKET_UNIT));
    // systemd removes the service's directory between two daemons, and the socket is not to go with it.
    let runtime = format!("%t/{}/", unit.0["RuntimeDirectory"]);
    assert!(!socket.0["ListenStream"].starts_with(&runtime), "{}", socket.0["ListenStream"]);
    let dir = TempDir::new();
    // What systemd makes before it starts the daemon (RuntimeDirectory=).
    let runtime = unit.0["RuntimeDirectory"].replace("%i", INSTANCE);
    fs::create_dir_all(dir.join(&runtime)).expect("the unit's directory");
    let path = dir.join("passed");
    let listener = UnixListener::bind(&path).expect("socket");
    let manager = Manager::new(3);
    let environment = HashMap::from([("SIZE", "16M"), ("OPTIONS", "")]);
    let line = unit.command_line(&dir.join(""), &environment);
    let passed = (socket.0["FileDescriptorName"].clone(), listener.into());
    let command = manager.launch(vec![passed], line[1..].iter().map(String::as_str));
    let daemon = Daemon::spawn(command, dir);
    let mut client = Client::connect(path, &client_options()).expect("client");
    write_pattern(client.blk(), 0, 8, 1);
    drop(client);
    daemon.end(Signal::SIGTERM);
}

/// Runs `systemd-analyze`; `None` where it is missing.
fn systemd_analyze(args: &[&str], files: &[PathBuf]) -> Option<Output> {
    match Command::new("systemd-analyze").args(args).args(files).output() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("systemd-analyze is not here: the units are not checked");
            None
        }
        output => Some(output.expect("systemd-analyze")),
    }
}

#[test]
fn systemd_finds_no_fault_in_the_units() {
    let dir = TempDir::new();
    let mut files = Vec::new();
    for file in [UNIT, SOCKET_UNIT, METRICS_UNIT, METRICS_TIMER] {
        let mut text = text(file);
        if file.ends_with(".service") {
            // It insists that the program is there.
            text = text.replace(&Unit::read(file).words("ExecStart")[0], BINARY);
        }
        files.push(dir.join(&file.replace('@', "@vm1")));
        fs::write(files.last().expect("a file"), text).expect("write");
    }
    let Some(output) = systemd_analyze(&["verify", "--man=no"], &files) else { return };
    let said = String::from_utf8_lossy(&output.stderr);
    let about_it = said.lines().filter(|line| line.contains(NAME));
    // systemd before 254 ignores it.
    let faults: Vec<_> =
        about_it.filter(|line| !line.contains("FileDescriptorStorePreserve")).collect();
    assert!(output.status.success() && faults.is_empty(), "{said}");
}

/// What systemd counts as exposed, from 0.0 (nothing) to 10.0, is at most 2.0.
#[test]
fn the_services_are_exposed_to_little() {
    for unit in [UNIT, METRICS_UNIT] {
        let args = ["security", "--offline=true", "--no-pager", "--threshold=20"];
        let Some(output) = systemd_analyze(&args, &[dist(unit)]) else { return };
        let stderr = String::from_utf8_lossy(&output.stderr);
        if stderr.contains("unrecognized option") {
            eprintln!("systemd-analyze is older than 250: the units' exposure is not checked");
            return;
        }
        let table = String::from_utf8_lossy(&output.stdout);
        let overall = table.lines().find(|line| line.contains("Overall exposure level"));
        assert!(overall.is_some(), "{table}{stderr}");
        assert!(output.status.success(), "{table}");
    }
}

/// Has the script of the metrics' unit write its page, of the daemons in `run`; gives the page's lines, if any.
fn page_of_figures(run: &Path, pages: &Path) -> Vec<String> {
    let tools = Path::new(BINARY).parent().expect("a directory").to_str().expect("UTF-8");
    let path = format!("{tools}:{}", std::env::var("PATH").expect("PATH"));
    let mut command = Command::new(dist("vhost-user-zram-metrics"));
    command.arg(pages).arg("--run-dir").arg(run).env("PATH", path);
    let output = output(&mut command);
    assert!(output.status.success(), "{output:?}");
    let names = fs::read_dir(pages).expect("pages").map(|file| file.expect("a file").file_name());
    assert!(names.into_iter().all(|name| name == "vhost-user-zram.prom"));
    let page = fs::read_to_string(pages.join("vhost-user-zram.prom"));
    page.unwrap_or_default().lines().map(str::to_owned).collect()
}

/// A daemon whose API is in a run directory.
fn in_run_directory(run: &TempDir, name: &str) -> Daemon {
    fs::create_dir(run.join(name)).expect("a directory");
    let api = run.join(&format!("{name}/api.sock"));
    Daemon::start("16M", &["--name", name, "--api-socket", api.to_str().expect("UTF-8")])
}

#[test]
fn figures_of_all_disks_are_one_file_for_node_exporter() {
    let (run, pages) = (TempDir::new(), TempDir::new());
    assert_eq!(page_of_figures(run.path(), pages.path()), Vec::<String>::new());
    let daemons = ["a", "b"].map(|name| in_run_directory(&run, name));
    // One that is gone, and left its socket.
    fs::create_dir(run.join("c")).expect("a directory");
    drop(UnixListener::bind(run.join("c/api.sock")).expect("a socket"));
    let page = page_of_figures(run.path(), pages.path());
    for line in ["size_bytes{disk=\"a\"} 16777216", "size_bytes{disk=\"b\"} 16777216"] {
        assert!(page.contains(&format!("vhost_user_zram_{line}")), "{line}: {page:?}");
    }
    for (disk, answers) in [("a", 1), ("b", 1), ("c", 0)] {
        let line = format!("vhost_user_zram_answering_daemons{{disk=\"{disk}\"}} {answers}");
        assert!(page.contains(&line), "{line}: {page:?}");
    }
    for daemon in daemons {
        daemon.end(Signal::SIGTERM);
    }
    fs::remove_file(run.join("c/api.sock")).expect("a socket");
    assert_eq!(page_of_figures(run.path(), pages.path()), Vec::<String>::new());
}

/// Each figure that the board for Grafana asks for is on the page of a daemon.
#[test]
fn the_board_for_grafana_asks_for_figures_that_there_are() {
    let (run, pages) = (TempDir::new(), TempDir::new());
    let daemon = in_run_directory(&run, "a");
    let page = page_of_figures(run.path(), pages.path());
    daemon.end(Signal::SIGTERM);
    let is_of_a_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let name_at = |text: &str| text.split(|c| !is_of_a_name(c)).next().unwrap_or("").to_owned();
    let figures: HashSet<String> = page.iter().map(|line| name_at(line)).collect();

    let board: Value = serde_json::from_str(&text("grafana/vhost-user-zram.json")).expect("JSON");
    let panels = board["panels"].as_array().expect("panels");
    let ids: HashSet<_> = panels.iter().map(|panel| panel["id"].as_u64()).collect();
    assert_eq!(ids.len(), panels.len(), "two panels with one id");
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    let mut asked = 0;
    for query in targets.map(|target| target["expr"].as_str().expect("a query")) {
        for (at, _) in query.match_indices("vhost_user_zram_") {
            let name = name_at(&query[at..]);
            assert!(figures.contains(&name), "{name}: no such figure in {figures:?}");
            let rest = &query[at + name.len()..];
            assert!(rest.starts_with(r#"{instance=~"$instance",disk=~"$disk"}"#), "{query}");
            asked += 1;
        }
    }
    assert!(asked > 30, "{asked} figures");
}

#[test]
fn the_packages_change_log_has_the_programs_version() {
    let log = text("deb/changelog");
    let head = log.lines().next().expect("a line");
    let version = concat!("vhost-user-zram (", env!("CARGO_PKG_VERSION"), "-");
    assert!(head.starts_with(version), "{head}");
}

/// What has the daemon read its configuration file again must not end a daemon that has none.
#[test]
fn the_units_reload_is_for_daemons_with_a_configuration_file() {
    let unit = Unit::read(UNIT);
    let script = unit.0["ExecReload"].strip_prefix("/bin/sh -c '").expect("a shell");
    let script = script.strip_suffix('\'').expect("one word");
    let reload = |daemon: &Daemon, options: &str| {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]).env("OPTIONS", options);
        output(command.env("MAINPID", daemon.pid().to_string()))
    };
    let mut daemon = Daemon::start("16M", &[]);
    let said = reload(&daemon, "--algorithm zstd");
    assert_eq!(said.status.code(), Some(1), "{said:?}");
    assert!(String::from_utf8_lossy(&said.stderr).contains("no --config in OPTIONS"), "{said:?}");
    // Signals are taken one after the other, so that one would have had its turn.
    daemon.stats();
    assert!(daemon.is_alive());

    let config = daemon.dir.join("disk.toml");
    fs::write(&config, "size = \"16M\"").expect("write");
    for options in
        [format!("--config {}", config.display()), format!("--config={}", config.display())]
    {
        let dir = TempDir::new();
        let mut command = Command::new(BINARY);
        command.arg("--socket-path").arg(dir.join("socket")).args(options.split(' '));
        let daemon = Daemon::spawn(command, dir);
        let said = reload(&daemon, &options);
        assert!(said.status.success(), "{said:?}");
        daemon.wait_for_log("the options were read again: ");
        daemon.end(Signal::SIGTERM);
    }
}
