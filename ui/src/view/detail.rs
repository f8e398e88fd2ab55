//! Details of the row under the cursor.

mod boot;
mod config;
mod disks;
mod events;
pub(super) mod host;
mod image;
mod kernel;
mod operation;
mod ports;
mod stats;

use ratatui::layout::Rect;
use vmdeck_engine::image::record::Image;
use vmdeck_engine::snapshot::OperationView;
use vmdeck_engine::vm::record::Vm;

use super::pen::Pen;
use super::{console, rule};
use crate::layout::layout;
use crate::model::deck::KernelRow;
use crate::model::list::Listed as _;
use crate::model::{Model, Pane, View, VmTab};
use crate::paint::Painter;
use crate::text;

/// Columns that the tabs of a machine take.
const TABS: u16 = 54;

pub(super) fn paint(model: &Model, painter: &mut Painter<'_>, area: Rect, lines: Rect) {
    title(model, painter, area);
    if model.view == View::Vms && model.vm_tab == VmTab::Console {
        console::paint(model, painter, area, lines);
        return;
    }
    let mut pen = Pen::new(model, painter, lines, model.detail_offset);
    content(&mut pen);
    let total = pen.lines();
    if total > usize::from(lines.height) && lines.height > 0 {
        let end = model.detail_offset + usize::from(lines.height);
        let text = if end < total { format!(" {} more ", total - end) } else { " end ".to_owned() };
        let width = text::width(&text);
        painter.text(lines.right().saturating_sub(width), area.y, width, &text, model.theme.dim);
    }
}

/// Lines of the details at a width.
pub fn height(model: &Model, width: u16) -> usize {
    if model.view == View::Log || width == 0 {
        return 0;
    }
    let mut pen = Pen::counting(model, width);
    content(&mut pen);
    pen.lines()
}

fn current_name(model: &Model) -> Option<&str> {
    let snapshot = &model.snapshot;
    match model.view {
        View::Vms => model.vms.current::<Vm>(snapshot).map(|row| row.name()),
        View::Images => model.images.current::<Image>(snapshot).map(|row| row.name()),
        View::Kernels => model.kernels.current::<KernelRow>(snapshot).map(|row| row.name()),
        View::Operations => {
            model.operations.current::<OperationView>(snapshot).map(|row| row.record.kind.as_str())
        }
        View::Log => None,
    }
}

fn title(model: &Model, painter: &mut Painter<'_>, area: Rect) {
    let theme = &model.theme;
    let focused = model.pane == Pane::Detail && model.overlays.is_empty();
    rule(model, painter, area, focused);
    let Some(name) = current_name(model) else { return };
    let style = if focused { theme.accent.bold() } else { theme.title };
    let width = name_width(model.view, area, name);
    painter.text(area.x + 1, area.y, 1, " ", theme.text);
    painter.text(area.x + 2, area.y, width, name, style);
    painter.text(area.x + 2 + width, area.y, 1, " ", theme.text);
    if model.view == View::Vms {
        for (tab, (x, _)) in VmTab::ALL.into_iter().zip(tabs(area, name)) {
            let here = tab == model.vm_tab;
            let style = if here { theme.bold.underlined() } else { theme.dim };
            let room = area.right().saturating_sub(x + 1);
            painter.text(x, area.y, room.min(1), " ", theme.text);
            let used = painter.text(x + 1, area.y, room, tab.title(), style);
            let x = x + 1 + used;
            painter.text(x, area.y, area.right().saturating_sub(x).min(1), " ", theme.text);
        }
    }
}

fn name_width(view: View, area: Rect, name: &str) -> u16 {
    let tabs = if view == View::Vms { TABS } else { 0 };
    text::width(name).min(area.width.saturating_sub(tabs).max(10)).min(area.width.saturating_sub(4))
}

/// Where each tab is: its first column and width.
fn tabs(area: Rect, name: &str) -> [(u16, u16); 7] {
    let from = name_width(View::Vms, area, name) + 4;
    let mut x = area.x + from;
    // Where there is little room, one blank between two of them is enough.
    let titles = VmTab::ALL.iter().map(|tab| text::width(tab.title()) + 2).sum::<u16>();
    let blanks = if from + titles <= area.width { 2 } else { 1 };
    VmTab::ALL.map(|tab| {
        let width = text::width(tab.title()) + blanks;
        let place = (x, width);
        x += width;
        place
    })
}

/// The tab of a machine's details at a place of the screen.
pub fn tab_at(model: &Model, x: u16, y: u16) -> Option<VmTab> {
    let area = layout(model).detail.filter(|area| model.view == View::Vms && area.y == y)?;
    let name = current_name(model)?;
    let mut found = VmTab::ALL.into_iter().zip(tabs(area, name));
    found.find(|(_, (from, width))| (*from..from + width).contains(&x)).map(|(tab, _)| tab)
}

fn content(pen: &mut Pen<'_, '_>) {
    let model = pen.model;
    let snapshot = &model.snapshot;
    match model.view {
        View::Vms => {
            if let Some(vm) = model.vms.current::<Vm>(snapshot) {
                match model.vm_tab {
                    VmTab::Boot => boot::boot(pen, vm),
                    // Painted by itself: it does not scroll as these do.
                    VmTab::Console => {}
                    VmTab::Stats => stats::stats(pen, vm),
                    VmTab::Ports => ports::ports(pen, vm),
                    VmTab::Disks => disks::disks(pen, vm),
                    VmTab::Events => events::events(pen, vm),
                    VmTab::Config => config::config(pen, vm),
                }
            }
        }
        View::Images => {
            if let Some(image) = model.images.current::<Image>(snapshot) {
                image::image(pen, image);
            }
        }
        View::Kernels => match model.kernels.current::<KernelRow>(snapshot) {
            Some(KernelRow::Here(kernel)) => kernel::kernel(pen, kernel),
            Some(KernelRow::Offered { item, .. }) => kernel::offered(pen, item),
            None => {}
        },
        View::Operations => {
            if let Some(view) = model.operations.current::<OperationView>(snapshot) {
                operation::operation(pen, view);
            }
        }
        View::Log => {}
    }
}
