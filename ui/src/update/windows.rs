//! Keys in the windows over the view.

use crossterm::event::KeyCode;
use vmdeck_engine::identifier::check_name;

use super::{act, refresh, say};
use crate::action::{ACTIONS, Action};
use crate::fuzzy;
use crate::keymap::{Key, Lookup};
use crate::message::{Command, Effect};
use crate::model::Model;
use crate::model::form::Field;
use crate::model::overlay::{Chosen, Overlay, Palette, Picker, Prompt, PromptKind};
use crate::model::toast::Level;
use crate::theme::Theme;

/// Palette lines remembered.
const HISTORY: usize = 50;

/// What becomes of the window in front.
enum Next {
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
                    Some(action) => help.offset = scrolled(help.offset, 200, 10, action, None),
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
                    *offset = scrolled(*offset, 1000, 10, action, None);
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
        Overlay::Prompt(prompt) => prompt_key(model, prompt, key),
        Overlay::Picker(picker) => picker_key(picker, key),
        Overlay::Palette(palette) => palette_key(model, palette, key),
        Overlay::NewVm(_) => form_key(model, &mut overlay, key),
    };
    match next {
        Next::Stay => model.overlays.push(overlay),
        Next::Close => {}
        Next::Then(then) => {
            if let Some(list) = model.list_mut() {
                list.marks.clear();
                list.range_from = None;
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
        Some(Overlay::Prompt(prompt)) => {
            prompt.error = None;
            match &mut prompt.name {
                Some(name) if prompt.on_name => name.paste(text),
                _ => prompt.input.paste(text),
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

fn prompt_key(model: &Model, prompt: &mut Prompt, key: Key) -> Next {
    match key.code {
        KeyCode::Esc => return Next::Close,
        KeyCode::Tab | KeyCode::BackTab | KeyCode::Down | KeyCode::Up => {
            prompt.on_name = prompt.name.is_some() && !prompt.on_name;
        }
        KeyCode::Enter => match submit(model, prompt) {
            Ok(command) => return Next::Then(vec![Effect::Run(command)]),
            Err(problem) => prompt.error = Some(problem),
        },
        _ => {
            let input = match &mut prompt.name {
                Some(name) if prompt.on_name => name,
                _ => &mut prompt.input,
            };
            if input.key(key) {
                prompt.error = None;
            }
        }
    }
    Next::Stay
}

fn submit(model: &Model, prompt: &Prompt) -> Result<Command, String> {
    let text = prompt.input.text().trim();
    if text.is_empty() {
        return Err(format!("{}: nothing was typed", prompt.kind.label().to_lowercase()));
    }
    let name = prompt.name.as_ref().map(|name| name.text().trim()).filter(|name| !name.is_empty());
    match prompt.kind {
        PromptKind::PullImage => {
            if let Some(name) = name {
                check_name("an image", name)
                    .map_err(|error| error.hint().map_or_else(|| error.to_string(), str::to_owned))?;
                if model.snapshot.images.iter().any(|image| image.name == name) {
                    return Err(format!("there is already an image named `{name}`"));
                }
            }
            Ok(Command::PullImage { reference: text.to_owned(), name: name.map(str::to_owned) })
        }
        PromptKind::PullKernel => Ok(Command::PullKernel { source: text.to_owned() }),
    }
}

fn form_key(model: &Model, overlay: &mut Overlay, key: Key) -> Next {
    let Overlay::NewVm(form) = overlay else { return Next::Stay };
    let kernels = model.snapshot.kernels.len();
    match key.code {
        KeyCode::Esc => return Next::Close,
        KeyCode::Tab => {
            accept_suggestion(model, form);
            form.move_focus(1);
        }
        KeyCode::BackTab => form.move_focus(-1),
        KeyCode::Down | KeyCode::Up
            if form.focus == Field::Image && form.suggestion.is_some()
                || key.code == KeyCode::Down && form.focus == Field::Image && suggests(model, form) =>
        {
            let count = form.suggestions(&model.snapshot).len();
            form.suggestion = match (key.code, form.suggestion) {
                (KeyCode::Down, None) => Some(0),
                (KeyCode::Down, Some(at)) => Some((at + 1).min(count.saturating_sub(1))),
                (_, Some(0) | None) => None,
                (_, Some(at)) => Some(at - 1),
            };
        }
        KeyCode::Down => form.move_focus(1),
        KeyCode::Up => form.move_focus(-1),
        KeyCode::Enter => {
            accept_suggestion(model, form);
            match form.request(&model.snapshot) {
                Ok(request) => {
                    let command = Command::CreateVm { request: Box::new(request), start: form.start };
                    return Next::Then(vec![Effect::Run(command)]);
                }
                Err((field, problem)) => {
                    form.focus = field;
                    form.error = Some((field, problem));
                }
            }
        }
        KeyCode::Left if form.focus.is_choice() => form.step(-1, kernels),
        KeyCode::Right | KeyCode::Char(' ') if form.focus.is_choice() => form.step(1, kernels),
        _ => {
            let focus = form.focus;
            if let Some(input) = form.input_mut(focus)
                && input.key(key)
            {
                form.error = None;
                form.suggestion = None;
            }
        }
    }
    Next::Stay
}

/// Whether there are suggestions that are not what is typed already.
pub fn suggests(model: &Model, form: &crate::model::form::NewVmForm) -> bool {
    form.local_image(&model.snapshot).is_none() && !form.suggestions(&model.snapshot).is_empty()
}

fn accept_suggestion(model: &Model, form: &mut crate::model::form::NewVmForm) {
    if form.focus == Field::Image
        && let Some(at) = form.suggestion.take()
        && let Some(image) = form.suggestions(&model.snapshot).get(at)
    {
        let name = image.name.clone();
        form.image.set(name);
    }
}

/// Where a cursor or an offset goes in `count` lines of which `page` are in sight.
pub(super) fn scrolled(at: usize, lines: usize, page: usize, action: Action, count: Option<u32>) -> usize {
    let times = count.map_or(1, |count| usize::try_from(count).unwrap_or(usize::MAX));
    let last = lines.saturating_sub(1);
    let by = |step: usize| step.max(1).saturating_mul(times);
    match action {
        Action::Down => at.saturating_add(by(1)).min(last),
        Action::Up => at.saturating_sub(by(1)),
        Action::HalfPageDown => at.saturating_add(by(page / 2)).min(last),
        Action::HalfPageUp => at.saturating_sub(by(page / 2)),
        Action::PageDown => at.saturating_add(by(page.saturating_sub(1))).min(last),
        Action::PageUp => at.saturating_sub(by(page.saturating_sub(1))),
        Action::Top => count.map_or(0, |_| times.saturating_sub(1)).min(last),
        Action::Bottom => count.map_or(last, |_| times.saturating_sub(1)).min(last),
        _ => at,
    }
}

pub(super) fn scroll_log(model: &mut Model, action: Action, count: Option<u32>, page: usize) {
    let last = model.log.lines.len().saturating_sub(page);
    let at = if model.log.follow { last } else { model.log.offset.min(last) };
    let to = scrolled(at, last + 1, page, action, count);
    model.log.offset = to;
    model.log.follow =
        to >= last && !matches!(action, Action::Up | Action::PageUp | Action::HalfPageUp | Action::Top);
}
