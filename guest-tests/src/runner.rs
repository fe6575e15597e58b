//! Runs tests, a few at a time, and says how each ended.

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Instant,
};

use anyhow::{Context, Result, anyhow};

use crate::{
    artifacts::{Combination, Setup},
    machine::{Machine, Skip},
    say,
    tests::Test,
};

/// As many guests that do not come up one after the other are enough: each takes its whole time limit, and
/// one hang must not become twenty.
const BOOT_FAILURES: usize = 2;
/// Lines of a log that are shown of a failed test.
const SHOWN: usize = 15;

/// One test in one combination.
pub struct Job {
    pub test: &'static Test,
    pub combination: Combination,
}

/// How a test ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Ok(String),
    Failed(String),
    Skipped(String),
}

/// How many tests ended how.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Total {
    pub passed: usize,
    pub failed: usize,
    pub skipped: usize,
    pub boots: usize,
}

impl Total {
    pub fn add(&mut self, outcome: &Outcome) {
        match outcome {
            Outcome::Ok(_) => self.passed += 1,
            Outcome::Failed(_) => self.failed += 1,
            Outcome::Skipped(_) => self.skipped += 1,
        }
    }
}

impl std::fmt::Display for Total {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

/// The line on a test that ended.
pub fn line(outcome: &Outcome, name: &str, seconds: u64) -> String {
    let (word, text) = match outcome {
        Outcome::Ok(text) => ("ok", text),
        Outcome::Failed(text) => ("FAILED", text),
        Outcome::Skipped(text) => ("skipped", text),
    };
    format!("{word:7} {name}: {text} ({seconds} s)")
}

/// What the threads share.
struct Run<'a> {
    setup: &'a Setup,
    logs: &'a Path,
    jobs: &'a [Job],
    next: AtomicUsize,
    boot_failures: AtomicUsize,
    total: Mutex<Total>,
}

/// Runs all jobs, `at_once` at a time. Logs of those that fail, and of all if `keep_all`, stay in `logs`.
pub fn run(setup: &Setup, jobs: &[Job], at_once: usize, logs: &Path, keep_all: bool) -> Total {
    let run = Run {
        setup,
        logs,
        jobs,
        next: AtomicUsize::new(0),
        boot_failures: AtomicUsize::new(0),
        total: Mutex::new(Total::default()),
    };
    thread::scope(|scope| {
        for _ in 0..at_once.max(1) {
            scope.spawn(|| {
                while let Some(job) = run.jobs.get(run.next.fetch_add(1, Ordering::Relaxed)) {
                    run.one(job, keep_all);
                }
            });
        }
    });
    run.total.into_inner().unwrap_or_else(PoisonError::into_inner)
}

impl Run<'_> {
    fn one(&self, job: &Job, keep_all: bool) {
        let started = Instant::now();
        let name = format!("{} {}", job.combination, job.test.name);
        let logs = self.logs.join(file_name(&job.combination.to_string())).join(job.test.name);
        // Those of an earlier run, if there are any.
        let _ = fs::remove_dir_all(&logs);
        let mut boots = 0;
        let outcome = if self.boot_failures.load(Ordering::Relaxed) >= BOOT_FAILURES {
            Outcome::Skipped("guests do not boot here, see above".to_owned())
        } else {
            // A test that panics is one that failed, and the others run.
            let result = catch_unwind(AssertUnwindSafe(|| self.test(job, &logs, &mut boots)));
            outcome(result.unwrap_or_else(|_| Err(anyhow!("the test itself panicked"))))
        };
        let mut total = self.total.lock().unwrap_or_else(PoisonError::into_inner);
        total.add(&outcome);
        total.boots += boots;
        say(&line(&outcome, &name, started.elapsed().as_secs()));
        if let Outcome::Failed(_) = outcome {
            say(&format!("        logs: {}", logs.display()));
            show(&logs);
        } else if !keep_all {
            // Left behind at worst.
            let _ = fs::remove_dir_all(&logs);
        }
    }

    fn test(&self, job: &Job, logs: &Path, boots: &mut usize) -> Result<String> {
        let mut machine = Machine::new(self.setup, &job.combination, job.test.name, logs)?;
        let result = (job.test.run)(&mut machine).and_then(|text| {
            machine.finish().context("afterwards")?;
            Ok(text)
        });
        *boots = machine.boots;
        if machine.boot_failed {
            self.boot_failures.fetch_add(1, Ordering::Relaxed);
        } else if machine.boots > 0 {
            self.boot_failures.store(0, Ordering::Relaxed);
        }
        result
    }
}

fn outcome(result: Result<String>) -> Outcome {
    match result {
        Ok(text) => Outcome::Ok(text),
        Err(error) => match error.downcast_ref::<Skip>() {
            Some(Skip(why)) => Outcome::Skipped(why.clone()),
            None => Outcome::Failed(format!("{error:#}")),
        },
    }
}

/// The ends of the newest logs of a guest and of a daemon: earlier ones ended well.
fn show(logs: &Path) {
    let mut files: Vec<PathBuf> = fs::read_dir(logs)
        .map(|entries| entries.filter_map(|entry| Some(entry.ok()?.path())).collect())
        .unwrap_or_default();
    files.sort();
    for kind in ["guest", "daemon"] {
        let is_it = |file: &&PathBuf| file.to_string_lossy().ends_with(&format!("-{kind}.log"));
        let Some(file) = files.iter().rev().find(is_it) else { continue };
        let text = fs::read(file).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).replace('\r', "");
        let lines: Vec<_> = text.lines().filter(|line| !line.is_empty()).collect();
        say(&format!("        --- end of {}", file.display()));
        for line in &lines[lines.len().saturating_sub(SHOWN)..] {
            say(&format!("        | {line}"));
        }
    }
}

/// A name without what is awkward in paths.
fn file_name(name: &str) -> String {
    name.chars().map(|c| if " ()=,/".contains(c) { '_' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_a_failure_and_a_skip_is_none() {
        assert_eq!(outcome(Ok("fine".to_owned())), Outcome::Ok("fine".to_owned()));
        let failed = outcome(Err(anyhow!("inner").context("outer")));
        assert_eq!(failed, Outcome::Failed("outer: inner".to_owned()));
        let skip = anyhow::Error::from(Skip("no room".to_owned())).context("outer");
        assert_eq!(outcome(Err(skip)), Outcome::Skipped("no room".to_owned()));
    }

    #[test]
    fn every_outcome_has_its_line_and_counts_once() {
        let outcomes = [
            Outcome::Ok("a".to_owned()),
            Outcome::Failed("b".to_owned()),
            Outcome::Skipped("c".to_owned()),
            Outcome::Failed("d".to_owned()),
        ];
        let lines: Vec<_> = outcomes.iter().map(|outcome| line(outcome, "lz4 fio", 3)).collect();
        assert_eq!(lines[0], "ok      lz4 fio: a (3 s)");
        assert_eq!(lines[1], "FAILED  lz4 fio: b (3 s)");
        assert_eq!(lines[2], "skipped lz4 fio: c (3 s)");
        let mut total = Total::default();
        outcomes.iter().for_each(|outcome| total.add(outcome));
        assert_eq!(total.to_string(), "1 passed, 2 failed, 1 skipped");
    }

    #[test]
    fn names_of_combinations_are_names_of_files() {
        assert_eq!(file_name("zstd(level=3) linux-6.1"), "zstd_level_3__linux-6.1");
    }
}
