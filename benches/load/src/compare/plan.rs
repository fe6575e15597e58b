//! What is measured: rivals, points, sections, and the order of each round.

use std::fmt;

/// What a rival is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// The daemon with a compression algorithm and further arguments.
    Ours {
        /// Algorithm, as on its command line.
        algorithm: String,
        /// Arguments beside size, socket, queues and algorithm.
        args: Vec<String>,
    },
    /// The kernel's zram, driven by `io_uring`.
    Zram,
    /// The kernel's zram, exported by qemu-storage-daemon as a vhost-user-blk disk.
    ZramQsd,
    /// A file on a tmpfs, exported by qemu-storage-daemon: no compression.
    TmpfsQsd,
    /// nbdkit's memory plugin with zstd, behind qemu-storage-daemon's NBD client.
    Nbdkit,
    /// The back end that does nothing: the generator's ceiling.
    Null,
}

/// One of those that are compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rival {
    /// Its name in rows and tables.
    pub name: String,
    /// What it is.
    pub kind: Kind,
}

impl Rival {
    fn new(name: &str, kind: Kind) -> Self {
        Self { name: name.to_owned(), kind }
    }

    /// Whether it takes part at `point` of `section`. Those that only answer a question of their own keep to
    /// the points that answer it, so that a run stays short.
    pub fn takes_part(&self, section: &Section, point: &Point) -> bool {
        match &self.kind {
            Kind::Ours { algorithm, args } if algorithm.starts_with("zstd") && args.is_empty() => {
                section.main && (point.core || point.is_empty_or_full())
            }
            Kind::Ours { args, .. } if !args.is_empty() => section.corpus == "mix",
            Kind::Null => ["mix", "same"].contains(&section.corpus),
            // One thread of qemu-storage-daemon serves all queues before it, so more of them only take time.
            Kind::Nbdkit => section.queues == 1,
            _ => true,
        }
    }
}

/// The rivals of a run with `algorithm`, and `ours` as pairs of a name and arguments beside.
pub fn rivals(algorithm: &str, ours: &[(String, Vec<String>)]) -> Vec<Rival> {
    let daemon = |algorithm: &str, args: &[String]| Kind::Ours {
        algorithm: algorithm.to_owned(),
        args: args.to_vec(),
    };
    let mut rivals = vec![Rival::new("ours", daemon(algorithm, &[]))];
    rivals.extend(ours.iter().map(|(name, args)| Rival::new(name, daemon(algorithm, args))));
    rivals.extend([
        Rival::new("zram", Kind::Zram),
        Rival::new("zram-qsd", Kind::ZramQsd),
        Rival::new("tmpfs-qsd", Kind::TmpfsQsd),
        Rival::new("nbdkit-zstd", Kind::Nbdkit),
        Rival::new("ours-zstd1", daemon("zstd(level=1)", &[])),
        Rival::new("ours-zstd3", daemon("zstd(level=3)", &[])),
        Rival::new("null", Kind::Null),
    ]);
    rivals
}

/// What a point does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Writes the whole empty disk once.
    Fill,
    /// Runs a pattern of the generator for some time.
    Timed {
        /// The pattern's name.
        op: &'static str,
        /// Bytes of an operation.
        block: u32,
        /// Operations in flight on each queue.
        depth: u16,
        /// Whether the client polls, or sleeps until it is interrupted.
        poll: bool,
    },
    /// Discards a part of the disk once.
    Discard {
        /// Bytes of a discard.
        block: u32,
        /// Discards in flight.
        depth: u16,
        /// Which.
        part: Part,
    },
}

/// A part of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// All of it.
    All,
    /// Its first half.
    First,
    /// Its second half.
    Second,
}

/// One measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Point {
    /// What it does.
    pub work: Work,
    /// Whether it is among the few that stand for all.
    pub core: bool,
}

impl Point {
    fn is_empty_or_full(self) -> bool {
        !matches!(self.work, Work::Timed { .. })
    }

    /// The generator's arguments for it on a disk of `size` bytes.
    pub fn arguments(self, size: u64) -> Vec<String> {
        let mut arguments = Vec::new();
        let mut add = |name: &str, value: String| arguments.extend([name.to_owned(), value]);
        match self.work {
            Work::Fill => return vec!["--fill-only".into()],
            Work::Timed { op, block, depth, poll } => {
                add("--op", op.to_owned());
                add("--bs", block.to_string());
                add("--depth", depth.to_string());
                add("--wait", if poll { "poll" } else { "irq" }.to_owned());
            }
            Work::Discard { block, depth, part } => {
                let (from, to) = match part {
                    Part::All => (0, size),
                    Part::First => (0, size / 2),
                    Part::Second => (size / 2, size),
                };
                add("--op", "discard".to_owned());
                add("--bs", block.to_string());
                add("--depth", depth.to_string());
                add("--ops", ((to - from) / u64::from(block)).to_string());
                add("--skip", from.to_string());
                add("--span", to.to_string());
            }
        }
        arguments
    }
}

/// As it is called in rows and tables: `randread-4K-d32-poll`.
impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = |bytes: u32| match bytes {
            b if b.is_multiple_of(1 << 20) => format!("{}M", b >> 20),
            b => format!("{}K", b >> 10),
        };
        match self.work {
            Work::Fill => write!(f, "fill-128K"),
            Work::Timed { op, block, depth, poll } => {
                let op = if op == "mix" { "mix70" } else { op };
                write!(f, "{op}-{}-d{depth}{}", size(block), if poll { "-poll" } else { "" })
            }
            Work::Discard { block, depth, .. } => write!(f, "discard-{}-d{depth}", size(block)),
        }
    }
}

/// Points on one corpus, by as many queues, with servers of their own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    /// Corpus of the disk's contents.
    pub corpus: &'static str,
    /// Queues, each driven by a thread.
    pub queues: usize,
    /// Whether it is the one with all points.
    pub main: bool,
    /// The points in their order; the disk is empty before the first.
    pub points: Vec<Point>,
}

impl Section {
    /// Leaves out the timed points whose name contains none of `texts`, if there are any.
    pub fn keep(&mut self, texts: &[String]) {
        self.points.retain(|point| {
            let name = point.to_string();
            texts.is_empty() || point.is_empty_or_full() || texts.iter().any(|t| name.contains(t))
        });
    }
}

const PAGE: u32 = 4 << 10;
const LARGE: u32 = 128 << 10;
/// As large as a discard may be for qemu-storage-daemon.
const HUGE: u32 = 16 << 20;

fn timed(op: &'static str, block: u32, depth: u16, poll: bool, core: bool) -> Point {
    Point { work: Work::Timed { op, block, depth, poll }, core }
}

/// The sections of a whole run; of a quick one, the core points on the mix.
pub fn sections(quick: bool) -> Vec<Section> {
    let fill = Point { work: Work::Fill, core: true };
    let discard =
        |block, depth, part| Point { work: Work::Discard { block, depth, part }, core: true };
    let ends = [discard(PAGE, 32, Part::First), discard(HUGE, 1, Part::Second)];
    let mut points = vec![fill];
    for op in ["randread", "randwrite"] {
        points.extend([
            timed(op, PAGE, 1, false, false),
            timed(op, PAGE, 1, true, false),
            timed(op, PAGE, 8, false, false),
            timed(op, PAGE, 32, false, true),
            timed(op, PAGE, 32, true, false),
        ]);
    }
    points.extend([
        timed("mix", PAGE, 1, true, false),
        timed("mix", PAGE, 8, false, false),
        timed("mix", PAGE, 32, false, false),
    ]);
    for op in ["read", "write"] {
        points.extend([timed(op, LARGE, 8, false, true), timed(op, LARGE, 8, true, false)]);
    }
    points.extend(ends);
    if quick {
        points.retain(|point| point.core);
        return vec![Section { corpus: "mix", queues: 1, main: true, points }];
    }
    let two = vec![
        fill,
        timed("randread", PAGE, 32, false, true),
        timed("randwrite", PAGE, 32, false, true),
        timed("mix", PAGE, 32, false, false),
        ends[0],
        ends[1],
    ];
    let few = vec![
        fill,
        timed("randread", PAGE, 32, false, true),
        timed("randwrite", PAGE, 32, false, true),
        discard(HUGE, 1, Part::All),
    ];
    let mut sections = vec![
        Section { corpus: "mix", queues: 1, main: true, points },
        Section { corpus: "mix", queues: 2, main: false, points: two },
    ];
    for corpus in ["anon", "files", "random"] {
        sections.push(Section { corpus, queues: 1, main: false, points: few.clone() });
    }
    // No codec runs for these pages, so what is left is the server's own; only a polling client keeps up.
    let same = vec![
        fill,
        timed("randread", PAGE, 32, true, false),
        timed("randwrite", PAGE, 32, true, false),
        discard(HUGE, 1, Part::All),
    ];
    sections.push(Section { corpus: "same", queues: 1, main: false, points: same });
    sections
}

/// Which of `count` rivals run first, second and so on in a round: another begins each time, so that none
/// always runs after the same part of the round.
pub fn order(count: usize, round: u32) -> Vec<usize> {
    (0..count).map(|i| (i + round as usize) % count).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_rival_begins_a_round_in_turn_and_runs_once_in_it() {
        let firsts: Vec<_> = (0..3).map(|round| order(3, round)[0]).collect();
        assert_eq!(firsts, [0, 1, 2]);
        let all: BTreeSet<_> = order(5, 7).into_iter().collect();
        assert_eq!(all, (0..5).collect());
        assert!(order(0, 3).is_empty());
    }

    #[test]
    fn a_section_fills_first_discards_last_and_names_no_point_twice() {
        for section in sections(false).into_iter().chain(sections(true)) {
            let names: BTreeSet<_> = section.points.iter().map(ToString::to_string).collect();
            assert_eq!(names.len(), section.points.len(), "{section:?}");
            assert_eq!(section.points[0].work, Work::Fill);
            // All is discarded at the end, so that the next round's fill finds an empty disk.
            let discarded: Vec<_> = section
                .points
                .iter()
                .filter_map(|p| match p.work {
                    Work::Discard { part, .. } => Some(part),
                    _ => None,
                })
                .collect();
            let all = [&[Part::All][..], &[Part::First, Part::Second]].contains(&&discarded[..]);
            assert!(all, "{section:?}");
        }
    }

    #[test]
    fn points_say_what_the_generator_has_to_do() {
        let point = timed("mix", PAGE, 8, true, false);
        assert_eq!(point.to_string(), "mix70-4K-d8-poll");
        assert_eq!(point.arguments(1 << 30).join(" "), "--op mix --bs 4096 --depth 8 --wait poll");
        let storm = Work::Discard { block: HUGE, depth: 1, part: Part::Second };
        let storm = Point { work: storm, core: true };
        assert_eq!(storm.to_string(), "discard-16M-d1");
        assert_eq!(
            storm.arguments(64 << 20).join(" "),
            "--op discard --bs 16777216 --depth 1 --ops 2 --skip 33554432 --span 67108864"
        );
    }

    #[test]
    fn what_is_kept_still_fills_and_discards() {
        let mut section = sections(false).remove(0);
        section.keep(&[]);
        assert_eq!(section, sections(false)[0]);
        section.keep(&["randread-4K-d32".into()]);
        let names: Vec<_> = section.points.iter().map(ToString::to_string).collect();
        let kept = ["randread-4K-d32", "randread-4K-d32-poll"];
        assert_eq!(names[1..3], kept);
        assert_eq!((names.len(), names[0].as_str()), (5, "fill-128K"));
    }

    #[test]
    fn rivals_of_one_question_keep_to_its_points() {
        let rivals = rivals("lz4", &[("ours-poll".into(), vec!["--poll-us".into(), "50".into()])]);
        let names: BTreeSet<_> = rivals.iter().map(|r| &r.name).collect();
        assert_eq!(names.len(), rivals.len());
        let sections = sections(false);
        let points = |name: &str, section: &Section| {
            let rival = rivals.iter().find(|r| r.name == name).unwrap();
            section.points.iter().filter(|p| rival.takes_part(section, p)).count()
        };
        let (main, anon) = (&sections[0], &sections[2]);
        assert_eq!(points("ours", main), main.points.len());
        assert_eq!(points("ours-poll", main), main.points.len());
        assert_eq!(points("ours-zstd1", main), 7);
        assert_eq!(points("zram", anon), anon.points.len());
        assert_eq!(points("nbdkit-zstd", anon), anon.points.len());
        assert_eq!(points("nbdkit-zstd", &sections[1]), 0);
        for rival in ["ours-poll", "ours-zstd1", "null"] {
            assert_eq!(points(rival, anon), 0, "{rival}");
        }
        // The ceiling binds there first, so it is measured with them.
        let same = &sections[5];
        assert_eq!((same.corpus, points("null", same)), ("same", same.points.len()));
        assert_eq!(points("ours", same), same.points.len());
    }
}
