//! Figures, declared once: name, kind, unit, meaning and source stand in one place, from which come the
//! fields of a report, the line of statistics, the names of metrics, and `docs/figures.md`.

use std::fmt;

/// How a figure behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It only grows, from 0 at the start of the process.
    Counter,
    /// It goes up and down.
    Gauge,
    /// It counts events by size.
    Histogram,
}

/// What a figure counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Bytes.
    Bytes,
    /// Pages of 4 KiB.
    Pages,
    /// Requests of guests.
    Requests,
    /// Virtqueues.
    Queues,
    /// Jobs of the engine, each of which compresses or decompresses one page.
    Jobs,
    /// Submissions of one or more jobs.
    Submissions,
    /// Worker threads.
    Workers,
    /// Times that a queue thread polled its rings.
    Polls,
    /// Microseconds; metrics have seconds.
    Microseconds,
}

impl Unit {
    /// The unit as the names of metrics have it: base units, in the plural.
    const fn of_metric(self) -> &'static str {
        match self {
            Unit::Bytes => "bytes",
            Unit::Pages => "pages",
            Unit::Requests => "requests",
            Unit::Queues => "queues",
            Unit::Jobs => "jobs",
            Unit::Submissions => "submissions",
            Unit::Workers => "workers",
            Unit::Polls => "polls",
            Unit::Microseconds => "seconds",
        }
    }
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unit::Microseconds => f.write_str("microseconds"),
            unit => f.write_str(unit.of_metric()),
        }
    }
}

/// One figure, whatever its value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Figure {
    /// Its name in the line of statistics; the kernel's where zram has it.
    pub name: &'static str,
    /// How it behaves.
    pub kind: Kind,
    /// What it counts.
    pub unit: Unit,
    /// What of the metric's name is its own.
    pub stem: &'static str,
    /// The label by which it differs from other figures of the same metric, and its value.
    pub label: Option<(&'static str, &'static str)>,
    /// What it says.
    pub help: &'static str,
}

impl Figure {
    /// Its name as a metric of Prometheus, which ends with the unit (and `total` for a counter).
    pub fn metric(&self) -> String {
        let total = if self.kind == Kind::Counter { "_total" } else { "" };
        format!("vhost_user_zram_{}_{}{total}", self.stem, self.unit.of_metric())
    }

    /// Its metric's name, with its label if it has one: no other figure has the same.
    pub fn series(&self) -> String {
        let label = self.label.map(|(key, value)| format!("{{{key}=\"{value}\"}}"));
        self.metric() + &label.unwrap_or_default()
    }
}

/// Declares a report and the counters in it:
///
/// ```text
/// /// What the report is.
/// pub struct Report from source: &Source;
/// /// What the counters are.
/// pub struct Counters of Counter { other }
/// prefix "engine_";
/// /// What it says.
/// jobs: Counter Jobs "engine_submitted" counted(pub);
/// /// What it says.
/// depth: Gauge Jobs "engine_queued" = source.depth();
/// /// What it says.
/// table: Gauge Bytes "memory" { "kind": "table" } = source.table();
/// ```
///
/// Each row is a field of the report, and a figure whose name is prefix and field. A row that is `counted`
/// is a field of the counters, too, of the visibility behind that; its value is what `source.count` says
/// of it. Counters in braces are no figures. Fields in a block `beside { ... }` at the end are not, either.
macro_rules! report {
    (
        $(#[$about:meta])*
        pub struct $report:ident from $source:ident: $from:ty;
        $(#[$counters_about:meta])*
        $counters_visible:vis struct $counters:ident of $counter:ty { $($beside:ident),* }
        prefix $prefix:literal;
        $(
            $(#[doc = $help:literal])+
            $name:ident: $kind:ident $unit:ident $stem:literal $({ $label:literal: $of:literal })?
                $(counted($visible:vis))? $(= $value:expr)?;
        )+
        $(beside {
            $( $(#[doc = $also_help:literal])+ $also:ident: $also_type:ty = $also_value:expr; )+
        })?
    ) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        pub struct $report {
            $( $(#[doc = $help])+ pub $name: u64, )+
            $( $( $(#[doc = $also_help])+ pub $also: $also_type, )+ )?
        }

        impl $report {
            /// What the fields are, in their order.
            pub const FIGURES: &'static [$crate::stats::Figure] = &[
                $( $crate::stats::Figure {
                    name: concat!($prefix, stringify!($name)),
                    kind: $crate::stats::Kind::$kind,
                    unit: $crate::stats::Unit::$unit,
                    stem: $stem,
                    label: $crate::stats::report!(@label $($label $of)?),
                    help: concat!($($help),+),
                }, )+
            ];

            fn collect($source: $from) -> Self {
                Self {
                    $( $name: $crate::stats::report!(
                        @value $source $counters $name $(counted($visible))? $(= $value)?
                    ), )+
                    $( $( $also: $also_value, )+ )?
                }
            }

            /// The fields' values, in their order.
            pub(crate) fn values(&self) -> impl Iterator<Item = u64> {
                [$(self.$name),+].into_iter()
            }
        }

        $(#[$counters_about])*
        #[derive(Debug, Default)]
        $counters_visible struct $counters {
            $( $(
                #[doc = concat!("See [`", stringify!($report), "::", stringify!($name), "`].")]
                $visible $name: $counter,
            )? )+
            $( $beside: $counter, )*
        }

        impl $counters {
            /// The counters that only grow, in the order of the figures.
            pub(crate) fn growing(&self) -> impl Iterator<Item = &$counter> {
                [$( $( $crate::stats::report!(@growing $kind self $name $visible), )? )+].into_iter().flatten()
            }
        }
    };
    (@growing Counter $self:ident $name:ident $visible:vis) => {
        Some(&$self.$name)
    };
    (@growing $kind:ident $self:ident $name:ident $visible:vis) => {
        None
    };
    (@value $source:ident $counters:ident $name:ident counted($visible:vis)) => {
        $source.count(|counters: &$counters| &counters.$name)
    };
    (@value $source:ident $counters:ident $name:ident = $value:expr) => {
        $value
    };
    (@label) => {
        None
    };
    (@label $label:literal $of:literal) => {
        Some(($label, $of))
    };
}

pub(crate) use report;

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    struct Source {
        counters: Counters,
        depth: u64,
    }

    impl Source {
        fn count(&self, counter: impl Fn(&Counters) -> &Cell<u64>) -> u64 {
            counter(&self.counters).get()
        }
    }

    report! {
        /// A report.
        pub struct Report from source: &Source;
        /// Its counters.
        pub struct Counters of Cell<u64> { other }
        prefix "test_";
        /// How many
        /// there were.
        jobs: Counter Jobs "done" counted(pub(super));
        /// How deep it is.
        depth: Gauge Bytes "depth" { "kind": "sea" } = source.depth + 1;
    }

    #[test]
    fn a_row_is_a_field_a_counter_and_a_figure() {
        let source = Source { counters: Counters::default(), depth: 4 };
        source.counters.jobs.set(3);
        source.counters.other.set(9);
        let report = Report::collect(&source);
        assert_eq!((report.jobs, report.depth), (3, 5));
        assert_eq!(report.values().collect::<Vec<_>>(), [3, 5]);
        assert_eq!(source.counters.growing().map(Cell::get).collect::<Vec<_>>(), [3]);
        let [jobs, depth] = Report::FIGURES else { panic!("{:?}", Report::FIGURES) };
        assert_eq!((jobs.name, depth.name), ("test_jobs", "test_depth"));
        assert_eq!(jobs.help.trim(), "How many there were.");
        assert_eq!(jobs.metric(), "vhost_user_zram_done_jobs_total");
        assert_eq!(depth.metric(), "vhost_user_zram_depth_bytes");
        assert_eq!(jobs.series(), jobs.metric());
        assert_eq!(depth.series(), "vhost_user_zram_depth_bytes{kind=\"sea\"}");
    }
}
