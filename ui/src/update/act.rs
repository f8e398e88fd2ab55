//! What an action does.

use vmdeck_engine::image::record::Image;
use vmdeck_engine::kernel::{DEFAULT_SOURCE, PullKernel};
use vmdeck_engine::operation::record::OperationState;
use vmdeck_engine::snapshot::OperationView;
use vmdeck_engine::vm::record::{Vm, VmState};

use super::available::{Availability, availability};
use super::{again, choices, console, motion, open, questions, refresh, say};
use crate::action::Action;
use crate::message::{Command, Effect};
use crate::model::ask::Ask;
use crate::model::deck::KernelRow;
use crate::model::form::NewVmForm;
use crate::model::input::TextInput;
use crate::model::list::ListCommand;
use crate::model::overlay::{Help, Overlay, Palette};
use crate::model::toast::Level;
use crate::model::{Model, Pane, View, VmTab};

/// Does it, or says why not.
pub(super) fn act(model: &mut Model, action: Action, effects: &mut Vec<Effect>) {
    match availability(model, action) {
        Availability::Available => {}
        Availability::Unavailable(why) => {
            model.count = None;
            say(model, Level::Warning, format!("{}: {why}", action.info().title), None);
            return;
        }
        Availability::Elsewhere => {
            model.count = None;
            // Asked for by its name. What is about no row is done; what is about one needs to be seen first.
            if let Some(view) = action.info().scope.view() {
                motion::go(model, view);
                if action.opens_form() && availability(model, action) != Availability::Elsewhere {
                    return act(model, action, effects);
                }
                let text = format!("{}: of which? Go to it, and ask again", action.info().title);
                say(model, Level::Information, text, None);
                return;
            }
            let scope = action.info().scope.title();
            say(model, Level::Warning, format!("{} works only in: {scope}", action.info().title), None);
            return;
        }
    }
    let count = model.count.take();
    if action == Action::Back && count.is_some() {
        return;
    }
    match action {
        Action::Quit => effects.push(Effect::AskToQuit),
        Action::Help => open(model, Overlay::Help(Help::default())),
        Action::Palette => open(model, Overlay::Palette(Palette::default())),
        Action::Messages => open(model, Overlay::Messages { offset: 0 }),
        Action::Doctor => {
            effects.push(Effect::Examine);
            open(model, Overlay::Doctor { offset: 0 });
        }
        Action::Theme => choices::pick_theme(model),
        Action::ViewVms => motion::go(model, View::Vms),
        Action::ViewImages => motion::go(model, View::Images),
        Action::ViewKernels => motion::go(model, View::Kernels),
        Action::ViewOperations => motion::go(model, View::Operations),
        Action::ViewLog => motion::go(model, View::Log),
        Action::NextPane | Action::PreviousPane => {
            let other = if model.pane == Pane::List { Pane::Detail } else { Pane::List };
            model.pane =
                if model.list().is_some_and(|list| list.rows.is_empty()) { Pane::List } else { other };
        }
        Action::Back => back(model),
        Action::Mouse => {
            model.mouse = !model.mouse;
            effects.push(Effect::Mouse(model.mouse));
            let text = if model.mouse {
                "the console has the mouse"
            } else {
                "the terminal has the mouse: select text as usual"
            };
            say(model, Level::Information, text.into(), None);
        }
        Action::Redraw => effects.push(Effect::Redraw),
        Action::Suspend => effects.push(Effect::Suspend),
        Action::Zoom => {
            model.zoom = !model.zoom;
            model.pane = if model.zoom { Pane::Detail } else { Pane::List };
        }
        Action::Down
        | Action::Up
        | Action::HalfPageDown
        | Action::HalfPageUp
        | Action::PageDown
        | Action::PageUp
        | Action::Top
        | Action::Bottom => motion::scroll(model, action, count),
        Action::NextTab => motion::tab(model, 1),
        Action::PreviousTab => motion::tab(model, VmTab::ALL.len() - 1),
        Action::Open => model.pane = Pane::Detail,
        Action::Filter => {
            if let Some(list) = model.list_mut() {
                list.filter_input = Some(TextInput::new(list.filter.text.clone()));
            }
            model.pane = Pane::List;
        }
        Action::Mark => {
            model.with_list(ListCommand::ToggleMark);
            motion::scroll(model, Action::Down, None);
        }
        Action::MarkRange => model.with_list(ListCommand::MarkRange),
        Action::MarkInvert => model.with_list(ListCommand::InvertMarks),
        Action::Sort => choices::pick_sort(model),
        Action::SortReverse => {
            if let Some(list) = model.list_mut() {
                list.descending = !list.descending;
                refresh(model);
            }
        }
        Action::Yank => choices::pick_copy(model),
        Action::NewVm => {
            let form = NewVmForm::new(None, &model.snapshot);
            open(model, Overlay::NewVm(Box::new(form)));
        }
        Action::BootImage => {
            let form = NewVmForm::new(model.selected_name(), &model.snapshot);
            open(model, Overlay::NewVm(Box::new(form)));
        }
        Action::StartVm => {
            let startable =
                |vm: &Vm| matches!(vm.state, VmState::Created | VmState::Stopped | VmState::Failed);
            for name in questions::vm_names(model, startable) {
                effects.push(Effect::Run(Command::StartVm { name }));
            }
            unmark(model);
        }
        Action::StopVm => {
            for name in questions::vm_names(model, |vm| vm.state.has_process()) {
                effects.push(Effect::Run(Command::StopVm { name, force: false }));
            }
            unmark(model);
        }
        Action::ForceOffVm => questions::force_off(model),
        Action::RestartVm => questions::restart(model),
        Action::PauseVm => {
            let pause = model.vms.targets::<Vm>(&model.snapshot).any(|vm| vm.state == VmState::Running);
            let wanted = if pause { VmState::Running } else { VmState::Paused };
            for name in questions::vm_names(model, |vm| vm.state == wanted) {
                effects.push(Effect::Run(Command::PauseVm { name, pause }));
            }
            unmark(model);
        }
        Action::DeleteVm => questions::delete_vms(model),
        Action::Console => console::open(model, effects),
        Action::FullConsole => {
            effects.extend(model.selected_name().map(|name| Effect::FullConsole(name.to_owned())));
        }
        Action::ConsoleType => console::take_keys(model, effects),
        Action::ConsoleSearch => console::search(model),
        Action::ConsoleNext => console::find(model, false),
        Action::ConsolePrevious => console::find(model, true),
        Action::Shell => effects.extend(model.selected_name().map(|name| Effect::Shell(name.to_owned()))),
        Action::EditVm => ask(model, |model| model.selected_vm().map(Ask::edit_vm)),
        Action::PromoteVm => ask(model, |model| {
            let free = |name: &str| model.snapshot.images.iter().all(|image| image.name != name);
            model.selected_vm().map(|vm| Ask::promote_vm(&vm.name, free))
        }),
        Action::PullImage => ask(model, |_| Some(Ask::pull_image())),
        Action::UpdateImage => {
            let update = |image: &Image| {
                let reference = image.reference.clone()?;
                Some(Effect::Run(Command::UpdateImage { name: image.name.clone(), reference }))
            };
            effects.extend(model.images.targets::<Image>(&model.snapshot).filter_map(update));
            unmark(model);
        }
        Action::RegisterImage => ask(model, |_| Some(Ask::register_image())),
        Action::PromoteImage => {
            ask(model, |model| model.selected_image().map(|image| Ask::promote_image(&image.name)));
        }
        Action::ExportImage => {
            ask(model, |model| model.selected_image().map(|image| Ask::export_image(&image.name)));
        }
        Action::PruneImages => choices::pick_prune(model),
        Action::PullKernel => pull_kernels(model, effects),
        Action::ImportKernel => ask(model, |_| Some(Ask::import_kernel())),
        Action::SaveLog => ask(model, |_| Some(Ask::save_log())),
        Action::LogLevel => model.log.step_level(),
        Action::LogFilter => {
            model.log.filter_input = Some(TextInput::new(model.log.filter.clone()));
        }
        Action::RetryOperation => {
            let commands = again::commands(model);
            effects.extend(commands.into_iter().map(Effect::Run));
            unmark(model);
        }
        Action::DeleteImage => questions::delete_images(model),
        Action::DeleteKernel => questions::delete_kernels(model),
        Action::CancelOperation => {
            let targets = model.operations.targets::<OperationView>(&model.snapshot);
            for view in targets.filter(|view| view.record.state == OperationState::Running) {
                effects.push(Effect::Run(Command::CancelOperation { id: view.record.id.clone() }));
            }
            unmark(model);
        }
        Action::Follow => {
            model.log.follow = !model.log.follow;
        }
        Action::Wrap => model.log.wrap = !model.log.wrap,
    }
}

/// Opens a form, if there is something to ask about.
fn ask(model: &mut Model, form: impl FnOnce(&Model) -> Option<Ask>) {
    if let Some(form) = form(model) {
        open(model, Overlay::Ask(Box::new(form)));
    }
}

/// Pulls all that are marked; of the one under the cursor, or of none, a form asks.
fn pull_kernels(model: &mut Model, effects: &mut Vec<Effect>) {
    let targets = model.kernels.targets::<KernelRow>(&model.snapshot);
    let sources = targets.filter_map(KernelRow::to_be_had).map(|item| item.entry.name.clone());
    let sources: Vec<String> = sources.collect();
    if model.kernels.marks.is_empty() {
        let source = sources.into_iter().next().unwrap_or_else(|| DEFAULT_SOURCE.to_owned());
        return ask(model, |_| Some(Ask::pull_kernel(&source)));
    }
    let pull = |source| Effect::Run(Command::PullKernel(PullKernel { source, ..PullKernel::default() }));
    effects.extend(sources.into_iter().map(pull));
    unmark(model);
}

fn unmark(model: &mut Model) {
    if let Some(list) = model.list_mut() {
        list.unmark();
    }
}

/// One layer per press: number, marks, filter, pane. (Inputs and windows come before this.)
fn back(model: &mut Model) {
    let now = model.now;
    if model.messages.dismiss(now) {
        return;
    }
    if model.view == View::Log {
        model.log.filter.clear();
        return;
    }
    if let Some(list) = model.list_mut() {
        if !list.marks.is_empty() || list.range_from.is_some() {
            unmark(model);
            return;
        }
        if model.zoom {
            model.zoom = false;
            return;
        }
        if model.pane == Pane::Detail {
            model.pane = Pane::List;
            return;
        }
        if let Some(list) = model.list_mut()
            && !list.filter.is_empty()
        {
            list.filter = crate::model::filter::Filter::default();
            refresh(model);
        }
    }
}
