//! Where background threads run, and at which priority.

use std::str::FromStr;

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

/// Nice value of workers and upkeep: threads that serve a queue come first, and these still get a
/// fifth of a processor that they share with one of those.
const NICE: i32 = 7;

/// Processors by number; none means all.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Cpus(Vec<usize>);

/// What is wrong with a list of processors.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a list of processors, such as 0,2-3")]
pub struct CpuListError(String);

impl FromStr for Cpus {
    type Err = CpuListError;

    fn from_str(text: &str) -> Result<Self, CpuListError> {
        let wrong = || CpuListError(text.to_owned());
        let mut cpus = Vec::new();
        for range in text.split(',') {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let number = |text: &str| text.trim().parse::<usize>().map_err(|_| wrong());
            let (first, last) = (number(first)?, number(last)?);
            if first > last || last >= CpuSet::count() {
                return Err(wrong());
            }
            cpus.extend(first..=last);
        }
        Ok(Self(cpus))
    }
}

/// Makes the calling thread one that works in the background, on these processors.
pub(crate) fn run_in_background(cpus: &Cpus) {
    // On Linux this is the thread's own value, not the process's. A daemon that is nicer stays so.
    let own = rustix::process::getpriority_process(None);
    let nicer = own.and_then(|own| rustix::process::setpriority_process(None, NICE.max(own)));
    if let Err(error) = nicer {
        log::debug!("a background thread keeps its priority: {error}");
    }
    if cpus.0.is_empty() {
        return;
    }
    let mut set = CpuSet::new();
    let all = cpus.0.iter().try_for_each(|cpu| set.set(*cpu));
    if let Err(error) = all.and_then(|()| sched_setaffinity(Pid::from_raw(0), &set)) {
        log::warn!("the engine's workers cannot be bound to their processors: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_background_thread_is_nicer_and_stays_where_it_is_put() {
        let thread = std::thread::spawn(|| {
            run_in_background(&Cpus(vec![0]));
            let nice = rustix::process::getpriority_process(None).unwrap();
            let set = nix::sched::sched_getaffinity(Pid::from_raw(0)).unwrap();
            let cpus: Vec<_> =
                (0..CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap()).collect();
            (nice, cpus)
        });
        let own = rustix::process::getpriority_process(None).unwrap();
        assert_eq!(thread.join().unwrap(), (NICE.max(own), vec![0]));
    }

    #[test]
    fn lists_of_processors() {
        assert_eq!("0,2-4".parse(), Ok(Cpus(vec![0, 2, 3, 4])));
        for bad in ["", "x", "3-1", "0,", "99999"] {
            assert!(bad.parse::<Cpus>().is_err(), "{bad}");
        }
    }
}
