//! Processor time: of the server, of this process, of the whole machine.

use std::{fs, io};

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
    /// Time of a process with all its threads, ended ones included; io_uring's kernel workers count as
    /// threads of the process that uses them.
    pub fn of_process(pid: &str) -> io::Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // The name may hold anything, so fields are counted behind its closing parenthesis.
        let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        let ticks = |n: usize| fields.split_whitespace().nth(n).and_then(|f| f.parse::<f64>().ok());
        match (ticks(11), ticks(12)) {
            (Some(user), Some(system)) => {
                Ok(Self { user: user / USER_HZ, system: system / USER_HZ })
            }
            _ => Err(io::Error::other(format!("/proc/{pid}/stat has no times"))),
        }
    }

    /// Time of this process.
    pub fn of_self() -> io::Result<Self> {
        Self::of_process("self")
    }

    /// Time of all processors that was not idle; all of it in `system`.
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
    /// A process.
    Process(u32),
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
            Server::Process(pid) => Some(CpuTime::of_process(&pid.to_string())?),
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
    fn own_time_is_counted() {
        let before = CpuTime::of_self().unwrap();
        let mut x = 1_u64;
        while CpuTime::of_self().unwrap().since(before).total() < 0.02 {
            x = std::hint::black_box(x.wrapping_mul(3));
        }
        assert!(CpuTime::of_machine().unwrap().total() > 0.0);
    }
}
