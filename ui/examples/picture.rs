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
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" \
         width=\"{width:.0}\" height=\"{height:.0}\" font-family=\"DejaVu Sans Mono, Menlo, Consolas, \
         monospace\" font-size=\"14\">\n\
         <rect width=\"100%\" height=\"100%\" rx=\"6\" fill=\"{}\"/>\n",
        backdrop(screen)
    );
    for row in 0..rows {
        let mut column = 0;
        while column < columns {
            let Some(mut run) = Run::begin(screen, row, column) else { break };
            while run.end < columns && run.take(screen) {}
            column = run.end;
            run.draw(&mut out, &backdrop(screen));
        }
    }
    out.push_str("</svg>\n");
    out
}

/// What most of the screen is painted on: a theme has a background of its own.
fn backdrop(screen: &vt100::Screen) -> String {
    screen.cell(0, 0).map_or_else(|| BACKGROUND.to_owned(), |cell| colour(cell.bgcolor(), BACKGROUND))
}

/// Cells of one row that look the same.
struct Run {
    row: u16,
    from: u16,
    end: u16,
    look: Look,
    text: String,
}

#[derive(PartialEq)]
struct Look {
    ink: String,
    paper: String,
    bold: bool,
    dim: bool,
    underline: bool,
}

impl Look {
    fn of(cell: &vt100::Cell) -> Self {
        let (mut ink, mut paper) = (colour(cell.fgcolor(), FOREGROUND), colour(cell.bgcolor(), BACKGROUND));
        if cell.inverse() {
            std::mem::swap(&mut ink, &mut paper);
        }
        Self { ink, paper, bold: cell.bold(), dim: cell.dim(), underline: cell.underline() }
    }
}

impl Run {
    fn begin(screen: &vt100::Screen, row: u16, from: u16) -> Option<Self> {
        let look = Look::of(screen.cell(row, from)?);
        let mut run = Self { row, from, end: from, look, text: String::new() };
        run.take(screen);
        Some(run)
    }

    /// Takes the next cell in, if it looks the same.
    fn take(&mut self, screen: &vt100::Screen) -> bool {
        let Some(cell) = screen.cell(self.row, self.end) else {
            self.end += 1;
            return false;
        };
        if self.end > self.from && Look::of(cell) != self.look {
            return false;
        }
        if !cell.is_wide_continuation() {
            self.text.push_str(if cell.has_contents() { cell.contents() } else { " " });
        }
        self.end += 1;
        true
    }

    fn draw(&self, out: &mut String, backdrop: &str) {
        let Look { ink, paper, bold, dim, underline } = &self.look;
        let (x, y) = (8.0 + f32::from(self.from) * WIDTH, 8.0 + f32::from(self.row) * HEIGHT);
        let width = f32::from(self.end - self.from) * WIDTH;
        if paper != backdrop {
            let _ = writeln!(
                out,
                "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{HEIGHT}\" fill=\"{paper}\"/>",
                width + 0.3
            );
        }
        if *underline {
            let y = y + 15.5;
            let _ = writeln!(
                out,
                "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"1\" fill=\"{ink}\"/>"
            );
        }
        let text = self.text.trim_end();
        let blank = text.len() - text.trim_start().len();
        let text = &text[blank..];
        if text.is_empty() {
            return;
        }
        // The blanks before it are of one byte and one column each.
        let cells = self.text.trim_end().chars().map(unicode_width).sum::<u16>();
        let cells = cells - u16::try_from(blank).unwrap_or(0);
        let (x, y) = (x + f32::from(u16::try_from(blank).unwrap_or(0)) * WIDTH, y + 13.0);
        let weight = if *bold { " font-weight=\"bold\"" } else { "" };
        let dim = if *dim { " opacity=\"0.6\"" } else { "" };
        let text = text.replace('&', "&amp;").replace('<', "&lt;");
        let length = f32::from(cells) * WIDTH;
        let _ = writeln!(
            out,
            "<text x=\"{x:.1}\" y=\"{y:.1}\" textLength=\"{length:.1}\" fill=\"{ink}\"{weight}{dim} \
             xml:space=\"preserve\">{text}</text>"
        );
    }
}

/// Columns of a character.
fn unicode_width(character: char) -> u16 {
    vmdeck_ui::text::width(character.encode_utf8(&mut [0; 4]))
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
