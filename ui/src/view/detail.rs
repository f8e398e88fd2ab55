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

/// Least columns of a name worth showing beside the tabs.
const NAME: u16 = 10;

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
    if width > 0 {
        painter.text(area.x + 1, area.y, 1, " ", theme.text);
        painter.text(area.x + 2, area.y, width, name, style);
        painter.text(area.x + 2 + width, area.y, 1, " ", theme.text);
    }
    if model.view == View::Vms {
        let places = tabs(model, area, name);
        for (tab, (x, _)) in VmTab::ALL.into_iter().zip(places).filter(|(_, (_, width))| *width > 0) {
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

/// Columns of all tabs with so many blanks between two of them.
fn tabs_width(blanks: u16) -> u16 {
    VmTab::ALL.iter().map(|tab| text::width(tab.title()) + blanks).sum()
}

/// Columns for a name; none beside the tabs of a machine where too little is left: the list tells
/// which one it is, and the tabs tell what there is.
fn name_width(view: View, area: Rect, name: &str) -> u16 {
    let name = text::width(name);
    if view != View::Vms {
        return name.min(area.width.saturating_sub(4));
    }
    let room = area.width.saturating_sub(tabs_width(1) + 6);
    if room < name.min(NAME) { 0 } else { name.min(room) }
}

/// Where each tab is: its first column and width. Where there is no room for all, those before the
/// one in sight are left out, with width 0, as far as need be.
fn tabs(model: &Model, area: Rect, name: &str) -> [(u16, u16); 7] {
    let name = name_width(View::Vms, area, name);
    let from = if name > 0 { name + 4 } else { 1 };
    let told = console::told_width(model);
    let room = area.width.saturating_sub(from + 1);
    let blanks = if tabs_width(2) <= room { 2 } else { 1 };
    let room = room.saturating_sub(told);
    let width = |tab: &VmTab| text::width(tab.title()) + blanks;
    let here = VmTab::ALL.iter().position(|tab| *tab == model.vm_tab).unwrap_or(0);
    let fits = |first: &usize| VmTab::ALL[*first..=here].iter().map(width).sum::<u16>() <= room;
    let first = (0..=here).find(fits).unwrap_or(here);
    let mut x = area.x + from;
    let mut places = [(x, 0); 7];
    for (place, tab) in places.iter_mut().zip(&VmTab::ALL).skip(first) {
        // What the console tells is not painted over half a tab.
        if told > 0 && x + width(tab) + told > area.right() {
            break;
        }
        *place = (x, width(tab));
        x += width(tab);
    }
    places
}

/// The tab of a machine's details at a place of the screen.
pub fn tab_at(model: &Model, x: u16, y: u16) -> Option<VmTab> {
    let area = layout(model).detail.filter(|area| model.view == View::Vms && area.y == y)?;
    let name = current_name(model)?;
    let mut found = VmTab::ALL.into_iter().zip(tabs(model, area, name));
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
