//! What failed or was cancelled, done again.

use vmdeck_engine::kernel::PullKernel;
use vmdeck_engine::operation::record::{OperationKind, OperationRecord, OperationState};
use vmdeck_engine::snapshot::OperationView;

use crate::message::Command;
use crate::model::Model;

/// Commands that do the selected or marked operations again, as far as their record tells enough.
pub(super) fn commands(model: &Model) -> Vec<Command> {
    let targets = model.operations.targets::<OperationView>(&model.snapshot);
    targets.into_iter().filter_map(|view| command(&view.record)).collect()
}

fn command(record: &OperationRecord) -> Option<Command> {
    if matches!(record.state, OperationState::Running | OperationState::Done) {
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
