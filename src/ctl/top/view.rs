//! A frame of `top`: the fleet, a row for each disk, and the disk that is marked.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{
    Block, Borders, Cell, Gauge, Paragraph, Row as TableRow, Sparkline, Table, TableState,
};

use super::model::{Model, Row};
use crate::cli::Sort;
use crate::list::total;
use crate::table::plain;
use crate::units::{count, human, micros, ratio, seconds};

const TITLE: Style = Style::new().fg(Color::Cyan).add_modifier(Modifier::BOLD);
const HEAD: Style = Style::new().fg(Color::Black).bg(Color::Cyan);
const MARKED: Style = Style::new().bg(Color::DarkGray).add_modifier(Modifier::BOLD);
const QUIET: Style = Style::new().fg(Color::Gray);
/// A disk that takes so much of its limit is shown in yellow, and in red.
const NEAR: [f64; 2] = [0.75, 0.9];
/// Lines of the marked disk's part.
const DETAILS: u16 = 10;
/// The least lines of a screen that has it.
const ROOM: u16 = 18;

/// Headings, and the keys that sort by them.
const COLUMNS: [(&str, u16, Option<Sort>); 11] = [
    ("NAME", 14, Some(Sort::Name)),
    ("STATE", 13, None),
    ("SIZE", 6, None),
    ("DATA", 7, Some(Sort::Data)),
    ("MEMORY", 7, Some(Sort::Memory)),
    ("FULL", 5, None),
    ("RATIO", 6, Some(Sort::Ratio)),
    ("READ/s", 7, Some(Sort::Ops)),
    ("WRITE/s", 7, None),
    ("P99", 8, None),
    ("JOBS", 16, None),
];

/// Draws all of it.
pub fn draw(frame: &mut Frame<'_>, model: &Model) {
    let details = if frame.area().height >= ROOM { DETAILS } else { 0 };
    let parts = [
        Constraint::Length(2),
        Constraint::Min(3),
        Constraint::Length(details),
        Constraint::Length(1),
    ];
    let [top, middle, bottom, keys] = Layout::vertical(parts).areas(frame.area());
    summary(frame, top, model);
    disks(frame, middle, model);
    if let Some(row) = model.selected_row()
        && details > 0
    {
        marked(frame, bottom, row);
    }
    help(frame, keys, model);
}

/// The fleet as a whole.
fn summary(frame: &mut Frame<'_>, area: Rect, model: &Model) {
    let answering: Vec<_> = model.rows.iter().filter_map(|row| row.disk.as_ref()).collect();
    let serving = answering.iter().filter(|disk| disk.session.connected).count();
    let stored: u64 = answering.iter().map(|disk| disk.memory.pages_bytes).sum();
    let taken: u64 = answering.iter().map(|disk| total(disk)).sum();
    let requests: f64 = model.rows.iter().map(|row| row.rates.requests()).sum();
    let silent = model.rows.len() - answering.len();
    let mut first = vec![
        Span::styled("vhost-user-zram", TITLE),
        Span::raw(format!("  {} disks, {serving} serving", model.rows.len())),
    ];
    if silent > 0 {
        first.push(Span::styled(format!(", {silent} do not answer"), Style::new().fg(Color::Red)));
    }
    if model.paused {
        first.push(Span::styled("  paused", Style::new().fg(Color::Yellow)));
    }
    let second = format!(
        "{} stored in {} of memory ({} : 1), {} requests/s",
        human(stored),
        human(taken),
        ratio(stored, taken),
        count(requests)
    );
    frame.render_widget(Paragraph::new(vec![Line::from(first), Line::from(second)]), area);
}

/// A row for each disk.
fn disks(frame: &mut Frame<'_>, area: Rect, model: &Model) {
    let heads = COLUMNS.iter().map(|(name, width, sort)| {
        let sorted = sort.is_some_and(|sort| sort == model.sort);
        let style =
            if sorted { HEAD.add_modifier(Modifier::BOLD | Modifier::UNDERLINED) } else { HEAD };
        // As the values below it are aligned.
        let text = match *name {
            "NAME" | "STATE" | "JOBS" => (*name).to_owned(),
            _ => format!("{name:>0$}", usize::from(*width)),
        };
        Cell::from(text).style(style)
    });
    let rows = model.rows.iter().map(cells);
    let widths = COLUMNS.iter().map(|(name, width, _)| match *name {
        "NAME" | "JOBS" => Constraint::Min(*width),
        _ => Constraint::Length(*width),
    });
    let table = Table::new(rows, widths)
        .header(TableRow::new(heads).style(HEAD))
        .row_highlight_style(MARKED)
        .column_spacing(1);
    let mut state = TableState::new().with_selected(model.position());
    frame.render_stateful_widget(table, area, &mut state);
}

/// Yellow or red for what is nearly full.
fn warmth(fill: f64) -> Style {
    match fill {
        fill if fill >= NEAR[1] => Style::new().fg(Color::Red),
        fill if fill >= NEAR[0] => Style::new().fg(Color::Yellow),
        _ => Style::new().fg(Color::Green),
    }
}

fn time(us: f64) -> String {
    if us.is_finite() { micros(us) } else { "longer".into() }
}

/// The longer of the times within which 99 of 100 reads, and writes, end.
fn p99(row: &Row) -> String {
    let times = [row.rates.read_us, row.rates.write_us].into_iter().flatten();
    times.map(|(_, p99)| p99).reduce(f64::max).map_or_else(String::new, time)
}

fn cells(row: &Row) -> TableRow<'static> {
    let state = match row.state.as_str() {
        "serving" => Style::new().fg(Color::Green),
        "ready" | "starting" => Style::new(),
        _ => Style::new().fg(Color::Red),
    };
    let mut cells = vec![Cell::from(plain(&row.name)), Cell::from(row.state.clone()).style(state)];
    if let Some(disk) = &row.disk {
        let right = |text: String, width: usize| format!("{text:>width$}");
        let memory = &disk.memory;
        cells.extend(
            [
                right(human(disk.size_bytes), 6),
                right(human(memory.pages_bytes), 7),
                right(human(total(disk)), 7),
            ]
            .map(Cell::from),
        );
        let fill = format!("{:>3.0} %", row.fill() * 100.0);
        cells.push(Cell::from(fill).style(warmth(row.fill())));
        cells.extend(
            [
                right(ratio(memory.pages_bytes, total(disk)), 6),
                right(count(row.rates.reads), 7),
                right(count(row.rates.writes), 7),
                right(p99(row), 8),
                row.jobs_in_short(),
            ]
            .map(Cell::from),
        );
    }
    TableRow::new(cells)
}

/// The disk that is marked.
fn marked(frame: &mut Frame<'_>, area: Rect, row: &Row) {
    let block = Block::new()
        .borders(Borders::TOP)
        .title(Span::styled(format!(" {} ", plain(&row.name)), TITLE));
    let inner = block.inner(area);
    frame.render_widget(block, area);
    let Some(disk) = &row.disk else {
        frame.render_widget(Paragraph::new(format!("{}: no answer", row.state)), inner);
        return;
    };
    let [gauge, rest] = Layout::vertical([Constraint::Length(1), Constraint::Min(0)]).areas(inner);
    let limit = match disk.settings.mem_limit_bytes {
        0 => format!("worst case {}", human(disk.memory.worst_case_bytes)),
        limit => format!("limit {}", human(limit)),
    };
    let label = format!("memory {} of {limit}", human(total(disk)));
    let bar = Gauge::default()
        .ratio(row.fill())
        .label(label)
        .gauge_style(warmth(row.fill()).bg(Color::DarkGray));
    frame.render_widget(bar, gauge);
    let [left, right] =
        Layout::horizontal([Constraint::Percentage(58), Constraint::Percentage(42)])
            .spacing(2)
            .areas(rest);
    frame.render_widget(Paragraph::new(figures(row, disk)), left);
    let [title, chart] = Layout::vertical([Constraint::Length(1), Constraint::Min(0)]).areas(right);
    let most = row.history.iter().copied().max().unwrap_or(0);
    let text =
        format!("requests/s: {} now, {} at most", count(row.rates.requests()), count(most as f64));
    frame.render_widget(Paragraph::new(text).style(QUIET), title);
    let width = usize::from(chart.width);
    let shown: Vec<u64> =
        row.history.iter().copied().skip(row.history.len().saturating_sub(width)).collect();
    frame.render_widget(
        Sparkline::default().data(&shown).style(Style::new().fg(Color::Cyan)),
        chart,
    );
}

fn figures(row: &Row, disk: &vhost_user_zram::internals::api::Disk) -> Vec<Line<'static>> {
    let line = |name: &str, text: String| {
        Line::from(vec![Span::styled(format!("{name:<9}"), QUIET), Span::raw(plain(&text))])
    };
    let times = |us: Option<(f64, f64)>| {
        us.map_or_else(|| "-".into(), |(p50, p99)| format!("{} / {}", time(p50), time(p99)))
    };
    let (rates, memory, requests) = (&row.rates, &disk.memory, &disk.requests);
    let guest = match disk.session.front_end_pid {
        _ if !disk.session.connected => "none".into(),
        Some(pid) => format!("process {pid} for {}", seconds(disk.session.connected_seconds)),
        None => format!("for {}", seconds(disk.session.connected_seconds)),
    };
    let failed = requests.failed_reads + requests.failed_writes;
    let mut lines = vec![
        line("codec", disk.algorithm.clone()),
        line("guest", guest),
        line(
            "memory",
            format!(
                "{} compressed, {} arena, {} metadata",
                human(memory.objects_bytes),
                human(memory.arena_bytes),
                human(memory.metadata_bytes)
            ),
        ),
        line(
            "latency",
            format!("read {}, write {} (p50 / p99)", times(rates.read_us), times(rates.write_us)),
        ),
        line(
            "engine",
            format!(
                "{} workers, {} jobs/s, {} wait, {}",
                disk.engine.workers,
                count(rates.engine_jobs),
                disk.engine.queued,
                times(rates.engine_us)
            ),
        ),
        line(
            "jobs",
            match row.jobs_in_short() {
                text if text.is_empty() => "none".into(),
                text => text,
            },
        ),
    ];
    if failed + requests.stalled + requests.broken_queues > 0 {
        let text = format!(
            "{failed} failed, {} stalled, {} queues broken",
            requests.stalled, requests.broken_queues
        );
        lines.push(Line::styled(text, Style::new().fg(Color::Red)));
    }
    lines
}

fn help(frame: &mut Frame<'_>, area: Rect, model: &Model) {
    let sort = match model.sort {
        Sort::Name => "name",
        Sort::Memory => "memory",
        Sort::Ratio => "ratio",
        Sort::Ops => "requests",
        Sort::Data => "data",
    };
    let text = format!(
        "q quit  up/down select  sorted by {sort}: n name  m memory  r ratio  o requests  d data  p pause"
    );
    frame.render_widget(Paragraph::new(text).style(QUIET), area);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use vhost_user_zram::internals::api::{Job, JobFigures, JobKind, JobState};

    use super::*;
    use crate::samples;
    use crate::top::model::Sample;
    use crate::top::text;

    fn model() -> Model {
        let mut model = Model::new(Sort::Name);
        for at in [1, 2] {
            let mut disk = samples::disk("vm1");
            disk.session.connected = true;
            disk.requests.reads += at * 1500;
            disk.settings.mem_limit_bytes = total(&disk) * 10 / 8;
            let job = Job {
                id: 1,
                kind: JobKind::Compact,
                state: JobState::Running,
                progress_percent: 40,
                running_seconds: 0.5,
                done: JobFigures::default(),
            };
            let at = Duration::from_secs(at);
            let answer = |disk, jobs| Ok(Box::new((disk, jobs)));
            model.take(vec![
                Sample { name: "vm1".into(), at, disk: answer(disk, vec![job]) },
                Sample { name: "vm2".into(), at, disk: answer(samples::disk("vm2"), Vec::new()) },
                Sample { name: "old".into(), at, disk: Err("stale socket".into()) },
            ]);
        }
        model
    }

    fn frame(model: &Model, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, model)).unwrap();
        text(terminal.backend().buffer())
    }

    #[test]
    fn a_frame_has_the_fleet_each_disk_and_the_marked_one() {
        let mut model = model();
        model.move_by(1);
        let text = frame(&model, 110, 24);
        assert!(text.contains("3 disks, 1 serving, 1 do not answer"), "{text}");
        assert!(text.contains("6M stored in 2.2M of memory (2.72 : 1), 1.5k requests/s"), "{text}");
        let line = text.lines().find(|line| line.starts_with("vm1 ")).unwrap();
        let words: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(
            words[..10],
            ["vm1", "serving", "4G", "3M", "1.1M", "80", "%", "2.72", "1.5k", "0"],
            "{text}"
        );
        assert!(line.ends_with("compact 40 %"), "{text}");
        assert!(text.contains("stale socket"), "{text}");
        assert!(text.contains("memory 1.1M of limit 1.4M"), "{text}");
        assert!(text.contains("requests/s: 1.5k now"), "{text}");
        assert!(text.lines().last().unwrap().starts_with("q quit"), "{text}");
    }

    #[test]
    fn a_frame_fits_any_terminal() {
        let model = model();
        for (width, height) in [(1, 1), (20, 5), (40, 8), (80, 17), (300, 100)] {
            let text = frame(&model, width, height);
            assert_eq!(text.lines().count(), usize::from(height));
        }
        frame(&Model::new(Sort::Ops), 80, 24);
    }

    #[test]
    fn a_pause_and_a_silent_marked_disk_are_shown() {
        let mut model = model();
        model.paused = true;
        model.selected = Some("old".into());
        let text = frame(&model, 110, 24);
        assert!(text.contains("paused") && text.contains("stale socket: no answer"), "{text}");
    }
}
