//! Boots guests on the daemon and judges it from inside.
//!
//! * [`tests`]: the tests, each a function of a [`machine::Machine`]: a daemon and a guest of its own
//! * [`protocol`]: what a guest says; [`daemon`]: what the daemon's figures say; [`qmp`]: what QEMU says;
//!   [`inflight`]: what QEMU keeps while no daemon is there; [`api`]: what a daemon is told while it runs
//! * [`artifacts`], [`matrix`]: what is tested together; [`runner`]: in which order, and how it ended
//!
//! What runs inside the guest are shell scripts, `guest-main.sh` and beside it. Nothing is judged by how
//! long it took, nor by how often chance struck.

mod api;
mod artifacts;
mod conformance;
mod daemon;
mod guest;
mod inflight;
mod machine;
mod matrix;
mod process;
mod protocol;
mod qmp;
mod random;
mod runner;
mod tests;

/// What tests of processes share, in this crate and in the daemon's.
#[allow(dead_code, missing_docs, reason = "each crate uses its own part of it")]
#[path = "../../tests/common/process.rs"]
mod common;

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Mutex,
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use clap::Parser;

use crate::{
    artifacts::{Fuzz, Setup},
    common::TempDir,
    matrix::Choice,
    runner::{Job, Outcome, Total},
    tests::{CONFORMANCE_TESTS, FUZZ_TESTS, LIBVIRT_TESTS, TESTS, Test},
};

/// Boots guests on the daemon and judges it from inside.
///
/// Without options: lz4 and zstd, this machine's kernel package and QEMU; on Debian also a few tests with
/// the kernel of Debian 13's backports on Debian 13's QEMU. One line for each test, "ok", "FAILED" or
/// "skipped", and last "N passed, N failed, N skipped"; the exit status is that of the failures. Logs of
/// tests that failed stay in target/guest-tests/. Environment: VUZ_ACCEL=kvm or tcg; VUZ_TMPFS=DIR, where
/// states of disks lie (default: /dev/shm); VUZ_SEED=N, the moments at which daemons are killed (default:
/// others each time); MODULES=, the lib/modules/VERSION that goes with a kernel given as a path.
#[derive(Parser)]
#[command(name = "guest-tests/run")]
struct Cli {
    /// Also the newer kernel and the other QEMU of this machine's backports, every combination, 20
    /// restarts; on Debian also Debian 13's backports' QEMU
    #[arg(long)]
    full: bool,
    /// Only this algorithm, such as lz4 or 'zstd(level=3)'
    #[arg(long, value_name = "NAME")]
    algorithm: Vec<String>,
    /// Only this kernel: "default", a suite such as bookworm-backports, or the path of a vmlinuz
    #[arg(long, value_name = "SPEC")]
    kernel: Vec<String>,
    /// Only this QEMU: "default", a suite, or a path
    #[arg(long, value_name = "SPEC")]
    qemu: Vec<String>,
    /// Only tests whose name matches, such as 'swap*'
    #[arg(long, value_name = "PATTERN")]
    only: Vec<String>,
    /// Tests at the same time
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = at_least_one)]
    jobs: usize,
    /// Restarts of QEMU in the test "restarts" [default: 4, with --full 20]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=23))]
    rounds: Option<u64>,
    /// SIGKILLs of the daemon in the test "kills" [default: 6, with --full 30; with a QEMU before 9.2, which
    /// comes back after a second at best, 3 and 10]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=9999))]
    kills: Option<u64>,
    /// SIGTERMs of the daemon in the test "terms" [default: 4, with --full 20]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=9999))]
    terms: Option<u64>,
    /// The daemon [default: target/release/vhost-user-zram]
    #[arg(long, value_name = "PATH")]
    daemon: Option<PathBuf>,
    /// Where logs go [default: target/guest-tests]
    #[arg(long, value_name = "DIR")]
    logs: Option<PathBuf>,
    /// Logs of tests that passed stay, too
    #[arg(long)]
    keep_logs: bool,
    /// What the tests are
    #[arg(long)]
    list: bool,
    /// The tests of guests that libvirt runs; guest-tests/libvirt makes what they need
    #[arg(long)]
    libvirt: bool,
    /// The kernel's zram beside the daemon's attributes: on Linux 6.12 of Debian 12's backports, with --full
    /// also on the newest of Debian 13's backports
    #[arg(long, conflicts_with = "libvirt")]
    conformance: bool,
    /// The control API, tried by this schemathesis while a guest uses the disk; guest-tests/fuzz-api makes what
    /// that needs
    #[arg(long, value_name = "PROGRAM", conflicts_with_all = ["libvirt", "conformance"])]
    fuzz_api: Option<PathBuf>,
    /// How long the control API is tried
    #[arg(long, value_name = "N", default_value_t = 600, requires = "fuzz_api")]
    seconds: u64,
}

/// Suites with kernels whose zram the daemon is compared with.
const ZRAM_KERNELS: [&str; 2] = ["bookworm-backports", "trixie-backports"];

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("a number of 1 or more is needed".to_owned()),
        Ok(count) => Ok(count),
    }
}

/// Prints a line of the result.
pub fn say(line: &str) {
    // Without a reader the exit status is what is left.
    let _ = writeln!(std::io::stdout(), "{line}");
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if cli.list {
        for test in tests_of(&cli) {
            say(&format!("{:14} {}", test.name, test.about));
        }
        return ExitCode::SUCCESS;
    }
    match run(&cli) {
        Ok(Total { failed: 0, .. }) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("guest-tests: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn tests_of(cli: &Cli) -> &'static [Test] {
    match () {
        () if cli.libvirt => LIBVIRT_TESTS,
        () if cli.conformance => CONFORMANCE_TESTS,
        () if cli.fuzz_api.is_some() => FUZZ_TESTS,
        () => TESTS,
    }
}

fn run(cli: &Cli) -> Result<Total> {
    let started = Instant::now();
    let tests = matrix::chosen(tests_of(cli), &cli.only)?;
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("no parent directory")?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or(root.join("target"), PathBuf::from);
    let daemon = cli.daemon.clone().unwrap_or_else(|| target.join("release/vhost-user-zram"));
    let with_failpoints = target.join("debug/vhost-user-zram");
    ensure!(daemon.is_file(), "no daemon at {} (cargo build --release)", daemon.display());
    let logs = cli.logs.clone().unwrap_or_else(|| target.join("guest-tests"));
    let work = TempDir::new();
    let full_or = |full: u64, short: u64| if cli.full { full } else { short };
    let mut setup = Setup {
        daemon,
        with_failpoints: Some(with_failpoints).filter(|daemon| daemon.is_file()),
        scripts: root.join("qemu-scripts"),
        here: root.join("guest-tests"),
        work: work.path().to_owned(),
        tmpfs: std::env::var_os("VUZ_TMPFS").map_or_else(|| "/dev/shm".into(), PathBuf::from),
        corpus: work.join("corpus.tar"),
        accel: String::new(),
        seed: seed()?,
        rounds: cli.rounds.unwrap_or(full_or(20, 4)),
        kills: cli.kills,
        terms: cli.terms.unwrap_or(full_or(20, 4)),
        full: cli.full,
        libvirt: cli.libvirt.then(|| root.join("guest-tests/libvirt-guest")),
        fuzz: cli.fuzz_api.clone().map(|program| Fuzz { program, seconds: cli.seconds }),
        installing: Mutex::new(()),
    };
    let default = ["lz4".to_owned(), "zstd".to_owned()];
    // The script is written for lz4, and the API's description knows no algorithms.
    let once = cli.conformance || cli.fuzz_api.is_some();
    let default = if once { &default[..1] } else { &default[..] };
    let algorithms = if cli.algorithm.is_empty() { default } else { &cli.algorithm };
    let with_zram = ZRAM_KERNELS.map(str::to_owned);
    let kernels = match &cli.kernel {
        none if none.is_empty() && cli.conformance => &with_zram[..if cli.full { 2 } else { 1 }],
        chosen => chosen,
    };
    // The driver does not see which QEMU it is on.
    let any = ["default".to_owned()];
    let qemus = if once && cli.qemu.is_empty() { &any[..] } else { &cli.qemu };
    let choice = Choice { algorithms, kernels, qemus };
    let (combinations, left_out) = matrix::combinations(&setup, &choice)?;
    let first = combinations.first().context("nothing to test")?;
    setup.accel = setup.pick_accel(&first.kernel, &first.qemu)?;
    setup.make_common()?;
    let mut total = Total::default();
    for (what, why) in left_out {
        let outcome = Outcome::Skipped(why);
        total.add(&outcome);
        say(&runner::line(&outcome, &what, 0));
    }
    let mut made: Vec<&Path> = Vec::new();
    for combination in &combinations {
        let initrd = combination.kernel.initrd.as_path();
        if !made.contains(&initrd) {
            setup.make_initrd(&combination.kernel)?;
            made.push(initrd);
        }
    }
    let every = setup.full || !cli.only.is_empty();
    let jobs: Vec<_> = combinations
        .iter()
        .flat_map(|combination| {
            let runs =
                tests.iter().filter(|test| matrix::runs(test, combination, &algorithms[0], every));
            runs.map(|test| Job { test, combination: combination.clone() })
        })
        .collect();
    say(&format!(
        "{} tests, {} at once, under {}, VUZ_SEED={}",
        jobs.len(),
        cli.jobs,
        setup.accel,
        setup.seed
    ));
    let ran = runner::run(&setup, &jobs, cli.jobs, &logs, cli.keep_logs);
    total.passed += ran.passed;
    total.failed += ran.failed;
    total.skipped += ran.skipped;
    say(&format!(
        "{} boots in {} s, VUZ_SEED={}",
        ran.boots,
        started.elapsed().as_secs(),
        setup.seed
    ));
    say(&total.to_string());
    Ok(total)
}

/// The seed of all random moments; printed, so that they can be had again as far as the machine's timing
/// allows.
fn seed() -> Result<u64> {
    match std::env::var("VUZ_SEED") {
        Ok(text) => text.parse().with_context(|| format!("VUZ_SEED={text} is not a number")),
        Err(_) => {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
            Ok(u64::from(now.subsec_nanos()) % 1_000_000)
        }
    }
}
