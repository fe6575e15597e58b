//! The figures of a disk in Prometheus' text format.
//!
//! Figures that the report declares (`docs/figures.md`) keep their names from there; what else there is stands
//! here. All names begin with `vhost_user_zram_` and end with their unit, and each series has the label `disk`.
//! Nothing is kept between two scrapes: a report is made, and written down.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, prometheus_text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use crate::codec::CodecSpec;
use crate::device::{Latencies, Report};
use crate::engine;
use crate::stats::{Figure, Kind, Unit};

/// The `Content-Type` of the text.
pub const CONTENT_TYPE: &str = prometheus_text::CONTENT_TYPE;

/// What of the daemon is told, at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Scrape {
    /// The disk's name.
    pub disk: String,
    /// Its size in bytes.
    pub size: u64,
    /// The codec of its writes.
    pub codec: CodecSpec,
    /// Whether a front end is served.
    pub connected: bool,
    /// Sessions of front ends that began since the start of the daemon.
    pub sessions_begun: u64,
    /// Time since the start of the daemon.
    pub uptime: Duration,
    /// The disk's figures.
    pub report: Report,
}

/// The text that a scrape gets.
pub fn text(scrape: Scrape) -> String {
    let disk = (Cow::Borrowed("disk"), Cow::Owned(scrape.disk.clone()));
    let mut registry = Registry::with_labels(std::iter::once(disk));
    registry.register_collector(Box::new(scrape));
    let mut text = String::new();
    // A string takes all that is written to it.
    let written = prometheus_text::encode(&mut text, &registry);
    debug_assert!(written.is_ok());
    text
}

/// Series that share a name.
struct Family {
    name: String,
    kind: Kind,
    help: Cow<'static, str>,
    series: Vec<(Labels, Value)>,
}

type Labels = Vec<(&'static str, Cow<'static, str>)>;

enum Value {
    Whole(u64),
    Part(f64),
    /// Counts by upper end in seconds, and the sum of all.
    Histogram(Vec<(f64, u64)>, f64),
}

/// What is said of families that have several figures, each of which has a help of its own.
fn shared_help(stem: &str) -> Option<&'static str> {
    match stem {
        "memory" => Some(
            "Memory that the disk takes, by kind: arena (compressed pages), table (slot words), and notes.",
        ),
        "request_latency" => {
            Some("Requests by the time from their taking to their completion, by operation.")
        }
        _ => None,
    }
}

impl Scrape {
    fn families(&self) -> Vec<Family> {
        let mut families = vec![
            info(
                "build_info",
                "The daemon, by its labels.",
                vec![("version", env!("CARGO_PKG_VERSION").into())],
            ),
            info(
                "disk_info",
                "The disk, by its labels.",
                vec![("algorithm", self.codec.to_string().into())],
            ),
            gauge(
                "uptime_seconds",
                "Time since the start of the daemon.",
                Value::Part(self.uptime.as_secs_f64()),
            ),
            gauge("size_bytes", "Size of the disk.", Value::Whole(self.size)),
            gauge(
                "connected_sessions",
                "1 while a front end is connected, else 0.",
                Value::Whole(self.connected.into()),
            ),
            Family {
                name: "vhost_user_zram_begun_sessions_total".into(),
                kind: Kind::Counter,
                help: "Sessions of front ends since the start of the daemon.".into(),
                series: vec![(Vec::new(), Value::Whole(self.sessions_begun))],
            },
        ];
        for (figure, value) in self.report.numbers() {
            // Microseconds become what is a base unit.
            let value = match figure.unit {
                Unit::Microseconds => Value::Part(Duration::from_micros(value).as_secs_f64()),
                _ => Value::Whole(value),
            };
            add(&mut families, figure, value);
        }
        let service = &self.report.engine_service;
        let service = seconds(service.buckets(), service.total());
        add(&mut families, &engine::Histogram::FIGURE, service);
        for (figure, latency) in Latencies::FIGURES.iter().zip(self.report.latencies.values()) {
            add(&mut families, figure, seconds(latency.buckets(), latency.sum()));
        }
        families
    }
}

fn gauge(name: &str, help: &'static str, value: Value) -> Family {
    let name = format!("vhost_user_zram_{name}");
    Family { name, kind: Kind::Gauge, help: help.into(), series: vec![(Vec::new(), value)] }
}

fn info(name: &str, help: &'static str, labels: Labels) -> Family {
    Family { series: vec![(labels, Value::Whole(1))], ..gauge(name, help, Value::Whole(1)) }
}

/// Adds a figure to its family, which may be there already.
fn add(families: &mut Vec<Family>, figure: &Figure, value: Value) {
    let name = figure.metric();
    let labels = figure.label.map(|(key, of)| (key, Cow::Borrowed(of)));
    let series = (Vec::from_iter(labels), value);
    match families.iter_mut().find(|family| family.name == name) {
        Some(family) => family.series.push(series),
        None => {
            let help = shared_help(figure.stem).unwrap_or(figure.help.trim());
            families.push(Family {
                name,
                kind: figure.kind,
                help: help.into(),
                series: vec![series],
            });
        }
    }
}

/// A histogram of times whose buckets end at so many microseconds.
fn seconds(buckets: impl Iterator<Item = (Option<u64>, u64)>, sum: Duration) -> Value {
    let end =
        |us: Option<u64>| us.map_or(f64::INFINITY, |us| Duration::from_micros(us).as_secs_f64());
    Value::Histogram(buckets.map(|(us, count)| (end(us), count)).collect(), sum.as_secs_f64())
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for Family { name, kind, help, series } in &self.families() {
            // The encoder puts the end of a counter's name back.
            let (name, kind) = match kind {
                Kind::Counter => (name.strip_suffix("_total").unwrap_or(name), MetricType::Counter),
                Kind::Gauge => (name.as_str(), MetricType::Gauge),
                Kind::Histogram => (name.as_str(), MetricType::Histogram),
            };
            let mut metric = encoder.encode_descriptor(name, help, None, kind)?;
            for (labels, value) in series {
                encode(metric.encode_family(labels)?, kind, value)?;
            }
        }
        Ok(())
    }
}

fn encode(mut metric: MetricEncoder<'_>, kind: MetricType, value: &Value) -> fmt::Result {
    match (kind, value) {
        (_, Value::Histogram(buckets, sum)) => {
            let count = buckets.iter().map(|(_, jobs)| jobs).sum();
            metric.encode_histogram::<NoLabelSet>(*sum, count, buckets, None)
        }
        (MetricType::Counter, Value::Whole(value)) => {
            metric.encode_counter::<NoLabelSet, _, u64>(value, None)
        }
        (MetricType::Counter, Value::Part(value)) => {
            metric.encode_counter::<NoLabelSet, _, f64>(value, None)
        }
        (_, Value::Whole(value)) => metric.encode_gauge(value),
        (_, Value::Part(value)) => metric.encode_gauge(value),
    }
}
