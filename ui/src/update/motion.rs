//! Where the cursor and the panes go.

use crate::action::Action;
use crate::layout::layout;
use crate::model::list::ListCommand;
use crate::model::{Model, Pane, View, VmTab};

pub(super) fn go(model: &mut Model, view: View) {
    if model.view != view {
        model.view = view;
        model.pane = Pane::List;
        model.zoom = false;
        model.detail_offset = 0;
    }
}

pub(super) fn scroll(model: &mut Model, action: Action, count: Option<u32>) {
    let places = layout(model);
    if model.view == View::Log {
        scroll_log(model, action, count, usize::from(places.lines.height));
        return;
    }
    if model.in_console()
        && let Some(console) = &mut model.console
    {
        // Scrolled back is counted from the end.
        let page = usize::from(places.lines.height);
        let most = usize::MAX / 2;
        let at = most - console.scrolled();
        console.scroll_to(most - scrolled(at, most + 1, page, action, count));
        return;
    }
    if model.pane == Pane::Detail {
        let page = usize::from(places.lines.height);
        model.detail_offset = scrolled(model.detail_offset, usize::MAX / 2, page, action, count);
        return;
    }
    let page = usize::from(places.rows.height);
    let Some(list) = model.list() else { return };
    let at = scrolled(list.cursor, list.rows.len(), page, action, count);
    select(model, at);
}

/// Puts the cursor on a row of the view's list.
pub(super) fn select(model: &mut Model, at: usize) {
    model.with_list(ListCommand::MoveTo(at));
    model.detail_offset = 0;
}

pub(super) fn tab(model: &mut Model, by: usize) {
    let at = VmTab::ALL.iter().position(|tab| *tab == model.vm_tab).unwrap_or(0);
    model.vm_tab = VmTab::ALL[(at + by) % VmTab::ALL.len()];
    model.detail_offset = 0;
}

/// Where a cursor or an offset goes in `count` lines of which `page` are in sight.
pub(super) fn scrolled(at: usize, lines: usize, page: usize, action: Action, count: Option<u32>) -> usize {
    let times = count.map_or(1, |count| usize::try_from(count).unwrap_or(usize::MAX));
    let last = lines.saturating_sub(1);
    let by = |step: usize| step.max(1).saturating_mul(times);
    match action {
        Action::Down => at.saturating_add(by(1)).min(last),
        Action::Up => at.saturating_sub(by(1)),
        Action::HalfPageDown => at.saturating_add(by(page / 2)).min(last),
        Action::HalfPageUp => at.saturating_sub(by(page / 2)),
        Action::PageDown => at.saturating_add(by(page.saturating_sub(1))).min(last),
        Action::PageUp => at.saturating_sub(by(page.saturating_sub(1))),
        Action::Top => count.map_or(0, |_| times.saturating_sub(1)).min(last),
        Action::Bottom => count.map_or(last, |_| times.saturating_sub(1)).min(last),
        _ => at,
    }
}

fn scroll_log(model: &mut Model, action: Action, count: Option<u32>, page: usize) {
    let last = model.log.count().saturating_sub(page);
    let at = if model.log.follow { last } else { model.log.offset.min(last) };
    let to = scrolled(at, last + 1, page, action, count);
    model.log.offset = to;
    model.log.follow =
        to >= last && !matches!(action, Action::Up | Action::PageUp | Action::HalfPageUp | Action::Top);
}
