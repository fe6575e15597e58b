//! What the rows say, by section, point and rival.

use crate::{
    rows::{Memory, Sample},
    stats::{Spread, ceiling_binds, ratios},
};

/// The rival that ratios are taken to.
pub const BASE: &str = "zram";
/// The rival that is the generator's ceiling.
pub const CEILING: &str = "null";
/// Bytes of a page.
const PAGE: f64 = 4096.0;

/// Something measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Figure {
    /// Operations a second.
    Ops,
    /// Processor time of the server in microseconds, for each 4 KiB of an operation.
    Cpu,
    /// Median latency in microseconds.
    P50,
    /// Latency that 99 % do not exceed, in microseconds.
    P99,
}

impl Figure {
    fn of(self, sample: &Sample) -> Option<f64> {
        match self {
            Self::Ops => Some(sample.ops),
            Self::Cpu => sample.cpu.map(|cpu| cpu / (sample.block / PAGE)),
            Self::P50 => Some(sample.p50),
            Self::P99 => Some(sample.p99),
        }
    }
}

/// A corpus by a number of queues.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    /// Corpus.
    pub corpus: String,
    /// Queues.
    pub queues: usize,
}

/// One figure of one rival at one point.
#[derive(Debug, Clone, Copy)]
pub struct Cell {
    /// Over the rounds.
    pub spread: Spread,
    /// Whether the generator's ceiling binds, so that the figure says nothing of the server.
    pub bound: bool,
}

/// All that was measured.
pub struct Figures<'a> {
    samples: &'a [Sample],
    /// Memory of full disks.
    pub memory: &'a [Memory],
}

fn distinct<T: PartialEq>(all: impl Iterator<Item = T>) -> Vec<T> {
    let mut found = Vec::new();
    for one in all {
        if !found.contains(&one) {
            found.push(one);
        }
    }
    found
}

impl<'a> Figures<'a> {
    /// Takes the samples of a run.
    pub fn new(samples: &'a [Sample], memory: &'a [Memory]) -> Self {
        Self { samples, memory }
    }

    fn of_section(&self, section: &Section) -> impl Iterator<Item = &'a Sample> {
        let Section { corpus, queues } = section.clone();
        self.samples.iter().filter(move |s| s.corpus == corpus && s.queues == queues)
    }

    /// Sections, in the order of the run.
    pub fn sections(&self) -> Vec<Section> {
        let of = |s: &Sample| Section { corpus: s.corpus.clone(), queues: s.queues };
        distinct(self.samples.iter().map(of))
    }

    /// Points of a section, in the order of the run.
    pub fn points(&self, section: &Section) -> Vec<&'a str> {
        distinct(self.of_section(section).map(|s| s.point.as_str()))
    }

    /// Rivals of a section: ours first, the ceiling last, the others in the order of the first round.
    pub fn rivals(&self, section: &Section) -> Vec<&'a str> {
        let mut rivals = distinct(self.of_section(section).map(|s| s.rival.as_str()));
        rivals.sort_by_key(|rival| (*rival == CEILING, !rival.starts_with("ours")));
        rivals
    }

    /// Value of each round.
    fn values(
        &self,
        section: &Section,
        point: &str,
        rival: &str,
        figure: Figure,
    ) -> Vec<(u32, f64)> {
        self.of_section(section)
            .filter(|s| s.point == point && s.rival == rival)
            .filter_map(|s| Some((s.round, figure.of(s)?)))
            .collect()
    }

    fn spread(
        &self,
        section: &Section,
        point: &str,
        rival: &str,
        figure: Figure,
    ) -> Option<Spread> {
        let values = self.values(section, point, rival, figure);
        Spread::of(values.into_iter().map(|(_, value)| value))
    }

    /// The most that the generator does against the null back end, which sees no difference between corpora. A
    /// round in which the machine was busy does not lower what the generator can do.
    fn ceiling(&self, section: &Section, point: &str) -> Option<f64> {
        let mut alike = self.sections();
        alike.retain(|other| other.queues == section.queues);
        let of = |section: &Section| self.spread(section, point, CEILING, Figure::Ops);
        of(section).or_else(|| alike.iter().find_map(of)).map(|spread| spread.max)
    }

    /// One figure of one rival at one point.
    pub fn cell(
        &self,
        section: &Section,
        point: &str,
        rival: &str,
        figure: Figure,
    ) -> Option<Cell> {
        let spread = self.spread(section, point, rival, figure)?;
        let bound = self.is_bound(section, point, rival);
        Some(Cell { spread, bound })
    }

    fn is_bound(&self, section: &Section, point: &str, rival: &str) -> bool {
        // The device is reached in another way, which the null back end says nothing of.
        let reached_alike = rival != CEILING && rival != BASE;
        let ops = self.spread(section, point, rival, Figure::Ops);
        reached_alike
            && ops.is_some_and(|ops| ceiling_binds(ops.median, self.ceiling(section, point)))
    }

    /// Ratio of a figure of two rivals, from round to round; none where a ceiling binds one of them.
    pub fn ratio(
        &self,
        section: &Section,
        point: &str,
        (rival, base): (&str, &str),
        figure: Figure,
    ) -> Option<Spread> {
        let bound = |rival| self.is_bound(section, point, rival);
        if rival == CEILING || bound(rival) || bound(base) {
            return None;
        }
        let values = |rival| self.values(section, point, rival, figure);
        ratios(&values(rival), &values(base))
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A sample of a test.
    pub fn sample(round: u32, rival: &str, corpus: &str, ops: f64) -> Sample {
        Sample {
            round,
            rival: rival.into(),
            point: "write-128K-d8".into(),
            corpus: corpus.into(),
            queues: 1,
            block: 131_072.0,
            ops,
            p50: 10.0,
            p99: 20.0,
            cpu: (rival != "zram").then_some(64.0),
        }
    }

    fn section(corpus: &str) -> Section {
        Section { corpus: corpus.into(), queues: 1 }
    }

    #[test]
    fn figures_are_found_by_section_point_and_rival() {
        let samples = [
            sample(0, "null", "mix", 1000.0),
            sample(0, "zram", "mix", 100.0),
            sample(0, "ours", "mix", 300.0),
            sample(1, "ours", "mix", 500.0),
            sample(0, "ours", "anon", 7.0),
        ];
        let figures = Figures::new(&samples, &[]);
        assert_eq!(figures.sections(), [section("mix"), section("anon")]);
        assert_eq!(figures.rivals(&section("mix")), ["ours", "zram", "null"]);
        let at = (&section("mix"), "write-128K-d8");
        let cell = figures.cell(at.0, at.1, "ours", Figure::Ops).unwrap();
        assert_eq!(cell.spread, Spread { median: 400.0, min: 300.0, max: 500.0 });
        // Of the two rounds only one has both.
        let ratio = figures.ratio(at.0, at.1, ("ours", "zram"), Figure::Ops).unwrap();
        assert_eq!(ratio, Spread { median: 3.0, min: 3.0, max: 3.0 });
        // 128 KiB are 32 pages.
        let cell = figures.cell(at.0, at.1, "ours", Figure::Cpu).unwrap();
        assert!((cell.spread.median - 2.0).abs() < 1e-9);
        assert!(figures.cell(at.0, at.1, "zram", Figure::Cpu).is_none());
    }

    #[test]
    fn a_row_that_the_ceiling_binds_has_no_ratio() {
        let samples = [
            sample(0, "null", "mix", 100.0),
            // A slow round, which says nothing of the ceiling.
            sample(1, "null", "mix", 10.0),
            sample(0, "zram", "mix", 99.0),
            sample(0, "ours", "mix", 90.0),
            sample(0, "ours", "anon", 90.0),
            sample(0, "tmpfs-qsd", "mix", 50.0),
        ];
        let figures = Figures::new(&samples, &[]);
        for corpus in ["mix", "anon"] {
            let cell =
                figures.cell(&section(corpus), "write-128K-d8", "ours", Figure::P50).unwrap();
            assert!(cell.bound, "{corpus}");
        }
        let mix = section("mix");
        let ratio = |rival| figures.ratio(&mix, "write-128K-d8", (rival, "zram"), Figure::Ops);
        assert!(ratio("ours").is_none());
        assert!(ratio("null").is_none());
        assert!(ratio("tmpfs-qsd").is_some());
        assert!(!figures.cell(&mix, "write-128K-d8", "zram", Figure::Ops).unwrap().bound);
    }
}
