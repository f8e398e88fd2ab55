//! Forms.

use ratatui::layout::Rect;

use super::pen::Pen;
use super::windows::{footer, input, window};
use crate::format::{Bytes, Mebibytes};
use crate::model::ask::{Ask, Entry, Suggestion};
use crate::model::form::{Field, NewVmForm};
use crate::model::rows::network;
use crate::model::{Model, View};
use crate::paint::Painter;
use crate::text;
use crate::update::{ask_suggestions, new_vm_suggestions};

/// Columns of a label.
const LABEL: u16 = 11;

pub(super) fn paint_ask(model: &Model, painter: &mut Painter<'_>, all: Rect, ask: &Ask) {
    let theme = &model.theme;
    let offered = ask_suggestions(model, ask);
    let lines = ask.fields.len() + ask.notes().len() + offered.len() + usize::from(ask.error.is_some());
    let height = u16::try_from(lines).unwrap_or(u16::MAX).saturating_add(3);
    let inside = window(model, painter, all, (76, height), &ask.title());
    let x = inside.x + LABEL.min(inside.width);
    let width = inside.width.saturating_sub(LABEL);
    let mut y = inside.y;
    for (at, field) in ask.fields.iter().enumerate() {
        if y >= inside.bottom() {
            return;
        }
        let focused = at == ask.focus;
        let style = if focused { theme.accent.bold() } else { theme.dim };
        painter.text(inside.x, y, LABEL - 1, field.label, style);
        let area = Rect { x, y, width, height: 1 };
        match &field.entry {
            Entry::Text(text) => drop(input(model, painter, area, text, &field.placeholder, focused)),
            Entry::Choice { options, at } => {
                let (name, detail) = options.get(*at).copied().unwrap_or_default();
                option(model, painter, area, (name, detail), focused);
            }
        }
        y += 1;
        if let Some((_, problem)) = ask.error.as_ref().filter(|(wrong, _)| *wrong == at) {
            mistake(model, painter, Rect { x, y, width, height: 1 }, problem);
            y += 1;
        }
        if at == 0 && focused {
            let area = Rect { x, y, width, height: inside.bottom().saturating_sub(y) };
            y += suggestions(model, painter, area, &offered, ask.suggestion);
        }
    }
    y += 1;
    for note in ask.notes() {
        if y < inside.bottom() {
            painter.text(inside.x, y, inside.width, note, theme.dim);
        }
        y += 1;
    }
    let mut keys = vec![("enter", ask.verb())];
    if ask.fields.len() > 1 {
        keys.push(("tab", "next"));
    }
    if ask.fields.iter().any(|field| matches!(field.entry, Entry::Choice { .. })) {
        keys.push(("← →", "choose"));
    }
    keys.push(("esc", "close"));
    footer(model, painter, inside, &keys);
}

fn mistake(model: &Model, painter: &mut Painter<'_>, area: Rect, problem: &str) {
    painter.repeat(area.x, area.y, 1, model.glyphs.failed, model.theme.bad);
    painter.text(area.x + 2, area.y, area.width.saturating_sub(2), problem, model.theme.bad);
}

/// What may be meant, one line each. Returns the lines used.
fn suggestions(
    model: &Model,
    painter: &mut Painter<'_>,
    area: Rect,
    offered: &[Suggestion<'_>],
    chosen: Option<usize>,
) -> u16 {
    let theme = &model.theme;
    let names = offered.iter().map(|suggestion| text::width(suggestion.name)).max().unwrap_or(0).min(30);
    let mut lines = 0;
    for (at, suggestion) in offered.iter().enumerate() {
        if lines >= area.height {
            break;
        }
        let y = area.y + lines;
        let highlight = (chosen == Some(at)).then_some(theme.selected);
        if let Some(highlight) = highlight {
            painter.style(Rect { y, height: 1, ..area }, highlight);
        }
        let name = super::row_style(theme.text, highlight);
        painter.text(area.x + 1, y, names, suggestion.name, name);
        let dim = super::row_style(theme.dim, highlight);
        let room = area.width.saturating_sub(names + 4);
        painter.text(area.x + 3 + names, y, room, suggestion.detail, dim);
        lines += 1;
    }
    lines
}

/// One of a few, chosen by ← and →.
fn option(model: &Model, painter: &mut Painter<'_>, area: Rect, text: (&str, &str), focused: bool) {
    let theme = &model.theme;
    let style = if focused { theme.field } else { theme.text };
    let mut x = area.x;
    if focused {
        x += painter.text(x, area.y, 2, "‹ ", theme.accent);
    }
    x += painter.text(x, area.y, area.right().saturating_sub(x), text.0, style);
    if focused {
        x += painter.text(x, area.y, area.right().saturating_sub(x), " ›", theme.accent);
    }
    painter.text(x + 2, area.y, area.right().saturating_sub(x + 2), text.1, theme.dim);
}

pub(super) fn paint_new_vm(model: &Model, painter: &mut Painter<'_>, all: Rect, form: &NewVmForm) {
    let theme = &model.theme;
    let offered = new_vm_suggestions(model, form);
    let inside = window(model, painter, all, (76, 17), "New machine");
    let x = inside.x + 10;
    let width = inside.width.saturating_sub(10);
    let mut y = inside.y;
    for field in Field::ALL {
        if y >= inside.bottom() {
            break;
        }
        let focused = field == form.focus;
        let label_style = if focused { theme.accent.bold() } else { theme.dim };
        painter.text(inside.x, y, 9, field.label(), label_style);
        let area = Rect { x, y, width, height: 1 };
        match form.input(field) {
            Some(text) => drop(input(model, painter, area, text, field.placeholder(), focused)),
            None => choice(model, painter, area, form, field, focused),
        }
        y += 1;
        if let Some((_, problem)) = form.error.as_ref().filter(|(wrong, _)| *wrong == field) {
            mistake(model, painter, Rect { x, y, width, height: 1 }, problem);
            y += 1;
        }
        if field == Field::Image {
            let area = Rect { x, y, width, height: inside.bottom().saturating_sub(y + 1) };
            y += suggestions(model, painter, area, &offered, form.suggestion);
        }
    }
    plan(model, painter, inside, y + 1, form);
    let keys = [("enter", "create"), ("tab", "next"), ("← →", "choose"), ("esc", "close")];
    footer(model, painter, inside, &keys);
}

fn choice(
    model: &Model,
    painter: &mut Painter<'_>,
    area: Rect,
    form: &NewVmForm,
    field: Field,
    focused: bool,
) {
    let newest = model.snapshot.kernels.first();
    let text: (&str, &str) = match field {
        Field::Kernel => match form.kernel.and_then(|at| model.snapshot.kernels.get(at)) {
            Some(kernel) => (&kernel.name, ""),
            None => ("the newest", newest.map_or("none here yet: one is pulled", |kernel| &kernel.name)),
        },
        Field::Network => {
            let detail = match form.network {
                vmdeck_engine::vm::record::NetworkMode::User => {
                    "reaches out; forwards lead in; no root needed"
                }
                vmdeck_engine::vm::record::NetworkMode::Isolated => {
                    "forwarded ports lead in, nothing leads out"
                }
                vmdeck_engine::vm::record::NetworkMode::Lan => {
                    "as user, and `lan` machines reach each other by name"
                }
                vmdeck_engine::vm::record::NetworkMode::Bridge => {
                    "this host reaches it at its address; needs CAP_NET_ADMIN"
                }
                vmdeck_engine::vm::record::NetworkMode::None => "no network",
            };
            (network(form.network), detail)
        }
        _ if form.start => ("yes", "when it is there"),
        _ => ("no", "only make it"),
    };
    option(model, painter, area, text, focused);
}

/// What will happen: what is pulled and what it takes.
fn plan(model: &Model, painter: &mut Painter<'_>, inside: Rect, y: u16, form: &NewVmForm) {
    let theme = &model.theme;
    if y >= inside.bottom() || form.image.text().trim().is_empty() {
        return;
    }
    let area = Rect { y, height: inside.bottom() - y, ..inside };
    let mut pen = Pen::new(model, painter, area, 0);
    match form.local_image(&model.snapshot) {
        Some(image) => {
            let text = format!(
                "Made from {}: {} in use, shared and never written; the machine's own disk grows as it is used.",
                image.name,
                Bytes(image.used_bytes)
            );
            pen.text(&text, theme.dim);
        }
        None => {
            let text = format!("{} is not here: it is pulled first.", form.image.text().trim());
            pen.text(&text, theme.warning);
        }
    }
    if model.snapshot.kernels.is_empty() {
        let text =
            format!("There is no kernel here: {} is pulled first.", vmdeck_engine::kernel::DEFAULT_SOURCE);
        pen.text(&text, theme.warning);
    }
    let (cpus, memory) = model.reserved();
    if model.host.cpus > 0 && cpus >= model.host.cpus && model.view == View::Vms {
        let text = format!("Running machines already have {cpus} CPUs and {}.", Mebibytes(memory));
        pen.text(&text, theme.warning);
    }
}
