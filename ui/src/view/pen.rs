//! Writing line after line into a pane that shows a part of them.

use std::fmt;

use ratatui::layout::Rect;
use ratatui::style::Style;

use crate::model::Model;
use crate::paint::Painter;
use crate::text;

/// Columns of a field's label.
const LABEL: u16 = 12;

/// Writes lines; those outside the pane are only counted.
pub(super) struct Pen<'a, 'b> {
    pub(super) model: &'a Model,
    painter: Option<&'a mut Painter<'b>>,
    area: Rect,
    offset: usize,
    line: usize,
}

impl<'a, 'b> Pen<'a, 'b> {
    pub(super) fn new(model: &'a Model, painter: &'a mut Painter<'b>, area: Rect, offset: usize) -> Self {
        Self { model, painter: Some(painter), area, offset, line: 0 }
    }

    /// A pen that only counts the lines.
    pub(super) fn counting(model: &'a Model, width: u16) -> Self {
        Self { model, painter: None, area: Rect { width, ..Rect::default() }, offset: 0, line: 0 }
    }

    /// Lines written so far.
    pub(super) fn lines(&self) -> usize {
        self.line
    }

    pub(super) fn width(&self) -> u16 {
        self.area.width
    }

    pub(super) fn blank(&mut self) {
        self.line += 1;
    }

    /// Writes one line.
    pub(super) fn line(&mut self, write: impl FnOnce(&mut LinePen<'_, 'b>)) {
        let at = self.line;
        self.line += 1;
        let Some(painter) = self.painter.as_deref_mut() else { return };
        let Some(row) = at.checked_sub(self.offset).and_then(|row| u16::try_from(row).ok()) else { return };
        if row < self.area.height {
            write(&mut LinePen { painter, x: self.area.x, y: self.area.y + row, right: self.area.right() });
        }
    }

    /// Writes a text, broken into as many lines as it needs.
    pub(super) fn text(&mut self, text: &str, style: Style) {
        self.hanging("", Style::new(), text, style);
    }

    /// Writes a text behind a mark; further lines are indented to where the first began.
    pub(super) fn hanging(&mut self, mark: &str, mark_style: Style, text: &str, style: Style) {
        let indent = text::width(mark);
        for (index, part) in text::wrap(text, self.area.width.saturating_sub(indent)).enumerate() {
            self.line(|line| {
                if index == 0 {
                    line.put(mark, mark_style);
                } else {
                    line.skip(indent);
                }
                line.put(part, style);
            });
        }
    }

    pub(super) fn heading(&mut self, text: &str) {
        let style = self.model.theme.title;
        self.line(|line| line.put(text, style));
    }

    /// A label and its value, which wraps.
    pub(super) fn field(&mut self, label: &str, value: &str) {
        let (dim, style) = (self.model.theme.dim, self.model.theme.text);
        for (index, part) in text::wrap(value, self.area.width.saturating_sub(LABEL)).enumerate() {
            self.line(|line| {
                if index == 0 {
                    line.column(label, LABEL, dim);
                } else {
                    line.skip(LABEL);
                }
                line.put(part, style);
            });
        }
    }

    pub(super) fn field_format(&mut self, label: &str, value: fmt::Arguments<'_>) {
        let (dim, style) = (self.model.theme.dim, self.model.theme.text);
        self.line(|line| {
            line.column(label, LABEL, dim);
            line.format(value, style);
        });
    }
}

/// Writes on one line, from left to right.
pub(super) struct LinePen<'a, 'b> {
    painter: &'a mut Painter<'b>,
    x: u16,
    y: u16,
    right: u16,
}

impl LinePen<'_, '_> {
    pub(super) fn rest(&self) -> u16 {
        self.right.saturating_sub(self.x)
    }

    pub(super) fn put(&mut self, text: &str, style: Style) {
        self.x += self.painter.text(self.x, self.y, self.rest(), text, style);
    }

    pub(super) fn glyph(&mut self, glyph: char, style: Style) {
        self.put(glyph.encode_utf8(&mut [0; 4]), style);
    }

    pub(super) fn format(&mut self, arguments: fmt::Arguments<'_>, style: Style) {
        self.x += self.painter.format(self.x, self.y, self.rest(), arguments, style);
    }

    /// A text in a column of its own.
    pub(super) fn column(&mut self, text: &str, columns: u16, style: Style) {
        let columns = columns.min(self.rest());
        self.painter.text(self.x, self.y, columns.saturating_sub(1), text, style);
        self.x += columns;
    }

    pub(super) fn repeat(&mut self, columns: u16, glyph: char, style: Style) {
        let columns = columns.min(self.rest());
        self.painter.repeat(self.x, self.y, columns, glyph, style);
        self.x += columns;
    }

    pub(super) fn skip(&mut self, columns: u16) {
        self.x += columns.min(self.rest());
    }

    /// At the right end; what is there already is kept by leaving `keep` columns to it.
    pub(super) fn right(&mut self, columns: u16, arguments: fmt::Arguments<'_>, style: Style) {
        let columns = columns.min(self.rest());
        self.painter.format_right(self.right - columns, self.y, columns, arguments, style);
        self.right -= columns;
    }
}
