//! A table of which only the rows in sight are made.

use std::fmt;

use ratatui::layout::Rect;
use ratatui::style::Style;

use super::row_style;
use crate::model::Model;
use crate::model::list::{ListState, Listed};
use crate::paint::Painter;
use crate::text;

/// Most columns a table may have.
const COLUMNS: usize = 12;

/// Rank from which on a column only gets room that no other needs for what it has to say.
const SECOND: u8 = 6;

/// Rank from which on a column only gets room that no other can use.
const EXTRA: u8 = 7;

/// Columns left free at the left for the cursor and the mark.
const GUTTER: u16 = 2;

/// One column.
pub(super) struct Column<T> {
    pub(super) title: &'static str,
    /// Narrowest and widest it is useful.
    pub(super) min: u16,
    pub(super) max: u16,
    /// The higher, the sooner it is left out when there is no room.
    pub(super) rank: u8,
    pub(super) right: bool,
    /// Index into [`Listed::SORTS`].
    pub(super) sort: Option<usize>,
    /// Columns a row's content takes, for those that grow with it up to `max`; the others take all
    /// that is to be had up to `max`.
    pub(super) measure: Option<fn(&T) -> u16>,
    /// Rows that it has something to say of: without one it is left out.
    pub(super) concerns: Option<fn(&T) -> bool>,
    pub(super) paint: Paint<T>,
}

/// What a column is painted by.
pub(super) type Paint<T> = fn(&mut Cell<'_, '_>, &T);

impl<T> Column<T> {
    /// A column of a rank, so wide at least and at most.
    pub(super) const fn new(title: &'static str, rank: u8, (min, max): (u16, u16), paint: Paint<T>) -> Self {
        Self { title, min, max, rank, right: false, sort: None, measure: None, concerns: None, paint }
    }

    /// Its text stands at the right, as numbers do.
    pub(super) const fn right(mut self) -> Self {
        self.right = true;
        self
    }

    /// It can be sorted by: an index into [`Listed::SORTS`].
    pub(super) const fn sorted(mut self, sort: usize) -> Self {
        self.sort = Some(sort);
        self
    }

    /// It is only there with a row that it has something to say of.
    pub(super) const fn concerning(mut self, concerns: fn(&T) -> bool) -> Self {
        self.concerns = Some(concerns);
        self
    }

    /// It takes what its rows' content takes.
    pub(super) const fn measured(mut self, measure: fn(&T) -> u16) -> Self {
        self.measure = Some(measure);
        self
    }
}

/// Where the columns that fit are: offset and width, width 0 for those left out.
pub(super) fn arrange<T: Listed>(
    model: &Model,
    list: &ListState,
    columns: &[Column<T>],
    width: u16,
) -> [(u16, u16); COLUMNS] {
    let all = T::rows(&model.snapshot);
    let rows = || list.rows.iter().filter_map(|&index| all.get(index as usize));
    let content = |column: &Column<T>| column.measure.map(|measure| rows().map(measure).max().unwrap_or(0));
    place(columns, width, content, |column| column.concerns.is_none_or(|concerns| rows().any(concerns)))
}

/// `content` is what a column's content takes, for those that grow with it; `is_wanted` whether it is to be
/// there at all.
fn place<T>(
    columns: &[Column<T>],
    width: u16,
    content: impl Fn(&Column<T>) -> Option<u16>,
    is_wanted: impl Fn(&Column<T>) -> bool,
) -> [(u16, u16); COLUMNS] {
    let columns = &columns[..columns.len().min(COLUMNS)];
    let room = width.saturating_sub(GUTTER + 1);
    let mut widths = [0u16; COLUMNS];
    let needed = |widths: &[u16; COLUMNS]| -> u16 {
        let shown = widths.iter().filter(|width| **width > 0);
        shown.fold(0u16, |sum, width| sum.saturating_add(width + 2)).saturating_sub(2)
    };
    // Where there is little room, a column with less to say than it could leaves the rest to others.
    let (mut least, mut most) = ([0u16; COLUMNS], [0u16; COLUMNS]);
    for ((least, most), column) in least.iter_mut().zip(&mut most).zip(columns) {
        let title = text::width(column.title) + u16::from(column.sort.is_some());
        let content = content(column);
        *least = content.map_or(column.min, |content| content.max(title).min(column.min));
        *most = content.map_or(column.max, |content| content.clamp(*least, column.max));
    }
    let highest = columns.iter().map(|column| column.rank).max().unwrap_or(0);
    'ranks: for rank in 0..=highest {
        for index in
            (0..columns.len()).filter(|&index| columns[index].rank == rank && is_wanted(&columns[index]))
        {
            let mut with = widths;
            for ((width, most), column) in with.iter_mut().zip(most).zip(columns) {
                if *width > 0 && (rank >= EXTRA || rank >= SECOND && column.measure.is_some()) {
                    *width = most;
                }
            }
            with[index] = least[index];
            if needed(&with) > room && rank > 0 {
                break 'ranks;
            }
            widths[index] = least[index];
        }
    }
    // What is left over goes to the columns that can use it, a part to each by turns: first to those
    // that have more to say, then to those that only look better so, at last to those that have less
    // to say than they usually have.
    let mut left = room.saturating_sub(needed(&widths));
    let rounds: [fn(&Column<T>, u16) -> u16; 3] = [
        |column, most| if column.measure.is_some() { most } else { 0 },
        |column, most| if column.measure.is_none() { most } else { 0 },
        |column, most| column.min.max(most),
    ];
    for limit in rounds {
        let mut given = true;
        while left > 0 && given {
            given = false;
            for ((column, width), most) in columns.iter().zip(widths.iter_mut()).zip(most) {
                if *width > 0 && *width < limit(column, most) && left > 0 {
                    (*width, left, given) = (*width + 1, left - 1, true);
                }
            }
        }
    }
    let mut places = [(0, 0); COLUMNS];
    let mut x = GUTTER;
    for (place, width) in places.iter_mut().zip(widths) {
        if width > 0 {
            *place = (x, width.min(room));
            x = x.saturating_add(width + 2);
        }
    }
    places
}

/// Paints titles and rows.
pub(super) fn paint<T: Listed>(
    model: &Model,
    painter: &mut Painter<'_>,
    columns: &[Column<T>],
    list: &ListState,
    titles: Rect,
    rows: Rect,
    focused: bool,
) {
    let (theme, glyphs) = (&model.theme, &model.glyphs);
    let places = arrange(model, list, columns, titles.width);
    for (column, (x, width)) in columns.iter().zip(places).filter(|(_, (_, width))| *width > 0) {
        let sorted = column.sort == Some(list.sort);
        let style = if sorted { theme.accent } else { theme.column_title };
        let x = titles.x + x;
        let room = if sorted { width.saturating_sub(1) } else { width };
        let used = if column.right {
            painter.text_right(x, titles.y, room, column.title, style);
            room
        } else {
            painter.text(x, titles.y, room, column.title, style)
        };
        if sorted {
            let arrow = if list.descending { glyphs.down } else { glyphs.up };
            painter.repeat(x + used, titles.y, 1, arrow, style);
        }
    }
    for offset in 0..rows.height {
        let at = list.offset + usize::from(offset);
        let Some(row) = list.row::<T>(&model.snapshot, at) else { break };
        let y = rows.y + offset;
        let marked = list.marks.contains(row.key()) || list.in_range(at);
        let selected = at == list.cursor;
        let highlight = match (selected, focused) {
            (true, true) => Some(theme.selected),
            (true, false) => Some(theme.selected_unfocused),
            (false, _) => None,
        };
        if let Some(highlight) = highlight {
            painter.style(Rect { y, height: 1, ..rows }, highlight);
        }
        if selected {
            painter.repeat(rows.x, y, 1, glyphs.cursor_row, row_style(theme.accent, highlight));
        }
        if marked {
            painter.repeat(rows.x + 1, y, 1, glyphs.mark, row_style(theme.marked, highlight));
        }
        for (column, (x, width)) in columns.iter().zip(places).filter(|(_, (_, width))| *width > 0) {
            let mut cell =
                Cell { model, painter, x: rows.x + x, y, width, right: column.right, highlight, marked };
            (column.paint)(&mut cell, row);
        }
    }
    // Where in a long list one is.
    let total = list.rows.len();
    if total > usize::from(rows.height) && rows.height > 1 && rows.width > 0 {
        let track = usize::from(rows.height);
        let length = (track * track / total).max(1);
        let from = list.offset * (track - length) / (total - track).max(1);
        for y in from..(from + length).min(track) {
            let y = rows.y + u16::try_from(y).unwrap_or(0);
            painter.repeat(rows.right() - 1, y, 1, glyphs.scroll, theme.border);
        }
    }
}

/// One cell of the table being painted, from left to right.
pub(super) struct Cell<'a, 'b> {
    pub(super) model: &'a Model,
    painter: &'a mut Painter<'b>,
    x: u16,
    y: u16,
    width: u16,
    right: bool,
    highlight: Option<Style>,
    marked: bool,
}

impl Cell<'_, '_> {
    pub(super) fn width(&self) -> u16 {
        self.width
    }

    fn style(&self, style: Style) -> Style {
        row_style(style, self.highlight)
    }

    fn advance(&mut self, used: u16) {
        self.x += used;
        self.width -= used.min(self.width);
    }

    pub(super) fn text(&mut self, text: &str, style: Style) {
        let style = self.style(style);
        let used = if self.right {
            self.painter.text_right(self.x, self.y, self.width, text, style);
            self.width
        } else {
            self.painter.text(self.x, self.y, self.width, text, style)
        };
        self.advance(used);
    }

    /// The name of the row: stands out when it is marked.
    pub(super) fn name(&mut self, text: &str) {
        let style = if self.marked { self.model.theme.marked } else { self.model.theme.text };
        self.text(text, style);
    }

    /// A reference of an image or kernel, whose end says more than its beginning; one with a digest at
    /// its end is cut there, as any other text.
    pub(super) fn reference(&mut self, reference: &str, style: Style) {
        if text::width(reference) <= self.width || self.width == 0 || reference.contains('@') {
            return self.text(reference, style);
        }
        let rest = text::tail(reference, self.width - 1);
        self.glyph(self.model.glyphs.ellipsis, style);
        self.text(rest, style);
    }

    pub(super) fn glyph(&mut self, glyph: char, style: Style) {
        if self.width > 0 {
            let style = self.style(style);
            self.painter.repeat(self.x, self.y, 1, glyph, style);
            self.advance(1);
        }
    }

    pub(super) fn repeat(&mut self, columns: u16, glyph: char, style: Style) {
        let (style, columns) = (self.style(style), columns.min(self.width));
        self.painter.repeat(self.x, self.y, columns, glyph, style);
        self.advance(columns);
    }

    pub(super) fn skip(&mut self, columns: u16) {
        self.advance(columns.min(self.width));
    }

    pub(super) fn format(&mut self, arguments: fmt::Arguments<'_>, style: Style) {
        let style = self.style(style);
        let used = if self.right {
            self.painter.format_right(self.x, self.y, self.width, arguments, style);
            self.width
        } else {
            self.painter.format(self.x, self.y, self.width, arguments, style)
        };
        self.advance(used);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(min: u16, max: u16, rank: u8) -> Column<u8> {
        Column::new("", rank, (min, max), |_, _| {})
    }

    #[test]
    fn what_matters_least_is_left_out_first() {
        let columns = [column(10, 30, 0), column(8, 8, 1), column(6, 6, 3), column(5, 20, 2)];
        let widths = |width| place(&columns, width, |_| None, |_| true).map(|(_, width)| width);
        assert_eq!(widths(100)[..4], [30, 8, 6, 20]);
        assert_eq!(widths(33)[..4], [12, 8, 0, 6]);
        assert_eq!(widths(24)[..4], [11, 8, 0, 0]);
        assert_eq!(widths(5)[..4], [2, 0, 0, 0]);
        assert_eq!(widths(0)[..4], [0, 0, 0, 0]);
    }
    #[test]
    fn a_column_with_little_to_say_leaves_its_room_to_others_that_need_it() {
        let measured = |min, max, rank| column(min, max, rank).measured(|_| 0);
        let columns = [measured(10, 30, 0), measured(8, 20, 1), column(4, 4, 2)];
        let widths = |width, first, second| {
            let content = |column: &Column<u8>| Some(if column.rank == 0 { first } else { second });
            place(&columns, width, |column| column.measure.and_then(|_| content(column)), |_| true)
                .map(|(_, width)| width)
        };
        assert_eq!(widths(27, 5, 18)[..3], [5, 11, 4]);
        assert_eq!(widths(34, 5, 12)[..3], [10, 12, 4]);
        assert_eq!(widths(60, 5, 12)[..3], [10, 12, 4]);
        assert_eq!(widths(60, 40, 12)[..3], [30, 12, 4]);
    }
}
