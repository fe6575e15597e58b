//! A frame as an SVG picture, for documents.

use std::fmt::Write as _;

use ratatui::buffer::Buffer;
use ratatui::style::{Color, Modifier};

/// A cell in pixels.
const WIDTH: f64 = 8.4;
const HEIGHT: f64 = 18.0;
const MARGIN: f64 = 12.0;
const BACK: &str = "#1b1f27";
const FRONT: &str = "#d8dee9";

/// The sixteen colours that a terminal has by name; others are not used.
fn name(color: Color, default: &'static str) -> &'static str {
    match color {
        Color::Black => "#10131a",
        Color::Red | Color::LightRed => "#e06c75",
        Color::Green | Color::LightGreen => "#98c379",
        Color::Yellow | Color::LightYellow => "#e5c07b",
        Color::Cyan | Color::LightCyan => "#56b6c2",
        Color::Gray => "#9aa5b8",
        Color::DarkGray => "#3b4252",
        Color::White => "#ffffff",
        _ => default,
    }
}

/// What neighbours share.
#[derive(Clone, Copy, PartialEq)]
struct Look {
    front: &'static str,
    back: &'static str,
    bold: bool,
    underlined: bool,
}

/// The picture.
pub fn svg(buffer: &Buffer) -> String {
    let area = buffer.area();
    let (columns, lines) = (f64::from(area.width), f64::from(area.height));
    let (width, height) = (columns * WIDTH + 2.0 * MARGIN, lines * HEIGHT + 2.0 * MARGIN);
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width:.0}\" height=\"{height:.0}\" \
         viewBox=\"0 0 {width:.1} {height:.1}\" font-family=\"DejaVu Sans Mono, Menlo, Consolas, monospace\" \
         font-size=\"14\">\n<rect width=\"100%\" height=\"100%\" rx=\"6\" fill=\"{BACK}\"/>\n"
    );
    for y in 0..area.height {
        let mut x = 0;
        while x < area.width {
            let look = look(buffer, x, y);
            let mut run = String::new();
            let start = x;
            while x < area.width && self::look(buffer, x, y) == look {
                run += buffer[(x, y)].symbol();
                x += 1;
            }
            write_run(&mut text, (start, y), x - start, &run, look);
        }
    }
    text + "</svg>\n"
}

fn look(buffer: &Buffer, x: u16, y: u16) -> Look {
    let cell = &buffer[(x, y)];
    let (mut front, mut back) = (name(cell.fg, FRONT), name(cell.bg, BACK));
    if cell.modifier.contains(Modifier::REVERSED) {
        std::mem::swap(&mut front, &mut back);
    }
    let bold = cell.modifier.contains(Modifier::BOLD);
    Look { front, back, bold, underlined: cell.modifier.contains(Modifier::UNDERLINED) }
}

/// One run of cells that look the same. `textLength` keeps columns where they are, whatever the font.
fn write_run(text: &mut String, (x, y): (u16, u16), cells: u16, run: &str, look: Look) {
    let (left, top) = (MARGIN + f64::from(x) * WIDTH, MARGIN + f64::from(y) * HEIGHT);
    let width = f64::from(cells) * WIDTH;
    // Writing to a string cannot fail.
    if look.back != BACK {
        let _ = writeln!(
            text,
            "<rect x=\"{left:.1}\" y=\"{top:.1}\" width=\"{width:.1}\" height=\"{HEIGHT}\" fill=\"{}\"/>",
            look.back
        );
    }
    if run.trim().is_empty() {
        return;
    }
    let bold = if look.bold { " font-weight=\"bold\"" } else { "" };
    let underlined = if look.underlined { " text-decoration=\"underline\"" } else { "" };
    let escaped = run.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let _ = writeln!(
        text,
        "<text x=\"{left:.1}\" y=\"{:.1}\" textLength=\"{width:.1}\" lengthAdjust=\"spacingAndGlyphs\" \
         xml:space=\"preserve\" fill=\"{}\"{bold}{underlined}>{escaped}</text>",
        top + HEIGHT * 0.75,
        look.front
    );
}

#[cfg(test)]
mod tests {
    use ratatui::layout::Rect;
    use ratatui::style::Style;

    use super::*;

    #[test]
    fn runs_of_one_look_are_one_text() {
        let mut buffer = Buffer::empty(Rect::new(0, 0, 10, 2));
        buffer.set_string(0, 0, "a<b", Style::new());
        buffer.set_string(3, 0, "red", Style::new().fg(Color::Red).add_modifier(Modifier::BOLD));
        buffer.set_string(0, 1, "x", Style::new().bg(Color::Cyan));
        let text = svg(&buffer);
        assert!(text.starts_with("<svg ") && text.ends_with("</svg>\n"));
        assert!(text.contains(">a&lt;b</text>"), "{text}");
        assert!(text.contains("fill=\"#e06c75\" font-weight=\"bold\">red</text>"), "{text}");
        assert!(
            text.contains(
                "<rect x=\"12.0\" y=\"30.0\" width=\"8.4\" height=\"18\" fill=\"#56b6c2\"/>"
            ),
            "{text}"
        );
        assert_eq!(text.matches("<text").count(), 3, "{text}");
    }
}
