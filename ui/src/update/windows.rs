//! Keys in the windows over the view.

use crossterm::event::KeyCode;

use super::{act, forms, motion, refresh, say};
use crate::action::{ACTIONS, Action};
use crate::fuzzy;
use crate::keymap::{Key, Lookup};
use crate::message::Effect;
use crate::model::Model;
use crate::model::overlay::{Chosen, Overlay, Palette, Picker};
use crate::model::toast::Level;
use crate::theme::Theme;

/// Palette lines remembered.
const HISTORY: usize = 50;

/// What becomes of the window in front.
pub(super) enum Next {
    Stay,
    Close,
    /// Close it and go on.
    Then(Vec<Effect>),
    Act(Action),
    Choose(Chosen),
}

pub(super) fn key(model: &mut Model, key: Key, effects: &mut Vec<Effect>) {
    let Some(mut overlay) = model.overlays.pop() else { return };
    let next = match &mut overlay {
        Overlay::Help(help) => match key.code {
            KeyCode::Esc | KeyCode::Enter => Next::Close,
            KeyCode::Char('?') => Next::Close,
            KeyCode::Char('q') if help.search.text().is_empty() => Next::Close,
            _ => {
                let before = help.search.clone();
                match reading(key) {
                    Some(action) => help.offset = motion::scrolled(help.offset, 200, 10, action, None),
                    None => drop(help.search.key(key)),
                }
                if help.search != before {
                    help.offset = 0;
                }
                Next::Stay
            }
        },
        Overlay::Messages { offset } | Overlay::Doctor { offset } => match key.code {
            KeyCode::Esc | KeyCode::Enter | KeyCode::Char('q') => Next::Close,
            _ => {
                if let Lookup::Action(action) = model.keymap.lookup(&[crate::action::Scope::Global], &[key]) {
                    *offset = motion::scrolled(*offset, 1000, 10, action, None);
                }
                Next::Stay
            }
        },
        Overlay::Confirm(confirm) => match key.code {
            KeyCode::Esc | KeyCode::Char('n' | 'q') => Next::Close,
            KeyCode::Char('y') => Next::Then(std::mem::take(&mut confirm.effects)),
            KeyCode::Left | KeyCode::Right | KeyCode::Tab | KeyCode::BackTab | KeyCode::Char('h' | 'l') => {
                confirm.on_verb = !confirm.on_verb;
                Next::Stay
            }
            KeyCode::Enter if confirm.on_verb => Next::Then(std::mem::take(&mut confirm.effects)),
            KeyCode::Enter => Next::Close,
            _ => Next::Stay,
        },
        Overlay::Ask(ask) => forms::ask_key(model, ask, key),
        Overlay::Picker(picker) => picker_key(picker, key),
        Overlay::Palette(palette) => palette_key(model, palette, key),
        Overlay::NewVm(form) => forms::new_vm_key(model, form, key),
    };
    match next {
        Next::Stay => model.overlays.push(overlay),
        Next::Close => {}
        Next::Then(then) => {
            if let Some(list) = model.list_mut() {
                list.unmark();
            }
            effects.extend(then);
        }
        Next::Act(action) => act::act(model, action, effects),
        Next::Choose(chosen) => choose(model, chosen, effects),
    }
}

/// Keys that scroll where letters are typed.
fn reading(key: Key) -> Option<Action> {
    Some(match (key.code, key.ctrl) {
        (KeyCode::Down, false) => Action::Down,
        (KeyCode::Up, false) => Action::Up,
        (KeyCode::PageDown, false) => Action::PageDown,
        (KeyCode::PageUp, false) => Action::PageUp,
        _ => return None,
    })
}

pub(super) fn paste(model: &mut Model, text: &str) {
    match model.overlays.last_mut() {
        Some(Overlay::Help(help)) => help.search.paste(text),
        Some(Overlay::Palette(palette)) => palette.input.paste(text),
        Some(Overlay::Ask(ask)) => {
            (ask.error, ask.suggestion) = (None, None);
            if let Some(input) = ask.input_mut() {
                input.paste(text);
            }
        }
        Some(Overlay::NewVm(form)) => {
            let focus = form.focus;
            form.error = None;
            if let Some(input) = form.input_mut(focus) {
                input.paste(text);
            }
        }
        _ => {}
    }
}

fn choose(model: &mut Model, chosen: Chosen, effects: &mut Vec<Effect>) {
    match chosen {
        Chosen::Sort(sort) => {
            if let Some(list) = model.list_mut() {
                list.descending = list.sort == sort && !list.descending;
                list.sort = sort;
                refresh(model);
            }
        }
        Chosen::Copy { label, text } => {
            say(model, Level::Information, format!("copied: {label}"), None);
            effects.push(Effect::Copy(text));
        }
        Chosen::Theme(choice) => {
            model.theme = Theme::new(choice);
            effects.push(Effect::Redraw);
        }
        Chosen::Action(action) => act::act(model, action, effects),
        Chosen::Prune { all } => effects.push(Effect::PreviewPrune { all }),
    }
}

fn picker_key(picker: &mut Picker, key: Key) -> Next {
    let last = picker.entries.len().saturating_sub(1);
    match key.code {
        KeyCode::Esc => return Next::Close,
        KeyCode::Enter => {
            return match picker.entries.get(picker.cursor) {
                Some(entry) => Next::Choose(entry.chosen.clone()),
                None => Next::Close,
            };
        }
        KeyCode::Down | KeyCode::Char('j') => picker.cursor = (picker.cursor + 1).min(last),
        KeyCode::Up | KeyCode::Char('k') => picker.cursor = picker.cursor.saturating_sub(1),
        KeyCode::Char(letter) if !key.ctrl && !key.alt => {
            if let Some(entry) = picker.entries.iter().find(|entry| entry.key == Some(letter)) {
                return Next::Choose(entry.chosen.clone());
            }
            if letter == 'q' {
                return Next::Close;
            }
        }
        _ => {}
    }
    Next::Stay
}

/// Actions that the palette offers for what is typed: the names that begin so, then the looser ones.
pub fn palette_matches(typed: &str) -> Vec<&'static crate::action::ActionInfo> {
    let typed = typed.trim().to_lowercase();
    let mut found: Vec<_> = ACTIONS
        .iter()
        .filter_map(|info| {
            let score = fuzzy::score(info.name, &typed)?;
            let prefix = info.name.starts_with(&typed);
            Some((!prefix, -score, info))
        })
        .collect();
    if !typed.is_empty() {
        found.sort_by_key(|(loose, score, _)| (*loose, *score));
    }
    found.into_iter().map(|(_, _, info)| info).collect()
}

fn palette_key(model: &mut Model, palette: &mut Palette, key: Key) -> Next {
    let matches = palette_matches(palette.input.text());
    match (key.code, key.ctrl) {
        (KeyCode::Esc, _) => Next::Close,
        // As in vi: to the row of this number.
        (KeyCode::Enter, _) if palette.row().is_some() => {
            model.count = palette.row();
            Next::Act(Action::Top)
        }
        (KeyCode::Enter, _) => {
            let Some(info) = matches.get(palette.cursor) else { return Next::Stay };
            model.palette_history.retain(|line| line != info.name);
            model.palette_history.push_front(info.name.to_owned());
            model.palette_history.truncate(HISTORY);
            Next::Act(info.action)
        }
        (KeyCode::Tab, _) => {
            if let Some(info) = matches.get(palette.cursor) {
                palette.input.set(info.name);
                palette.cursor = 0;
            }
            Next::Stay
        }
        // In an empty line, up goes back through what was run before.
        (KeyCode::Up, _) if palette.back > 0 || palette.input.text().is_empty() => {
            if let Some(line) = model.palette_history.get(palette.back) {
                palette.input.set(line.clone());
                palette.back += 1;
                palette.cursor = 0;
            }
            Next::Stay
        }
        (KeyCode::Down, _) if palette.back > 0 => {
            palette.back -= 1;
            let line = palette.back.checked_sub(1).and_then(|back| model.palette_history.get(back));
            palette.input.set(line.cloned().unwrap_or_default());
            Next::Stay
        }
        (KeyCode::Down, _) | (KeyCode::Char('n'), true) => {
            palette.cursor = (palette.cursor + 1).min(matches.len().saturating_sub(1));
            Next::Stay
        }
        (KeyCode::Up, _) | (KeyCode::Char('p'), true) => {
            palette.cursor = palette.cursor.saturating_sub(1);
            Next::Stay
        }
        (KeyCode::Backspace, _) if palette.input.text().is_empty() => Next::Close,
        _ => {
            if palette.input.key(key) {
                (palette.cursor, palette.back) = (0, 0);
            }
            Next::Stay
        }
    }
}
