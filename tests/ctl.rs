//! The tool on real daemons: what it lists, changes and finds, and what it says of those that do not answer.

mod common;

use std::{
    fs,
    io::{Read, Write},
    os::unix::net::UnixListener,
    path::Path,
    process::{Child, ChildStdin, Command, Output, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use common::{
    daemon::{Daemon, Lines, TempDir, output},
    disk::{expect_pattern, expect_zeroes, write_pattern},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use vhost_user_zram_frontend::Random;

/// The tool's executable.
const TOOL: &str = env!("CARGO_BIN_EXE_vhost-user-zramctl");

/// A run directory with daemons in it.
struct Fleet {
    dir: TempDir,
}

impl Fleet {
    fn new() -> Self {
        Self { dir: TempDir::new() }
    }

    /// Starts a daemon whose API is in the run directory.
    fn start(&self, name: &str, more: &[&str]) -> Daemon {
        let dir = self.dir.join(name);
        fs::create_dir_all(&dir).expect("a directory");
        let api = dir.join("api.sock");
        let base = ["--name", name, "--api-socket", text(&api)];
        Daemon::start("64M", &[&base, more].concat())
    }

    /// A socket that its daemon left behind.
    fn leave_socket(&self, name: &str) {
        let dir = self.dir.join(name);
        fs::create_dir_all(&dir).expect("a directory");
        drop(UnixListener::bind(dir.join("api.sock")).expect("a socket"));
    }

    /// Runs the tool to its end.
    fn run(&self, args: &[&str]) -> Output {
        let mut command = Command::new(TOOL);
        output(command.arg("--run-dir").arg(self.dir.path()).args(args))
    }

    /// Runs the tool, which has to succeed; gives what it prints.
    fn says(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).expect("text")
    }

    /// Runs the tool, which has to fail; gives its exit status and its one line.
    fn fails(&self, args: &[&str]) -> (i32, String) {
        let output = self.run(args);
        let stderr = String::from_utf8_lossy(&output.stderr).trim_end().to_owned();
        assert_eq!(stderr.lines().count(), 1, "{args:?}: {output:?}");
        (output.status.code().expect("a status"), stderr)
    }

    fn disks(&self) -> Vec<Value> {
        let list: Value =
            serde_json::from_str(&self.says(&["list", "-J", "--output-all"])).expect("JSON");
        list["disks"].as_array().expect("disks").clone()
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path of plain letters")
}

#[test]
fn all_daemons_are_listed_with_those_that_do_not_answer() {
    let fleet = Fleet::new();
    let (vm2, _vm10) =
        (fleet.start("vm2", &[]), fleet.start("vm10", &["--algorithm", "zstd(level=1)"]));
    fleet.leave_socket("vm3");
    // Neither a directory without a socket nor a file is a daemon.
    fs::create_dir(fleet.dir.join("other")).unwrap();
    fs::write(fleet.dir.join("file"), "").unwrap();
    let mut client = vm2.client();
    write_pattern(client.blk(), 0, 800, 1);
    let disks = fleet.disks();
    let field = |at: usize, name: &str| &disks[at][name];
    let names: Vec<&Value> = disks.iter().map(|disk| &disk["name"]).collect();
    assert_eq!(names, ["vm2", "vm3", "vm10"]);
    assert_eq!((field(0, "state"), field(0, "disksize")), (&"serving".into(), &(64 << 20).into()));
    assert_eq!(field(0, "data"), &Value::from(100 * 4096));
    assert_eq!(field(0, "mountpoint"), text(&vm2.socket()));
    assert_eq!(field(1, "state"), "stale socket");
    assert!(field(1, "error").as_str().unwrap().contains("stale"), "{disks:?}");
    assert_eq!(
        (field(2, "state"), field(2, "algorithm")),
        (&"ready".into(), &"zstd(level=1)".into())
    );
    assert!(field(2, "mountpoint").is_null());
    // Without a command it lists, too.
    let table = fleet.says(&[]);
    assert_eq!(table.lines().count(), 4, "{table}");
    assert!(table.starts_with("NAME ALGORITHM"), "{table}");
    let raw = fleet.says(&["list", "--raw", "-n", "-b", "-o", "NAME,DATA"]);
    assert_eq!(raw, format!("vm2 {}\nvm3 -\nvm10 0\n", 100 * 4096));
    let (code, line) = fleet.fails(&["list", "-o", "NAME,COLOUR"]);
    assert_eq!(code, 2);
    assert!(line.contains("COLOUR") && line.contains("DISKSIZE"), "{line}");
}

#[test]
fn times_of_requests_and_threads_that_compress_are_known() {
    let fleet = Fleet::new();
    let vm1 = fleet.start("vm1", &["--engine", "offload", "--engine-workers", "3"]);
    let _vm2 = fleet.start("vm2", &["--engine", "inline"]);
    write_pattern(vm1.client().blk(), 0, 8, 1);
    let shown: Value =
        serde_json::from_str(&fleet.says(&["show", "-J", "-d", "vm1"])).expect("JSON");
    assert_eq!(shown["latency"]["write"]["count"], 1);
    assert_eq!(shown["latency"]["read"]["count"], 0);
    let rows = fleet.says(&["list", "--raw", "-n", "-o", "NAME,STREAMS"]);
    assert_eq!(rows, "vm1 3\nvm2 0\n");
}

#[test]
fn a_run_directory_without_daemons_is_an_empty_list() {
    let fleet = Fleet::new();
    assert_eq!(fleet.says(&["list", "-n"]), "");
    let (code, line) = fleet.fails(&["show"]);
    assert_eq!(code, 1);
    assert!(line.contains("--run-dir"), "{line}");
}

#[test]
fn one_daemon_is_found_by_name_by_socket_or_by_being_alone() {
    let fleet = Fleet::new();
    let vm1 = fleet.start("vm1", &[]);
    let shown = fleet.says(&["show"]);
    assert!(shown.starts_with("vm1\n  size                   64M (67108864)\n"), "{shown}");
    let _vm2 = fleet.start("vm2", &[]);
    let (_, line) = fleet.fails(&["show"]);
    assert!(line.contains("vm1, vm2") && line.contains("--disk"), "{line}");
    let shown: Value =
        serde_json::from_str(&fleet.says(&["show", "-J", "-d", "vm2"])).expect("JSON");
    assert_eq!(shown["name"], "vm2");
    let api = fleet.dir.join("vm1/api.sock");
    let shown = fleet.says(&["show", "--api", text(&api)]);
    assert!(shown.contains(&format!("process {}", vm1.pid())), "{shown}");
    let (_, line) = fleet.fails(&["show", "--disk", "vm3"]);
    assert!(line.contains("no daemon vm3") && line.contains("vm1, vm2"), "{line}");
}

#[test]
fn a_disk_is_reset_only_without_a_guest() {
    let fleet = Fleet::new();
    let daemon = fleet.start("vm1", &[]);
    let mut client = daemon.client();
    write_pattern(client.blk(), 0, 80, 1);
    let (code, line) = fleet.fails(&["reset"]);
    assert_eq!(code, 1);
    assert!(line.contains("EBUSY"), "{line}");
    expect_pattern(client.blk(), 0, 80, 1);
    drop(client);
    common::wait_until("the guest is gone", || fleet.disks()[0]["state"] == "ready");
    assert_eq!(fleet.says(&["reset"]), "vm1: blank\n");
    expect_zeroes(daemon.client().blk(), 0, 80);
}

#[test]
fn attributes_are_read_and_written_as_the_kernels() {
    let fleet = Fleet::new();
    let daemon = fleet.start("vm1", &["--algorithm", "zstd(level=1)"]);
    write_pattern(daemon.client().blk(), 0, 80, 1);
    let stat = fleet.says(&["get", "mm_stat"]);
    let words: Vec<&str> = stat.split_whitespace().collect();
    assert_eq!((words.len(), words[0], words[3]), (9, "40960", "0"), "{stat}");
    assert!(fleet.says(&["get", "comp_algorithm"]).contains("[zstd]"));
    assert_eq!(fleet.says(&["set", "mem_limit", "8M"]), "");
    let stat = fleet.says(&["get", "mm_stat"]);
    assert_eq!(stat.split_whitespace().nth(3), Some("8388608"), "{stat}");
    let all = fleet.says(&["get"]);
    assert!(all.lines().any(|line| line.starts_with("mem_limit ")), "{all}");
    let (code, line) = fleet.fails(&["set", "mem_limit", "much"]);
    assert!(code == 1 && line.contains("EINVAL"), "{line}");
    let (_, line) = fleet.fails(&["get", "../disk"]);
    assert!(line.contains("ENOENT"), "{line}");
}

#[test]
fn pages_are_recompressed_as_the_kernels_and_what_is_gained_is_said() {
    let fleet = Fleet::new();
    let daemon = fleet.start("vm1", &[]);
    let mut client = daemon.client();
    let mut letters = vec![0; 8 * 4096];
    Random::new(1).fill(&mut letters);
    letters.iter_mut().for_each(|byte| *byte = b'a' + (*byte & 7));
    client.blk().write(0, &letters).expect("write");
    let (code, line) = fleet.fails(&["set", "recompress", "type=idle"]);
    assert!(code == 1 && line.contains("EINVAL"), "{line}");
    assert_eq!(fleet.says(&["set", "recomp_algorithm", "algo=zstd priority=1"]), "");
    assert!(fleet.says(&["get", "recomp_algorithm"]).starts_with("#1: "));
    assert_eq!(fleet.says(&["set", "idle", "all"]), "");
    client.blk().read_vec(0, 4096).expect("read");
    let said = fleet.says(&["set", "recompress", "type=idle"]);
    assert!(
        said.starts_with("vm1: 7 of 7 page(s) recompressed, ") && said.ends_with(" s\n"),
        "{said}"
    );
    let jobs = fleet.says(&["jobs"]);
    assert!(jobs.contains(" recompress done     100 %"), "{jobs}");
    let shown = fleet.says(&["show"]);
    assert!(shown.contains("  recompressed           7 of 7 tried, "), "{shown}");
    let said = fleet.says(&["set", "compact", "1"]);
    assert!(said.starts_with("vm1: ") && said.contains("object(s) moved"), "{said}");
    assert_eq!(client.blk().read_vec(0, letters.len()).expect("read"), letters);
}

#[test]
fn a_bar_shows_how_far_a_job_is_on_a_terminal() {
    let fleet = Fleet::new();
    let daemon = fleet.start("vm1", &[]);
    write_pattern(daemon.client().blk(), 0, 800, 1);
    fleet.says(&["set", "recomp_algorithm", "algo=zstd"]);
    let dir = fleet.dir.path().display();
    for (line, bar) in [("set recompress type=huge", "recompress ["), ("compact", "compact [")] {
        let line = format!("stty rows 24 cols 110; exec {TOOL} --run-dir {dir} {line}");
        let mut command = Command::new("script");
        command.args(["-qec", &line, "/dev/null"]).env("TERM", "xterm").stdin(Stdio::null());
        let screen = output(&mut command).stdout;
        let screen = String::from_utf8_lossy(&screen);
        assert!(screen.contains(&format!("vm1: {bar}")) && screen.contains(" %"), "{screen}");
    }
}

#[test]
fn metrics_of_all_daemons_are_one_page() {
    let fleet = Fleet::new();
    let _daemons = ["vm1", "vm2"].map(|name| fleet.start(name, &[]));
    let page = fleet.says(&["metrics"]);
    let of =
        |name: &str| -> Vec<&str> { page.lines().filter(|line| line.starts_with(name)).collect() };
    assert_eq!(
        of("# TYPE vhost_user_zram_size_bytes "),
        ["# TYPE vhost_user_zram_size_bytes gauge"]
    );
    let sizes = of("vhost_user_zram_size_bytes{");
    assert_eq!(sizes.len(), 2, "{page}");
    assert!(sizes[0].contains("disk=\"vm1\"") && sizes[1].contains("disk=\"vm2\""), "{sizes:?}");
    assert_eq!(
        of("vhost_user_zram_answering_daemons{disk=\"vm1\"}"),
        ["vhost_user_zram_answering_daemons{disk=\"vm1\"} 1"]
    );
    // One that does not answer is complained of, and the rest is there.
    fleet.leave_socket("vm3");
    let output = fleet.run(&["metrics"]);
    assert_eq!(output.status.code(), Some(1));
    let page = String::from_utf8(output.stdout).unwrap();
    assert!(page.contains("answering_daemons{disk=\"vm3\"} 0"), "{page}");
    assert_eq!(page.matches("vhost_user_zram_size_bytes{").count(), 2);
    // Two sockets of one name would be the same series twice.
    let api = fleet.dir.join("vm1/api.sock");
    let (code, line) = fleet.fails(&["metrics", "--api", text(&api), "--api", text(&api)]);
    assert!(code == 1 && line.contains("same"), "{line}");
}

#[test]
fn a_compaction_is_waited_for() {
    let fleet = Fleet::new();
    let daemon = fleet.start("vm1", &[]);
    let mut client = daemon.client();
    write_pattern(client.blk(), 0, 8000, 1);
    for sector in (0..8000).step_by(16) {
        client.blk().discard(sector, 8).expect("discard");
    }
    let said = fleet.says(&["compact"]);
    assert!(said.starts_with("vm1: ") && said.contains("object(s) moved"), "{said}");
    let jobs = || -> Value { serde_json::from_str(&fleet.says(&["jobs", "-J"])).expect("JSON") };
    assert_eq!(jobs()[0]["state"], "done");
    let said = fleet.says(&["compact", "--no-wait"]);
    assert!(said.contains("is to begin"), "{said}");
    assert!(jobs().as_array().is_some_and(|jobs| jobs.len() == 2), "{}", jobs());
    assert!(fleet.says(&["jobs"]).contains("compact"));
    let (_, line) = fleet.fails(&["jobs", "--cancel", "999999"]);
    assert!(line.contains("ENOENT"), "{line}");
    expect_pattern(client.blk(), 8, 8, 1);
}

#[test]
fn top_prints_a_frame_for_scripts_and_documents() {
    let fleet = Fleet::new();
    let _vm1 = fleet.start("vm1", &[]);
    fleet.leave_socket("gone");
    let frame = fleet.says(&["top", "--once", "-i", "0.1", "--width", "100", "--height", "24"]);
    assert_eq!(frame.lines().count(), 24, "{frame}");
    assert!(frame.contains("2 disks, 0 serving, 1 do not answer"), "{frame}");
    assert!(
        frame.lines().any(|line| line.starts_with("vm1 ") && line.contains("ready")),
        "{frame}"
    );
    let picture = fleet.says(&["top", "--once", "-i", "0.1", "--svg"]);
    assert!(picture.starts_with("<svg ") && picture.contains("vm1"), "{picture}");
    // A terminal is needed for more.
    let (_, line) = fleet.fails(&["top"]);
    assert!(line.contains("--once"), "{line}");
}

/// A terminal with `top` on it, by script(1).
struct Terminal {
    script: Child,
    stdin: ChildStdin,
    lines: Lines,
    pid: i32,
}

impl Terminal {
    fn start(fleet: &Fleet) -> Self {
        let dir = fleet.dir.path().display();
        let line =
            format!("stty rows 24 cols 110; echo pid=$$; exec {TOOL} --run-dir {dir} top -i 0.1");
        let mut command = Command::new("script");
        command.args(["-qec", &line, "/dev/null"]).env("TERM", "xterm");
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut script = command.spawn().expect("script(1)");
        let stdin = script.stdin.take().expect("stdin");
        let (lines, _) = Lines::follow(Carriages(script.stdout.take().expect("stdout")), None);
        let pid = lines.wait_for("pid=", 0, common::LIMIT).expect("a number");
        let pid = pid.trim_start_matches("pid=").trim().parse().expect("a number");
        lines.wait_for_text("vm1", common::LIMIT).expect("a frame");
        Self { script, stdin, lines, pid }
    }

    /// Its exit status, after the terminal has its screen back.
    fn end(mut self) -> Option<i32> {
        self.lines.wait_for_text("[?1049l", common::LIMIT).expect("the screen is given back");
        let status = self.script.wait().expect("its end");
        drop(self.stdin);
        status.code()
    }
}

/// Each escape sequence begins a line, so that what is on a screen comes without a newline.
struct Carriages<R>(R);

impl<R: Read> Read for Carriages<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.0.read(buffer)?;
        buffer[..count].iter_mut().filter(|byte| **byte == 0x1b).for_each(|byte| *byte = b'\n');
        Ok(count)
    }
}

#[test]
fn top_gives_the_terminal_back() {
    let fleet = Fleet::new();
    let _vm1 = fleet.start("vm1", &[]);
    let mut terminal = Terminal::start(&fleet);
    terminal.stdin.write_all(b"q").expect("a key");
    assert_eq!(terminal.end(), Some(0));
    let terminal = Terminal::start(&fleet);
    kill(Pid::from_raw(terminal.pid), Signal::SIGTERM).expect("a signal");
    assert_eq!(terminal.end(), Some(128 + Signal::SIGTERM as i32));
}

/// The picture in the documents. `VUZ_UPDATE=1` takes it anew.
#[test]
fn the_picture_of_top_has_its_columns() {
    let update = std::env::var_os("VUZ_UPDATE").is_some();
    let fleet = Fleet::new();
    let daemons = [
        fleet.start("build-7", &["--algorithm", "zstd(level=1)", "--mem-limit", "24M"]),
        fleet.start("ci-12", &[]),
        fleet.start("db-1", &["--algorithm", "zstd(level=3)", "--engine", "offload"]),
        fleet.start("web-2", &["--mem-limit", "16M"]),
    ];
    fleet.leave_socket("old-1");
    let ended = AtomicBool::new(false);
    let picture = thread::scope(|scope| {
        for (at, daemon) in daemons.iter().enumerate().skip(usize::from(!update)) {
            let ended = &ended;
            scope.spawn(move || {
                let mut client = daemon.client();
                let mut turn = 0;
                while !ended.load(Ordering::Relaxed) {
                    // Some that were never written, too.
                    let sector = turn % 2000 * 16;
                    match turn % (3 + at as u64) {
                        0 => write_pattern(client.blk(), sector, 8, turn),
                        _ => drop(client.blk().read_vec(sector, 4096).expect("read")),
                    }
                    turn += 1;
                    if turn % 100 == 0 {
                        thread::sleep(Duration::from_millis(5 * at as u64));
                    }
                }
            });
        }
        let looks = if update { "60" } else { "2" };
        let args = [
            "top", "--once", "--svg", "-i", "0.1", "--looks", looks, "--height", "22", "-s", "ops",
        ];
        let picture = fleet.says(&args);
        ended.store(true, Ordering::Relaxed);
        picture
    });
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/top.svg");
    if update {
        fs::write(&path, &picture).expect("write");
    }
    // Headings are the first texts on their background.
    let headings = |picture: &str| -> Vec<String> {
        let texts = picture.lines().filter(|line| line.contains("<text"));
        let texts = texts.filter_map(|line| line.split_once('>')?.1.strip_suffix("</text>"));
        let words = texts.flat_map(str::split_whitespace).map(str::to_owned);
        words.skip_while(|word| word != "NAME").take(11).collect()
    };
    let committed = fs::read_to_string(&path).expect("docs/top.svg");
    assert_eq!(
        headings(&picture),
        headings(&committed),
        "VUZ_UPDATE=1 cargo test --test ctl picture"
    );
    assert_eq!(headings(&picture).len(), 11);
}

#[test]
fn a_daemon_that_says_nothing_is_given_up() {
    let fleet = Fleet::new();
    let _vm1 = fleet.start("vm1", &[]);
    fs::create_dir(fleet.dir.join("mute")).unwrap();
    let listener = UnixListener::bind(fleet.dir.join("mute/api.sock")).unwrap();
    let rows = fleet.says(&["--timeout", "0.2", "list", "--raw", "-n", "-o", "NAME,STATE"]);
    assert_eq!(rows, "mute silent\nvm1 ready\n");
    // One that talks nonsense, and one whose answer has no end.
    let answer = |bytes: &'static [u8], times: usize| {
        let listener = listener.try_clone().unwrap();
        thread::spawn(move || {
            // Those that were not answered are in the queue still.
            while let Ok((mut stream, _)) = listener.accept() {
                let mut buffer = [0; 4096];
                if stream.read(&mut buffer).is_ok_and(|count| count > 0)
                    && stream.write_all(bytes).is_ok()
                {
                    for _ in 1..times {
                        if stream.write_all(bytes).is_err() {
                            return;
                        }
                    }
                }
            }
        });
    };
    answer(b"220 smtp\r\n", 1);
    let (code, line) = fleet.fails(&["show", "-d", "mute"]);
    assert_eq!(code, 1);
    assert!(line.contains("not HTTP"), "{line}");
}

#[test]
fn mistakes_are_one_line() {
    let fleet = Fleet::new();
    for args in [&["frob"][..], &["resize", "0"], &["list", "--raw", "-J"], &["--timeout", "x"]] {
        let (code, line) = fleet.fails(args);
        assert_eq!(code, 2, "{args:?}: {line}");
    }
    let help = fleet.says(&["--help"]);
    assert!(help.contains("doctor") && help.contains("--run-dir"), "{help}");
    assert!(fleet.says(&["--version"]).starts_with("vhost-user-zramctl "));
}

#[test]
fn without_systemd_a_disk_is_added_by_the_command_that_is_printed() {
    if Path::new("/run/systemd/system").exists() {
        eprintln!("systemd runs here: nothing is started by a test");
        return;
    }
    let fleet = Fleet::new();
    let said = fleet.says(&["add", "vm1", "--size", "16M", "--", "--algorithm", "zstd(level=2)"]);
    let line = said
        .trim_end()
        .replace("&& vhost-user-zram ", &format!("&& exec {} ", common::daemon::BINARY));
    let dir = TempDir::new();
    std::os::unix::fs::symlink(fleet.dir.join("vm1/socket"), dir.join("socket")).unwrap();
    let mut command = Command::new("sh");
    command.args(["-c", &line]);
    let daemon = Daemon::spawn(command, dir);
    let disks = fleet.disks();
    assert_eq!(
        (&disks[0]["algorithm"], &disks[0]["disksize"]),
        (&"zstd(level=2)".into(), &(16 << 20).into())
    );
    let guest = daemon.client();
    let (_, line) = fleet.fails(&["remove", "vm1"]);
    assert!(line.contains("a guest is connected"), "{line}");
    drop(guest);
    common::wait_until("the guest is gone", || fleet.disks()[0]["state"] == "ready");
    assert_eq!(fleet.says(&["remove", "vm1"]), format!("kill {}\n", daemon.pid()));
    daemon.end(Signal::SIGTERM);
}

#[test]
fn the_doctor_names_what_it_finds_on_real_daemons() {
    let fleet = Fleet::new();
    // Nothing else of this machine is to be seen.
    let root = TempDir::new();
    fs::create_dir(root.join("proc")).unwrap();
    let doctor =
        |more: &[&str]| fleet.run(&[&["doctor", "--root", text(&root.join(""))], more].concat());
    let vm1 = fleet.start("vm1", &["--mem-limit", "1M"]);
    let good = doctor(&[]);
    assert!(good.status.success(), "{good:?}");
    assert_eq!(
        String::from_utf8_lossy(&good.stdout),
        "1 disk(s), 0 virtual machine(s): nothing is wrong\n"
    );
    fleet.leave_socket("vm2");
    let found = doctor(&["-J"]);
    assert_eq!(found.status.code(), Some(1), "{found:?}");
    let report: Value = serde_json::from_slice(&found.stdout).expect("JSON");
    let findings = report["findings"].as_array().expect("findings");
    assert_eq!(findings.len(), 1, "{report}");
    assert_eq!(
        (&findings[0]["check"], &findings[0]["subject"]),
        (&"stale-socket".into(), &"vm2".into())
    );
    // Its disk is full.
    let mut client = vm1.client();
    let refused = (0..8000)
        .step_by(8)
        .any(|sector| client.blk().write(sector, &common::disk::pattern(sector, 8, 1)).is_err());
    assert!(refused);
    let text = String::from_utf8(doctor(&["-d", "vm1"]).stdout).unwrap();
    assert!(text.starts_with("FAULT vm1: ") && text.contains("[failed-writes]"), "{text}");
    assert!(text.contains("limit of 1M") && !text.contains("vm2"), "{text}");
    assert_eq!(doctor(&["-d", "vm9"]).status.code(), Some(1));
}
