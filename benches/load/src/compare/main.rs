//! `zram-compare`: the daemon beside its rivals, by the same generator, interleaved.
//!
//! * [`args`]: command line; [`plan`]: rivals, points, sections and their order
//! * [`server`]: the rivals' servers; [`zram`]: a device of our own in the kernel
//! * [`drive`]: the run; [`rows`]: what it measured
//! * [`stats`]: medians and ratios; [`figures`]: those of each point and rival
//! * [`table`]: the page of tables; [`plot`]: the plots

mod args;
mod drive;
mod figures;
mod plan;
mod plot;
mod rows;
mod server;
#[path = "../sizes.rs"]
mod sizes;
mod stats;
mod table;
mod zram;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context, Result, ensure};
use clap::Parser;

use crate::{
    args::Args,
    figures::Figures,
    plan::{Rival, Section},
    rows::Rows,
    server::Setting,
};

fn main() -> ExitCode {
    match act(&Args::parse()) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(failed) => {
            eprintln!("zram-compare: {failed} measurements failed; their cells are empty");
            ExitCode::FAILURE
        }
        Err(e) => {
            eprintln!("zram-compare: {e:#}");
            ExitCode::FAILURE
        }
    }
}

/// Measures, or reads rows; writes the report. Returns how many measurements failed.
fn act(args: &Args) -> Result<usize> {
    let make_out = || fs::create_dir_all(&args.out).with_context(|| args.out.display().to_string());
    if !args.from.is_empty() {
        make_out()?;
        gather(&args.from, &args.out)?;
        report(&args.out)?;
        return Ok(0);
    }
    let rivals = chosen_rivals(args)?;
    let sections = chosen_sections(args)?;
    let rounds = if args.quick { args.rounds.min(2) } else { args.rounds };
    eprintln!("about {:.0} minutes", drive::estimate(args, &rivals, &sections, rounds) / 60.0);
    if args.list {
        for section in &sections {
            for point in &section.points {
                let names: Vec<_> =
                    rivals.iter().filter(|r| r.takes_part(section, point)).collect();
                let names: Vec<_> = names.iter().map(|r| r.name.as_str()).collect();
                eprintln!("{} x{}  {point}: {}", section.corpus, section.queues, names.join(" "));
            }
        }
        return Ok(0);
    }
    make_out()?;
    let work = Workplace::make()?;
    let setting = setting(args, &work)?;
    fs::write(args.out.join("about.txt"), about(args, &setting, rounds)?)?;
    let failed = drive::run(args, &setting, &rivals, &sections, rounds)?;
    report(&args.out)?;
    Ok(failed)
}

fn chosen_rivals(args: &Args) -> Result<Vec<Rival>> {
    let mut rivals = plan::rivals(&args.algorithm, &args.ours);
    for name in &args.rivals {
        ensure!(rivals.iter().any(|rival| rival.name == *name), "no rival is called {name}");
    }
    rivals.retain(|rival| args.rivals.is_empty() || args.rivals.contains(&rival.name));
    rivals.retain(|rival| {
        let missing = server::missing(rival);
        if let Some(why) = missing {
            eprintln!("zram-compare: {} is left out: {why}", rival.name);
        }
        missing.is_none()
    });
    Ok(rivals)
}

fn chosen_sections(args: &Args) -> Result<Vec<Section>> {
    let mut sections = plan::sections(args.quick);
    let wanted = |corpus: &str| args.corpora.is_empty() || args.corpora.iter().any(|c| c == corpus);
    sections.retain(|section| wanted(section.corpus));
    for section in &mut sections {
        section.keep(&args.only);
    }
    ensure!(!sections.is_empty(), "no corpus is left");
    Ok(sections)
}

/// Directories that are removed at the end.
struct Workplace {
    dir: PathBuf,
    tmpfs: PathBuf,
}

impl Workplace {
    fn make() -> Result<Self> {
        let name = format!("zram-compare.{}", std::process::id());
        let (dir, tmpfs) = (env::temp_dir().join(&name), Path::new("/dev/shm").join(&name));
        for dir in [&dir, &tmpfs] {
            fs::create_dir(dir).with_context(|| dir.display().to_string())?;
        }
        Ok(Self { dir, tmpfs })
    }
}

impl Drop for Workplace {
    fn drop(&mut self) {
        for dir in [&self.dir, &self.tmpfs] {
            // What is left in them is only in the way.
            let _ = fs::remove_dir_all(dir);
        }
    }
}

fn setting(args: &Args, work: &Workplace) -> Result<Setting> {
    let here = env::current_exe()?.parent().map(Path::to_path_buf).unwrap_or_default();
    let bin = args.bin_dir.clone().unwrap_or(here);
    let daemon = args.daemon.clone().unwrap_or_else(|| bin.join("vhost-user-zram"));
    let load = bin.join("zram-load");
    for file in [&daemon, &load] {
        ensure!(file.is_file(), "no program {}", file.display());
    }
    Ok(Setting {
        daemon,
        load,
        dir: work.dir.clone(),
        tmpfs: work.tmpfs.clone(),
        size: args.size,
        algorithm: args.algorithm.clone(),
    })
}

/// The machine and the run, in a few lines of Markdown.
fn about(args: &Args, setting: &Setting, rounds: u32) -> Result<String> {
    let says = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.lines().next().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty())
    };
    let none = || "none".to_owned();
    let cpuinfo = fs::read_to_string("/proc/cpuinfo")?;
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name"));
    let model = model.map_or("unknown", |rest| rest.trim_start_matches([' ', '\t', ':']));
    let daemon = setting.daemon.display().to_string();
    let ours: Vec<_> =
        args.ours.iter().map(|(name, args)| format!("`{name}` is `{}`", args.join(" "))).collect();
    Ok(format!(
        "{}, Linux {}, {} processors ({model}).\n\
         {}{}; {}; {}.\n\
         Disks of {} MiB, {}; {rounds} rounds, {} s a point after {} s.{}{}\n",
        says("date", &["+%F"]).unwrap_or_else(none),
        says("uname", &["-r"]).unwrap_or_else(none),
        std::thread::available_parallelism()?,
        says(&daemon, &["--version"]).unwrap_or_else(none),
        args.note.as_ref().map_or(String::new(), |note| format!(" ({note})")),
        says("qemu-storage-daemon", &["--version"]).unwrap_or_else(none),
        says("nbdkit", &["--version"]).unwrap_or_else(none),
        args.size >> 20,
        args.algorithm,
        args.runtime.as_secs_f64(),
        args.warmup.as_secs_f64(),
        if ours.is_empty() { String::new() } else { format!(" {}.", ours.join("; ")) },
        if args.quick { " A quick try." } else { "" },
    ))
}

/// Puts the rows of several runs together in `out`, with their rounds counted on.
fn gather(from: &[PathBuf], out: &Path) -> Result<()> {
    let mut raw = rows::Joined::default();
    let mut memory = rows::Joined::default();
    let mut about = Vec::new();
    for dir in from {
        raw.add(Rows::read(&dir.join("raw.csv"))?)?;
        memory.add(Rows::read(&dir.join("memory.csv"))?)?;
        about.push(fs::read_to_string(dir.join("about.txt"))?);
    }
    about.dedup();
    fs::write(out.join("raw.csv"), raw.text())?;
    fs::write(out.join("memory.csv"), memory.text())?;
    fs::write(out.join("about.txt"), about.join("\n"))?;
    Ok(())
}

/// Writes tables and plots of the rows in `out`.
fn report(out: &Path) -> Result<()> {
    let samples = rows::samples(&Rows::read(&out.join("raw.csv"))?)?;
    let memory = rows::memory(&Rows::read(&out.join("memory.csv"))?)?;
    let about = fs::read_to_string(out.join("about.txt"))?;
    let figures = Figures::new(&samples, &memory);
    let plots = plot::all(&figures, out)?;
    fs::write(out.join("tables.md"), table::page(&about, &figures, &plots))?;
    eprintln!("tables and plots are in {}", out.display());
    Ok(())
}
