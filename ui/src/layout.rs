//! Where everything is: computed from the size and the view alone, so that drawing, paging and the
//! mouse agree.

use ratatui::layout::Rect;

use vmdeck_engine::operation::record::OperationState;
use vmdeck_engine::snapshot::OperationView;

use crate::model::{Model, Pane, View, VmTab};

/// Smallest size that gets more than one line.
pub const SMALLEST: (u16, u16) = (40, 10);

/// Columns from which on the list and the details stand side by side.
pub const WIDE: u16 = 110;

/// Columns of a guest's console.
const CONSOLE: u16 = 80;

/// Columns below which a list shows only what matters most.
pub const NARROW: u16 = 60;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    pub header: Rect,
    /// The list with its rule and its column titles, where it is in sight.
    pub list: Option<Rect>,
    /// The rows of the list alone.
    pub rows: Rect,
    /// The details with their rule, where they are in sight.
    pub detail: Option<Rect>,
    /// The lines of the details, or of the log, alone.
    pub lines: Rect,
    /// The line between the two.
    pub divider: Option<Rect>,
    pub bar: Rect,
}

/// Whether there is room for no more than one line.
pub fn is_tiny(model: &Model) -> bool {
    model.width < SMALLEST.0 || model.height < SMALLEST.1
}

/// Lines of the strip below a list that tells what is under way, its rule among them.
const STRIP: u16 = 6;

/// Operations that run on what the view's list shows, the oldest first.
pub fn under_way(model: &Model) -> impl Iterator<Item = &OperationView> {
    let noun = match model.view {
        View::Images => "image ",
        View::Kernels => "kernel ",
        // An image made of a machine is asked for among the machines.
        View::Vms => "image promote",
        View::Operations | View::Log => "-",
    };
    let running = |view: &&OperationView| view.record.state == OperationState::Running;
    let about = move |view: &&OperationView| view.record.kind.as_str().starts_with(noun);
    model.snapshot.operations.iter().rev().filter(running).filter(about)
}

/// Lines that the strip of what is under way takes.
pub fn activity_height(model: &Model) -> u16 {
    let count = u16::try_from(under_way(model).count()).unwrap_or(u16::MAX);
    if count == 0 || model.height < 16 { 0 } else { count.saturating_add(1).min(STRIP) }
}

/// Without a column at each side.
fn inset(lines: Rect) -> Rect {
    Rect { x: lines.x + 1, width: lines.width.saturating_sub(2), ..lines }
}

pub fn layout(model: &Model) -> Layout {
    let (width, height) = (model.width, model.height);
    let header_height = if height >= 16 { 2 } else { 1 };
    let header = Rect::new(0, 0, width, header_height.min(height));
    let bar = Rect::new(0, height.saturating_sub(1), width, height.min(1));
    let body = Rect::new(0, header.height, width, height.saturating_sub(header.height + bar.height));
    let below = |area: Rect, lines: u16| Rect {
        y: area.y + lines.min(area.height),
        height: area.height.saturating_sub(lines),
        ..area
    };
    // A console has every column there is.
    let console = model.view == View::Vms && model.vm_tab == VmTab::Console;
    let nothing = Rect { width: 0, height: 0, ..body };
    if model.view == View::Log {
        return Layout {
            header,
            list: None,
            rows: nothing,
            detail: Some(body),
            lines: below(body, 1),
            divider: None,
            bar,
        };
    }
    // Of nothing there are no details; what to do about it is told at full width.
    let empty = model.snapshot.generation > 0 && model.list().is_some_and(|list| list.total == 0);
    if model.zoom && !empty {
        let lines = below(body, 1);
        let lines = if console { lines } else { inset(lines) };
        return Layout { header, list: None, rows: nothing, detail: Some(body), lines, divider: None, bar };
    }
    let strip = activity_height(model);
    let rows = |list: Rect| {
        let rows = below(list, 2);
        Rect { height: rows.height.saturating_sub(strip), ..rows }
    };
    if width >= WIDE && !empty {
        // The list needs about 100 columns for everything it has to say; the rest is the details'.
        let list_width = (width * 11 / 20).min(width - 50);
        // A guest's serial console knows no size, and takes it to be that of a VT100.
        let list_width = if console { list_width.min(width - 1 - CONSOLE) } else { list_width };
        let list = Rect { width: list_width, ..body };
        let divider = Rect { x: list_width, width: 1, ..body };
        let detail = Rect { x: list_width + 1, width: width - list_width - 1, ..body };
        let lines = if console { below(detail, 1) } else { inset(below(detail, 1)) };
        return Layout {
            header,
            list: Some(list),
            rows: rows(list),
            detail: Some(detail),
            lines,
            divider: Some(divider),
            bar,
        };
    }
    if model.pane == Pane::Detail && !empty {
        let lines = if console { below(body, 1) } else { inset(below(body, 1)) };
        return Layout { header, list: None, rows: nothing, detail: Some(body), lines, divider: None, bar };
    }
    Layout { header, list: Some(body), rows: rows(body), detail: None, lines: nothing, divider: None, bar }
}
