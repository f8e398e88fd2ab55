//! Whether an action makes sense now, and if not, why.

use vmdeck_engine::image::record::Image;
use vmdeck_engine::operation::record::OperationState;
use vmdeck_engine::snapshot::OperationView;
use vmdeck_engine::vm::record::{Vm, VmState};

use super::again;
use crate::action::{Action, Impact};
use crate::model::deck::KernelRow;
use crate::model::{Model, View};

/// Whether an action makes sense now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Availability {
    Available,
    /// Not now; the reason, for a message.
    Unavailable(&'static str),
    /// Never in this view.
    Elsewhere,
}

impl Availability {
    fn when(yes: bool, otherwise: &'static str) -> Self {
        if yes { Self::Available } else { Self::Unavailable(otherwise) }
    }
}

/// Whether an action makes sense now, and if not, why.
pub fn availability(model: &Model, action: Action) -> Availability {
    use Availability::{Available, Elsewhere, Unavailable};
    let info = action.info();
    if info.scope != crate::action::Scope::Global && !model.scopes().contains(&info.scope) {
        return Elsewhere;
    }
    if info.impact != Impact::Looks {
        if model.read_only {
            return Unavailable("this console only looks on (--read-only)");
        }
        if !model.engine_open {
            return Unavailable("the engine is still opening");
        }
    }
    let vms = |wanted: fn(VmState) -> bool, otherwise: &'static str| {
        let mut targets = model.vms.targets::<Vm>(&model.snapshot).peekable();
        if targets.peek().is_none() {
            return Unavailable("no machine is selected");
        }
        Availability::when(targets.any(|vm| wanted(vm.state)), otherwise)
    };
    match action {
        Action::StartVm => vms(
            |state| matches!(state, VmState::Created | VmState::Stopped | VmState::Failed),
            "it runs already",
        ),
        Action::StopVm | Action::ForceOffVm | Action::RestartVm => {
            vms(VmState::has_process, "it does not run")
        }
        Action::DeleteVm => vms(|_| true, ""),
        Action::Console | Action::Zoom if model.view == View::Vms => {
            Availability::when(model.selected_vm().is_some(), "no machine is selected")
        }
        Action::Zoom => Availability::when(
            model.list().is_some_and(|list| !list.rows.is_empty()),
            "there are no details here",
        ),
        Action::FullConsole | Action::ConsoleType => match model.selected_vm() {
            None => Unavailable("no machine is selected"),
            Some(vm) => Availability::when(vm.state.has_process(), "the machine does not run"),
        },
        Action::ConsoleNext | Action::ConsolePrevious => Availability::when(
            model.console.as_ref().is_some_and(|console| !console.needle.is_empty()),
            "nothing was searched for yet",
        ),
        Action::Shell => match model.vms.current::<Vm>(&model.snapshot) {
            None => Unavailable("no machine is selected"),
            Some(vm) => Availability::when(vm.state == VmState::Running, "a shell needs a running machine"),
        },
        Action::EditVm => Availability::when(model.selected_vm().is_some(), "no machine is selected"),
        Action::PauseVm => {
            vms(|state| matches!(state, VmState::Running | VmState::Paused), "only what runs can be paused")
        }
        Action::PromoteVm => match model.selected_vm() {
            None => Unavailable("no machine is selected"),
            Some(vm) if vm.state.has_process() => Unavailable("it runs: stop it first"),
            Some(vm) => Availability::when(vm.boot.is_some(), "it has never booted: promote its image"),
        },
        Action::PromoteImage => match model.selected_image() {
            None => Unavailable("no image is selected"),
            Some(image) => Availability::when(!image.managed, "its files are vmdeck's own already"),
        },
        Action::UpdateImage => {
            let mut targets = model.images.targets::<Image>(&model.snapshot);
            Availability::when(
                targets.any(|image| image.reference.is_some()),
                "it was not pulled from anywhere",
            )
        }
        Action::ExportImage => Availability::when(model.selected_image().is_some(), "no image is selected"),
        Action::RetryOperation => {
            Availability::when(again::any(model), "nothing here that can be done again")
        }
        Action::SaveLog => Availability::when(!model.log.lines.is_empty(), "there is nothing here"),
        Action::BootImage => Availability::when(
            model.images.current::<Image>(&model.snapshot).is_some(),
            "no image is selected",
        ),
        Action::DeleteImage => Availability::when(
            model.images.targets::<Image>(&model.snapshot).next().is_some(),
            "no image is selected",
        ),
        Action::DeleteKernel => {
            let mut targets = model.kernels.targets::<KernelRow>(&model.snapshot);
            Availability::when(targets.any(|row| row.here().is_some()), "it is not here")
        }
        Action::CancelOperation => {
            let mut targets = model.operations.targets::<OperationView>(&model.snapshot);
            let running = targets.any(|view| view.record.state == OperationState::Running);
            Availability::when(running, "it has ended already")
        }
        Action::Open | Action::Mark | Action::MarkRange | Action::MarkInvert | Action::Yank => {
            let any = model.list().is_some_and(|list| !list.rows.is_empty());
            Availability::when(any, "there is nothing here")
        }
        Action::Filter | Action::Sort | Action::SortReverse => {
            Availability::when(model.list().is_some_and(|list| list.total > 0), "there is nothing here")
        }
        Action::NextTab | Action::PreviousTab if model.view != View::Vms => Unavailable("no tabs here"),
        Action::NextPane | Action::PreviousPane => {
            let any = model.list().is_some_and(|list| !list.rows.is_empty());
            Availability::when(any, "there is only one pane here")
        }
        _ => Available,
    }
}
