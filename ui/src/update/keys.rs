//! Keys: to the window in front, else to the filter being typed, else by the key map to an action.

use crossterm::event::KeyCode;

use super::{act, console, refresh, say, windows};
use crate::action::Action;
use crate::keymap::{Key, Lookup, sequence};
use crate::layout::is_tiny;
use crate::message::Effect;
use crate::model::filter::Filter;
use crate::model::log::Log;
use crate::model::toast::Level;
use crate::model::{Model, View};

pub(super) fn key(model: &mut Model, key: Key, effects: &mut Vec<Effect>) {
    // One line is too little to see what a key would do: only leaving works there.
    if is_tiny(model) && model.overlays.is_empty() {
        if model.keymap.lookup(model.scopes(), &[key]) == Lookup::Action(Action::Quit) {
            effects.push(Effect::Quit);
        }
        return;
    }
    if !model.overlays.is_empty() {
        windows::key(model, key, effects);
        return;
    }
    if !model.in_console() && model.list().is_some_and(|list| list.filter_input.is_some()) {
        filter_key(model, key);
        return;
    }
    if model.view == View::Log && model.log.filter_input.is_some() {
        log_filter_key(&mut model.log, key);
        return;
    }
    if console::is_searching(model) {
        console::search_key(model, key);
        return;
    }
    if console::has_keys(model) {
        console::key(model, key, effects);
        return;
    }
    model.pending.push(key);
    // A digit that means nothing by itself begins a count; once begun, all digits belong to it.
    if let (1, Some(digit)) = (model.pending.len(), key.digit())
        && (model.count.is_some() || model.keymap.lookup(model.scopes(), &model.pending) == Lookup::Nothing)
    {
        model.pending.clear();
        model.count = Some(model.count.unwrap_or(0).saturating_mul(10).saturating_add(digit).min(1_000_000));
        return;
    }
    match model.keymap.lookup(model.scopes(), &model.pending) {
        Lookup::Prefix => {}
        Lookup::Action(action) => {
            model.pending.clear();
            act::act(model, action, effects);
        }
        Lookup::Nothing => {
            let typed = std::mem::take(&mut model.pending);
            model.count = None;
            let ctrl_c = Key { ctrl: true, ..Key::plain(KeyCode::Char('c')) };
            if typed == [Key::plain(KeyCode::Esc)] {
                act::act(model, Action::Back, effects);
            } else if typed == [ctrl_c] {
                let keys = model.keymap.describe(Action::Quit);
                say(model, Level::Information, format!("{keys} leaves the console"), None);
            } else if typed.len() > 1 && typed.last() != Some(&Key::plain(KeyCode::Esc)) {
                say(model, Level::Information, format!("`{}` is not bound", sequence(&typed)), None);
            }
        }
    }
}

/// Pasted text goes where text is typed, and nowhere else.
pub(super) fn paste(model: &mut Model, text: &str) {
    if !model.overlays.is_empty() {
        windows::paste(model, text);
        return;
    }
    if let (View::Log, Some(input)) = (model.view, &mut model.log.filter_input) {
        input.paste(text);
        input.text().clone_into(&mut model.log.filter);
        return;
    }
    if let Some(input) = model.console.as_mut().and_then(|console| console.search_input.as_mut()) {
        input.paste(text);
        return;
    }
    let input = model.list_mut().and_then(|list| list.filter_input.as_mut());
    match input {
        Some(input) => {
            input.paste(text);
            apply_filter(model);
        }
        None => {
            say(model, Level::Information, "a paste goes into a text field; there is none here".into(), None)
        }
    }
}

fn filter_key(model: &mut Model, key: Key) {
    let Some(list) = model.list_mut() else { return };
    let Some(input) = &mut list.filter_input else { return };
    match key.code {
        KeyCode::Enter | KeyCode::Down | KeyCode::Tab => list.filter_input = None,
        KeyCode::Esc => {
            list.filter_input = None;
            list.filter = Filter::default();
            refresh(model);
        }
        // Nothing left to erase: out of the filter, as in the tools of its kind.
        KeyCode::Backspace if input.text().is_empty() => list.filter_input = None,
        _ => {
            if input.key(key) {
                apply_filter(model);
            }
        }
    }
}

fn log_filter_key(log: &mut Log, key: Key) {
    let Some(input) = &mut log.filter_input else { return };
    match key.code {
        KeyCode::Enter | KeyCode::Down | KeyCode::Tab => log.filter_input = None,
        KeyCode::Esc => (log.filter_input, log.filter) = (None, String::new()),
        KeyCode::Backspace if input.text().is_empty() => log.filter_input = None,
        _ => {
            input.key(key);
            input.text().clone_into(&mut log.filter);
        }
    }
}

fn apply_filter(model: &mut Model) {
    if let Some(list) = model.list_mut()
        && let Some(input) = &list.filter_input
    {
        list.filter = Filter::parse(input.text());
        refresh(model);
    }
}
