//! The four lists.

use ratatui::layout::Rect;
use ratatui::style::Style;
use vmdeck_engine::vm::record::VmState;

use super::columns::{IMAGES, KERNELS, OPERATIONS, VMS};
use super::table::{self, Column, arrange};
use super::{activity, rule, welcome};
use crate::layout::{activity_height, layout};
use crate::model::list::{ListState, Listed};
use crate::model::{Model, Pane, View};
use crate::paint::Painter;

/// Glyph and style of a machine's state.
pub(super) fn state_look(model: &Model, state: VmState) -> (char, Style) {
    let (theme, glyphs) = (&model.theme, &model.glyphs);
    match state {
        VmState::Created => (glyphs.created, theme.dim),
        VmState::Starting | VmState::Stopping => (model.spinner(), theme.busy),
        VmState::Running => (glyphs.running, theme.good),
        VmState::Paused => (glyphs.stopped, theme.busy),
        VmState::Stopped => (glyphs.stopped, theme.dim),
        VmState::Failed => (glyphs.failed, theme.bad),
    }
}

pub(super) fn paint(model: &Model, painter: &mut Painter<'_>, area: Rect, rows: Rect) {
    let Some(list) = model.list() else { return };
    let focused = model.pane == Pane::List && model.overlays.is_empty();
    title(model, painter, area, list, focused);
    let titles = Rect { y: area.y + 1, height: 1, ..area };
    let strip = activity_height(model);
    if strip > 0 {
        let y = rows.bottom();
        activity::paint(
            model,
            painter,
            Rect { y, height: strip.min(area.bottom().saturating_sub(y)), ..area },
        );
    }
    if list.rows.is_empty() {
        empty(
            model,
            painter,
            list,
            Rect { y: area.y + 1, height: area.height.saturating_sub(1 + strip), ..area },
        );
        return;
    }
    match model.view {
        View::Vms => table::paint(model, painter, VMS, list, titles, rows, focused),
        View::Images => table::paint(model, painter, IMAGES, list, titles, rows, focused),
        View::Kernels => table::paint(model, painter, KERNELS, list, titles, rows, focused),
        View::Operations => table::paint(model, painter, OPERATIONS, list, titles, rows, focused),
        View::Log => {}
    }
}

/// The rule over the list: how many rows, the filter, the marks.
fn title(model: &Model, painter: &mut Painter<'_>, area: Rect, list: &ListState, focused: bool) {
    let theme = &model.theme;
    rule(model, painter, area, focused);
    let right = area.right().saturating_sub(1);
    let room = |x: u16| right.saturating_sub(x);
    let mut x = area.x + 1;
    x += painter.text(x, area.y, room(x), " ", theme.text);
    let title_style = if focused { theme.accent.bold() } else { theme.title };
    x += painter.text(x, area.y, room(x), model.view.title(), title_style);
    let filtered = !list.filter.is_empty() || list.filter_input.is_some();
    if filtered {
        x += painter.format(
            x,
            area.y,
            room(x),
            format_args!(" {} of {}", list.rows.len(), list.total),
            theme.text,
        );
    } else {
        // Kernels that can be pulled are listed, and not here.
        let here = if model.view == View::Kernels { model.snapshot.kernels.len() } else { list.total };
        x += painter.format(x, area.y, room(x), format_args!(" {here}"), theme.text);
        if here < list.total {
            let more = format_args!(", {} in the catalog", list.total - here);
            x += painter.format(x, area.y, room(x), more, theme.dim);
        }
    }
    if model.view == View::Kernels && model.kernel_catalog_sought {
        x += painter.text(x, area.y, room(x), "  looking up what can be pulled", theme.busy);
    }
    if !list.marks.is_empty() {
        x += painter.format(x, area.y, room(x), format_args!("  {} marked", list.marks.len()), theme.marked);
    }
    if list.range_from.is_some() {
        x += painter.text(x, area.y, room(x), "  marking a range", theme.marked);
    }
    if let Some(input) = &list.filter_input {
        x += painter.text(x, area.y, room(x), "  / ", theme.key);
        x += super::windows::input(model, painter, Rect::new(x, area.y, room(x).min(40), 1), input, "", true);
    } else if filtered {
        x += painter.text(x, area.y, room(x), "  / ", theme.key);
        x += painter.text(x, area.y, room(x), &list.filter.text, theme.matched);
    }
    painter.text(x, area.y, room(x).min(1), " ", theme.text);
}

fn empty(model: &Model, painter: &mut Painter<'_>, list: &ListState, area: Rect) {
    let theme = &model.theme;
    if model.snapshot.generation == 0 {
        painter.text(area.x + 2, area.y + 1, area.width.saturating_sub(4), "reading the store", theme.dim);
    } else if list.total > 0 {
        let text = "Nothing matches the filter; esc takes it off.";
        painter.text(area.x + 2, area.y + 1, area.width.saturating_sub(4), text, theme.dim);
    } else {
        welcome::paint(model, painter, area);
    }
}

/// The way of sorting whose column's title is at a place of the screen.
pub fn sort_at(model: &Model, x: u16, y: u16) -> Option<usize> {
    fn find<T: Listed>(model: &Model, columns: &[Column<T>], titles: Rect, x: u16) -> Option<usize> {
        let places = arrange(model, model.list()?, columns, titles.width);
        let found = columns
            .iter()
            .zip(places)
            .find(|(_, (from, width))| *width > 0 && (titles.x + from..titles.x + from + width).contains(&x));
        found.and_then(|(column, _)| column.sort)
    }
    let titles = layout(model).list?;
    if y != titles.y + 1 {
        return None;
    }
    match model.view {
        View::Vms => find(model, VMS, titles, x),
        View::Images => find(model, IMAGES, titles, x),
        View::Kernels => find(model, KERNELS, titles, x),
        View::Operations => find(model, OPERATIONS, titles, x),
        View::Log => None,
    }
}
