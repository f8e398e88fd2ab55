//! What failed or was cancelled, done again.

use vmdeck_engine::kernel::PullKernel;
use vmdeck_engine::operation::record::{OperationKind, OperationRecord, OperationState};
use vmdeck_engine::snapshot::OperationView;

use crate::message::Command;
use crate::model::Model;

/// Commands that do the selected or marked operations again, as far as their record tells enough.
pub(super) fn commands(model: &Model) -> Vec<Command> {
    let targets = model.operations.targets::<OperationView>(&model.snapshot);
    targets.filter_map(|view| command(&view.record)).collect()
}

/// Whether there are any; asked for every frame.
pub(super) fn any(model: &Model) -> bool {
    let mut targets = model.operations.targets::<OperationView>(&model.snapshot);
    targets.any(|view| can_be_repeated(&view.record))
}

fn can_be_repeated(record: &OperationRecord) -> bool {
    !matches!(record.state, OperationState::Running | OperationState::Done)
        && matches!(
            record.kind,
            OperationKind::ImagePull
                | OperationKind::KernelPull
                | OperationKind::VmStart
                | OperationKind::VmStop
                | OperationKind::VmRestart
        )
}

fn command(record: &OperationRecord) -> Option<Command> {
    if !can_be_repeated(record) {
        return None;
    }
    let name = record.target.clone();
    match record.kind {
        OperationKind::ImagePull => Some(Command::PullImage { reference: name, name: None }),
        OperationKind::KernelPull => {
            Some(Command::PullKernel(PullKernel { source: name, ..PullKernel::default() }))
        }
        OperationKind::VmStart => Some(Command::StartVm { name }),
        OperationKind::VmStop => Some(Command::StopVm { name, force: false }),
        OperationKind::VmRestart => Some(Command::RestartVm { name }),
        _ => None,
    }
}
