//! Plots of the run, as SVG.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::{
    coord::ranged1d::{AsRangedCoord, ValueFormatter},
    prelude::*,
};

use crate::{
    figures::{BASE, CEILING, Figure, Figures, Section},
    stats::Spread,
    table::{corpus_name, decimal},
};

/// A plot that was written.
#[derive(Debug)]
pub struct Plot {
    /// What it shows.
    pub title: String,
    /// Its file, beside the page.
    pub file: String,
}

/// Bars of all rivals at each of several places.
struct Bars {
    title: String,
    unit: &'static str,
    /// A vertical line here, such as at a ratio of 1.
    mark: Option<f64>,
    log: bool,
    rivals: Vec<String>,
    /// A place's name, and the spread of each rival.
    groups: Vec<(String, Vec<Option<Spread>>)>,
}

/// The same colour for a rival in all plots; further rows of ours come last.
fn colour(rival: &str) -> RGBColor {
    match rival {
        "ours" => RGBColor(31, 119, 180),
        "zram" => RGBColor(255, 127, 14),
        "zram-qsd" => RGBColor(214, 39, 40),
        "tmpfs-qsd" => RGBColor(44, 160, 44),
        "nbdkit-zstd" => RGBColor(148, 103, 189),
        "ours-zstd1" => RGBColor(23, 190, 207),
        "ours-zstd3" => RGBColor(140, 180, 220),
        "null" => RGBColor(127, 127, 127),
        other => {
            let sum = other.bytes().map(usize::from).sum::<usize>();
            [RGBColor(227, 119, 194), RGBColor(140, 86, 75), RGBColor(188, 189, 34)][sum % 3]
        }
    }
}

const WIDTH: u32 = 1000;
const BAR: u32 = 11;
const LABELS: u32 = 190;

/// Writes all plots of `figures` to `dir`.
///
/// # Errors
///
/// When a file cannot be written.
pub fn all(figures: &Figures<'_>, dir: &Path) -> Result<Vec<Plot>> {
    let mut plots = Vec::new();
    let sections = figures.sections();
    if let Some(main) = sections.first() {
        let all_points: Vec<_> = figures.points(main).into_iter().map(|p| (main, p)).collect();
        let others: Vec<_> = sections[1..]
            .iter()
            .flat_map(|section| figures.points(section).into_iter().map(move |p| (section, p)))
            .collect();
        let speed = "Operations a second, beside kernel zram";
        let cpu = "Server CPU for each 4 KiB, microseconds";
        let tail = "Latency that 99 % do not exceed, microseconds";
        for (file, places, title, what) in [
            ("speed.svg", &all_points, speed, What::Ratio(Figure::Ops)),
            ("speed-corpora.svg", &others, speed, What::Ratio(Figure::Ops)),
            ("cpu.svg", &all_points, cpu, What::Value(Figure::Cpu)),
            ("cpu-corpora.svg", &others, cpu, What::Value(Figure::Cpu)),
            ("latency.svg", &all_points, tail, What::Value(Figure::P99)),
        ] {
            let bars = bars(figures, places, title, what);
            add(&mut plots, dir, file, &bars)?;
        }
        for (op, title) in [("randread", "Random reads"), ("randwrite", "Random overwrites")] {
            let title = format!("{title} of 4 KiB a second, by depth, client asleep between");
            let file = format!("depth-{op}.svg");
            if depths(figures, main, op, &title, &dir.join(&file))? {
                plots.push(Plot { title, file });
            }
        }
    }
    add(&mut plots, dir, "memory.svg", &memory(figures))?;
    Ok(plots)
}

fn add(plots: &mut Vec<Plot>, dir: &Path, file: &str, bars: &Bars) -> Result<()> {
    if bars.groups.iter().any(|(_, spreads)| spreads.iter().any(Option::is_some)) {
        draw(bars, &dir.join(file))?;
        plots.push(Plot { title: bars.title.clone(), file: file.to_owned() });
    }
    Ok(())
}

#[derive(Clone, Copy)]
enum What {
    Ratio(Figure),
    Value(Figure),
}

fn bars(figures: &Figures<'_>, places: &[(&Section, &str)], title: &str, what: What) -> Bars {
    let mut rivals: Vec<&str> = Vec::new();
    for (section, _) in places {
        for rival in figures.rivals(section) {
            let shown = rival != CEILING && (matches!(what, What::Value(_)) || rival != BASE);
            if shown && !rivals.contains(&rival) {
                rivals.push(rival);
            }
        }
    }
    let group = |&(section, point): &(&Section, &str)| {
        let spread = |rival: &&str| match what {
            What::Ratio(figure) => figures.ratio(section, point, (rival, BASE), figure),
            What::Value(figure) => {
                let cell = figures.cell(section, point, rival, figure)?;
                (!cell.bound).then_some(cell.spread)
            }
        };
        let first = places.first().is_some_and(|(first, _)| *first == section);
        let alone = first && places.iter().all(|(other, _)| *other == section);
        let name = if alone {
            point.to_owned()
        } else {
            format!("{point} {} x{}", section.corpus, section.queues)
        };
        (name, rivals.iter().map(spread).collect())
    };
    let ratio = matches!(what, What::Ratio(_));
    Bars {
        title: title.to_owned(),
        unit: if ratio { "times kernel zram's" } else { "us" },
        mark: ratio.then_some(1.0),
        log: true,
        groups: places.iter().map(group).collect(),
        rivals: rivals.iter().map(|rival| (*rival).to_owned()).collect(),
    }
}

fn memory(figures: &Figures<'_>) -> Bars {
    let mut corpora: Vec<&str> = Vec::new();
    let mut rivals: Vec<String> = Vec::new();
    for row in figures.memory {
        if !corpora.contains(&row.corpus.as_str()) {
            corpora.push(&row.corpus);
        }
        if !rivals.contains(&row.rival) {
            rivals.push(row.rival.clone());
        }
    }
    let group = |corpus: &&str| {
        let spread = |rival: &String| {
            let rows =
                figures.memory.iter().filter(|row| row.corpus == *corpus && row.rival == *rival);
            Spread::of(rows.map(crate::rows::Memory::per_written))
        };
        (corpus_name(corpus).to_owned(), rivals.iter().map(spread).collect())
    };
    Bars {
        title: "Memory of a full disk".into(),
        unit: "bytes for each byte written",
        mark: None,
        log: false,
        groups: corpora.iter().map(group).collect(),
        rivals: rivals.clone(),
    }
}

/// Least and greatest value of an axis that shows all of `bars`.
fn range(bars: &Bars) -> (f64, f64) {
    let spreads = || bars.groups.iter().flat_map(|(_, spreads)| spreads.iter().flatten());
    let max = spreads().map(|s| s.max).fold(bars.mark.unwrap_or(0.0), f64::max);
    let min = spreads().map(|s| s.min).filter(|min| *min > 0.0);
    let min = min.fold(bars.mark.unwrap_or(f64::MAX), f64::min);
    if bars.log { (min / 1.5, max * 2.0) } else { (0.0, max * 1.15) }
}

fn draw(bars: &Bars, path: &Path) -> Result<()> {
    let (low, high) = range(bars);
    if bars.log {
        draw_on(bars, path, (low..high).log_scale(), low)
    } else {
        draw_on(bars, path, low..high, low)
    }
}

fn draw_on<X>(
    bars: &Bars,
    path: &Path,
    axis: impl AsRangedCoord<CoordDescType = X, Value = f64>,
    low: f64,
) -> Result<()>
where
    X: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    let failed = |e: &dyn std::fmt::Display| anyhow!("{}: {e}", path.display());
    let lanes = bars.rivals.len() as u32;
    let group = lanes * BAR + 10;
    let legend = 16 * lanes.div_ceil(5) + 8;
    let height = 40 + legend + group * bars.groups.len() as u32 + 50;
    let root = SVGBackend::new(path, (WIDTH, height)).into_drawing_area();
    root.fill(&WHITE).map_err(|e| failed(&e))?;
    let text = |size: u32| ("sans-serif", size).into_font();
    let put = |label: &str, at: (i32, i32), size: u32| {
        root.draw(&Text::new(label.to_owned(), at, text(size))).map_err(|e| failed(&e))
    };
    put(&bars.title, (12, 10), 20)?;
    for (i, rival) in bars.rivals.iter().enumerate() {
        let (x, y) = (LABELS as i32 + (i as i32 % 5) * 155, 40 + 16 * (i as i32 / 5));
        let key = Rectangle::new([(x, y), (x + 10, y + 10)], colour(rival).filled());
        root.draw(&key).map_err(|e| failed(&e))?;
        put(rival, (x + 15, y - 1), 13)?;
    }
    let (_, body) = root.split_vertically(40 + legend);
    let rows = 0.0..f64::from(group * bars.groups.len() as u32);
    let mut chart = ChartBuilder::on(&body)
        .set_label_area_size(LabelAreaPosition::Left, LABELS)
        .set_label_area_size(LabelAreaPosition::Bottom, 45)
        .margin_right(60)
        .build_cartesian_2d(axis, rows.end..rows.start)
        .map_err(|e| failed(&e))?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .y_labels(0)
        .x_desc(bars.unit)
        .x_label_formatter(&|value| decimal(*value))
        .light_line_style(BLACK.mix(0.05))
        .draw()
        .map_err(|e| failed(&e))?;
    for (g, (name, spreads)) in bars.groups.iter().enumerate() {
        let top = f64::from(group) * g as f64 + 5.0;
        let (_, y) = chart.backend_coord(&(low, top + f64::from(lanes * BAR) / 2.0));
        put(name, (8, y - 6), 13)?;
        for (i, spread) in spreads.iter().enumerate() {
            let Some(spread) = spread else { continue };
            let (from, to) =
                (top + f64::from(BAR) * i as f64, top + f64::from(BAR) * (i + 1) as f64 - 2.0);
            let bar = Rectangle::new(
                [(low, from), (spread.median, to)],
                colour(&bars.rivals[i]).filled(),
            );
            let middle = f64::midpoint(from, to);
            let line = PathElement::new([(spread.min, middle), (spread.max, middle)], BLACK);
            chart.draw_series([bar]).map_err(|e| failed(&e))?;
            chart.draw_series([line]).map_err(|e| failed(&e))?;
            let at = (spread.max, from);
            let label = EmptyElement::at(at) + Text::new(decimal(spread.median), (4, 0), text(10));
            chart.draw_series([label]).map_err(|e| failed(&e))?;
        }
    }
    if let Some(mark) = bars.mark {
        let line = PathElement::new([(mark, rows.start), (mark, rows.end)], BLACK.stroke_width(2));
        chart.draw_series([line]).map_err(|e| failed(&e))?;
    }
    root.present().map_err(|e| failed(&e))
}

/// Lines of operations by depth; whether there were any.
fn depths(
    figures: &Figures<'_>,
    section: &Section,
    op: &str,
    title: &str,
    path: &Path,
) -> Result<bool> {
    let failed = |e: &dyn std::fmt::Display| anyhow!("{}: {e}", path.display());
    let depths = [1, 8, 32];
    let mut lines = Vec::new();
    for rival in figures.rivals(section) {
        let at = |depth: &i32| {
            let point = format!("{op}-4K-d{depth}");
            let cell = figures.cell(section, &point, rival, Figure::Ops)?;
            Some((f64::from(*depth), cell.spread.median / 1e3))
        };
        let line: Vec<_> = depths.iter().filter_map(at).collect();
        if line.len() == depths.len() {
            lines.push((rival, line));
        }
    }
    let values = || lines.iter().flat_map(|(_, line)| line.iter().map(|(_, y)| *y));
    let (low, high) = (values().fold(f64::MAX, f64::min), values().fold(0.0, f64::max));
    if lines.is_empty() || low <= 0.0 {
        return Ok(false);
    }
    let root = SVGBackend::new(path, (WIDTH, 460)).into_drawing_area();
    root.fill(&WHITE).map_err(|e| failed(&e))?;
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(60)
        .build_cartesian_2d((0.9..40.0).log_scale(), (low / 1.5..high * 1.5).log_scale())
        .map_err(|e| failed(&e))?;
    chart
        .configure_mesh()
        .x_desc("operations in flight")
        .y_desc("thousands a second")
        .x_label_formatter(&|value| decimal(*value))
        .y_label_formatter(&|value| decimal(*value))
        .light_line_style(BLACK.mix(0.05))
        .draw()
        .map_err(|e| failed(&e))?;
    for (rival, line) in &lines {
        let colour = colour(rival);
        let dots = line.iter().map(|at| Circle::new(*at, 3, colour.filled()));
        chart.draw_series(dots).map_err(|e| failed(&e))?;
        chart
            .draw_series(LineSeries::new(line.iter().copied(), colour.stroke_width(2)))
            .map_err(|e| failed(&e))?
            .label(*rival)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.9))
        .border_style(BLACK.mix(0.3))
        .draw()
        .map_err(|e| failed(&e))?;
    root.present().map_err(|e| failed(&e))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figures::tests::sample;

    #[test]
    fn bars_show_what_counts_and_axes_hold_it() {
        let samples = [
            sample(0, "ours", "mix", 300.0),
            sample(0, "zram", "mix", 100.0),
            sample(0, "tmpfs-qsd", "mix", 950.0),
            sample(0, "null", "mix", 1000.0),
        ];
        let figures = Figures::new(&samples, &[]);
        let section = &figures.sections()[0];
        let places = [(section, "write-128K-d8")];
        let speed = bars(&figures, &places, "speed", What::Ratio(Figure::Ops));
        assert_eq!(speed.rivals, ["ours", "tmpfs-qsd"]);
        let (name, spreads) = &speed.groups[0];
        assert_eq!(name, "write-128K-d8");
        // The ceiling binds the second.
        assert_eq!(
            spreads.iter().map(|s| s.map(|s| s.median)).collect::<Vec<_>>(),
            [Some(3.0), None]
        );
        let latency = bars(&figures, &places, "latency", What::Value(Figure::P50));
        assert_eq!(latency.rivals, ["ours", "zram", "tmpfs-qsd"]);
        let shown: Vec<_> = latency.groups[0].1.iter().map(Option::is_some).collect();
        assert_eq!(shown, [true, true, false]);
        let (low, high) = range(&speed);
        assert!(low < 1.0 && high > 3.0);
    }

    #[test]
    fn a_plot_is_an_svg_with_the_names_of_rivals_and_points() {
        let spread = Spread { median: 2.0, min: 1.0, max: 3.0 };
        for log in [false, true] {
            let bars = Bars {
                title: "A title".into(),
                unit: "us",
                mark: Some(1.0),
                log,
                rivals: vec!["ours".into(), "other".into()],
                groups: vec![("a place".into(), vec![Some(spread), None])],
            };
            let path = std::env::temp_dir().join(format!("plot.{}.{log}.svg", std::process::id()));
            draw(&bars, &path).unwrap();
            let svg = std::fs::read_to_string(&path).unwrap();
            std::fs::remove_file(&path).unwrap();
            for text in ["<svg", "A title", "ours", "other", "a place", "2.00"] {
                assert!(svg.contains(text), "{text}");
            }
        }
    }
}
