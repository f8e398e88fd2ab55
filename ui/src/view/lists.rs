//! The four lists.

use ratatui::layout::Rect;
use ratatui::style::Style;
use vmdeck_engine::image::record::Image;
use vmdeck_engine::kernel::record::Kernel;
use vmdeck_engine::operation::record::OperationState;
use vmdeck_engine::snapshot::OperationView;
use vmdeck_engine::vm::record::{Vm, VmState};

use super::table::{self, Column, arrange};
use super::{phases, progress, rule, welcome};
use crate::format::{Bytes, Mebibytes, Span, Took, between};
use crate::layout::layout;
use crate::model::list::{ListState, Listed};
use crate::model::rates::time_left;
use crate::model::{Model, Pane, View};
use crate::paint::Painter;
use crate::text;

const VMS: &[Column<Vm>] = &[
    Column {
        title: "NAME",
        min: 14,
        max: 34,
        rank: 0,
        right: false,
        sort: Some(0),
        measure: Some(|vm| text::width(&vm.name) + 2),
        paint: |cell, vm| {
            let (glyph, style) = state_look(cell.model, vm.state);
            cell.glyph(glyph, style);
            cell.skip(1);
            cell.name(&vm.name);
        },
    },
    Column {
        title: "STATE",
        min: 8,
        max: 8,
        rank: 1,
        right: false,
        sort: Some(1),
        measure: None,
        paint: |cell, vm| {
            let (_, style) = state_look(cell.model, vm.state);
            cell.text(vm.state.as_str(), style);
        },
    },
    Column {
        title: "BOOT",
        min: 16,
        max: 24,
        rank: 2,
        right: false,
        sort: None,
        measure: Some(|_| 18),
        paint: phases::miniature,
    },
    Column {
        title: "ADDRESS",
        min: 11,
        max: 15,
        rank: 5,
        right: false,
        sort: Some(2),
        measure: None,
        paint: |cell, vm| {
            let style = if vm.state.has_process() { cell.model.theme.text } else { cell.model.theme.dim };
            if let Some(address) = vm.address {
                cell.format(format_args!("{address}"), style);
            }
        },
    },
    Column {
        title: "CPU",
        min: 3,
        max: 3,
        rank: 6,
        right: true,
        sort: Some(3),
        measure: None,
        paint: |cell, vm| {
            let style = cell.model.theme.text;
            cell.format(format_args!("{}", vm.settings.cpus), style);
        },
    },
    Column {
        title: "MEM",
        min: 5,
        max: 5,
        rank: 6,
        right: true,
        sort: Some(4),
        measure: None,
        paint: |cell, vm| {
            let style = cell.model.theme.text;
            cell.format(format_args!("{}", Mebibytes(vm.settings.memory_mib)), style);
        },
    },
    Column {
        title: "UP",
        min: 7,
        max: 7,
        rank: 4,
        right: true,
        sort: Some(5),
        measure: None,
        paint: |cell, vm| {
            if let (true, Some(run)) = (vm.state.has_process(), &vm.run) {
                let style = cell.model.theme.text;
                let up = cell.model.now - run.started_at;
                cell.format(format_args!("{}", Span(up)), style);
            }
        },
    },
    Column {
        title: "IMAGE",
        min: 8,
        max: 30,
        rank: 3,
        right: false,
        sort: Some(6),
        measure: Some(|vm| text::width(&vm.image)),
        paint: |cell, vm| {
            let style = cell.model.theme.dim;
            cell.text(&vm.image, style);
        },
    },
];

const IMAGES: &[Column<Image>] = &[
    Column {
        title: "NAME",
        min: 14,
        max: 34,
        rank: 0,
        right: false,
        sort: Some(0),
        measure: Some(|image| text::width(&image.name)),
        paint: |cell, image| cell.name(&image.name),
    },
    Column {
        title: "USED",
        min: 8,
        max: 8,
        rank: 1,
        right: true,
        sort: Some(1),
        measure: None,
        paint: |cell, image| {
            let style = cell.model.theme.text;
            cell.format(format_args!("{}", Bytes(image.used_bytes)), style);
        },
    },
    Column {
        title: "VMS",
        min: 3,
        max: 3,
        rank: 3,
        right: true,
        sort: None,
        measure: None,
        paint: |cell, image| {
            let used = cell.model.snapshot.vms.iter().filter(|vm| vm.image_id == image.id).count();
            let style = if used > 0 { cell.model.theme.text } else { cell.model.theme.dim };
            cell.format(format_args!("{used}"), style);
        },
    },
    Column {
        title: "CREATED",
        min: 8,
        max: 8,
        rank: 2,
        right: true,
        sort: Some(2),
        measure: None,
        paint: |cell, image| {
            let style = cell.model.theme.dim;
            cell.format(format_args!("{}", Span(cell.model.now - image.created_at)), style);
        },
    },
    Column {
        title: "REFERENCE",
        min: 16,
        max: 70,
        rank: 4,
        right: false,
        sort: Some(3),
        measure: Some(|image| image.reference.as_deref().map_or(28, text::width)),
        paint: |cell, image| {
            let style = cell.model.theme.dim;
            let unmanaged = if image.managed { "" } else { "registered: files of your own" };
            cell.text(image.reference.as_deref().unwrap_or(unmanaged), style);
        },
    },
];

const KERNELS: &[Column<Kernel>] = &[
    Column {
        title: "NAME",
        min: 16,
        max: 40,
        rank: 0,
        right: false,
        sort: Some(1),
        measure: Some(|kernel| text::width(&kernel.name) + 2),
        paint: |cell, kernel| {
            if !kernel.warnings.is_empty() {
                let style = cell.model.theme.warning;
                cell.glyph(cell.model.glyphs.warning, style);
                cell.skip(1);
            }
            cell.name(&kernel.name);
        },
    },
    Column {
        title: "RELEASE",
        min: 12,
        max: 36,
        rank: 3,
        right: false,
        sort: Some(2),
        measure: Some(|kernel| text::width(&kernel.release)),
        paint: |cell, kernel| {
            let style = cell.model.theme.text;
            cell.text(&kernel.release, style);
        },
    },
    Column {
        title: "VMS",
        min: 3,
        max: 3,
        rank: 2,
        right: true,
        sort: None,
        measure: None,
        paint: |cell, kernel| {
            let used = cell.model.snapshot.vms.iter().filter(|vm| vm.kernel == kernel.name).count();
            let style = if used > 0 { cell.model.theme.text } else { cell.model.theme.dim };
            cell.format(format_args!("{used}"), style);
        },
    },
    Column {
        title: "CREATED",
        min: 8,
        max: 8,
        rank: 1,
        right: true,
        sort: Some(0),
        measure: None,
        paint: |cell, kernel| {
            let style = cell.model.theme.dim;
            cell.format(format_args!("{}", Span(cell.model.now - kernel.created_at)), style);
        },
    },
    Column {
        title: "SOURCE",
        min: 12,
        max: 50,
        rank: 4,
        right: false,
        sort: None,
        measure: Some(|kernel| text::width(&kernel.source)),
        paint: |cell, kernel| {
            let style = cell.model.theme.dim;
            cell.text(&kernel.source, style);
        },
    },
];

const OPERATIONS: &[Column<OperationView>] = &[
    Column {
        title: "OPERATION",
        min: 15,
        max: 16,
        rank: 0,
        right: false,
        sort: Some(2),
        measure: None,
        paint: |cell, view| {
            let (glyph, style) = progress::look(cell.model, view.record.state);
            cell.glyph(glyph, style);
            cell.skip(1);
            cell.name(view.record.kind.as_str());
        },
    },
    Column {
        title: "TARGET",
        min: 12,
        max: 44,
        rank: 1,
        right: false,
        sort: Some(3),
        measure: Some(|view| text::width(&view.record.target)),
        paint: |cell, view| {
            let style = cell.model.theme.text;
            cell.text(&view.record.target, style);
        },
    },
    Column {
        title: "PROGRESS",
        min: 18,
        max: 28,
        rank: 2,
        right: false,
        sort: None,
        measure: None,
        paint: operation_progress,
    },
    Column {
        title: "RATE",
        min: 11,
        max: 11,
        rank: 4,
        right: true,
        sort: None,
        measure: None,
        paint: |cell, view| {
            if let Some(rate) = cell.model.rates.of_operation(view) {
                let style = cell.model.theme.text;
                #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
                cell.format(format_args!("{}/s", Bytes(rate as u64)), style);
            }
        },
    },
    Column {
        title: "LEFT",
        min: 6,
        max: 6,
        rank: 5,
        right: true,
        sort: None,
        measure: None,
        paint: |cell, view| {
            let (done, total) = view.progress.bytes();
            let rate = cell.model.rates.of_operation(view);
            if let (OperationState::Running, Some(left)) = (view.record.state, time_left(done, total, rate)) {
                let style = cell.model.theme.dim;
                cell.format(format_args!("{}", Span(left)), style);
            }
        },
    },
    Column {
        title: "TOOK",
        min: 10,
        max: 10,
        rank: 3,
        right: true,
        sort: None,
        measure: None,
        paint: |cell, view| {
            let record = &view.record;
            let running = record.state == OperationState::Running;
            let style = if running { cell.model.theme.text } else { cell.model.theme.dim };
            let took = between(record.started_at, record.ended_at.unwrap_or(cell.model.now));
            if running {
                cell.format(format_args!("{}", Span(i64::try_from(took).unwrap_or(i64::MAX))), style);
            } else {
                cell.format(format_args!("{}", Took(took)), style);
            }
        },
    },
    Column {
        title: "BEGAN",
        min: 8,
        max: 8,
        rank: 6,
        right: true,
        sort: Some(1),
        measure: None,
        paint: |cell, view| {
            let style = cell.model.theme.dim;
            cell.format(format_args!("{}", Span(cell.model.now - view.record.started_at)), style);
        },
    },
];

fn operation_progress(cell: &mut table::Cell<'_, '_>, view: &OperationView) {
    let model = cell.model;
    let theme = &model.theme;
    let record = &view.record;
    match record.state {
        OperationState::Running => {
            let phase = progress::phase(view).unwrap_or("");
            if record.cancel_requested {
                cell.text("cancelling", theme.warning);
                return;
            }
            match progress::whole(&view.progress) {
                Some((done, total, _)) if total > 0 => {
                    let bar = cell.width().saturating_sub(16).clamp(5, 12);
                    let full = progress::filled(done, total, bar);
                    cell.repeat(full, model.glyphs.bar_done, theme.bar_done);
                    cell.repeat(bar - full, model.glyphs.bar_rest, theme.bar_rest);
                    cell.format(
                        format_args!(" {:>3}% ", progress::percent(done, total).unwrap_or(0)),
                        theme.text,
                    );
                    cell.text(phase, theme.dim);
                }
                Some((done, _, vmdeck_engine::operation::progress::ProgressUnit::Bytes)) => {
                    cell.format(format_args!("{} ", Bytes(done)), theme.text);
                    cell.text(phase, theme.dim);
                }
                _ => cell.text(phase, theme.text),
            }
        }
        OperationState::Done => cell.text("done", theme.dim),
        OperationState::Failed | OperationState::Interrupted => {
            let message = record.error.as_ref().map_or(record.state.as_str(), |error| error.message.as_str());
            cell.text(message, theme.bad);
        }
        OperationState::Cancelled => cell.text("cancelled", theme.warning),
    }
}

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
    if list.rows.is_empty() {
        empty(model, painter, list, Rect { y: area.y + 1, height: area.height.saturating_sub(1), ..area });
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
        x += painter.format(x, area.y, room(x), format_args!(" {}", list.total), theme.text);
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
