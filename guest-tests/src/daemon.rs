//! The daemon under test: started, asked for its figures, ended.

use std::{
    collections::{HashMap, HashSet},
    ffi::OsString,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;

use crate::{
    common::figures,
    process::{LIMIT, Process, SLICE},
};

/// The daemon's figures at one moment, by name.
#[derive(Debug, Clone)]
pub struct Figures(HashMap<String, u64>);

impl Figures {
    /// The `name=number` words of a line.
    pub fn of(line: &str) -> Self {
        Self(figures(line))
    }

    /// One figure; a daemon without it is a failure.
    pub fn get(&self, name: &str) -> Result<u64> {
        self.0.get(name).copied().with_context(|| format!("the daemon has no figure {name}"))
    }

    /// Requests that ended well.
    pub fn requests(&self) -> Result<u64> {
        let kinds = ["reads", "writes", "discards", "write_zeroes", "flushes"];
        kinds.iter().map(|kind| self.get(kind)).sum()
    }

    /// What holds at all times where nothing on the host is short: no request failed or made no sense,
    /// but for the figures that are `allowed` to count some, and the sizes add up.
    pub fn check(&self, allowed: &HashSet<&'static str>) -> Result<()> {
        for name in ["failed_reads", "failed_writes", "invalid_io", "broken_queues", "blind_queues"]
        {
            let count = self.get(name)?;
            ensure!(count == 0 || allowed.contains(name), "{name}={count}");
        }
        let (orig, compr, mem) = self.sizes()?;
        ensure!(compr <= orig, "{compr} compressed bytes of {orig} stored");
        ensure!(mem >= compr, "{mem} arena bytes hold {compr} compressed ones");
        Ok(())
    }

    /// Bytes stored, compressed, and of arena.
    pub fn sizes(&self) -> Result<(u64, u64, u64)> {
        Ok((self.get("orig_data_size")?, self.get("compr_data_size")?, self.get("mem_used_total")?))
    }
}

/// A daemon.
pub struct Daemon {
    pub process: Process,
    started: Instant,
    asked: HashMap<&'static str, usize>,
}

impl Daemon {
    /// Starts one; waits for nothing.
    pub fn spawn(program: &Path, args: &[OsString], log: &Path) -> Result<Self> {
        Self::spawn_to_die(program, args, log, None)
    }

    /// The same; it is killed where it first comes to the step `crash_at`.
    pub fn spawn_to_die(
        program: &Path,
        args: &[OsString],
        log: &Path,
        crash_at: Option<&str>,
    ) -> Result<Self> {
        let mut command = Command::new(program);
        command.args(args);
        if let Some(step) = crash_at {
            command.env("VUZ_CRASH_AT", step);
        }
        let process = Process::start(&command, log, Stdio::null())?;
        Ok(Self { process, started: Instant::now(), asked: HashMap::new() })
    }

    /// Waits until it is ready; gives what its state was.
    pub fn ready(&mut self) -> Result<String> {
        let line = self.says("ready", 0)?;
        let state = line.split_whitespace().find_map(|word| word.strip_prefix("state="));
        Ok(state.with_context(|| format!("no state in {line:?}"))?.to_owned())
    }

    /// The size of its disk when it was ready, in bytes.
    pub fn size(&mut self) -> Result<u64> {
        let line = self.says("ready", 0)?;
        let size = line.split_whitespace().find_map(|word| word.strip_prefix("size="));
        size.and_then(|size| size.parse().ok()).with_context(|| format!("no size in {line:?}"))
    }

    /// The figures now.
    pub fn figures(&mut self) -> Result<Figures> {
        Ok(Figures::of(&self.answer(Signal::SIGUSR1, "stats")?))
    }

    /// Compacts; gives what that did.
    pub fn compact(&mut self) -> Result<Figures> {
        Ok(Figures::of(&self.answer(Signal::SIGUSR2, "compacted")?))
    }

    /// Waits until figures are as `wanted` says, and gives them; else says what it found at last.
    pub fn wait_for(
        &mut self,
        what: &str,
        mut wanted: impl FnMut(&Figures) -> Result<bool>,
    ) -> Result<Figures> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let figures = self.figures()?;
            if wanted(&figures)? {
                return Ok(figures);
            }
            ensure!(Instant::now() < deadline, "{what}: not within {LIMIT:?}, {figures:?}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits for the first request that it completes; gives how long after its start that was.
    pub fn first_request(&mut self) -> Result<Duration> {
        self.wait_for("the guest's requests are resumed", |now| Ok(now.requests()? > 0))?;
        Ok(self.started.elapsed())
    }

    /// Ends it in good order; gives its last figures.
    pub fn terminate(mut self) -> Result<Figures> {
        let status = self.process.end(Signal::SIGTERM).context("SIGTERM of the daemon")?;
        let said = self.process.stdout.all();
        let summaries: Vec<_> = said.iter().filter(|line| line.starts_with("summary: ")).collect();
        ensure!(
            status.success() && summaries.len() == 1,
            "the daemon ended by SIGTERM with {status} and {} summary lines: {}",
            summaries.len(),
            self.process.last_words()
        );
        Ok(Figures::of(summaries[0]))
    }

    /// Ends it at once.
    pub fn kill(mut self) -> Result<()> {
        self.process.end(Signal::SIGKILL).context("SIGKILL of the daemon")?;
        Ok(())
    }

    /// Lines of its log with `text` in them.
    pub fn log_with(&self, text: &str) -> Vec<String> {
        self.process.stderr.all().into_iter().filter(|line| line.contains(text)).collect()
    }

    fn answer(&mut self, signal: Signal, word: &'static str) -> Result<String> {
        let nth = self.asked.get(word).copied().unwrap_or_default();
        self.process.signal(signal)?;
        let line = self.says(word, nth)?;
        self.asked.insert(word, nth + 1);
        Ok(line)
    }

    /// Waits for the `nth` line that begins with `word`.
    fn says(&mut self, word: &str, nth: usize) -> Result<String> {
        let prefix = format!("{word}: ");
        let deadline = Instant::now() + LIMIT;
        loop {
            let alive = self.process.is_alive();
            if let Some(line) = self.process.stdout.wait_for(&prefix, nth, SLICE) {
                return Ok(line);
            }
            if !alive {
                bail!("the daemon ended: {}", self.process.last_words());
            }
            ensure!(Instant::now() < deadline, "the daemon says no '{word}' within {LIMIT:?}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = "stats: orig_data_size=8192 compr_data_size=100 mem_used_total=4096 reads=3 \
        writes=2 discards=1 write_zeroes=0 flushes=4 failed_reads=0 failed_writes=0 invalid_io=0 \
        broken_queues=0 blind_queues=0 engine_service_us=1:2,3:4";

    #[test]
    fn figures_are_had_by_name() {
        let figures = Figures::of(LINE);
        assert_eq!(figures.requests().unwrap(), 10);
        assert_eq!(figures.sizes().unwrap(), (8192, 100, 4096));
        figures.check(&HashSet::new()).unwrap();
        let failed = Figures::of(&LINE.replace("invalid_io=0", "invalid_io=1"));
        failed.check(&HashSet::from(["invalid_io"])).unwrap();
        let missing = figures.get("engine_service_us").unwrap_err().to_string();
        assert!(missing.contains("engine_service_us"), "{missing}");
    }

    #[test]
    fn a_failed_request_and_sizes_that_do_not_add_up_are_found() {
        for (good, bad) in [
            ("failed_reads=0", "failed_reads=1"),
            ("failed_writes=0", "failed_writes=1"),
            ("invalid_io=0", "invalid_io=2"),
            ("broken_queues=0", "broken_queues=1"),
            ("blind_queues=0", "blind_queues=1"),
            ("compr_data_size=100", "compr_data_size=9000"),
            ("mem_used_total=4096", "mem_used_total=99"),
            ("failed_reads=0", ""),
        ] {
            assert!(Figures::of(&LINE.replace(good, bad)).check(&HashSet::new()).is_err(), "{bad}");
        }
    }
}
