//! The console of a machine: cells of the emulated terminal, painted as any other text.

use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};

use crate::action::Action;
use crate::model::console::{Attachment, ConsolePane};
use crate::model::{Model, View, VmTab};
use crate::options::ThemeChoice;
use crate::paint::Painter;
use crate::text;

/// Columns of the line that is searched for.
const SEARCH: u16 = 36;

pub(super) fn paint(model: &Model, painter: &mut Painter<'_>, area: Rect, lines: Rect) {
    let theme = &model.theme;
    let Some(vm) = model.selected_vm() else { return };
    let Some(console) = model.console.as_ref().filter(|console| console.vm == vm.id) else { return };
    state(model, painter, area, console);
    let screen = console.screen();
    if screen.contents().trim().is_empty() && console.scrolled() == 0 && !console.has_keys() {
        let text = match (console.loaded, vm.boot.is_some()) {
            (false, _) => "reading what it printed",
            (true, true) => "it printed nothing yet",
            (true, false) => "it has never booted",
        };
        painter.text(lines.x + 1, lines.y + 1, lines.width.saturating_sub(1), text, theme.dim);
        return;
    }
    // Of a screen larger than the pane, the part that the cursor is in.
    let (cursor_row, cursor_column) = screen.cursor_position();
    let top = (cursor_row + 1).saturating_sub(lines.height);
    let left = (cursor_column + 1).saturating_sub(lines.width);
    for row in 0..lines.height {
        for column in 0..lines.width {
            let Some(cell) = screen.cell(top + row, left + column) else { break };
            if cell.is_wide_continuation() {
                continue;
            }
            let style = style(model, cell);
            let text = if cell.has_contents() { cell.contents() } else { " " };
            let room = lines.width - column;
            painter.text(lines.x + column, lines.y + row, room.min(2), text, style);
        }
    }
    highlight(painter, model, console, lines, (top, left));
    let visible = console.scrolled() == 0 && !screen.hide_cursor();
    if console.has_keys() && visible {
        let (x, y) = (lines.x + cursor_column - left, lines.y + cursor_row - top);
        painter.style(Rect { x, y, width: 1, height: 1 }, theme.cursor);
    }
}

/// In the rule over it: whose the keys are, how far back it is scrolled, what is searched.
fn state(model: &Model, painter: &mut Painter<'_>, area: Rect, console: &ConsolePane) {
    let theme = &model.theme;
    let right = area.right().saturating_sub(1);
    if let Some(input) = &console.search_input {
        let width = SEARCH.min(area.width.saturating_sub(4));
        let x = right - width;
        let used = painter.text(x, area.y, 3, " / ", theme.key);
        super::windows::input(model, painter, Rect::new(x + used, area.y, width - used, 1), input, "", true);
        return;
    }
    let Some((text, style)) = told(model, console) else { return };
    painter.text_right(area.x, area.y, area.width.saturating_sub(1), &text, style);
}

/// What the rule over the console tells of it.
fn told(model: &Model, console: &ConsolePane) -> Option<(String, Style)> {
    let theme = &model.theme;
    Some(match console.attachment {
        Attachment::Attached => (" ctrl-] leaves ".to_owned(), theme.warning.bold()),
        Attachment::Asking => (" connecting ".to_owned(), theme.busy),
        Attachment::Watching if console.scrolled() > 0 => {
            (format!(" {} lines back ", console.scrolled()), theme.accent)
        }
        Attachment::Watching if model.in_console() => {
            let keys = model.keymap.keys_of(Action::ConsoleType).map(crate::keymap::sequence);
            (format!(" {} types into it ", keys.unwrap_or_default()), theme.dim)
        }
        Attachment::Watching => return None,
    })
}

/// Columns at the right end of the rule that are the console's.
pub(super) fn told_width(model: &Model) -> u16 {
    let shown = model.view == View::Vms && model.vm_tab == VmTab::Console;
    let Some(console) = model.console.as_ref().filter(|_| shown) else { return 0 };
    if console.search_input.is_some() {
        return SEARCH + 1;
    }
    told(model, console).map_or(0, |(text, _)| text::width(&text) + 1)
}

/// Marks what was searched for in the lines in sight.
fn highlight(painter: &mut Painter<'_>, model: &Model, console: &ConsolePane, lines: Rect, from: (u16, u16)) {
    let needle = console.needle.to_lowercase();
    if needle.is_empty() {
        return;
    }
    let width = text::width(&needle);
    for (row, line) in console.screen().rows(from.1, lines.width).skip(usize::from(from.0)).enumerate() {
        let Some(y) = u16::try_from(row).ok().filter(|row| *row < lines.height) else { break };
        let line = line.to_lowercase();
        for (at, _) in line.match_indices(&needle) {
            let x = lines.x + text::width(&line[..at]);
            painter.style(Rect { x, y: lines.y + y, width, height: 1 }, model.theme.matched);
        }
    }
}

fn style(model: &Model, cell: &vt100::Cell) -> Style {
    let mut style = model.theme.text;
    if model.theme.choice != ThemeChoice::Mono {
        if let Some(colour) = colour(cell.fgcolor()) {
            style = style.fg(colour);
        }
        if let Some(colour) = colour(cell.bgcolor()) {
            style = style.bg(colour);
        }
    }
    for (set, modifier) in [
        (cell.bold(), Modifier::BOLD),
        (cell.dim(), Modifier::DIM),
        (cell.italic(), Modifier::ITALIC),
        (cell.underline(), Modifier::UNDERLINED),
        (cell.inverse(), Modifier::REVERSED),
    ] {
        if set {
            style = style.add_modifier(modifier);
        }
    }
    style
}

fn colour(colour: vt100::Color) -> Option<Color> {
    match colour {
        vt100::Color::Default => None,
        vt100::Color::Idx(index) => Some(Color::Indexed(index)),
        vt100::Color::Rgb(red, green, blue) => Some(Color::Rgb(red, green, blue)),
    }
}
