//! The metrics as a scraper reads them.

use std::collections::BTreeMap;
use std::time::Duration;

use super::metrics::{Scrape, text};
use crate::device::Report;
use crate::engine::EngineReport;
use prometheus::{Family, parse};

#[path = "../../tests/common/prometheus.rs"]
mod prometheus;

fn scrape(report: Report) -> BTreeMap<String, Family> {
    let scrape = Scrape {
        disk: "vm\"1\\".into(),
        size: 1 << 30,
        codec: "zstd(level=9)".parse().unwrap(),
        connected: true,
        sessions_begun: 3,
        uptime: Duration::from_millis(1500),
        report,
    };
    let page = text(scrape);
    parse(&page).unwrap_or_else(|error| panic!("{error}\n{page}"))
}

fn value(families: &BTreeMap<String, Family>, name: &str, label: Option<(&str, &str)>) -> f64 {
    let family = &families[name];
    let fits = |labels: &BTreeMap<String, String>| {
        label.is_none_or(|(key, value)| labels.get(key).is_some_and(|found| found == value))
    };
    let found: Vec<_> = family.samples.iter().filter(|sample| fits(&sample.labels)).collect();
    assert_eq!(found.len(), 1, "{name} {label:?}: {family:?}");
    found[0].value
}

#[test]
fn each_figure_is_there_once_with_its_value_and_its_disk() {
    let mut report = Report { reads: 7, poll_us: 2_500_000, ..Report::default() };
    report.table_bytes = 4096;
    report.engine = EngineReport { depth: 5, ..EngineReport::default() };
    let families = scrape(report);
    for (figure, number) in report.numbers() {
        let found = value(&families, &figure.metric(), figure.label);
        let expected = if figure.name == "poll_us" { 2.5 } else { number as f64 };
        assert_eq!(found, expected, "{}", figure.name);
        let kind = format!("{:?}", figure.kind).to_lowercase();
        assert_eq!(families[&figure.metric()].kind, kind, "{}", figure.name);
    }
    let table = value(&families, "vhost_user_zram_memory_bytes", Some(("kind", "table")));
    assert_eq!(table, 4096.0);
    assert_eq!(value(&families, "vhost_user_zram_read_requests_total", None), 7.0);
    assert_eq!(value(&families, "vhost_user_zram_size_bytes", None), f64::from(1 << 30));
    assert_eq!(value(&families, "vhost_user_zram_connected_sessions", None), 1.0);
    assert_eq!(value(&families, "vhost_user_zram_begun_sessions_total", None), 3.0);
    assert_eq!(value(&families, "vhost_user_zram_uptime_seconds", None), 1.5);
    let algorithm = Some(("algorithm", "zstd(level=9)"));
    assert_eq!(value(&families, "vhost_user_zram_disk_info", algorithm), 1.0);
    let version = Some(("version", env!("CARGO_PKG_VERSION")));
    assert_eq!(value(&families, "vhost_user_zram_build_info", version), 1.0);
    for sample in families.values().flat_map(|family| &family.samples) {
        assert_eq!(sample.labels["disk"], "vm\"1\\", "{sample:?}");
    }
}

#[test]
fn every_name_has_a_unit_and_every_family_a_meaning() {
    const UNITS: [&str; 10] = [
        "bytes",
        "seconds",
        "pages",
        "requests",
        "queues",
        "jobs",
        "submissions",
        "workers",
        "polls",
        "sessions",
    ];
    for (name, family) in scrape(Report::default()) {
        assert!(name.starts_with("vhost_user_zram_"), "{name}");
        let base = name.strip_suffix("_total").unwrap_or(&name);
        let unit = base.rsplit('_').next().unwrap_or_default();
        assert!(UNITS.contains(&unit) || unit == "info", "{name} has no unit");
        assert!(family.help.ends_with('.') && family.help.len() > 10, "{name}: {}", family.help);
    }
}

#[test]
fn the_document_names_each_metric() {
    let document = include_str!("../../docs/figures.md");
    for (name, family) in scrape(Report::default()) {
        let labels = &family.samples[0].labels;
        let own = labels.iter().find(|(key, _)| ["kind", "operation"].contains(&key.as_str()));
        let own = own.map(|(key, value)| format!("{{{key}=\"{value}\"}}"));
        let row = format!("`{name}{}`", own.unwrap_or_default());
        assert!(document.contains(&row), "{row} is not in docs/figures.md");
    }
}

#[test]
fn the_reader_sees_what_it_is_for() {
    let head = "# HELP a_total A.\n# TYPE a_total counter\n";
    let gauge = "# HELP b B.\n# TYPE b gauge\n";
    let histogram = "# HELP h H.\n# TYPE h histogram\n";
    for good in [
        format!("{head}a_total{{x=\"1\"}} 1\na_total{{x=\"2\"}} 1e3\n{gauge}b -0.5\n"),
        format!(
            "{histogram}h_bucket{{le=\"1\"}} 1\nh_bucket{{le=\"+Inf\"}} 2\nh_sum 3\nh_count 2\n"
        ),
    ] {
        assert!(parse(&good).is_ok(), "{good}");
    }
    for bad in [
        "a_total 1\n".to_owned(),
        format!("{head}a_total 1"),
        format!("{head}{gauge}b 1\n"),
        format!("{head}a_total 1\na_total 2\n"),
        format!("{head}a_total -1\n"),
        format!("{head}a_total{{x=\"1}} 1\n"),
        format!("{head}a_total{{x=\"\\z\"}} 1\n"),
        format!("{head}a_total{{x=\"1\",x=\"1\"}} 1\n"),
        format!("{head}a_total inf\n"),
        format!("{head}b 1\n"),
        format!("{gauge}b 1\n{head}a_total 1\n{gauge}b 2\n"),
        "# HELP a A.\n# TYPE a counter\na 1\n".to_owned(),
        "# HELP a-b A.\n# TYPE a-b gauge\na-b 1\n".to_owned(),
        format!("{histogram}h_bucket{{le=\"1\"}} 1\nh_sum 3\nh_count 1\n"),
        format!(
            "{histogram}h_bucket{{le=\"1\"}} 3\nh_bucket{{le=\"+Inf\"}} 2\nh_sum 3\nh_count 2\n"
        ),
        format!("{histogram}h_bucket{{le=\"+Inf\"}} 2\nh_sum 3\nh_count 3\n"),
        format!("{histogram}h_bucket{{le=\"+Inf\"}} 2\nh_count 2\n"),
    ] {
        assert!(parse(&bad).is_err(), "{bad}");
    }
}
