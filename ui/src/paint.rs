//! The one gate between text and cells.
//!
//! Everything the console shows goes through a [`Painter`]. It clips to the buffer, so that no size
//! of the terminal can make it write outside, and it passes each character through [`text::shown`].

use std::fmt::{self, Write as _};

use ratatui::buffer::{Buffer, Cell};
use ratatui::layout::Rect;
use ratatui::style::Style;

use crate::text::{self, Shown};

/// Marks drawn over one character at most; more are an attack on the terminal's renderer.
const MARKS: usize = 3;

/// Paints into a rectangle of a buffer.
#[derive(Debug)]
pub struct Painter<'a> {
    buffer: &'a mut Buffer,
    clip: Rect,
    ellipsis: char,
    /// Reused by [`Self::format`], so that a frame does not allocate for each number.
    scratch: String,
}

impl<'a> Painter<'a> {
    /// `ellipsis` ends texts that do not fit; one of ASCII says that nothing else is painted either:
    /// a terminal of another encoding would make something else of it, and of its width.
    pub fn new(buffer: &'a mut Buffer, ellipsis: char) -> Self {
        let clip = buffer.area;
        Self { buffer, clip, ellipsis, scratch: String::with_capacity(128) }
    }

    /// Where this painter may paint.
    pub fn area(&self) -> Rect {
        self.clip
    }

    fn is_ascii(&self) -> bool {
        self.ellipsis.is_ascii()
    }

    fn cell(&mut self, x: u16, y: u16) -> Option<&mut Cell> {
        let inside = x >= self.clip.x && y >= self.clip.y && x < self.clip.right() && y < self.clip.bottom();
        if inside { self.buffer.cell_mut((x, y)) } else { None }
    }

    /// Styles a rectangle and leaves its text.
    pub fn style(&mut self, area: Rect, style: Style) {
        let area = area.intersection(self.clip);
        for y in area.top()..area.bottom() {
            for x in area.left()..area.right() {
                if let Some(cell) = self.buffer.cell_mut((x, y)) {
                    cell.set_style(style);
                }
            }
        }
    }

    /// Blanks a rectangle.
    pub fn clear(&mut self, area: Rect, style: Style) {
        let area = area.intersection(self.clip);
        for y in area.top()..area.bottom() {
            for x in area.left()..area.right() {
                if x == area.left() {
                    self.part(x, y);
                }
                if x + 1 == area.right() {
                    self.part(x + 1, y);
                }
                if let Some(cell) = self.buffer.cell_mut((x, y)) {
                    cell.reset();
                    cell.set_style(style);
                }
            }
        }
    }

    /// Paints one line of text of at most `columns`, an ellipsis at its end where it does not fit.
    /// Returns the columns used.
    pub fn text(&mut self, x: u16, y: u16, columns: u16, text: &str, style: Style) -> u16 {
        let columns = columns.min(self.clip.right().saturating_sub(x));
        if columns == 0 || y < self.clip.y || y >= self.clip.bottom() {
            return 0;
        }
        // What is much longer than the line need not be measured to its end.
        let fits = text.len() <= usize::from(columns) && text.is_ascii() || text::width(text) <= columns;
        let room = if fits { columns } else { columns - 1 };
        let mut used = 0u16;
        let mut marks = 0;
        for character in text.chars() {
            match text::shown(character) {
                Shown::Cell(character, width) => {
                    if used + width > room {
                        break;
                    }
                    self.put(x + used, y, character, width, style);
                    used += width;
                    marks = 0;
                }
                Shown::Mark(mark) if used > 0 && marks < MARKS && !self.is_ascii() => {
                    marks += 1;
                    let mut at = x + used - 1;
                    // The second cell of a wide character is empty; the mark belongs to the first.
                    if used > 1 && self.cell(at, y).is_some_and(|cell| cell.symbol().is_empty()) {
                        at -= 1;
                    }
                    if let Some(cell) = self.cell(at, y) {
                        let mut symbol = String::from(cell.symbol());
                        symbol.push(mark);
                        cell.set_symbol(&symbol);
                    }
                }
                _ => {}
            }
        }
        if !fits {
            self.put(x + used, y, self.ellipsis, 1, style);
            used += 1;
        }
        used
    }

    /// Paints at the right end of `columns`.
    pub fn text_right(&mut self, x: u16, y: u16, columns: u16, text: &str, style: Style) -> u16 {
        let pad = columns.saturating_sub(text::width(text));
        self.text(x + pad, y, columns - pad, text, style)
    }

    /// As [`Self::text`], formatting into a buffer that is kept.
    pub fn format(
        &mut self,
        x: u16,
        y: u16,
        columns: u16,
        arguments: fmt::Arguments<'_>,
        style: Style,
    ) -> u16 {
        self.formatted(arguments, |painter, text| painter.text(x, y, columns, text, style))
    }

    /// As [`Self::text_right`], formatting into a buffer that is kept.
    pub fn format_right(
        &mut self,
        x: u16,
        y: u16,
        columns: u16,
        arguments: fmt::Arguments<'_>,
        style: Style,
    ) -> u16 {
        self.formatted(arguments, |painter, text| painter.text_right(x, y, columns, text, style))
    }

    fn formatted(
        &mut self,
        arguments: fmt::Arguments<'_>,
        paint: impl FnOnce(&mut Self, &str) -> u16,
    ) -> u16 {
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.clear();
        // Writing into a string does not fail.
        let _ = scratch.write_fmt(arguments);
        let used = paint(self, &scratch);
        self.scratch = scratch;
        used
    }

    /// The same character over and over.
    pub fn repeat(&mut self, x: u16, y: u16, columns: u16, character: char, style: Style) {
        for offset in 0..columns {
            self.put(x.saturating_add(offset), y, character, 1, style);
        }
    }

    /// Where the second half of a wide character begins at `x`, the character goes: half of it is
    /// painted over.
    fn part(&mut self, x: u16, y: u16) {
        if self.cell(x, y).is_some_and(|cell| cell.symbol().is_empty()) {
            for half in [x.saturating_sub(1), x] {
                if let Some(cell) = self.cell(half, y) {
                    cell.set_symbol(" ");
                }
            }
        }
    }

    fn put(&mut self, x: u16, y: u16, character: char, width: u16, style: Style) {
        if width == 2 && x + 1 >= self.clip.right() {
            return;
        }
        if self.is_ascii() && !character.is_ascii() {
            self.put(x, y, in_ascii(character), 1, style);
            if width == 2 {
                self.put(x + 1, y, ' ', 1, style);
            }
            return;
        }
        self.part(x, y);
        self.part(x.saturating_add(width), y);
        if let Some(cell) = self.cell(x, y) {
            cell.set_char(character).set_style(style);
        }
        if width == 2
            && let Some(cell) = self.cell(x + 1, y)
        {
            cell.set_symbol("").set_style(style);
        }
    }

    /// A box around `area`, its inside blanked, a title in its upper edge. Returns the inside.
    pub fn panel(
        &mut self,
        area: Rect,
        lines: &Lines,
        title: &str,
        border: Style,
        title_style: Style,
    ) -> Rect {
        let area = area.intersection(self.clip);
        if area.width < 2 || area.height < 2 {
            return Rect { width: 0, height: 0, ..area };
        }
        let (right, bottom) = (area.right() - 1, area.bottom() - 1);
        self.repeat(area.x, area.y, area.width, lines.horizontal, border);
        self.repeat(area.x, bottom, area.width, lines.horizontal, border);
        for y in area.y..=bottom {
            self.put(area.x, y, lines.vertical, 1, border);
            self.put(right, y, lines.vertical, 1, border);
        }
        self.put(area.x, area.y, lines.top_left, 1, border);
        self.put(right, area.y, lines.top_right, 1, border);
        self.put(area.x, bottom, lines.bottom_left, 1, border);
        self.put(right, bottom, lines.bottom_right, 1, border);
        if !title.is_empty() && area.width > 6 {
            self.put(area.x + 1, area.y, ' ', 1, border);
            let used = self.text(area.x + 2, area.y, area.width - 4, title, title_style);
            self.put(area.x + 2 + used, area.y, ' ', 1, border);
        }
        Rect { x: area.x + 1, y: area.y + 1, width: area.width - 2, height: area.height - 2 }
    }
}

/// What stands for a character where there is only ASCII.
fn in_ascii(character: char) -> char {
    match character {
        '…' => '~',
        '←' | '‹' => '<',
        '→' | '›' => '>',
        '↑' => '^',
        '↓' => 'v',
        '×' => 'x',
        _ => '?',
    }
}

/// Characters of a box.
#[derive(Clone, Copy, Debug)]
pub struct Lines {
    pub horizontal: char,
    pub vertical: char,
    pub top_left: char,
    pub top_right: char,
    pub bottom_left: char,
    pub bottom_right: char,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn line(width: u16, paint: impl FnOnce(&mut Painter<'_>)) -> String {
        let mut buffer = Buffer::empty(Rect::new(0, 0, width, 1));
        paint(&mut Painter::new(&mut buffer, '…'));
        buffer.content().iter().map(|cell| cell.symbol().to_owned()).collect::<String>().trim_end().to_owned()
    }

    #[test]
    fn what_does_not_fit_ends_in_an_ellipsis() {
        let paint = |text: &'static str, width| line(width, |p| _ = p.text(0, 0, width, text, Style::new()));
        assert_eq!(paint("debian", 6), "debian");
        assert_eq!(paint("debian", 5), "debi…");
        assert_eq!(paint("漢字", 4), "漢字");
        assert_eq!(paint("漢字", 3), "漢…");
        assert_eq!(paint("e\u{301}e", 2), "e\u{301}e");
        assert_eq!(paint("\u{1b}]0;x\u{7}", 10), "?]0;x?");
    }

    #[test]
    fn where_there_is_only_ascii_nothing_else_is_painted() {
        let mut buffer = Buffer::empty(Rect::new(0, 0, 12, 1));
        Painter::new(&mut buffer, '~').text(0, 0, 12, "é漢e\u{301} → 12345", Style::new());
        let text: String = buffer.content().iter().map(|cell| cell.symbol()).collect();
        assert_eq!(text, "?? e > 12345");
    }

    #[test]
    fn numbers_stand_at_the_right() {
        assert_eq!(line(6, |p| _ = p.format_right(0, 0, 6, format_args!("{}", 42), Style::new())), "    42");
    }

    proptest! {
        #[test]
        fn nothing_is_painted_outside(
            width in 0u16..12, height in 0u16..4, x in 0u16..20, y in 0u16..6, columns in 0u16..30, text in any::<String>()
        ) {
            let mut buffer = Buffer::empty(Rect::new(0, 0, width, height));
            let mut painter = Painter::new(&mut buffer, '…');
            let used = painter.text(x, y, columns, &text, Style::new());
            prop_assert!(used <= columns);
            let lines = crate::theme::Glyphs::unicode().lines;
            painter.panel(Rect::new(x, y, columns, columns), &lines, &text, Style::new(), Style::new());
            painter.text_right(x, y, columns, &text, Style::new());
        }
    }
}
