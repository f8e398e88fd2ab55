//! The console pane: whether it is watched, what is typed into it, the search.

use crossterm::event::KeyCode;
use vmdeck_engine::error::ErrorReport;
use vmdeck_engine::identifier::VmId;

use super::{fail, say};
use crate::keymap::Key;
use crate::layout::layout;
use crate::message::Effect;
use crate::model::console::{Attachment, ConsolePane, encode, encode_paste};
use crate::model::input::TextInput;
use crate::model::toast::Level;
use crate::model::{Model, Pane, VmTab};

/// The key that takes the keys back from a machine, as telnet has it.
const DETACH: Key = Key { ctrl: true, ..Key::plain(KeyCode::Char(']')) };

/// Shows the console and gives it the keys, where there is something to type into.
pub(super) fn open(model: &mut Model, effects: &mut Vec<Effect>) {
    model.vm_tab = VmTab::Console;
    model.pane = Pane::Detail;
    settle(model, effects);
    if !model.read_only && model.selected_vm().is_some_and(|vm| vm.state.has_process()) {
        take_keys(model, effects);
    }
}

/// Has what is typed go to the machine.
pub(super) fn take_keys(model: &mut Model, effects: &mut Vec<Effect>) {
    settle(model, effects);
    let Some(name) = model.selected_vm().map(|vm| vm.name.clone()) else { return };
    if let Some(console) = &mut model.console {
        console.scroll_to(0);
        if !console.has_keys() {
            console.attachment = Attachment::Asking;
            effects.push(Effect::AttachConsole(name));
        }
    }
}

/// Watches the console in sight and no other.
pub(super) fn settle(model: &mut Model, effects: &mut Vec<Effect>) {
    let wanted = model.console_vm().filter(|_| model.engine_open);
    match (wanted, &model.console) {
        (None, None) => {}
        (None, Some(_)) => {
            model.console = None;
            effects.push(Effect::UnwatchConsole);
        }
        (Some(vm), Some(console)) if console.vm == vm.id => {}
        (Some(vm), _) => {
            let (id, watch) = (vm.id.clone(), Effect::WatchConsole(Box::new(vm.clone())));
            model.console = Some(ConsolePane::new(id));
            effects.push(watch);
        }
    }
    let lines = layout(model).lines;
    if let Some(console) = &mut model.console {
        console.resize(lines.width, lines.height);
    }
}

/// Whether the keys are the machine's now.
pub(super) fn has_keys(model: &Model) -> bool {
    model.in_console()
        && model.overlays.is_empty()
        && model.console.as_ref().is_some_and(ConsolePane::has_keys)
}

/// A key for the machine, or the one that takes them back.
pub(super) fn key(model: &mut Model, key: Key, effects: &mut Vec<Effect>) {
    let Some(console) = &mut model.console else { return };
    if key == DETACH {
        console.attachment = Attachment::Watching;
        effects.push(Effect::DetachConsole);
        return;
    }
    console.scroll_to(0);
    let bytes = encode(key, console.screen().application_cursor());
    if !bytes.is_empty() {
        effects.push(Effect::TypeConsole(bytes));
    }
}

pub(super) fn paste(model: &Model, text: &str, effects: &mut Vec<Effect>) {
    if let Some(console) = &model.console {
        effects.push(Effect::TypeConsole(encode_paste(text, console.screen().bracketed_paste())));
    }
}

pub(super) fn output(model: &mut Model, vm: &VmId, anew: bool, bytes: &[u8]) {
    if let Some(console) = model.console.as_mut().filter(|console| console.vm == *vm) {
        console.print(anew, bytes);
    }
}

pub(super) fn attached(model: &mut Model, vm: &VmId, result: Result<(), ErrorReport>) {
    let Some(console) = model.console.as_mut().filter(|console| console.vm == *vm) else { return };
    match result {
        Ok(()) if console.attachment == Attachment::Asking => console.attachment = Attachment::Attached,
        Ok(()) => {}
        Err(error) => {
            console.attachment = Attachment::Watching;
            fail(model, "console", error);
        }
    }
}

pub(super) fn detached(model: &mut Model, vm: &VmId) {
    if let Some(console) = model.console.as_mut().filter(|console| console.vm == *vm && console.has_keys()) {
        console.attachment = Attachment::Watching;
        say(model, Level::Information, "the machine's console has ended".into(), None);
    }
}

pub(super) fn search(model: &mut Model) {
    if let Some(console) = &mut model.console {
        console.search_input = Some(TextInput::default());
    }
}

/// Whether a search is being typed.
pub(super) fn is_searching(model: &Model) -> bool {
    model.in_console() && model.console.as_ref().is_some_and(|console| console.search_input.is_some())
}

pub(super) fn search_key(model: &mut Model, key: Key) {
    let Some(console) = &mut model.console else { return };
    let Some(input) = &mut console.search_input else { return };
    match key.code {
        KeyCode::Esc => console.search_input = None,
        KeyCode::Enter => {
            input.text().clone_into(&mut console.needle);
            console.search_input = None;
            find(model, true);
        }
        _ => drop(input.key(key)),
    }
}

pub(super) fn find(model: &mut Model, upwards: bool) {
    let Some(console) = &mut model.console else { return };
    if !console.needle.is_empty() && !console.find(upwards) {
        let text = format!("the console printed no `{}`", console.needle);
        say(model, Level::Information, text, None);
    }
}
