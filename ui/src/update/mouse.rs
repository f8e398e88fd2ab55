//! The mouse: wheel, click on a row, a tab, a column's title.

use crossterm::event::{KeyCode, MouseButton, MouseEvent, MouseEventKind};
use ratatui::layout::{Position, Rect};

use super::{act, motion, refresh, windows};
use crate::action::Action;
use crate::keymap::Key;
use crate::layout::{is_tiny, layout};
use crate::message::Effect;
use crate::model::overlay::Overlay;
use crate::model::{Model, Pane, View};
use crate::view;

/// Rows per notch of the wheel.
const WHEEL: u32 = 3;

pub(super) fn mouse(model: &mut Model, event: MouseEvent, effects: &mut Vec<Effect>) {
    let turned = match event.kind {
        MouseEventKind::ScrollDown => Some(KeyCode::Down),
        MouseEventKind::ScrollUp => Some(KeyCode::Up),
        _ => None,
    };
    let is_read = matches!(
        model.overlays.last(),
        Some(Overlay::Help(_) | Overlay::Messages { .. } | Overlay::Doctor { .. })
    );
    if let (true, Some(turned)) = (is_read, turned) {
        (0..WHEEL).for_each(|_| windows::key(model, Key::plain(turned), effects));
        return;
    }
    // Other windows are for the keys; a click beside one must not change what is below it.
    if is_tiny(model) || !model.overlays.is_empty() {
        return;
    }
    let places = layout(model);
    let at = Position::new(event.column, event.row);
    let over = |area: Option<Rect>| area.is_some_and(|area| area.contains(at));
    match event.kind {
        MouseEventKind::ScrollDown | MouseEventKind::ScrollUp => {
            let down = event.kind == MouseEventKind::ScrollDown;
            let pane = model.pane;
            if over(places.detail) && model.view != View::Log {
                model.pane = Pane::Detail;
            } else if over(places.list) {
                model.pane = Pane::List;
            }
            model.count = Some(WHEEL);
            act::act(model, if down { Action::Down } else { Action::Up }, effects);
            model.pane = pane;
        }
        MouseEventKind::Down(MouseButton::Left) => {
            if places.header.contains(at) {
                if let Some(view) = view::header::tab_at(model, at.x, at.y) {
                    act::act(model, view_action(view), effects);
                }
            } else if places.rows.contains(at) {
                let row = usize::from(at.y - places.rows.y);
                let Some(list) = model.list() else { return };
                let to = list.offset + row;
                if to < list.rows.len() {
                    let again = model.pane == Pane::List && list.cursor == to;
                    model.pane = Pane::List;
                    motion::select(model, to);
                    if again {
                        act::act(model, Action::Open, effects);
                    }
                }
            } else if over(places.list) {
                if let Some(sort) = view::lists::sort_at(model, at.x, at.y)
                    && let Some(list) = model.list_mut()
                {
                    list.descending = list.sort == sort && !list.descending;
                    list.sort = sort;
                    refresh(model);
                }
            } else if over(places.detail) && model.view != View::Log {
                if let Some(tab) = view::detail::tab_at(model, at.x, at.y) {
                    model.vm_tab = tab;
                    model.detail_offset = 0;
                }
                model.pane = Pane::Detail;
            }
        }
        _ => {}
    }
}

fn view_action(view: View) -> Action {
    match view {
        View::Vms => Action::ViewVms,
        View::Images => Action::ViewImages,
        View::Kernels => Action::ViewKernels,
        View::Operations => Action::ViewOperations,
        View::Log => Action::ViewLog,
    }
}
