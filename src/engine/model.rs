//! Hardware that is not there: delays, refusals and faults, for tests and experiments.

use std::str::FromStr;
use std::time::Duration;

/// How the engine misbehaves. The default does not, and takes no longer than the codec.
///
/// Whether a fault strikes is decided by the seed and the number of the job, so a run can be
/// repeated as far as the order of submissions can.
#[derive(Debug, Clone, PartialEq)]
pub struct EngineModel {
    /// Least time in service, of any job.
    pub latency: Duration,
    /// More time in service for each KiB of input.
    pub per_kib: Duration,
    /// Finished jobs that a worker holds back at most, to complete them in random order.
    pub reorder: usize,
    /// Share of submissions that are refused, 0 to 1.
    pub refuse: f64,
    /// Share of jobs that fail.
    pub fail: f64,
    /// Share of jobs whose output is damaged on its way.
    pub corrupt: f64,
    /// Share of jobs that never come back.
    pub hang: f64,
    /// Share of jobs that end their worker.
    pub die: f64,
    /// A job that was taken so long ago is abandoned; `None` means the engine's own timeout.
    pub timeout: Option<Duration>,
    /// Start of the random decisions.
    pub seed: u64,
}

impl Default for EngineModel {
    fn default() -> Self {
        Self {
            latency: Duration::ZERO,
            per_kib: Duration::ZERO,
            reorder: 0,
            refuse: 0.0,
            fail: 0.0,
            corrupt: 0.0,
            hang: 0.0,
            die: 0.0,
            timeout: None,
            seed: 1,
        }
    }
}

/// What is wrong with a model's text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ModelError {
    /// Not of the form `name=value`.
    #[error("'{0}' is not of the form name=value")]
    Form(String),
    /// No such name.
    #[error(
        "the engine model has no '{0}' (it has latency, per-kib, reorder, refuse, fail, corrupt, hang, \
         die, timeout, seed)"
    )]
    Name(String),
    /// The value is out of its range.
    #[error("'{value}' is not {what}")]
    Value {
        /// The value.
        value: String,
        /// What it should be.
        what: &'static str,
    },
}

impl FromStr for EngineModel {
    type Err = ModelError;

    /// `name=value` pairs with commas between: times like `50us` or `2ms`, shares from 0 to 1 or in
    /// percent (`10%`), numbers.
    fn from_str(text: &str) -> Result<Self, ModelError> {
        let mut model = Self::default();
        for pair in text.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
            let (name, value) =
                pair.split_once('=').ok_or_else(|| ModelError::Form(pair.to_owned()))?;
            match name {
                "latency" => model.latency = time(value)?,
                "per-kib" => model.per_kib = time(value)?,
                "reorder" => model.reorder = number(value)? as usize,
                "refuse" => model.refuse = share(value)?,
                "fail" => model.fail = share(value)?,
                "corrupt" => model.corrupt = share(value)?,
                "hang" => model.hang = share(value)?,
                "die" => model.die = share(value)?,
                "timeout" => {
                    let timeout = time(value)?;
                    if timeout.is_zero() {
                        return Err(wrong(value, "a time above 0"));
                    }
                    model.timeout = Some(timeout);
                }
                "seed" => model.seed = number(value)?,
                _ => return Err(ModelError::Name(name.to_owned())),
            }
        }
        Ok(model)
    }
}

fn wrong(value: &str, what: &'static str) -> ModelError {
    ModelError::Value { value: value.to_owned(), what }
}

fn time(value: &str) -> Result<Duration, ModelError> {
    let digits = value.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &value[digits.len()..] {
        "ns" => 1,
        "us" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        _ => return Err(wrong(value, "a time like 50us, 2ms or 1s")),
    };
    let number: u64 = digits.parse().map_err(|_| wrong(value, "a time like 50us, 2ms or 1s"))?;
    Ok(Duration::from_nanos(number.saturating_mul(unit)))
}

fn share(value: &str) -> Result<f64, ModelError> {
    let (digits, unit) = value.strip_suffix('%').map_or((value, 1.0), |digits| (digits, 100.0));
    let share: f64 = digits.parse().map_err(|_| wrong(value, "a share from 0 to 1"))?;
    let share = share / unit;
    if (0.0..=1.0).contains(&share) { Ok(share) } else { Err(wrong(value, "a share from 0 to 1")) }
}

fn number(value: &str) -> Result<u64, ModelError> {
    value.parse().ok().filter(|n| *n <= 1 << 32).ok_or_else(|| wrong(value, "a number"))
}

/// A kind of fault, which has to be decided apart from the others.
#[derive(Debug, Clone, Copy)]
pub(super) enum Fault {
    Refuse,
    Fail,
    Corrupt,
    Hang,
    Die,
    Order,
}

impl EngineModel {
    /// Whether the fault strikes this job.
    pub(super) fn strikes(&self, fault: Fault, job: u64) -> bool {
        let share = match fault {
            Fault::Refuse => self.refuse,
            Fault::Fail => self.fail,
            Fault::Corrupt => self.corrupt,
            Fault::Hang => self.hang,
            Fault::Die => self.die,
            Fault::Order => return false,
        };
        share > 0.0 && (self.draw(fault, job) as f64) < share * u64::MAX as f64
    }

    /// A random number that is the same each time.
    pub(super) fn draw(&self, fault: Fault, job: u64) -> u64 {
        // SplitMix64: two inputs that differ in a bit give numbers that differ in half of them.
        let mut x = self.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ job << 3 ^ fault as u64;
        for factor in [0xbf58_476d_1ce4_e5b9, 0x94d0_49bb_1331_11eb, 0xbf58_476d_1ce4_e5b9_u64] {
            x = (x ^ x >> 30).wrapping_mul(factor).wrapping_add(0x9e37_79b9_7f4a_7c15);
        }
        x ^ x >> 31
    }

    /// Least time in service of a job with this input.
    pub(super) fn service(&self, input_bytes: usize) -> Duration {
        self.latency + self.per_kib * input_bytes.div_ceil(1024) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_read_and_mistakes_are_named() {
        let model: EngineModel =
            "latency=50us,per-kib=2ms, refuse=10%,fail=0.01,seed=7,reorder=8".parse().unwrap();
        assert_eq!(model.service(4096), Duration::from_micros(8050));
        assert_eq!((model.refuse, model.fail, model.seed, model.reorder), (0.1, 0.01, 7, 8));
        assert_eq!("".parse(), Ok(EngineModel::default()));
        for bad in ["latency", "latency=5", "latency=us", "fail=2", "fail=-1%", "speed=1", "seed=x"]
        {
            assert!(bad.parse::<EngineModel>().is_err(), "{bad}");
        }
    }

    #[test]
    fn faults_strike_as_often_as_they_should_and_the_same_jobs_again() {
        let model: EngineModel = "refuse=10%,fail=1%,corrupt=0.5,seed=3".parse().unwrap();
        let count = |fault| (0..100_000).filter(|job| model.strikes(fault, *job)).count();
        for (fault, expected) in [
            (Fault::Refuse, 10_000_usize),
            (Fault::Fail, 1_000),
            (Fault::Corrupt, 50_000),
            (Fault::Die, 0),
        ] {
            let struck = count(fault);
            assert!(struck.abs_diff(expected) <= expected / 10, "{fault:?}: {struck}");
            assert_eq!(struck, count(fault));
        }
        let both = (0..100_000)
            .filter(|job| model.strikes(Fault::Refuse, *job) && model.strikes(Fault::Fail, *job));
        assert!((50..200).contains(&both.count()), "faults are independent");
    }
}
