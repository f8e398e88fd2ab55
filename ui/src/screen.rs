//! From cells to bytes: writes to the terminal what differs from what it shows already.
//!
//! One write per frame, wrapped as a synchronised update so that no half frame is seen, and no
//! escape sequence that the change does not need: a console often runs over a slow line.

use std::io::Write as _;
use std::mem;

use ratatui::buffer::{Buffer, Cell};
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier};

/// Begin and end of a synchronised update (DEC private mode 2026); unknown to old terminals, which
/// ignore it.
const BEGIN: &[u8] = b"\x1b[?2026h";
const END: &[u8] = b"\x1b[?2026l";

/// What the terminal shows, and what it is to show next.
#[derive(Debug)]
pub struct Screen {
    shown: Buffer,
    next: Buffer,
    /// What the terminal shows is not known: paint everything.
    stale: bool,
    bytes: Vec<u8>,
}

/// Colours and attributes of the terminal's pen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pen {
    foreground: Color,
    background: Color,
    modifier: Modifier,
}

impl Pen {
    const PLAIN: Self =
        Self { foreground: Color::Reset, background: Color::Reset, modifier: Modifier::empty() };

    fn of(cell: &Cell) -> Self {
        Self { foreground: cell.fg, background: cell.bg, modifier: cell.modifier }
    }
}

impl Screen {
    pub fn new(width: u16, height: u16) -> Self {
        let area = Rect::new(0, 0, width, height);
        Self { shown: Buffer::empty(area), next: Buffer::empty(area), stale: true, bytes: Vec::new() }
    }

    pub fn resize(&mut self, width: u16, height: u16) {
        let area = Rect::new(0, 0, width, height);
        if self.next.area != area {
            self.shown = Buffer::empty(area);
            self.next = Buffer::empty(area);
        }
        self.stale = true;
    }

    /// The terminal may show anything: the next frame is written whole.
    pub fn invalidate(&mut self) {
        self.stale = true;
    }

    /// Whether the next frame is written whole.
    pub fn is_stale(&self) -> bool {
        self.stale
    }

    /// The blank buffer of the next frame.
    pub fn next_frame(&mut self) -> &mut Buffer {
        self.next.reset();
        &mut self.next
    }

    /// The bytes that make the terminal show the frame; empty when it does already.
    pub fn encode(&mut self) -> &[u8] {
        self.bytes.clear();
        if self.stale {
            self.shown.reset();
        }
        let mut encoder = Encoder { bytes: &mut self.bytes, pen: Pen::PLAIN, cursor: None };
        if self.stale {
            encoder.bytes.extend_from_slice(BEGIN);
            encoder.bytes.extend_from_slice(b"\x1b[0m\x1b[2J");
        }
        let width = usize::from(self.next.area.width);
        if width > 0 {
            let rows = self.next.content.chunks_exact(width).zip(self.shown.content.chunks_exact(width));
            for (y, (next, shown)) in rows.enumerate() {
                encoder.row(y, next, shown);
            }
        }
        if !encoder.bytes.is_empty() {
            encoder.set_pen(Pen::PLAIN);
            encoder.bytes.extend_from_slice(END);
        }
        self.stale = false;
        mem::swap(&mut self.shown, &mut self.next);
        &self.bytes
    }
}

struct Encoder<'a> {
    bytes: &'a mut Vec<u8>,
    pen: Pen,
    /// Where the terminal's cursor is, if that is known for sure.
    cursor: Option<(usize, usize)>,
}

impl Encoder<'_> {
    fn row(&mut self, y: usize, next: &[Cell], shown: &[Cell]) {
        if next == shown {
            return;
        }
        // From here on the row is blank: erased at once rather than overwritten with blanks.
        let blank = next.iter().rposition(|cell| !is_blank(cell)).map_or(0, |last| last + 1);
        for x in 0..blank {
            // The second half of a wide character has no symbol of its own.
            if next[x] != shown[x] && !next[x].symbol().is_empty() {
                self.cell(x, y, &next[x]);
            }
        }
        if let Some(first) = (blank..next.len()).find(|&x| next[x] != shown[x]) {
            self.go_to(first, y);
            self.set_pen(Pen::PLAIN);
            self.bytes.extend_from_slice(b"\x1b[K");
        }
    }

    fn cell(&mut self, x: usize, y: usize, cell: &Cell) {
        self.go_to(x, y);
        self.set_pen(Pen::of(cell));
        let symbol = cell.symbol();
        self.bytes.extend_from_slice(symbol.as_bytes());
        // Terminals disagree on the width of what is not ASCII: say where to go on, for such cells
        // of which they are known to.
        let mut characters = symbol.chars();
        let certain = characters
            .next()
            .is_some_and(|first| crate::text::shown(first) == crate::text::Shown::Cell(first, 1))
            && characters.next().is_none();
        self.cursor = certain.then_some((x + 1, y));
    }

    fn go_to(&mut self, x: usize, y: usize) {
        if self.cursor != Some((x, y)) {
            self.begin();
            let _ = write!(self.bytes, "\x1b[{};{}H", y + 1, x + 1);
            self.cursor = Some((x, y));
        }
    }

    fn begin(&mut self) {
        if self.bytes.is_empty() {
            self.bytes.extend_from_slice(BEGIN);
        }
    }

    fn set_pen(&mut self, pen: Pen) {
        if pen == self.pen {
            return;
        }
        self.bytes.extend_from_slice(b"\x1b[");
        let from = self.bytes.len();
        if pen == Pen::PLAIN || !pen.modifier.contains(self.pen.modifier) {
            self.bytes.extend_from_slice(b"0;");
            self.pen = Pen::PLAIN;
        }
        for (modifier, code) in [
            (Modifier::BOLD, "1;"),
            (Modifier::DIM, "2;"),
            (Modifier::ITALIC, "3;"),
            (Modifier::UNDERLINED, "4;"),
            (Modifier::REVERSED, "7;"),
            (Modifier::CROSSED_OUT, "9;"),
        ] {
            if pen.modifier.contains(modifier) && !self.pen.modifier.contains(modifier) {
                self.bytes.extend_from_slice(code.as_bytes());
            }
        }
        if pen.foreground != self.pen.foreground {
            self.colour(pen.foreground, 30);
        }
        if pen.background != self.pen.background {
            self.colour(pen.background, 40);
        }
        if self.bytes.len() > from {
            self.bytes.pop();
        }
        self.bytes.push(b'm');
        self.pen = pen;
    }

    /// `base` is 30 for the foreground, 40 for the background (ECMA-48 8.3.117, and its extensions).
    fn colour(&mut self, colour: Color, base: u8) {
        let simple = |offset: u8| base + offset;
        let bright = |offset: u8| base + 60 + offset;
        let code = match colour {
            Color::Reset => simple(9),
            Color::Black => simple(0),
            Color::Red => simple(1),
            Color::Green => simple(2),
            Color::Yellow => simple(3),
            Color::Blue => simple(4),
            Color::Magenta => simple(5),
            Color::Cyan => simple(6),
            Color::Gray => simple(7),
            Color::DarkGray => bright(0),
            Color::LightRed => bright(1),
            Color::LightGreen => bright(2),
            Color::LightYellow => bright(3),
            Color::LightBlue => bright(4),
            Color::LightMagenta => bright(5),
            Color::LightCyan => bright(6),
            Color::White => bright(7),
            Color::Indexed(index) => {
                let _ = write!(self.bytes, "{};5;{index};", base + 8);
                return;
            }
            Color::Rgb(red, green, blue) => {
                let _ = write!(self.bytes, "{};2;{red};{green};{blue};", base + 8);
                return;
            }
        };
        let _ = write!(self.bytes, "{code};");
    }
}

fn is_blank(cell: &Cell) -> bool {
    cell.symbol() == " " && cell.bg == Color::Reset && cell.modifier.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paint::Painter;
    use proptest::prelude::*;
    use ratatui::style::Style;

    fn frame(screen: &mut Screen, paint: impl FnOnce(&mut Painter<'_>)) -> String {
        paint(&mut Painter::new(screen.next_frame(), '…'));
        String::from_utf8(screen.encode().to_vec()).unwrap()
    }

    #[test]
    fn an_unchanged_frame_costs_no_byte() {
        let mut screen = Screen::new(20, 3);
        let paint = |p: &mut Painter<'_>| _ = p.text(1, 1, 10, "hello", Style::new().bold());
        assert!(!frame(&mut screen, paint).is_empty());
        assert_eq!(frame(&mut screen, paint), "");
    }

    #[test]
    fn only_the_changed_cells_are_written() {
        let mut screen = Screen::new(20, 3);
        frame(&mut screen, |p| _ = p.text(1, 1, 10, "count 1", Style::new()));
        let bytes = frame(&mut screen, |p| _ = p.text(1, 1, 10, "count 2", Style::new()));
        assert_eq!(bytes, "\x1b[?2026h\x1b[2;8H2\x1b[?2026l");
    }

    #[test]
    fn attributes_that_end_are_taken_off() {
        let mut screen = Screen::new(4, 1);
        let bytes = frame(&mut screen, |p| {
            p.text(0, 0, 1, "a", Style::new().bold().fg(Color::Red));
            p.text(1, 0, 1, "b", Style::new().fg(Color::Red));
        });
        assert!(bytes.contains("\x1b[1;31ma\x1b[0;31mb\x1b[0m"), "{bytes:?}");
    }

    proptest! {
        /// Whatever is painted frame after frame, a terminal that got the bytes shows the last one.
        #[test]
        fn a_terminal_shows_what_was_painted(frames in proptest::collection::vec(
            proptest::collection::vec((0u16..18, 0u16..5, "[a-z 漢e\u{301}]{0,8}", 0u8..4), 0..6), 1..5
        )) {
            let mut screen = Screen::new(18, 5);
            let mut terminal = vt100::Parser::new(5, 18, 0);
            for texts in frames {
                let bytes = frame(&mut screen, |p| for (x, y, text, style) in &texts {
                    let style = match style {
                        0 => Style::new(),
                        1 => Style::new().bold().fg(Color::Green),
                        2 => Style::new().bg(Color::Blue),
                        _ => Style::new().reversed(),
                    };
                    p.text(*x, *y, 18, text, style);
                });
                terminal.process(bytes.as_bytes());
                for y in 0..5 {
                    for x in 0..18 {
                        let (ours, theirs) =
                            (screen.shown.cell((x, y)).unwrap(), terminal.screen().cell(y, x).unwrap());
                        let theirs_symbol = match (theirs.is_wide_continuation(), theirs.contents()) {
                            (true, _) => "",
                            (false, "") => " ",
                            (false, symbol) => symbol,
                        };
                        prop_assert_eq!(ours.symbol(), theirs_symbol, "{} {}", x, y);
                        // The model terminal keeps no attributes of the second half of a wide character.
                        if theirs.is_wide_continuation() {
                            continue;
                        }
                        prop_assert_eq!(ours.modifier.contains(Modifier::REVERSED), theirs.inverse());
                        prop_assert_eq!(ours.modifier.contains(Modifier::BOLD), theirs.bold());
                        prop_assert_eq!(ours.bg == Color::Reset, theirs.bgcolor() == vt100::Color::Default);
                    }
                }
            }
        }
    }
}
