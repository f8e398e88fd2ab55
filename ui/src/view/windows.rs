//! Windows over the view.

use ratatui::layout::Rect;

use super::bar::level_look;
use super::detail::host::findings;
use super::forms;
use super::pen::Pen;
use crate::action::{ACTIONS, ActionInfo, Impact, Scope};
use crate::format::Span;
use crate::model::Model;
use crate::model::input::TextInput;
use crate::model::overlay::{Confirm, Help, Overlay, Palette, Picker};
use crate::paint::Painter;
use crate::text;
use crate::update::{Availability, availability, palette_matches};

pub(super) fn paint(model: &Model, painter: &mut Painter<'_>, all: Rect) {
    for overlay in &model.overlays {
        match overlay {
            Overlay::Help(help) => paint_help(model, painter, all, help),
            Overlay::Palette(palette) => paint_palette(model, painter, all, palette),
            Overlay::Confirm(confirm) => paint_confirm(model, painter, all, confirm),
            Overlay::Ask(ask) => forms::paint_ask(model, painter, all, ask),
            Overlay::Picker(picker) => paint_picker(model, painter, all, picker),
            Overlay::Messages { offset } => paint_messages(model, painter, all, *offset),
            Overlay::Doctor { offset } => paint_doctor(model, painter, all, *offset),
            Overlay::NewVm(form) => forms::paint_new_vm(model, painter, all, form),
        }
    }
}

/// A blank window in the middle; returns its inside without a column at each side.
pub(super) fn window(
    model: &Model,
    painter: &mut Painter<'_>,
    all: Rect,
    size: (u16, u16),
    title: &str,
) -> Rect {
    let (width, height) = (size.0.min(all.width), size.1.min(all.height));
    let area =
        Rect { x: all.x + (all.width - width) / 2, y: all.y + (all.height - height) / 2, width, height };
    // A little free space around it, so that what is below does not run into its frame.
    let around = Rect {
        x: area.x.saturating_sub(1),
        width: (area.width + 2).min(all.right() - area.x.saturating_sub(1)),
        ..area
    };
    painter.clear(around, model.theme.text);
    let lines = &model.glyphs.lines;
    let inside = painter.panel(area, lines, title, model.theme.border_focused, model.theme.title);
    Rect { x: inside.x + inside.width.min(1), width: inside.width.saturating_sub(2), ..inside }
}

/// Keys of a window, in its lower edge.
pub(super) fn footer(model: &Model, painter: &mut Painter<'_>, inside: Rect, keys: &[(&str, &str)]) {
    let mut x = inside.x;
    let y = inside.bottom();
    for (key, what) in keys {
        let width = text::width(key) + text::width(what) + 3;
        if x + width > inside.right() + 1 {
            break;
        }
        painter.text(x, y, 1, " ", model.theme.text);
        x += 1;
        x += painter.text(x, y, width, key, model.theme.key);
        painter.text(x, y, 1, " ", model.theme.text);
        x += 1;
        x += painter.text(x, y, width, what, model.theme.dim);
        painter.text(x, y, 1, " ", model.theme.text);
        x += 1;
    }
}

/// A text being typed: its end in sight, the cursor in it. Returns the columns used.
pub(super) fn input(
    model: &Model,
    painter: &mut Painter<'_>,
    area: Rect,
    input: &TextInput,
    placeholder: &str,
    focused: bool,
) -> u16 {
    let theme = &model.theme;
    if area.width == 0 {
        return 0;
    }
    let style = if focused { theme.field } else { theme.text };
    if input.text().is_empty() {
        if focused {
            painter.repeat(area.x, area.y, area.width, ' ', theme.field);
        }
        painter.text(area.x, area.y, area.width, placeholder, theme.dim);
        if focused {
            painter.style(Rect { width: 1, height: 1, ..area }, theme.cursor);
        }
        return area.width;
    }
    // From where to show: so that the cursor and one column after it are within.
    let (before, after) = input.text().split_at(input.cursor());
    let mut from = 0;
    while text::width(&before[from..]) + 1 > area.width {
        from += before[from..].chars().next().map_or(1, char::len_utf8);
    }
    if focused {
        painter.repeat(area.x, area.y, area.width, ' ', theme.field);
    }
    let x = area.x + painter.text(area.x, area.y, area.width, &before[from..], style);
    painter.text(x, area.y, area.right().saturating_sub(x), after, style);
    if focused && input.is_offered() {
        // As a selected text, since typing takes its place.
        painter.style(Rect { width: x - area.x, height: 1, ..area }, theme.selected);
    }
    if focused {
        painter.style(Rect { x, width: 1, height: 1, ..area }, theme.cursor);
    }
    area.width
}

fn paint_help(model: &Model, painter: &mut Painter<'_>, all: Rect, help: &Help) {
    let title = format!("Keys: {}", model.view.title());
    let inside = window(model, painter, all, (78, all.height.saturating_sub(4).max(8)), &title);
    let theme = &model.theme;
    let x = inside.x + painter.text(inside.x, inside.y, 8, "search ", theme.dim);
    let field = Rect { x, height: 1, width: inside.right().saturating_sub(x), ..inside };
    input(model, painter, field, &help.search, "type to search", true);
    let below = Rect { y: inside.y + 2, height: inside.height.saturating_sub(2), ..inside };
    let typed = help.search.text();
    let wanted = typed.to_lowercase();
    // What is a key is looked for as a key.
    let is_key = |info: &ActionInfo| {
        let keys = model.keymap.describe(info.action);
        keys.split(", ").any(|key| key == typed || typed.len() > 1 && key.to_lowercase() == wanted)
    };
    let names_a_key = ACTIONS.iter().any(is_key);
    let lines = |pen: &mut Pen<'_, '_>| {
        let mut scopes: Vec<Scope> = model.scopes().to_vec();
        // What works elsewhere comes last: found by searching.
        scopes.extend(Scope::ALL.into_iter().filter(|scope| !model.scopes().contains(scope)));
        for scope in scopes {
            let here = model.scopes().contains(&scope);
            if !here && wanted.is_empty() {
                continue;
            }
            let mut first = true;
            for info in ACTIONS.iter().filter(|info| info.scope == scope) {
                let keys = model.keymap.describe(info.action);
                let found = wanted.is_empty()
                    || is_key(info)
                    || !names_a_key
                        && [info.name, info.help, info.title]
                            .iter()
                            .any(|text| text.to_lowercase().contains(&wanted));
                if !found {
                    continue;
                }
                if first {
                    if pen.lines() > 0 {
                        pen.blank();
                    }
                    pen.heading(scope.title());
                    first = false;
                }
                let available = availability(model, info.action) == Availability::Available;
                let (key_style, style) = match (available, info.impact) {
                    (false, _) => (theme.dim, theme.dim),
                    (true, Impact::Destroys) => (theme.warning.bold(), theme.text),
                    (true, _) => (theme.key, theme.text),
                };
                let keys = if keys.is_empty() { format!(":{}", info.name) } else { keys };
                pen.hanging(&format!("{keys:<18}"), key_style, info.help, style);
            }
        }
        if pen.lines() == 0 {
            pen.text("No key and no action is called so.", theme.dim);
        }
    };
    let mut counter = Pen::counting(model, below.width);
    lines(&mut counter);
    let last = counter.lines().saturating_sub(usize::from(below.height));
    lines(&mut Pen::new(model, painter, below, help.offset.min(last)));
    footer(model, painter, inside, &[("↑ ↓", "scroll"), ("esc", "close")]);
}

fn paint_palette(model: &Model, painter: &mut Painter<'_>, all: Rect, palette: &Palette) {
    let theme = &model.theme;
    let matches = palette_matches(palette.input.text());
    let room = all.height.saturating_sub(6).clamp(1, 14);
    let area = Rect { height: room + 4, ..all };
    let inside = window(model, painter, Rect { y: all.y + 1, ..area }, (78, room + 3), "Commands");
    let x = inside.x + painter.text(inside.x, inside.y, 2, ": ", theme.key);
    let field = Rect { x, height: 1, width: inside.right().saturating_sub(x), ..inside };
    input(model, painter, field, &palette.input, "the name of an action, or the number of a row", true);
    let rows = usize::from(inside.height.saturating_sub(1));
    let from = (palette.cursor + 1).saturating_sub(rows);
    for (at, info) in matches.iter().enumerate().skip(from).take(rows) {
        let y = inside.y + 1 + u16::try_from(at - from).unwrap_or(0);
        let available = availability(model, info.action) == Availability::Available;
        let line = Rect { y, height: 1, ..inside };
        let highlight = (at == palette.cursor).then_some(theme.selected);
        if let Some(highlight) = highlight {
            painter.style(line, highlight);
        }
        let style = super::row_style(if available { theme.text } else { theme.dim }, highlight);
        let dim = super::row_style(theme.dim, highlight);
        let key = super::row_style(theme.key, highlight);
        painter.text(line.x + 1, y, 18, info.name, style);
        if let Some(keys) = model.keymap.keys_of(info.action) {
            painter.text(line.x + 20, y, 8, &crate::keymap::sequence(keys), key);
        }
        painter.text(line.x + 29, y, line.width.saturating_sub(30), info.help, dim);
    }
    if let Some(row) = palette.row() {
        let text = format_args!("enter goes to row {row}");
        painter.format(inside.x + 1, inside.y + 1, inside.width.saturating_sub(1), text, theme.text);
    } else if matches.is_empty() {
        painter.text(inside.x + 1, inside.y + 1, inside.width, "no action is called so", theme.dim);
    }
    let keys = [("tab", "complete"), ("enter", "run"), ("↑", "history"), ("esc", "close")];
    footer(model, painter, inside, &keys);
}

fn paint_confirm(model: &Model, painter: &mut Painter<'_>, all: Rect, confirm: &Confirm) {
    let theme = &model.theme;
    let width = 64.min(all.width);
    let room = width.saturating_sub(4);
    // As many targets as leave room for the rest; what is left out is counted.
    let spare = usize::from(all.height.saturating_sub(10));
    let shown = if confirm.targets.len() > spare.max(3) { spare.max(3) - 1 } else { confirm.targets.len() };
    let lines = |pen: &mut Pen<'_, '_>| {
        pen.blank();
        for target in confirm.targets.iter().take(shown) {
            pen.line(|line| {
                line.skip(2);
                line.put(target, theme.bold);
            });
        }
        if shown < confirm.targets.len() {
            let more = confirm.targets.len() - shown;
            pen.line(|line| line.format(format_args!("  and {more} more"), theme.bold));
        }
        pen.blank();
        for consequence in &confirm.consequences {
            pen.text(consequence, theme.text);
        }
        pen.blank();
    };
    let mut counter = Pen::counting(model, room);
    lines(&mut counter);
    let height = u16::try_from(counter.lines()).unwrap_or(u16::MAX).saturating_add(3);
    let inside = window(model, painter, all, (width, height), &confirm.title);
    let text_area = Rect { height: inside.height.saturating_sub(1), ..inside };
    lines(&mut Pen::new(model, painter, text_area, 0));
    let y = inside.bottom().saturating_sub(1);
    let (cancel, verb) = if confirm.on_verb {
        (theme.button, theme.button_focused)
    } else {
        (theme.button_focused, theme.button)
    };
    let verb_width = text::width(confirm.verb) + 4;
    let from = inside.right().saturating_sub(verb_width + 12);
    // The focused button is told by brackets too, not by its colours alone.
    let face =
        |text: &str, focused: bool| if focused { format!("[ {text} ]") } else { format!("  {text}  ") };
    painter.text(from, y, 10, &face("Cancel", !confirm.on_verb), cancel);
    painter.text(from + 12, y, verb_width, &face(confirm.verb, confirm.on_verb), verb);
    footer(model, painter, inside, &[("enter", "press"), ("tab", "the other"), ("y", "yes"), ("esc", "no")]);
}

fn paint_picker(model: &Model, painter: &mut Painter<'_>, all: Rect, picker: &Picker) {
    let theme = &model.theme;
    let label = picker.entries.iter().map(|entry| text::width(&entry.label)).max().unwrap_or(0).min(30);
    let height = u16::try_from(picker.entries.len()).unwrap_or(u16::MAX).saturating_add(2);
    let inside = window(model, painter, all, (label + 44, height), picker.title);
    let rows = usize::from(inside.height);
    let from = (picker.cursor + 1).saturating_sub(rows.max(1));
    for (at, entry) in picker.entries.iter().enumerate().skip(from).take(rows) {
        let y = inside.y + u16::try_from(at - from).unwrap_or(0);
        let highlight = (at == picker.cursor).then_some(theme.selected);
        if let Some(highlight) = highlight {
            painter.style(Rect { y, height: 1, ..inside }, highlight);
        }
        if let Some(key) = entry.key {
            painter.repeat(inside.x + 1, y, 1, key, super::row_style(theme.key, highlight));
        }
        let style = super::row_style(theme.text, highlight);
        painter.text(inside.x + 4, y, label, &entry.label, style);
        let dim = super::row_style(theme.dim, highlight);
        let room = inside.width.saturating_sub(label + 7);
        painter.text(inside.x + 6 + label, y, room, &entry.detail, dim);
    }
    footer(model, painter, inside, &[("enter", "choose"), ("esc", "close")]);
}

/// Height of a window for the lines that were counted, as far as there is room.
fn fitting(counter: &Pen<'_, '_>, all: Rect) -> u16 {
    let lines = u16::try_from(counter.lines()).unwrap_or(u16::MAX);
    lines.saturating_add(2).clamp(6, all.height.saturating_sub(4).max(6))
}

fn paint_messages(model: &Model, painter: &mut Painter<'_>, all: Rect, offset: usize) {
    let theme = &model.theme;
    let width = all.width.saturating_sub(8).clamp(20, 110);
    let lines = |pen: &mut Pen<'_, '_>| {
        for message in model.messages.kept.iter().rev() {
            let (glyph, style) = level_look(model, message.level);
            let mark = format!("{glyph} {:>7} ago  ", Span(model.now - message.at).to_string());
            let times = if message.count > 1 { format!(" ×{}", message.count) } else { String::new() };
            pen.hanging(&mark, style, &format!("{}{times}", message.text), theme.text);
            if let Some(hint) = &message.hint {
                pen.hanging("               ", theme.dim, hint, theme.dim);
            }
        }
        if model.messages.kept.is_empty() {
            pen.text("None yet.", theme.dim);
        }
    };
    let mut counter = Pen::counting(model, width.saturating_sub(4));
    lines(&mut counter);
    let size = (width, fitting(&counter, all));
    let inside = window(model, painter, all, size, "Messages, the newest first");
    let last = counter.lines().saturating_sub(usize::from(inside.height));
    lines(&mut Pen::new(model, painter, inside, offset.min(last)));
    footer(model, painter, inside, &[("j k", "scroll"), ("esc", "close")]);
}

fn paint_doctor(model: &Model, painter: &mut Painter<'_>, all: Rect, offset: usize) {
    let width = all.width.saturating_sub(8).clamp(20, 96);
    let mut counter = Pen::counting(model, width.saturating_sub(4));
    findings(&mut counter);
    let size = (width, fitting(&counter, all));
    let inside = window(model, painter, all, size, "This host");
    let last = counter.lines().saturating_sub(usize::from(inside.height));
    findings(&mut Pen::new(model, painter, inside, offset.min(last)));
    footer(model, painter, inside, &[("j k", "scroll"), ("esc", "close")]);
}
