//! What `top` shows: rates are differences of two looks at a daemon.

use std::cmp::Ordering;
use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use vhost_user_zram::internals::api::{Bucket, Disk, Job, JobState, Requests};

use crate::cli::Sort;
use crate::fleet::natural;
use crate::list::total;
use crate::show::job_in_short;

/// Rates that are kept of each disk.
const HISTORY: usize = 240;

/// A daemon's answer at one moment.
#[derive(Debug, Clone)]
pub struct Sample {
    /// The daemon's name.
    pub name: String,
    /// Since the program's start.
    pub at: Duration,
    /// The disk with its jobs, or why there is none in one or two words.
    pub disk: Result<Box<(Disk, Vec<Job>)>, String>,
}

/// What happens in a second.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Rates {
    /// Reads.
    pub reads: f64,
    /// Writes.
    pub writes: f64,
    /// Discards, write-zeroes requests and flushes.
    pub others: f64,
    /// Jobs of the engine.
    pub engine_jobs: f64,
    /// The time within which half of the engine's jobs end, and 99 of 100, in microseconds.
    pub engine_us: Option<(f64, f64)>,
    /// The same for reads.
    pub read_us: Option<(f64, f64)>,
    /// The same for writes.
    pub write_us: Option<(f64, f64)>,
}

impl Rates {
    /// All requests.
    pub fn requests(&self) -> f64 {
        self.reads + self.writes + self.others
    }

    /// Differences of two looks. A daemon that was started anew, or whose disk was reset, has none.
    pub fn between(before: &Disk, now: &Disk, time: Duration) -> Self {
        let seconds = time.as_secs_f64();
        if seconds <= 0.0 || before.daemon.pid != now.daemon.pid {
            return Self::default();
        }
        let rate =
            |count: fn(&Disk) -> u64| count(now).saturating_sub(count(before)) as f64 / seconds;
        let others =
            |requests: &Requests| requests.discards + requests.write_zeroes + requests.flushes;
        let other = others(&now.requests).saturating_sub(others(&before.requests));
        let us = |buckets: fn(&Disk) -> &[Bucket]| {
            let (before, now) = (buckets(before), buckets(now));
            Some((quantile(before, now, 0.5)?, quantile(before, now, 0.99)?))
        };
        Self {
            reads: rate(|disk| disk.requests.reads),
            writes: rate(|disk| disk.requests.writes),
            others: other as f64 / seconds,
            engine_jobs: rate(|disk| disk.engine.completed),
            engine_us: us(|disk| &disk.engine.service),
            read_us: us(|disk| &disk.latency.read.buckets),
            write_us: us(|disk| &disk.latency.write.buckets),
        }
    }
}

/// The upper end of the bucket in which the share `share` of what came between two looks ends. `None` if
/// nothing came. What has no upper end is infinite.
fn quantile(before: &[Bucket], now: &[Bucket], share: f64) -> Option<f64> {
    let earlier = |up_to: Option<u64>| {
        before.iter().find(|bucket| bucket.up_to_us == up_to).map_or(0, |bucket| bucket.count)
    };
    let mut new: Vec<(Option<u64>, u64)> = now
        .iter()
        .map(|bucket| (bucket.up_to_us, bucket.count.saturating_sub(earlier(bucket.up_to_us))))
        .collect();
    new.sort_by_key(|(up_to, _)| up_to.unwrap_or(u64::MAX));
    let all: u64 = new.iter().map(|(_, count)| count).sum();
    let mut left = (all as f64 * share).ceil();
    for (up_to, count) in new {
        left -= count as f64;
        if count > 0 && left <= 0.0 {
            return Some(up_to.map_or(f64::INFINITY, |us| us as f64));
        }
    }
    None
}

/// A disk as it is shown.
#[derive(Debug, Clone)]
pub struct Row {
    /// The daemon's name.
    pub name: String,
    /// One or two words.
    pub state: String,
    /// What the daemon said last; `None` if it never answered or does not answer now.
    pub disk: Option<Disk>,
    /// Its jobs.
    pub jobs: Vec<Job>,
    /// What happens now.
    pub rates: Rates,
    /// Requests a second at the last looks, the newest at the end.
    pub history: VecDeque<u64>,
    at: Duration,
}

impl Row {
    /// How much of its limit, or of its worst case, a disk takes: 0 to 1.
    pub fn fill(&self) -> f64 {
        let Some(disk) = &self.disk else { return 0.0 };
        let most = match disk.settings.mem_limit_bytes {
            0 => disk.memory.worst_case_bytes,
            limit => limit,
        };
        if most == 0 { 0.0 } else { (total(disk) as f64 / most as f64).clamp(0.0, 1.0) }
    }

    /// Jobs that are not over, in a few words.
    pub fn jobs_in_short(&self) -> String {
        let under_way = self.jobs.iter();
        let under_way =
            under_way.filter(|job| matches!(job.state, JobState::Queued | JobState::Running));
        under_way.map(job_in_short).collect::<Vec<_>>().join(", ")
    }

    fn taken(&self) -> u64 {
        self.disk.as_ref().map_or(0, total)
    }

    fn stored(&self) -> u64 {
        self.disk.as_ref().map_or(0, |disk| disk.memory.pages_bytes)
    }

    fn ratio(&self) -> f64 {
        // Where nothing is stored there is nothing to be worried about.
        if self.taken() == 0 || self.stored() == 0 {
            f64::INFINITY
        } else {
            self.stored() as f64 / self.taken() as f64
        }
    }
}

/// All of what is shown.
#[derive(Debug)]
pub struct Model {
    /// Sorted as `sort` says.
    pub rows: Vec<Row>,
    /// The order.
    pub sort: Sort,
    /// Name of the row that is marked, which it stays wherever it moves to.
    pub selected: Option<String>,
    /// Whether looks are not shown.
    pub paused: bool,
}

impl Model {
    /// Nothing yet.
    pub fn new(sort: Sort) -> Self {
        Self { rows: Vec::new(), sort, selected: None, paused: false }
    }

    /// Takes the answers of all daemons.
    pub fn take(&mut self, samples: Vec<Sample>) {
        let mut old: HashMap<String, Row> =
            self.rows.drain(..).map(|row| (row.name.clone(), row)).collect();
        self.rows = samples
            .into_iter()
            .map(|sample| {
                let before = old.remove(&sample.name);
                row(sample, before)
            })
            .collect();
        self.order();
    }

    /// Sorts by something else.
    pub fn sort_by(&mut self, sort: Sort) {
        self.sort = sort;
        self.order();
    }

    fn order(&mut self) {
        let falling = |a: f64, b: f64| b.total_cmp(&a);
        let sort = self.sort;
        self.rows.sort_by(|a, b| {
            let by_value = match sort {
                Sort::Name => Ordering::Equal,
                Sort::Memory => b.taken().cmp(&a.taken()),
                Sort::Ratio => a.ratio().total_cmp(&b.ratio()),
                Sort::Ops => falling(a.rates.requests(), b.rates.requests()),
                Sort::Data => b.stored().cmp(&a.stored()),
            };
            by_value.then_with(|| natural(&a.name, &b.name))
        });
        if self.position().is_none() {
            self.selected = self.rows.first().map(|row| row.name.clone());
        }
    }

    /// Place of the row that is marked.
    pub fn position(&self) -> Option<usize> {
        let selected = self.selected.as_ref()?;
        self.rows.iter().position(|row| row.name == *selected)
    }

    /// The row that is marked.
    pub fn selected_row(&self) -> Option<&Row> {
        self.rows.get(self.position()?)
    }

    /// Marks another row, `by` places further down, or up.
    pub fn move_by(&mut self, by: isize) {
        let last = self.rows.len().saturating_sub(1);
        let at = self.position().unwrap_or(0).saturating_add_signed(by).min(last);
        self.selected = self.rows.get(at).map(|row| row.name.clone());
    }
}

fn row(sample: Sample, before: Option<Row>) -> Row {
    let Sample { name, at, disk } = sample;
    let (last, mut history, last_at) = match before {
        Some(row) => (row.disk, row.history, row.at),
        None => (None, VecDeque::new(), at),
    };
    let (state, disk, jobs) = match disk {
        Ok(answer) => {
            let (disk, jobs) = *answer;
            let state = match () {
                () if disk.session.connected => "serving",
                () if disk.daemon.ready => "ready",
                () => "starting",
            };
            (state.to_owned(), Some(disk), jobs)
        }
        Err(state) => (state, None, Vec::new()),
    };
    let rates = match (&last, &disk) {
        (Some(last), Some(now)) => Rates::between(last, now, at.saturating_sub(last_at)),
        _ => Rates::default(),
    };
    if last.is_some() {
        history.push_back(rates.requests().round() as u64);
    }
    while history.len() > HISTORY {
        history.pop_front();
    }
    Row { name, state, disk, jobs, rates, history, at }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples;

    fn sample(name: &str, seconds: u64, change: impl FnOnce(&mut Disk)) -> Sample {
        let mut disk = samples::disk(name);
        change(&mut disk);
        let disk = Ok(Box::new((disk, Vec::new())));
        Sample { name: name.into(), at: Duration::from_secs(seconds), disk }
    }

    fn bucket(up_to_us: Option<u64>, count: u64) -> Bucket {
        Bucket { up_to_us, count }
    }

    #[test]
    fn rates_are_differences_by_time() {
        let mut model = Model::new(Sort::Name);
        model.take(vec![sample("a", 10, |_| ())]);
        assert_eq!(model.rows[0].rates, Rates::default());
        assert!(model.rows[0].history.is_empty());
        model.take(vec![sample("a", 12, |disk| {
            disk.requests.reads += 100;
            disk.requests.writes += 50;
            disk.requests.flushes += 4;
            disk.engine.completed += 10;
        })]);
        let rates = model.rows[0].rates;
        assert_eq!(
            (rates.reads, rates.writes, rates.others, rates.engine_jobs),
            (50.0, 25.0, 2.0, 5.0)
        );
        assert_eq!(model.rows[0].history, [77]);
        // Counters that fall are those of a reset, and another process begins anew.
        model.take(vec![sample("a", 13, |disk| disk.requests.reads = 0)]);
        assert_eq!(model.rows[0].rates.reads, 0.0);
        model.take(vec![sample("a", 14, |disk| {
            disk.requests.reads = 1_000_000;
            disk.daemon.pid += 1;
        })]);
        assert_eq!(model.rows[0].rates, Rates::default());
    }

    #[test]
    fn times_are_those_of_what_came_between() {
        let before = [bucket(Some(4), 1000), bucket(Some(16), 5)];
        let now = [bucket(Some(4), 1000), bucket(Some(16), 103), bucket(None, 2)];
        assert_eq!(quantile(&before, &now, 0.5), Some(16.0));
        assert_eq!(quantile(&before, &now, 0.99), Some(f64::INFINITY));
        assert_eq!(quantile(&now, &now, 0.5), None);
        assert_eq!(quantile(&[], &now[..1], 0.99), Some(4.0));
        assert_eq!(quantile(&[], &[], 0.5), None);
    }

    #[test]
    fn rows_are_sorted_and_the_mark_stays_with_its_disk() {
        let mut model = Model::new(Sort::Name);
        let samples = |at| {
            vec![
                sample("vm10", at, |disk| disk.memory.arena_bytes = 1 << 20),
                sample("vm2", at, |disk| {
                    disk.memory.arena_bytes = 9 << 20;
                    disk.requests.reads += at * 5;
                }),
                sample("vm1", at, |disk| disk.memory.pages_bytes = 1 << 30),
            ]
        };
        let names =
            |model: &Model| model.rows.iter().map(|row| row.name.clone()).collect::<Vec<_>>();
        model.take(samples(1));
        assert_eq!(names(&model), ["vm1", "vm2", "vm10"]);
        assert_eq!(model.selected.as_deref(), Some("vm1"));
        model.move_by(1);
        model.take(samples(2));
        for (sort, order) in [
            (Sort::Memory, ["vm2", "vm1", "vm10"]),
            (Sort::Ratio, ["vm2", "vm10", "vm1"]),
            (Sort::Ops, ["vm2", "vm1", "vm10"]),
            (Sort::Data, ["vm1", "vm2", "vm10"]),
        ] {
            model.sort_by(sort);
            assert_eq!(names(&model), order, "{sort:?}");
            assert_eq!(model.selected.as_deref(), Some("vm2"));
        }
        model.move_by(-5);
        assert_eq!(model.position(), Some(0));
        model.move_by(50);
        assert_eq!(model.position(), Some(2));
        // A disk that is gone is not marked any more.
        model.take(vec![sample("new", 3, |_| ())]);
        assert_eq!(model.selected.as_deref(), Some("new"));
        model.take(Vec::new());
        assert_eq!(model.selected, None);
        model.move_by(1);
    }

    #[test]
    fn a_daemon_that_does_not_answer_keeps_its_row() {
        let mut model = Model::new(Sort::Ops);
        model.take(vec![sample("a", 1, |_| ())]);
        let silent =
            Sample { name: "a".into(), at: Duration::from_secs(2), disk: Err("silent".into()) };
        model.take(vec![silent]);
        assert_eq!((model.rows[0].state.as_str(), model.rows[0].fill()), ("silent", 0.0));
        assert_eq!(model.rows[0].history, [0]);
        model.take(vec![sample("a", 3, |_| ())]);
        assert_eq!(model.rows[0].rates, Rates::default());
    }

    #[test]
    fn a_disk_is_full_at_its_limit_or_its_worst_case() {
        let mut model = Model::new(Sort::Name);
        model.take(vec![sample("a", 1, |disk| disk.settings.mem_limit_bytes = total(disk) * 4)]);
        assert_eq!(model.rows[0].fill(), 0.25);
        model.take(vec![sample("a", 1, |disk| {
            disk.settings.mem_limit_bytes = 0;
            disk.memory.worst_case_bytes = total(disk) * 2;
        })]);
        assert_eq!(model.rows[0].fill(), 0.5);
    }
}
