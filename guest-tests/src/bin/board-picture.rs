//! Draws the board of `dist/grafana` from what a Prometheus recorded, as an SVG picture for documents. It stands
//! in for Grafana where there is none: queries, titles, units and places of the panels are the board's, the look
//! is not Grafana's. `guest-tests/prometheus --picture` runs it.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    io::{self, Write as _},
    path::PathBuf,
};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use serde_json::Value;

/// Draws a board of Grafana from answers of a Prometheus.
#[derive(Parser)]
struct Cli {
    /// The board, as Grafana imports it.
    #[arg(long)]
    board: PathBuf,
    /// Lines of JSON, each with a `query` of the board and the `answer` of /api/v1/query_range to it.
    #[arg(long)]
    answers: PathBuf,
    /// What the picture says of itself at its top.
    #[arg(long)]
    note: String,
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    let read =
        |path: &PathBuf| fs::read_to_string(path).with_context(|| path.display().to_string());
    let board = serde_json::from_str(&read(&cli.board)?).context("the board")?;
    let picture = picture(&board, &read(&cli.answers)?, &cli.note)?;
    io::stdout().write_all(picture.as_bytes()).context("stdout")
}

/// Pixels of a column and a row of the board's grid, which has 24 columns.
const COLUMN: f64 = 50.0;
const ROW: f64 = 30.0;
/// Pixels above the board.
const HEAD: f64 = 56.0;
/// Pixels between panels.
const GAP: f64 = 4.0;
/// Pixels around a plot: left, above and below.
const AXIS: f64 = 64.0;
const TITLE: f64 = 28.0;
const TIMES: f64 = 20.0;
/// Height of a line of the legend.
const LEGEND: f64 = 16.0;
const COLORS: [&str; 8] =
    ["#73bf69", "#f2cc0c", "#5794f2", "#ff9830", "#f2495c", "#b877d9", "#8ab8ff", "#fade2a"];

/// One line of a panel: its name in the legend, and its values over time.
struct Series {
    name: String,
    points: Vec<(f64, f64)>,
}

/// Answers to queries, by the query.
type Answers = BTreeMap<String, Value>;

fn picture(board: &Value, lines: &str, note: &str) -> Result<String> {
    let mut answers = Answers::new();
    for line in lines.lines() {
        let mut line: Value = serde_json::from_str(line).context("an answer")?;
        let query = line["query"].as_str().context("an answer without its query")?.to_owned();
        answers.insert(query, line["answer"].take());
    }
    let panels = board["panels"].as_array().context("a board without panels")?;
    let bottom = panels.iter().map(|panel| at(panel, "y") + at(panel, "h")).fold(0.0, f64::max);
    let (width, height) = (24.0 * COLUMN + 2.0 * GAP, bottom * ROW + HEAD + GAP);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"DejaVu Sans, Helvetica, Arial, sans-serif\" font-size=\"11\" fill=\"#c7d0d9\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#111217\"/>\n"
    );
    text(&mut svg, (12.0, 24.0), "font-size=\"18\"", board["title"].as_str().unwrap_or_default());
    text(&mut svg, (12.0, 44.0), "fill=\"#8e9aa6\"", note);
    for panel in panels {
        let corner = (at(panel, "x") * COLUMN + GAP, at(panel, "y") * ROW + HEAD);
        let size = (at(panel, "w") * COLUMN - GAP, at(panel, "h") * ROW - GAP);
        let title = panel["title"].as_str().unwrap_or_default();
        let kind = panel["type"].as_str().unwrap_or_default();
        if kind == "row" {
            text(&mut svg, (corner.0 + 8.0, corner.1 + 20.0), "font-size=\"14\"", title);
            continue;
        }
        let (x, y) = corner;
        let (w, h) = size;
        writeln!(
            svg,
            "<rect x=\"{x}\" y=\"{y}\" width=\"{w}\" height=\"{h}\" rx=\"2\" fill=\"#181b1f\"/>"
        )?;
        text(&mut svg, (x + 8.0, y + 18.0), "font-size=\"12\"", title);
        let unit = panel["fieldConfig"]["defaults"]["unit"].as_str().unwrap_or("none");
        let series = series(panel, &answers)?;
        match kind {
            "stat" => stat(&mut svg, corner, size, &series, unit),
            "timeseries" => plot(&mut svg, corner, size, &series, unit),
            _ => anyhow::bail!("{title}: panels of the type {kind} are not known"),
        }
    }
    Ok(svg + "</svg>\n")
}

fn at(panel: &Value, name: &str) -> f64 {
    panel["gridPos"][name].as_f64().unwrap_or_default()
}

/// What Prometheus answered to the queries of a panel. A query that was not put to it is an error, and one with an
/// empty answer has no line.
fn series(panel: &Value, answers: &Answers) -> Result<Vec<Series>> {
    let mut all = Vec::new();
    for target in panel["targets"].as_array().into_iter().flatten() {
        let query = target["expr"].as_str().context("a target without a query")?;
        let answer = answers.get(query).with_context(|| format!("no answer to {query}"))?;
        ensure!(answer["status"] == "success", "{query}: {answer}");
        for one in answer["data"]["result"].as_array().into_iter().flatten() {
            let mut name = target["legendFormat"].as_str().unwrap_or_default().to_owned();
            for (label, value) in one["metric"].as_object().into_iter().flatten() {
                name =
                    name.replace(&format!("{{{{{label}}}}}"), value.as_str().unwrap_or_default());
            }
            let pairs = one["values"].as_array().into_iter().flatten();
            let point = |pair: &Value| Some((pair[0].as_f64()?, pair[1].as_str()?.parse().ok()?));
            let points: Vec<(f64, f64)> = pairs.filter_map(point).collect();
            // A quantile of nothing is not a number.
            let points = points.into_iter().filter(|point| point.1.is_finite()).collect();
            all.push(Series { name, points });
        }
    }
    Ok(all)
}

fn text(svg: &mut String, (x, y): (f64, f64), how: &str, words: &str) {
    let words = words.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    // Writing to a string cannot fail.
    let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" {how}>{words}</text>");
}

fn stat(svg: &mut String, (x, y): (f64, f64), (w, h): (f64, f64), series: &[Series], unit: &str) {
    let last = series.first().and_then(|series| series.points.last());
    let shown = last.map_or_else(|| "No data".to_owned(), |point| quantity(point.1, unit));
    let how = "font-size=\"30\" text-anchor=\"middle\" fill=\"#73bf69\"";
    text(svg, (x + w / 2.0, y + h / 2.0 + 18.0), how, &shown);
}

fn plot(svg: &mut String, (x, y): (f64, f64), (w, h): (f64, f64), series: &[Series], unit: &str) {
    let points = || series.iter().flat_map(|series| &series.points);
    if points().next().is_none() {
        text(svg, (x + w / 2.0, y + h / 2.0), "text-anchor=\"middle\" fill=\"#8e9aa6\"", "No data");
        return;
    }
    let places = legend(series, w - 16.0);
    let rows = places.last().map_or(0.0, |place| place.1) + 1.0;
    let (left, top) = (x + AXIS, y + TITLE);
    let (right, low) = (x + w - 12.0, y + h - TIMES - rows * LEGEND - 4.0);
    let from = points().map(|point| point.0).fold(f64::INFINITY, f64::min);
    let to = points().map(|point| point.0).fold(from + 1.0, f64::max);
    let most = points().map(|point| point.1).fold(0.0, f64::max);
    let step = step(most, unit);
    let high = (most / step).ceil().max(1.0) * step;
    let across = |time: f64| left + (time - from) / (to - from) * (right - left);
    let up = |value: f64| low - value / high * (low - top);
    let mut value = 0.0;
    while value <= high * 1.001 {
        let y = up(value);
        let _ = writeln!(
            svg,
            "<path d=\"M{left:.1} {y:.1}H{right:.1}\" stroke=\"#2c3235\" fill=\"none\"/>"
        );
        text(
            svg,
            (left - 6.0, y + 4.0),
            "text-anchor=\"end\" fill=\"#8e9aa6\"",
            &quantity(value, unit),
        );
        value += step;
    }
    // Times since the left edge: a picture in a document has no use for the time of day.
    let minutes = ((to - from) / 60.0).max(1.0 / 60.0);
    let apart =
        [0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0].into_iter().find(|apart| minutes / apart <= 6.0);
    let apart = apart.unwrap_or(60.0);
    let mut minute = 0.0;
    while minute <= minutes {
        let place = (across(from + minute * 60.0), low + 14.0);
        // The last one does not run out of the panel.
        let anchor = if place.0 > right - 12.0 { "end" } else { "middle" };
        let how = format!("text-anchor=\"{anchor}\" fill=\"#8e9aa6\"");
        text(svg, place, &how, &format!("{minute} min"));
        minute += apart;
    }
    for (number, (series, place)) in series.iter().zip(&places).enumerate() {
        let color = COLORS[number % COLORS.len()];
        let mut path = String::new();
        let mut before = None;
        // As Grafana does by default, a line is not drawn over times of which nothing is known.
        let usual = series
            .points
            .windows(2)
            .map(|pair| pair[1].0 - pair[0].0)
            .fold(f64::INFINITY, f64::min);
        for (time, value) in &series.points {
            let near = before.is_some_and(|before| time - before <= usual * 1.5);
            let _ = write!(
                path,
                "{}{:.1} {:.1}",
                if near { 'L' } else { 'M' },
                across(*time),
                up(*value)
            );
            before = Some(*time);
        }
        let _ = writeln!(
            svg,
            "<path d=\"{path}\" stroke=\"{color}\" stroke-width=\"1.5\" fill=\"none\"/>"
        );
        let (x, y) = (x + 10.0 + place.0, y + h - (rows - place.1) * LEGEND + 8.0);
        let _ = writeln!(
            svg,
            "<path d=\"M{x:.1} {:.1}h12\" stroke=\"{color}\" stroke-width=\"3\"/>",
            y - 4.0
        );
        text(svg, (x + 16.0, y), "", &series.name);
    }
}

/// Where the names of a legend are: pixels from its left, and its line.
fn legend(series: &[Series], width: f64) -> Vec<(f64, f64)> {
    let (mut x, mut line) = (0.0, 0.0);
    let mut places = Vec::new();
    for series in series {
        let wide =
            28.0 + 6.6 * f64::from(u16::try_from(series.name.chars().count()).unwrap_or(u16::MAX));
        if x > 0.0 && x + wide > width {
            (x, line) = (0.0, line + 1.0);
        }
        places.push((x, line));
        x += wide;
    }
    places
}

/// A round step of an axis up to `most`, of which there are at most five.
fn step(most: f64, unit: &str) -> f64 {
    if most <= 0.0 {
        return 1.0;
    }
    // Bytes are round in powers of two.
    let base: f64 = if unit == "bytes" { 2.0 } else { 10.0 };
    let mut step = base.powf((most / 5.0).log(base).floor());
    let factors: &[f64] = if unit == "bytes" { &[2.0] } else { &[2.0, 2.5, 2.0] };
    for factor in factors.iter().cycle() {
        if most / step <= 5.0 {
            break;
        }
        step *= factor;
    }
    step
}

/// A value with its unit, by the names that Grafana has for units.
fn quantity(value: f64, unit: &str) -> String {
    let scaled = |base: f64, names: &[&str]| {
        let mut value = value;
        let mut names = names.iter();
        let mut name = names.next().copied().unwrap_or_default();
        for next in names {
            if value.abs() < base {
                break;
            }
            (value, name) = (value / base, next);
        }
        format!("{}{name}", rounded(value))
    };
    match unit {
        "bytes" => scaled(1024.0, &[" B", " KiB", " MiB", " GiB", " TiB"]),
        "s" if value != 0.0 && value.abs() < 1e-3 => format!("{} µs", rounded(value * 1e6)),
        "s" if value != 0.0 && value.abs() < 1.0 => format!("{} ms", rounded(value * 1e3)),
        "s" => format!("{} s", rounded(value)),
        "reqps" => scaled(1000.0, &[" req/s", "K req/s", "M req/s"]),
        "cps" => scaled(1000.0, &[" c/s", "K c/s", "M c/s"]),
        _ => scaled(1000.0, &["", " K", " Mil"]),
    }
}

/// Three digits at least, and no zeros at the end.
fn rounded(value: f64) -> String {
    let digits = match value.abs() {
        value if value >= 100.0 => 0,
        value if value >= 10.0 => 1,
        _ => 2,
    };
    let text = format!("{value:.digits$}");
    if digits == 0 { text } else { text.trim_end_matches('0').trim_end_matches('.').to_owned() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn panel(kind: &str, query: &str) -> Value {
        json!({
            "type": kind, "title": format!("T {query}"), "gridPos": {"x": 0, "y": 1, "w": 12, "h": 8},
            "targets": [{"expr": query, "legendFormat": "{{disk}} limit"}],
            "fieldConfig": {"defaults": {"unit": "bytes"}},
        })
    }

    fn answer(query: &str, values: &Value) -> String {
        json!({"query": query, "answer": {"status": "success", "data": {"result": [
            {"metric": {"disk": "vm1"}, "values": values}]}}})
        .to_string()
    }

    #[test]
    fn a_panel_shows_what_was_recorded() {
        let values = json!([[100, "0"], [102, "1024"], [104, "NaN"], [110, "2048"], [112, "512"]]);
        let board =
            json!({"title": "B", "panels": [panel("timeseries", "a<b"), panel("stat", "a<b")]});
        let svg = picture(&board, &answer("a<b", &values), "drawn by a test").unwrap();
        for expected in
            [">B<", ">drawn by a test<", ">T a&lt;b<", ">vm1 limit<", ">1 KiB<", ">512 B<"]
        {
            assert!(svg.contains(expected), "{expected}: {svg}");
        }
        // The line ends where nothing is known, and goes on.
        let line = svg.lines().find(|line| line.contains("stroke-width=\"1.5\"")).unwrap();
        assert_eq!((line.matches('M').count(), line.matches('L').count()), (2, 2), "{line}");
        // The first value is at the bottom of the axis, the highest at its top.
        let left = 4.0 + AXIS;
        assert!(line.contains(&format!("d=\"M{left:.1} ")), "{line}");
        assert!(line.contains(&format!(" {:.1}L", HEAD + ROW + TITLE)), "{line}");
    }

    #[test]
    fn a_query_without_an_answer_is_a_mistake_and_one_without_data_is_none() {
        let board = json!({"title": "B", "panels": [panel("timeseries", "a")]});
        let error = picture(&board, "", "").unwrap_err();
        assert_eq!(error.to_string(), "no answer to a");
        let failed = json!({"query": "a", "answer": {"status": "error"}}).to_string();
        assert!(picture(&board, &failed, "").is_err());
        let empty = json!({"query": "a", "answer": {"status": "success", "data": {"result": []}}});
        assert!(picture(&board, &empty.to_string(), "").unwrap().contains("No data"));
        let board = json!({"title": "B", "panels": [panel("gauge", "a")]});
        assert!(picture(&board, &empty.to_string(), "").is_err());
    }

    #[test]
    fn axes_and_quantities_are_round() {
        assert_eq!(
            [0.0, 1.0, 7.0, 12.0, 999.0].map(|most| step(most, "none")),
            [1.0, 0.2, 2.0, 5.0, 200.0]
        );
        assert_eq!([3e6, 4096.0].map(|most| step(most, "bytes")), [1_048_576.0, 1024.0]);
        let shown = [
            (0.0, "bytes"),
            (1536.0, "bytes"),
            (3e9, "bytes"),
            (2e-5, "s"),
            (0.25, "s"),
            (90.0, "s"),
            (1234.0, "reqps"),
            (0.5, "cps"),
            (100.0, "none"),
            (2_500_000.0, "none"),
        ];
        let shown = shown.map(|(value, unit)| quantity(value, unit));
        let expected = [
            "0 B",
            "1.5 KiB",
            "2.79 GiB",
            "20 µs",
            "250 ms",
            "90 s",
            "1.23K req/s",
            "0.5 c/s",
            "100",
            "2.5 Mil",
        ];
        assert_eq!(shown, expected);
    }
}
