//! What happens next: the only code that changes the [`Model`]. Pure: what has to be done outside is
//! returned as [`Effect`]s.

mod act;
mod again;
mod available;
mod choices;
mod console;
mod forms;
mod keys;
mod motion;
mod mouse;
mod questions;
mod windows;

use std::sync::Arc;

use vmdeck_engine::clock::Milliseconds;
use vmdeck_engine::error::{ErrorKind, ErrorReport};
use vmdeck_engine::image::record::Image;
use vmdeck_engine::snapshot::{OperationView, Snapshot};
use vmdeck_engine::vm::record::{Vm, VmState};

use crate::layout::layout;
use crate::message::{Command, Effect, Handover, Msg};
use crate::model::deck::KernelRow;
use crate::model::list::ListCommand;
use crate::model::log::LogLine;
use crate::model::overlay::Overlay;
use crate::model::toast::Level;
use crate::model::{Model, Pane, View, VmTab};
use crate::view;

pub use available::{Availability, availability};
pub use forms::{ask_suggestions, new_vm_suggestions};
pub use windows::palette_matches;

/// Takes one message in, at a moment of the wall clock.
pub fn update(model: &mut Model, now: Milliseconds, msg: Msg) -> Vec<Effect> {
    model.now = now;
    let mut effects = Vec::new();
    match msg {
        Msg::Key(key) => keys::key(model, key, &mut effects),
        Msg::Paste(text) if console::has_keys(model) => console::paste(model, &text, &mut effects),
        Msg::Paste(text) => keys::paste(model, &text),
        Msg::Mouse(event) => mouse::mouse(model, event, &mut effects),
        Msg::Resize(width, height) => (model.width, model.height) = (width, height),
        Msg::Tick => {}
        Msg::EngineOpened => {
            model.engine_open = true;
        }
        Msg::Snapshot(snapshot) => {
            if model.snapshot.generation == 0 {
                effects.push(Effect::Examine);
                effects.push(Effect::LoadCatalog);
            }
            take_snapshot(model, snapshot);
        }
        Msg::Host(host) => model.host = host,
        Msg::Doctor(report) => model.doctor = Some(report),
        Msg::Events(lines) => lines.into_iter().for_each(|line| model.log.add(line)),
        Msg::OperationLog(id, lines) => model.operation_log = Some((id, lines)),
        Msg::Boots(id, boots) => model.boots = Some((id, boots)),
        Msg::Outcome(command, result) => outcome(model, &command, result),
        Msg::WouldEnd(running) => questions::quit(model, running, &mut effects),
        Msg::HandoverEnded(handover, result) => {
            let (what, name) = match handover {
                Handover::Shell(name) => ("shell in", name),
                Handover::Console(name) => ("console of", name),
            };
            match result {
                Ok(()) => say(model, Level::Information, format!("back from the {what} {name}"), None),
                Err(error) => fail(model, &format!("{what} {name}"), error),
            }
        }
        Msg::ConsoleOutput { vm, anew, bytes } => console::output(model, &vm, anew, &bytes),
        Msg::ConsoleAttached { vm, result } => console::attached(model, &vm, result),
        Msg::ConsoleDetached(vm) => console::detached(model, &vm),
        Msg::Usage(seen) => model.usage.take(seen),
        Msg::Guest(vm, reading) => model.guest.take(&vm, *reading),
        Msg::Files(id, files) => model.files = Some((id, files)),
        Msg::Space(space, usage) => model.space = Some((space, usage)),
        Msg::Catalog(catalog) => model.catalog = catalog,
        Msg::KernelCatalog(catalog) => {
            model.kernel_catalog_sought = false;
            match catalog {
                Ok(catalog) => {
                    model.snapshot.take_kernel_catalog(catalog);
                    model.kernels.refresh::<KernelRow>(&model.snapshot);
                }
                Err(error) => fail(model, "catalog of kernels", error),
            }
        }
        Msg::PrunePreview { all, report } => match report {
            Ok(report) => questions::prune(model, all, &report),
            Err(error) => fail(model, "prune", error),
        },
        Msg::Saved(path, Ok(())) => {
            say(model, Level::Success, format!("saved in {}", path.display()), None);
        }
        Msg::Saved(_, Err(error)) => fail(model, "save", error),
        Msg::Notice(report) => fail(model, "vmdeck", report),
    }
    if model.running_operations() > 0 {
        let Model { rates, snapshot, .. } = model;
        rates.sample(now, &snapshot.operations);
    }
    settle(model);
    console::settle(model, &mut effects);
    measure(model, &mut effects);
    load_details(model, &mut effects);
    effects
}

/// Brings cursors and offsets into what is in sight.
fn settle(model: &mut Model) {
    // The last row has gone, or a filter hides all of them: there are no details to look at.
    if model.list().is_some_and(|list| list.rows.is_empty()) {
        (model.pane, model.zoom) = (Pane::List, false);
    }
    let places = layout(model);
    let height = usize::from(places.rows.height);
    // A list that is out of sight stays where it is.
    if let Some(list) = model.list_mut()
        && height > 0
    {
        list.keep_in_sight(height);
    }
    let content = view::detail::height(model, places.lines.width);
    let last = content.saturating_sub(usize::from(places.lines.height));
    model.detail_offset = model.detail_offset.min(last);
}

fn take_snapshot(model: &mut Model, snapshot: Arc<Snapshot>) {
    let old = model.snapshot.take(snapshot);
    model.log.compare(model.now, &old, &model.snapshot);
    let Model { snapshot, vms, images, kernels, operations, .. } = model;
    let first = old.generation == 0;
    if first || !Arc::ptr_eq(&old.vms, &snapshot.vms) {
        vms.refresh::<Vm>(snapshot);
    }
    if first || !Arc::ptr_eq(&old.images, &snapshot.images) {
        images.refresh::<Image>(snapshot);
    }
    if first || !Arc::ptr_eq(&old.kernels, &snapshot.kernels) {
        kernels.refresh::<KernelRow>(snapshot);
        model.kernel_catalog_asked = false;
    }
    if first || !Arc::ptr_eq(&old.operations, &snapshot.operations) {
        operations.refresh::<OperationView>(snapshot);
        // What is known of an operation's log may be old now.
        if let Some((id, _)) = &model.operation_log {
            let state = |of: &Snapshot| {
                let found = of.operations.iter().find(|view| view.record.id == *id);
                found.map(|view| (view.record.state, view.record.phases.len()))
            };
            if state(&old) != state(snapshot) {
                model.operation_log = None;
            }
        }
    }
    if let Some((id, boots)) = &model.boots {
        let newest = |of: &Snapshot| {
            of.vms.iter().find(|vm| vm.id == *id).and_then(|vm| vm.boot.as_ref()).map(|boot| boot.id)
        };
        if newest(&model.snapshot) != boots.first().map(|boot| boot.id) {
            model.boots = None;
        }
    }
}

/// Sorts and filters the list of the view anew.
fn refresh(model: &mut Model) {
    model.with_list(ListCommand::Refresh);
}

/// Time between two looks at what the data directory takes, in milliseconds.
const SPACE_PERIOD: Milliseconds = 10_000;

/// Asks for the figures that change by themselves and are in sight.
fn measure(model: &mut Model, effects: &mut Vec<Effect>) {
    if !model.engine_open || model.snapshot.generation == 0 {
        return;
    }
    let now = model.now;
    if model.view == View::Vms {
        let running = model.snapshot.vms.iter().filter(|vm| vm.run.is_some() && vm.state.has_process());
        let running: Vec<Vm> = running.cloned().collect();
        if !running.is_empty() && model.usage.ask(now) {
            effects.push(Effect::MeasureUsage(running));
        }
    }
    if model.view == View::Vms && model.vm_tab == VmTab::Stats && layout(model).detail.is_some() {
        let vm = model.vms.current::<Vm>(&model.snapshot).filter(|vm| vm.state == VmState::Running);
        if let Some(vm) = vm
            && model.guest.ask(now, &vm.id)
        {
            effects.push(Effect::MeasureGuest(vm.name.clone(), vm.id.clone()));
        }
    }
    // With every change, and not more often than this; nothing changes on a quiet deck.
    if model.space_asked_at == 0 || now - model.space_asked_at >= SPACE_PERIOD {
        model.space_asked_at = now;
        effects.push(Effect::MeasureSpace);
    }
}

/// Asks for what the details show and the snapshot does not hold.
fn load_details(model: &mut Model, effects: &mut Vec<Effect>) {
    if model.engine_open && model.view == View::Kernels && !model.kernel_catalog_asked {
        (model.kernel_catalog_asked, model.kernel_catalog_sought) = (true, true);
        effects.push(Effect::LoadKernelCatalog);
    }
    if !model.engine_open || layout(model).detail.is_none() {
        return;
    }
    match model.view {
        View::Operations => {
            if let Some(view) = model.operations.current::<OperationView>(&model.snapshot) {
                let id = &view.record.id;
                if model.operation_log.as_ref().is_none_or(|(known, _)| known != id) {
                    effects.push(Effect::LoadOperationLog(id.clone()));
                    model.operation_log = Some((id.clone(), Vec::new()));
                }
            }
        }
        View::Vms if model.vm_tab == VmTab::Disks => {
            if let Some(vm) = model.vms.current::<Vm>(&model.snapshot)
                && model.files.as_ref().is_none_or(|(known, _)| *known != vm.id)
            {
                effects.push(Effect::LoadFiles(Box::new(vm.clone())));
                model.files = Some((vm.id.clone(), Vec::new()));
            }
        }
        View::Vms => {
            if let Some(vm) = model.vms.current::<Vm>(&model.snapshot)
                && vm.boot.is_some()
                && model.boots.as_ref().is_none_or(|(known, _)| *known != vm.id)
            {
                effects.push(Effect::LoadBoots(vm.name.clone(), vm.id.clone()));
                // What is known already, until the rest arrives.
                model.boots = Some((vm.id.clone(), vm.boot.iter().cloned().collect()));
            }
        }
        _ => {}
    }
}

fn say(model: &mut Model, level: Level, text: String, hint: Option<String>) {
    let now = model.now;
    model.messages.add(now, level, text, hint);
}

fn fail(model: &mut Model, what: &str, error: ErrorReport) {
    let level = if error.kind == ErrorKind::Cancelled { Level::Warning } else { Level::Error };
    let at = model.now;
    model.log.add(LogLine { at, level, source: what.to_owned(), text: error.message.clone() });
    say(model, level, format!("{what}: {}", error.message), error.hint);
}

fn outcome(model: &mut Model, command: &Command, result: Result<String, ErrorReport>) {
    match result {
        Ok(message) => say(model, Level::Success, message, None),
        Err(error) => fail(model, &command.describe(), error),
    }
}

/// Opens a window, over what is there already.
fn open(model: &mut Model, overlay: Overlay) {
    model.pending.clear();
    model.count = None;
    model.overlays.push(overlay);
}
