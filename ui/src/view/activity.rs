//! What is under way with what the list shows, below its rows: a pull is seen where it was asked for.

use ratatui::layout::Rect;
use vmdeck_engine::snapshot::OperationView;

use super::progress;
use crate::format::{Bytes, Span};
use crate::layout::under_way;
use crate::model::Model;
use crate::model::rates::time_left;
use crate::paint::Painter;
use crate::text;

/// Widest a target is shown.
const TARGET: u16 = 44;

pub(super) fn paint(model: &Model, painter: &mut Painter<'_>, area: Rect) {
    let theme = &model.theme;
    painter.repeat(area.x, area.y, area.width, model.glyphs.rule, theme.border);
    painter.text(area.x + 1, area.y, area.width.saturating_sub(2), " under way ", theme.dim);
    let rows = usize::from(area.height.saturating_sub(1));
    let all = under_way(model).count();
    let shown = if all > rows { rows.saturating_sub(1) } else { all };
    let widest = under_way(model).take(shown).map(|view| text::width(&view.record.target)).max().unwrap_or(0);
    let mut y = area.y + 1;
    for view in under_way(model).take(shown) {
        line(model, painter, Rect { y, height: 1, ..area }, view, widest.min(TARGET));
        y += 1;
    }
    if shown < all && y < area.bottom() {
        let more = format_args!("and {} more: the operations have them all", all - shown);
        painter.format(area.x + 4, y, area.width.saturating_sub(5), more, theme.dim);
    }
}

/// What is done, without the noun.
fn verb(view: &OperationView) -> &'static str {
    let kind = view.record.kind.as_str();
    kind.split_once(' ').map_or(kind, |(_, verb)| verb)
}

fn line(model: &Model, painter: &mut Painter<'_>, area: Rect, view: &OperationView, target: u16) {
    let theme = &model.theme;
    let right = area.right().saturating_sub(1);
    let room = |x: u16| right.saturating_sub(x);
    let mut x = area.x + 2;
    painter.repeat(x, area.y, 1, model.spinner(), theme.busy);
    x += 2;
    painter.text(x, area.y, room(x).min(8), verb(view), theme.dim);
    x += 9;
    let target = target.min(room(x).saturating_sub(30).max(12));
    painter.text(x, area.y, room(x).min(target), &view.record.target, theme.text);
    x += target + 2;
    if view.record.cancel_requested {
        painter.text(x, area.y, room(x), "cancelling", theme.warning);
        return;
    }
    let (done, total) = view.progress.bytes();
    let rate = model.rates.of_operation(view);
    if let Some((done, total, _)) = progress::whole(&view.progress).filter(|(_, total, _)| *total > 0) {
        let bar = room(x).saturating_sub(34).clamp(6, 24).min(room(x));
        let full = progress::filled(done, total, bar);
        painter.repeat(x, area.y, full, model.glyphs.bar_done, theme.bar_done);
        painter.repeat(x + full, area.y, bar - full, model.glyphs.bar_rest, theme.bar_rest);
        x += bar;
        let percent = format_args!(" {:>3}% ", progress::percent(done, total).unwrap_or(0));
        x += painter.format(x, area.y, room(x), percent, theme.text);
    }
    if let Some(phase) = progress::phase(view) {
        x += painter.text(x, area.y, room(x), phase, theme.dim) + 2;
    }
    if let Some(since) = model.rates.stalled(view) {
        painter.format(x, area.y, room(x), format_args!("nothing for {}", Span(since)), theme.warning);
        return;
    }
    if let Some(rate) = rate {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let text = format_args!("{}/s", Bytes(rate as u64));
        x += painter.format(x, area.y, room(x), text, theme.text) + 2;
    }
    if let Some(left) = time_left(done, total, rate) {
        painter.format(x, area.y, room(x), format_args!("{} left", Span(left)), theme.dim);
    }
}
