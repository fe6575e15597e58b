//! `zram-load`: drives a vhost-user-blk socket, or a block device with the same operations and data, and
//! says how fast that was and what it cost.
//!
//! * [`args`]: command line; [`sizes`]: numbers on it
//! * [`corpus`]: the data; [`plan`]: the operations
//! * [`target`]: what can be driven: [`vhost`], [`uring`]; [`null`]: a back end that does nothing
//! * [`run`] and [`worker`]: a run, and one of its threads
//! * [`cpu`], [`histogram`], [`report`]: what is measured

mod args;
mod corpus;
mod cpu;
mod histogram;
mod null;
mod plan;
mod report;
mod run;
mod sizes;
mod target;
mod uring;
mod vhost;
mod worker;

use std::{
    env, fs,
    io::{self, Write},
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;

use crate::{
    args::{Args, RunArgs},
    cpu::Server,
    report::Row,
    run::Job,
    target::Wait,
};

fn main() -> ExitCode {
    match act(Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("zram-load: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn act(args: Args) -> Result<bool> {
    match args.command {
        Some(args::Command::Null { socket_path, queues, size }) => {
            null::serve(&socket_path, queues, size).context("null back end")?;
            Ok(true)
        }
        Some(args::Command::Corpus { corpus, corpus_size, seed, output }) => {
            let data = corpus::make(corpus, whole_pages(corpus_size), seed)?;
            fs::write(&output, data).with_context(|| output.display().to_string())?;
            Ok(true)
        }
        Some(args::Command::Discard { vhost }) => {
            vhost::discard(&vhost).context("discard")?;
            Ok(true)
        }
        None => measure(&args.run),
    }
}

fn whole_pages(bytes: u64) -> usize {
    (bytes as usize).next_multiple_of(corpus::PAGE)
}

/// Runs, prints rows, and tells whether all operations succeeded.
fn measure(args: &RunArgs) -> Result<bool> {
    ensure!(args.bs > 0 && args.bs.is_multiple_of(512), "--bs must be a multiple of 512");
    ensure!(args.segment > 0, "--segment must not be 0");
    let large = args.bs.is_multiple_of(4096);
    ensure!(
        large || (args.bs < 4096 && 4096 % args.bs == 0),
        "--bs must divide or be divided by 4096"
    );
    let job = Job {
        pattern: args.op,
        read_percent: args.read_percent,
        block: u32::try_from(args.bs).context("--bs")?,
        depth: args.depth,
        beside: args.beside_writes,
        queues: usize::from(args.queues),
        segment: u32::try_from(args.segment).context("--segment")?,
        no_inflight: args.no_inflight,
        wait: args.wait,
        runtime: args.runtime,
        warmup: args.warmup,
        ops: args.ops,
        fill: args.fill || args.fill_only,
        measure: !args.fill_only,
        verify: args.verify,
        seed: args.seed,
        span: args.span,
        skip: args.skip,
    };
    let (data, corpus_name) = match &args.corpus_file {
        Some(path) => {
            let data = fs::read(path).with_context(|| path.display().to_string())?;
            let name = path.file_name().map(|n| n.to_string_lossy().into_owned());
            (data, name.unwrap_or_default())
        }
        None => {
            let data = corpus::make(args.corpus, whole_pages(args.corpus_size), args.seed)?;
            (data, format!("{:?}", args.corpus).to_lowercase())
        }
    };
    ensure!(data.len().is_multiple_of(corpus::PAGE), "the corpus must be whole pages");
    let mut printer = Printer { args, corpus: corpus_name, header: false, good: true };
    if let Some(path) = &args.vhost {
        let server = match &args.server_pid[..] {
            [] => Server::Unknown,
            pids => Server::Processes(pids.to_vec()),
        };
        let target = vhost::open(path, &job.need(data.len()))?;
        printer.print("vhost", run::run(target, &job, &data, &server)?)?;
    } else if let Some(path) = &args.block {
        let target = uring::open(path, &job.need(data.len()))?;
        printer.print("block", run::run(target, &job, &data, &Server::Kernel)?)?;
    } else if !args.null {
        bail!("one of --vhost, --block and --null is needed");
    }
    if args.null || args.ceiling {
        printer.print("null", ceiling(&job, args, &data)?)?;
    }
    Ok(printer.good)
}

struct Printer<'a> {
    args: &'a RunArgs,
    corpus: String,
    header: bool,
    good: bool,
}

impl Printer<'_> {
    fn print(&mut self, target: &'static str, rows: Vec<Row>) -> io::Result<()> {
        let wait = match self.args.wait {
            Wait::Irq => "irq",
            Wait::Poll => "poll",
        };
        let mut out = io::stdout().lock();
        for row in rows {
            let (label, corpus) = (self.args.label.clone(), self.corpus.clone());
            let row = Row { label, target, corpus, wait, ..row };
            self.good &= row.tally.errors == 0 && row.tally.mismatches == 0;
            if self.args.json {
                writeln!(out, "{}", row.json())?;
            } else if self.args.csv {
                if !self.header && !self.args.no_header {
                    writeln!(out, "{}", Row::csv_header())?;
                }
                self.header = true;
                writeln!(out, "{}", row.csv())?;
            } else {
                write!(out, "{}", row.human())?;
            }
        }
        Ok(())
    }
}

/// The null back end as a child, with its socket in a directory of its own.
struct NullServer {
    child: Child,
    dir: PathBuf,
}

impl NullServer {
    fn start(queues: usize, size: u64) -> Result<Self> {
        let dir = env::temp_dir().join(format!("zram-load.{}", std::process::id()));
        fs::create_dir(&dir).with_context(|| dir.display().to_string())?;
        let child = Command::new(env::current_exe()?)
            .arg("null")
            .arg("--socket-path")
            .arg(dir.join("socket"))
            .args(["--queues", &queues.to_string(), "--size", &size.to_string()])
            .stdin(Stdio::null())
            .spawn()
            .context("null back end")?;
        Ok(Self { child, dir })
    }

    fn socket(&self) -> PathBuf {
        Path::new(&self.dir).join("socket")
    }
}

impl Drop for NullServer {
    fn drop(&mut self) {
        // Best effort on the way out: a child that is gone already is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// The same run against a back end that does nothing. What it reads is not what was written, so nothing
/// is compared, and there is nothing to fill.
fn ceiling(job: &Job, args: &RunArgs, data: &[u8]) -> Result<Vec<Row>> {
    let job = Job { verify: false, fill: false, measure: true, ..job.clone() };
    let null = NullServer::start(job.queues, args.span.unwrap_or(1 << 30))?;
    let target = vhost::open(&null.socket(), &job.need(data.len()))?;
    Ok(run::run(target, &job, data, &Server::Processes(vec![null.child.id()]))?)
}
