//! The last line: the keys that do something now; and above it the messages.

use std::fmt;

use ratatui::layout::Rect;

use crate::action::{ACTIONS, Action, Impact, Scope};
use crate::keymap::{self, Lookup, Sequence};
use crate::layout::layout;
use crate::model::console::ConsolePane;
use crate::model::toast::Level;
use crate::model::{Model, Pane, View};
use crate::paint::Painter;
use crate::text;
use crate::update::{Availability, availability};

/// Actions of the command bar, as many as may fit.
const MOST: usize = 24;

pub(super) fn paint(model: &Model, painter: &mut Painter<'_>, area: Rect) {
    let theme = &model.theme;
    let mut right = area.right().saturating_sub(1);
    // What is typed of a sequence or a count.
    if model.count.is_some() || !model.pending.is_empty() {
        let mut typed = String::new();
        if let Some(count) = model.count {
            typed.push_str(&count.to_string());
        }
        typed.push_str(&keymap::sequence(&model.pending));
        let width = text::width(&typed);
        painter.text_right(area.x, area.y, right.saturating_sub(area.x), &typed, theme.accent);
        right = right.saturating_sub(width + 2);
    }
    let mut x = area.x + 1;
    if model.list().is_some_and(|list| list.filter_input.is_some()) {
        hint(model, painter, &mut x, right, area.y, format_args!("enter"), "keep the filter");
        hint(model, painter, &mut x, right, area.y, format_args!("esc"), "take it off");
        hint(model, painter, &mut x, right, area.y, format_args!("!word"), "without it");
        hint(model, painter, &mut x, right, area.y, format_args!("state:running"), "by a column");
        return;
    }
    if model.in_console()
        && model.overlays.is_empty()
        && model.console.as_ref().is_some_and(ConsolePane::has_keys)
    {
        hint(
            model,
            painter,
            &mut x,
            right,
            area.y,
            format_args!("ctrl-]"),
            "takes the keys back; until then they go to the machine",
        );
        return;
    }
    // Help and quit are always found at the end, and in the details the way back; what is left is for
    // the rest, by rank.
    let width = |action: Action| {
        let keys = model.keymap.keys_of(action)?;
        Some(text::width_of(format_args!("{}", Sequence(keys))) + 1 + text::width(action.info().title) + 2)
    };
    let in_details = model.list().is_some() && (model.pane == Pane::Detail || model.zoom);
    let always: &[Action] =
        if in_details { &[Action::Back, Action::Help, Action::Quit] } else { &[Action::Help, Action::Quit] };
    let tabs = [Action::PreviousTab, Action::NextTab].map(|action| model.keymap.keys_of(action));
    let tabs = match tabs {
        [Some(left), Some(right)] if in_details && model.view == View::Vms => {
            Some((Sequence(left), Sequence(right)))
        }
        _ => None,
    };
    let reserved: u16 = always.iter().filter_map(|action| width(*action)).sum();
    let reserved =
        reserved + tabs.map_or(0, |(left, right)| text::width_of(format_args!("{left} {right}")) + 7);
    let unseen = layout(model).list.is_none();
    let mut actions = [None; MOST];
    let mut count = 0;
    for info in ACTIONS.iter().filter(|info| info.rank > 0 && !always.contains(&info.action)) {
        let shown = availability(model, info.action) == Availability::Available
            && (!in_details || info.action != Action::Open)
            // Rows that are not in sight are neither marked nor sorted.
            && (!unseen || info.scope != Scope::List || info.action == Action::Yank)
            // Not one whose key means something else here.
            && model.keymap.keys_of(info.action).is_some_and(|keys| {
                model.keymap.lookup(model.scopes(), keys) == Lookup::Action(info.action)
            });
        if shown && count < MOST {
            actions[count] = Some(info);
            count += 1;
        }
    }
    let actions = &mut actions[..count];
    actions.sort_by_key(|info| info.map_or(u8::MAX, |info| info.rank));
    for info in actions.iter().flatten() {
        let Some(keys) = model.keymap.keys_of(info.action) else { continue };
        let Some(width) = width(info.action) else { continue };
        if x + width + reserved > right + 2 {
            break;
        }
        let destroys = info.impact == Impact::Destroys;
        let style = if destroys { theme.warning.bold() } else { theme.key };
        x += painter.format(x, area.y, width, format_args!("{}", Sequence(keys)), style) + 1;
        x += painter.text(x, area.y, width, info.title, theme.dim) + 2;
    }
    if let Some((left, next)) = tabs {
        hint(model, painter, &mut x, right, area.y, format_args!("{left} {next}"), "tabs");
    }
    for &action in always {
        let Some(keys) = model.keymap.keys_of(action) else { continue };
        let keys = format_args!("{}", Sequence(keys));
        hint(model, painter, &mut x, right, area.y, keys, action.info().title);
    }
}

/// One key and what it does, where there is room for all of it.
fn hint(
    model: &Model,
    painter: &mut Painter<'_>,
    x: &mut u16,
    right: u16,
    y: u16,
    keys: fmt::Arguments<'_>,
    what: &str,
) {
    if *x + text::width_of(keys) + 1 + text::width(what) > right {
        return;
    }
    *x += painter.format(*x, y, right.saturating_sub(*x), keys, model.theme.key) + 1;
    *x += painter.text(*x, y, right.saturating_sub(*x), what, model.theme.dim) + 2;
}

/// Messages, the newest lowest, over the lines above the bar.
pub(super) fn toasts(model: &Model, painter: &mut Painter<'_>, bar: Rect) {
    let mut y = bar.y;
    for message in model.messages.shown(model.now) {
        let lines = if message.hint.is_some() { 2 } else { 1 };
        if y < lines + 2 {
            break;
        }
        y -= lines;
        let (glyph, style) = level_look(model, message.level);
        let area = Rect { x: bar.x, y, width: bar.width, height: lines };
        painter.clear(area, model.theme.text);
        painter.repeat(area.x + 1, y, 1, glyph, style);
        let room = area.width.saturating_sub(4);
        let used = painter.text(area.x + 3, y, room, &message.text, style);
        if message.count > 1 {
            let x = area.x + 3 + used;
            painter.format(
                x,
                y,
                area.right().saturating_sub(x),
                format_args!(" ×{}", message.count),
                model.theme.dim,
            );
        }
        if let Some(hint) = &message.hint {
            painter.text(area.x + 3, y + 1, room, hint, model.theme.dim);
        }
    }
}

/// Glyph and style of a message.
pub(super) fn level_look(model: &Model, level: Level) -> (char, ratatui::style::Style) {
    let (theme, glyphs) = (&model.theme, &model.glyphs);
    match level {
        Level::Detail => (glyphs.information, theme.dim),
        Level::Information => (glyphs.information, theme.text),
        Level::Success => (glyphs.done, theme.good),
        Level::Warning => (glyphs.warning, theme.warning),
        Level::Error => (glyphs.failed, theme.bad),
    }
}
