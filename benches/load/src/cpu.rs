//! Processor time: of the server, of this process, of the whole machine.

use std::{fs, io};

use nix::{
    sys::{
        resource::{UsageWho, getrusage},
        time::{TimeVal, TimeValLike},
    },
    time::clock_getcpuclockid,
    unistd::Pid,
};

/// `/proc` counts in hundredths of a second on every Linux architecture of interest.
const USER_HZ: f64 = 100.0;

/// Processor time spent so far, in seconds.
#[derive(Debug, Clone, Copy, Default)]
pub struct CpuTime {
    /// In user mode.
    pub user: f64,
    /// In the kernel.
    pub system: f64,
}

impl CpuTime {
    /// Time of processes with all their threads, ended ones included, in nanoseconds of the processor clock
    /// and all of it in `system`; io_uring's kernel workers count as threads of the process that uses them.
    ///
    /// # Errors
    ///
    /// When there is no such process.
    pub fn of_processes(pids: &[u32]) -> io::Result<Self> {
        let seconds = |pid: &u32| {
            let clock = clock_getcpuclockid(Pid::from_raw(*pid as i32))?;
            let now = clock.now()?;
            Ok::<_, io::Error>(now.tv_sec() as f64 + now.tv_nsec() as f64 / 1e9)
        };
        let system = pids.iter().map(seconds).sum::<io::Result<f64>>()?;
        Ok(Self { user: 0.0, system })
    }

    /// Time of this process. The sum is exact; the halves are an estimate from ticks on most kernels.
    ///
    /// # Errors
    ///
    /// None on Linux.
    pub fn of_self() -> io::Result<Self> {
        let usage = getrusage(UsageWho::RUSAGE_SELF)?;
        let seconds = |time: TimeVal| time.num_microseconds() as f64 / 1e6;
        Ok(Self { user: seconds(usage.user_time()), system: seconds(usage.system_time()) })
    }

    /// Time of all processors that was not idle; all of it in `system`.
    ///
    /// # Errors
    ///
    /// When there is no `/proc`.
    pub fn of_machine() -> io::Result<Self> {
        let stat = fs::read_to_string("/proc/stat")?;
        let mut ticks = stat.split_whitespace().skip(1).map_while(|f| f.parse::<f64>().ok());
        let mut next = || ticks.next().unwrap_or(0.0);
        let (user, nice, system, _idle, _iowait) = (next(), next(), next(), next(), next());
        let (irq, softirq, steal) = (next(), next(), next());
        let busy = user + nice + system + irq + softirq + steal;
        Ok(Self { user: 0.0, system: busy / USER_HZ })
    }

    /// All of it.
    pub fn total(self) -> f64 {
        self.user + self.system
    }

    /// What was spent since `earlier`.
    pub fn since(self, earlier: Self) -> Self {
        Self { user: self.user - earlier.user, system: self.system - earlier.system }
    }
}

/// Whose time counts as the server's.
#[derive(Debug, Clone)]
pub enum Server {
    /// Processes, together.
    Processes(Vec<u32>),
    /// The kernel on behalf of this process: its own system time, system calls included.
    Kernel,
    /// Of no known process.
    Unknown,
}

/// Processor times at one moment.
#[derive(Debug, Clone, Copy, Default)]
pub struct Snapshot {
    server: Option<CpuTime>,
    own: CpuTime,
    machine: CpuTime,
}

impl Snapshot {
    /// Takes the times now.
    pub fn take(server: &Server) -> io::Result<Self> {
        let server = match server {
            Server::Processes(pids) => Some(CpuTime::of_processes(pids)?),
            Server::Kernel | Server::Unknown => None,
        };
        Ok(Self { server, own: CpuTime::of_self()?, machine: CpuTime::of_machine()? })
    }
}

/// Processor time of a run, in seconds.
#[derive(Debug, Clone, Copy, Default)]
pub struct Spent {
    /// The server's, if it is known whose that is.
    pub server: Option<f64>,
    /// The generator's.
    pub generator: f64,
    /// The whole machine's, others included.
    pub machine: f64,
}

impl Spent {
    /// The difference of two snapshots.
    pub fn between(server: &Server, from: &Snapshot, to: &Snapshot) -> Self {
        let own = to.own.since(from.own);
        let machine = to.machine.since(from.machine).total();
        match (server, from.server, to.server) {
            (Server::Kernel, ..) => Self { server: Some(own.system), generator: own.user, machine },
            (_, Some(from), Some(to)) => {
                Self { server: Some(to.since(from).total()), generator: own.total(), machine }
            }
            _ => Self { server: None, generator: own.total(), machine },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_only_grow_and_those_of_several_processes_add_up() {
        let own = std::process::id();
        let clock = |pids: &[u32]| CpuTime::of_processes(pids).unwrap().total();
        let once = clock(&[own]);
        let spent = CpuTime::of_self().unwrap().total();
        // Read after that, so each of the two is at least as much.
        let twice = clock(&[own, own]);
        assert!(once > 0.0 && spent > 0.0);
        assert!(twice >= 2.0 * once, "{once} {twice}");
        let mut x = 1_u64;
        while clock(&[own]) - once < 0.02 {
            x = std::hint::black_box(x.wrapping_mul(3));
        }
        assert!(CpuTime::of_self().unwrap().total() > spent);
        assert!(CpuTime::of_machine().unwrap().total() > 0.0);
    }

    #[test]
    fn a_process_that_is_not_there_is_an_error() {
        // Above the largest number that Linux gives to a process.
        assert!(CpuTime::of_processes(&[1 << 23]).is_err());
    }
}
