//! What the screen shows: pure functions from the [`Model`] to cells.

mod activity;
pub mod bar;
mod columns;
mod console;
pub mod detail;
mod forms;
pub mod header;
pub mod lists;
mod log;
mod pen;
mod phases;
mod progress;
mod spark;
mod table;
mod welcome;
mod windows;

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Modifier, Style};

use crate::layout::{is_tiny, layout};
use crate::model::{Model, View};
use crate::paint::Painter;

/// Paints the whole screen into a blank buffer.
pub fn view(model: &Model, buffer: &mut Buffer) {
    let mut painter = Painter::new(buffer, model.glyphs.ellipsis);
    let all = painter.area();
    if model.theme.text != Style::new() {
        painter.style(all, model.theme.text);
    }
    // A buffer of another size than the model's, in the moment of a resize, is clipped.
    if is_tiny(model) {
        tiny(model, &mut painter);
    } else {
        let places = layout(model);
        header::paint(model, &mut painter, places.header);
        if let Some(area) = places.list {
            lists::paint(model, &mut painter, area, places.rows);
        }
        if let Some(divider) = places.divider {
            painter.repeat(divider.x, divider.y, 1, model.glyphs.rule_down, model.theme.border);
            for y in divider.top() + 1..divider.bottom() {
                painter.repeat(divider.x, y, 1, model.glyphs.lines.vertical, model.theme.border);
            }
        }
        if let Some(area) = places.detail {
            if model.view == View::Log {
                log::paint(model, &mut painter, area, places.lines);
            } else {
                detail::paint(model, &mut painter, area, places.lines);
            }
        }
        bar::paint(model, &mut painter, places.bar);
        bar::toasts(model, &mut painter, places.bar);
    }
    windows::paint(model, &mut painter, all);
}

/// All there is room for in a window too small for more: how many machines run, and how to leave.
fn tiny(model: &Model, painter: &mut Painter<'_>) {
    let running = model.snapshot.vms.iter().filter(|vm| vm.state.has_process()).count();
    let quit = model.keymap.describe(crate::action::Action::Quit);
    let (total, operations) = (model.snapshot.vms.len(), model.running_operations());
    let width = painter.area().width;
    painter.format(
        0,
        0,
        width,
        format_args!("vmdeck {running}/{total} run, {operations} busy, {quit} quits"),
        model.theme.text,
    );
}

/// How a text of some style looks in a row that may be the selected one.
fn row_style(style: Style, row: Option<Style>) -> Style {
    match row {
        None => style,
        // Reversed colours of single words would make a patchwork of the row.
        Some(row) if row.add_modifier.contains(Modifier::REVERSED) => row,
        Some(row) => style.patch(row),
    }
}

/// A line across, with a title in it and something at its right end.
fn rule(model: &Model, painter: &mut Painter<'_>, area: Rect, focused: bool) {
    let style = if focused { model.theme.border_focused } else { model.theme.border };
    painter.repeat(area.x, area.y, area.width, model.glyphs.rule, style);
}
