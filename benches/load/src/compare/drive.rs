//! The run: sections, rounds, points, rivals.

use std::{
    collections::HashMap,
    fs::File,
    io::Write,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{SigSet, Signal};

use crate::{
    args::Args,
    plan::{Kind, Point, Rival, Section, Work, order},
    rows::{Memory, Rows},
    server::{Server, Setting, Target},
};

/// Seconds that servers have to themselves before their memory is read.
const REST: f64 = 2.0;
/// Seconds that one run of the generator takes beside what it measures: start, corpus, connection.
const BESIDE: f64 = 0.12;

/// Seconds that a run takes, roughly.
pub fn estimate(args: &Args, rivals: &[Rival], sections: &[Section], rounds: u32) -> f64 {
    let timed = (args.runtime + args.warmup).as_secs_f64();
    let gib = args.size as f64 / f64::from(1 << 30);
    let once = |rival: &Rival, point: &Point| match (point.work, &rival.kind) {
        (Work::Timed { .. }, _) => timed,
        (Work::Fill, Kind::Nbdkit) => 5.0 * gib,
        (Work::Fill, _) => 2.0 * gib,
        (Work::Discard { .. }, _) => 0.5 * gib,
    };
    let mut seconds = 0.0;
    for section in sections {
        seconds += REST;
        for rival in rivals {
            let points = section.points.iter().filter(|point| rival.takes_part(section, point));
            let round: f64 = points.map(|point| once(rival, point) + BESIDE).sum();
            seconds += f64::from(rounds) * round;
        }
    }
    seconds
}

/// Set when the user wants an end. Devices and servers are then removed on the way out, which a process
/// that dies by the signal would not do.
fn stop_by_signal() -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals.thread_block()?;
    let seen = Arc::clone(&stop);
    thread::spawn(move || {
        if signals.wait().is_ok() {
            seen.store(true, Ordering::Relaxed);
        }
    });
    Ok(stop)
}

struct Driver<'a> {
    args: &'a Args,
    setting: &'a Setting,
    raw: File,
    header: bool,
    memory: File,
    failed: usize,
    begun: Instant,
}

/// A section's servers, each with its rival.
type Servers<'a> = Vec<(&'a Rival, Server)>;

/// Measures everything into the files of `args.out`; returns how many measurements failed.
///
/// # Errors
///
/// When a server does not start, or a file cannot be written.
pub fn run(
    args: &Args,
    setting: &Setting,
    rivals: &[Rival],
    sections: &[Section],
    rounds: u32,
) -> Result<usize> {
    let stop = stop_by_signal()?;
    let file = |name: &str| {
        let path = args.out.join(name);
        File::create(&path).with_context(|| path.display().to_string())
    };
    let mut memory = file("memory.csv")?;
    writeln!(memory, "{}", Memory::HEADER)?;
    let (raw, begun) = (file("raw.csv")?, Instant::now());
    let mut driver = Driver { args, setting, raw, header: false, memory, failed: 0, begun };
    let mut corpora = HashMap::new();
    for section in sections {
        if !corpora.contains_key(section.corpus) {
            corpora.insert(section.corpus, driver.make_corpus(section.corpus)?);
        }
        let corpus = &corpora[section.corpus];
        let mut servers: Servers<'_> = Vec::new();
        for rival in rivals {
            if section.points.iter().any(|point| rival.takes_part(section, point)) {
                let server = Server::start(rival, section.queues, setting)
                    .with_context(|| rival.name.clone())?;
                servers.push((rival, server));
            }
        }
        // Figures of an empty disk, before anything has touched it.
        let mut idle = Vec::new();
        for (rival, server) in &servers {
            idle.push(server.memory(rival)?.processes);
        }
        for round in 0..rounds {
            for point in &section.points {
                for at in order(servers.len(), round) {
                    let (rival, server) = &servers[at];
                    if rival.takes_part(section, point) {
                        driver.point(section, round, *point, rival, server, corpus)?;
                    }
                    if stop.load(Ordering::Relaxed) {
                        bail!("stopped by a signal");
                    }
                }
                if round == 0 && point.work == Work::Fill {
                    driver.memories(section, &servers, &idle)?;
                }
            }
        }
    }
    ensure!(driver.header, "nothing could be measured");
    Ok(driver.failed)
}

impl Driver<'_> {
    fn make_corpus(&self, name: &str) -> Result<PathBuf> {
        let path = self.setting.dir.join(name);
        let made = Command::new(&self.setting.load)
            .args(["corpus", "--corpus", name, "--output"])
            .arg(&path)
            .status()?;
        ensure!(made.success(), "no corpus {name}");
        Ok(path)
    }

    /// Runs the generator once, and writes what it measured.
    fn point(
        &mut self,
        section: &Section,
        round: u32,
        point: Point,
        rival: &Rival,
        server: &Server,
        corpus: &Path,
    ) -> Result<()> {
        let mut command = Command::new(&self.setting.load);
        match &server.target {
            Target::Vhost(socket) => command.arg("--vhost").arg(socket),
            Target::Block(device) => command.arg("--block").arg(device),
        };
        for pid in server.pids() {
            command.args(["--server-pid", &pid.to_string()]);
        }
        command.arg("--corpus-file").arg(corpus).args(["--csv", "--label", &rival.name]);
        command.args(["--runtime", &self.args.runtime.as_secs_f64().to_string()]);
        command.args(["--warmup", &self.args.warmup.as_secs_f64().to_string()]);
        command.args(["--seed", &(round + 1).to_string()]);
        command.args(["--queues", &section.queues.to_string()]);
        command.args(point.arguments(self.setting.size));
        let output = command.output().context("zram-load")?;
        let mut rows = Rows::parse(&String::from_utf8_lossy(&output.stdout))?;
        if !output.status.success() || rows.lines().next().is_none() {
            self.failed += 1;
            let why = String::from_utf8_lossy(&output.stderr);
            eprintln!("zram-compare: {point} of {} fails: {}", rival.name, why.trim());
            return Ok(());
        }
        rows.prefix(&[
            ("round", round.to_string()),
            ("rival", rival.name.clone()),
            ("point", point.to_string()),
        ]);
        if !self.header {
            writeln!(self.raw, "{}", rows.header())?;
            self.header = true;
        }
        for line in rows.lines() {
            writeln!(self.raw, "{line}")?;
        }
        eprintln!(
            "{:4.0} s  {} x{} round {round}  {point}  {}: {}",
            self.begun.elapsed().as_secs_f64(),
            section.corpus,
            section.queues,
            rival.name,
            rows.summary(),
        );
        Ok(())
    }

    /// Writes the memory of all servers, whose disks are full.
    fn memories(&mut self, section: &Section, servers: &Servers<'_>, idle: &[u64]) -> Result<()> {
        thread::sleep(Duration::from_secs_f64(REST));
        for ((rival, server), idle) in servers.iter().zip(idle) {
            if rival.kind == Kind::Null {
                continue;
            }
            let now = server.memory(rival)?;
            let memory = Memory {
                rival: rival.name.clone(),
                corpus: section.corpus.to_owned(),
                queues: section.queues,
                written: self.setting.size as f64,
                compressed: now.compressed.map(|bytes| bytes as f64),
                idle: *idle as f64,
                processes: now.processes as f64,
                kernel: now.kernel as f64,
            };
            writeln!(self.memory, "{}", memory.csv())?;
        }
        Ok(())
    }
}
