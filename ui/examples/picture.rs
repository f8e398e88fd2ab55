//! Draws what a terminal would show as an SVG picture: the bytes a program wrote to its terminal come
//! from standard input, the size from the arguments (columns, rows). For pictures of the real console:
//!
//! ```text
//! tmux capture-pane -e -p | cargo run --example picture -- 200 60 > console.svg
//! ```

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};

/// Pixels of a cell.
const WIDTH: f32 = 8.4;
const HEIGHT: f32 = 17.0;

fn main() -> std::io::Result<()> {
    let mut arguments = std::env::args().skip(1).map(|text| text.parse().unwrap_or(0));
    let columns: u16 = arguments.next().filter(|columns| *columns > 0).unwrap_or(80);
    let rows: u16 = arguments.next().filter(|rows| *rows > 0).unwrap_or(24);
    let mut bytes = Vec::new();
    std::io::stdin().lock().read_to_end(&mut bytes)?;
    // A captured pane has bare line feeds.
    let text = String::from_utf8_lossy(&bytes).replace("\r\n", "\n");
    let text = text.strip_suffix('\n').unwrap_or(&text).replace('\n', "\r\n");
    let mut terminal = vt100::Parser::new(rows, columns, 0);
    terminal.process(text.as_bytes());
    std::io::stdout().lock().write_all(svg(terminal.screen()).as_bytes())
}

fn svg(screen: &vt100::Screen) -> String {
    let (rows, columns) = screen.size();
    let (width, height) = (f32::from(columns) * WIDTH + 16.0, f32::from(rows) * HEIGHT + 16.0);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         font-family=\"DejaVu Sans Mono, monospace\" font-size=\"14\">\n\
         <rect width=\"100%\" height=\"100%\" rx=\"6\" fill=\"{BACKGROUND}\"/>\n"
    );
    for row in 0..rows {
        for column in 0..columns {
            let Some(cell) = screen.cell(row, column).filter(|cell| !cell.is_wide_continuation()) else {
                continue;
            };
            let (mut ink, mut paper) =
                (colour(cell.fgcolor(), FOREGROUND), colour(cell.bgcolor(), BACKGROUND));
            if cell.inverse() {
                std::mem::swap(&mut ink, &mut paper);
            }
            let (x, y) = (8.0 + f32::from(column) * WIDTH, 8.0 + f32::from(row) * HEIGHT);
            let cells = if cell.is_wide() { 2.0 } else { 1.0 };
            if paper != BACKGROUND {
                let width = WIDTH * cells + 0.3;
                let _ = writeln!(
                    out,
                    "<rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{HEIGHT}\" fill=\"{paper}\"/>"
                );
            }
            let text = cell.contents().replace('&', "&amp;").replace('<', "&lt;");
            if !text.trim().is_empty() || cell.underline() {
                let weight = if cell.bold() { " font-weight=\"bold\"" } else { "" };
                let dim = if cell.dim() { " opacity=\"0.6\"" } else { "" };
                if !text.trim().is_empty() {
                    let y = y + 13.0;
                    let _ = writeln!(
                        out,
                        "<text x=\"{x}\" y=\"{y}\" fill=\"{ink}\"{weight}{dim} xml:space=\"preserve\">{text}</text>"
                    );
                }
                if cell.underline() {
                    let (y, width) = (y + 15.5, WIDTH * cells);
                    let _ = writeln!(
                        out,
                        "<rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"1\" fill=\"{ink}\"/>"
                    );
                }
            }
        }
    }
    out.push_str("</svg>\n");
    out
}

const BACKGROUND: &str = "#14161b";
const FOREGROUND: &str = "#cdd3de";

fn colour(colour: vt100::Color, default: &str) -> String {
    const BASE: [&str; 16] = [
        "#1c1f26", "#e06c75", "#98c379", "#e5c07b", "#61afef", "#c678dd", "#56b6c2", "#abb2bf", "#6b7280",
        "#ef8a91", "#b3d99a", "#f0d399", "#84c3f4", "#d69ae6", "#7ccbd5", "#ffffff",
    ];
    match colour {
        vt100::Color::Default => default.to_owned(),
        vt100::Color::Idx(index) if index < 16 => BASE[usize::from(index)].to_owned(),
        vt100::Color::Idx(index) if index >= 232 => {
            let grey = 8 + 10 * u16::from(index - 232);
            format!("#{grey:02x}{grey:02x}{grey:02x}")
        }
        vt100::Color::Idx(index) => {
            let part = |of: u8| if of == 0 { 0 } else { 55 + 40 * u16::from(of) };
            let index = index - 16;
            format!("#{:02x}{:02x}{:02x}", part(index / 36), part(index / 6 % 6), part(index % 6))
        }
        vt100::Color::Rgb(red, green, blue) => format!("#{red:02x}{green:02x}{blue:02x}"),
    }
}
