//! The head of the screen: the views with what is in them, and the truth about the host.

use ratatui::layout::Rect;
use vmdeck_engine::doctor::CheckStatus;

use crate::action::Action;
use crate::format::{Bytes, Mebibytes};
use crate::model::{Model, View};
use crate::paint::Painter;
use crate::text;

/// Room on the disk that is little, in bytes.
const LITTLE: u64 = 2 << 30;

/// Where each view's tab is in the first line: offset and width, with its title short or long.
fn tabs(model: &Model) -> [(u16, u16, bool); 5] {
    let brand = brand_width(model);
    let measure = |short: bool, gap: u16| {
        let mut x = brand;
        View::ALL.map(|view| {
            let title = if short { short_title(view) } else { view.title() };
            let count = count(model, view);
            let digits = if count.is_some() { 1 + decimal_digits(count.unwrap_or(0)) } else { 0 };
            // Where the spinner of running operations turns.
            let spinner = u16::from(view == View::Operations);
            let width = 2 + text::width(title) + digits + spinner;
            let place = (x, width, short);
            x += width + gap;
            place
        })
    };
    let fits = |places: &[(u16, u16, bool); 5]| places[4].0 + places[4].1 + 2 <= model.width;
    let (long, short) = (measure(false, 2), measure(true, 2));
    if fits(&long) {
        long
    } else if fits(&short) {
        short
    } else {
        measure(true, 1)
    }
}

fn brand_width(model: &Model) -> u16 {
    if model.width >= 72 { 9 } else { 1 }
}

fn short_title(view: View) -> &'static str {
    match view {
        View::Vms => "VM",
        View::Images => "Img",
        View::Kernels => "Ker",
        View::Operations => "Op",
        View::Log => "Log",
    }
}

fn count(model: &Model, view: View) -> Option<usize> {
    let snapshot = &model.snapshot;
    match view {
        View::Vms => Some(snapshot.vms.len()),
        View::Images => Some(snapshot.images.len()),
        View::Kernels => Some(snapshot.kernels.len()),
        View::Operations => Some(model.running_operations()),
        View::Log => None,
    }
}

fn decimal_digits(number: usize) -> u16 {
    u16::try_from(number.checked_ilog10().unwrap_or(0)).unwrap_or(0) + 1
}

/// The view whose tab is at a place of the screen.
pub fn tab_at(model: &Model, x: u16, y: u16) -> Option<View> {
    let inside = |&(_, (from, width, _)): &(View, (u16, u16, bool))| (from..from + width).contains(&x);
    View::ALL.into_iter().zip(tabs(model)).find(inside).filter(|_| y == 0).map(|(view, _)| view)
}

pub(super) fn paint(model: &Model, painter: &mut Painter<'_>, area: Rect) {
    let theme = &model.theme;
    if area.height == 0 {
        return;
    }
    if model.width >= 72 {
        painter.text(1, 0, 7, "vmdeck", theme.accent.bold());
    }
    for (view, (x, width, short)) in View::ALL.into_iter().zip(tabs(model)) {
        let here = view == model.view;
        let style = if here { theme.bold } else { theme.dim };
        let key = model.keymap.keys_of(view_action(view)).filter(|keys| keys.len() == 1);
        let mut at = x;
        if let Some(keys) = key {
            at += painter.format(
                at,
                0,
                1,
                format_args!("{}", keys[0]),
                if here { theme.key } else { theme.dim },
            );
        } else {
            at += 1;
        }
        at += 1;
        let title = if short { short_title(view) } else { view.title() };
        let title_style = if here { style.underlined() } else { style };
        at += painter.text(at, 0, width, title, title_style);
        if let Some(count) = count(model, view) {
            let busy = view == View::Operations && count > 0;
            let style = if busy { theme.busy } else { theme.dim };
            at += 1;
            painter.format(at, 0, width, format_args!("{count}"), style);
            if busy {
                painter.repeat(at + decimal_digits(count), 0, 1, model.spinner(), theme.busy);
            }
        }
    }
    right_side(model, painter, area);
    if area.height > 1 {
        host(model, painter, Rect { y: area.y + 1, height: 1, ..area });
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

/// The end of the first line: what the console itself is.
fn right_side(model: &Model, painter: &mut Painter<'_>, area: Rect) {
    let tabs = tabs(model);
    let from = tabs[4].0 + tabs[4].1 + 2;
    let room = area.width.saturating_sub(from + 1);
    if !model.engine_open {
        let used = painter.text_right(from, 0, room, "opening", model.theme.busy);
        if used > 0 && room > used + 2 {
            painter.repeat(from + room - used.min(room) - 1, 0, 1, model.spinner(), model.theme.busy);
        }
    } else if model.read_only && room >= 9 {
        painter.text_right(from, 0, room, "read only", model.theme.warning);
    } else if room >= 20 {
        painter.text_right(from, 0, room, &model.data_label, model.theme.dim);
    }
}

/// The second line: how guests are run and why, what is promised of what there is.
fn host(model: &Model, painter: &mut Painter<'_>, area: Rect) {
    let theme = &model.theme;
    let (cpus, memory) = model.reserved();
    let mut x = area.x + 1;
    let right = area.right().saturating_sub(1);
    let room = |x: u16| right.saturating_sub(x);
    let over = |more: bool| if more { theme.warning } else { theme.text };
    x += painter.text(x, area.y, room(x), "cpu ", theme.dim);
    x += painter.format(x, area.y, room(x), format_args!("{cpus}"), over(cpus > model.host.cpus));
    x += painter.format(x, area.y, room(x), format_args!("/{}", model.host.cpus), theme.dim);
    x += painter.text(x, area.y, room(x), "  mem ", theme.dim);
    let all = model.host.memory_bytes >> 20;
    x += painter.format(x, area.y, room(x), format_args!("{}", Mebibytes(memory)), over(memory > all));
    x += painter.format(x, area.y, room(x), format_args!("/{}", Mebibytes(all)), theme.dim);
    if let Some((space, usage)) = &model.space {
        let style =
            if space.free_bytes < usage.allocated_bytes.max(LITTLE) { theme.warning } else { theme.text };
        x += painter.text(x, area.y, room(x), "  disk ", theme.dim);
        x += painter.format(x, area.y, room(x), format_args!("{}", Bytes(usage.allocated_bytes)), theme.text);
        x += painter.text(x, area.y, room(x), ", free ", theme.dim);
        x += painter.format(x, area.y, room(x), format_args!("{}", Bytes(space.free_bytes)), style);
    }
    x += 2;
    match &model.doctor {
        None => {}
        Some(Err(error)) => {
            painter.format(x, area.y, room(x), format_args!("host: {}", error.message), theme.warning);
        }
        Some(Ok(report)) => {
            let accelerator = report.checks.iter().find(|check| check.name == "accelerator");
            let worst = report.checks.iter().find(|check| check.status == CheckStatus::Failed);
            if let Some(check) = worst.or(accelerator) {
                let style = match check.status {
                    CheckStatus::Ok => theme.dim,
                    CheckStatus::Warning => theme.warning,
                    CheckStatus::Failed => theme.bad,
                };
                if check.status != CheckStatus::Ok {
                    painter.repeat(x, area.y, 1, model.glyphs.warning, style);
                    x += 2;
                }
                painter.text(x, area.y, room(x), &check.finding, style);
            }
        }
    }
}
