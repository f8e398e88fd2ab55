//! Starting a machine: the third phase of its creation, and every later boot.

use super::admission::{Admission, Request, admit};
use super::hold::{Held, hold};
use super::record::{Vm, VmState};
use super::{Shared, boot};
use crate::error::{Error, Result};
use crate::identifier::VmId;
use crate::operation::Operation;

pub(super) async fn start(shared: &Shared, id: &VmId, operation: &Operation) -> Result<Vm> {
    let Held { guard, vm, waited_for } = hold(shared, id, Request::Start, operation).await?;
    if waited_for == Some(Request::Start) && vm.state == VmState::Failed {
        // The boot that was waited for is the one that was asked for.
        return Err(failed_meanwhile(&vm));
    }
    match admit(Request::Start, vm.state) {
        Admission::AlreadyDone => return Ok(vm),
        Admission::Denied(denial) => return Err(denial.error(&vm.name, Request::Start)),
        Admission::Accepted | Admission::Wait | Admission::Interrupt => {}
    }
    let up = match (&vm.run, vm.state) {
        (Some(run), VmState::Starting) => {
            operation.log("its boot was begun by a vmdeck that is gone; taking it over").await;
            operation.phase("resume").await;
            boot::take_over(shared, &guard, &vm, run, boot::OnCancel::EndBoot, operation.cancelled()).await?
        }
        (Some(_), VmState::Paused) => return super::pause::resume(shared, &guard, &vm).await,
        _ => Box::pin(boot::boot(shared, &guard, &vm, operation)).await?,
    };
    shared.channels.put(id, &up.run.process, up.channel);
    drop(guard);
    shared.by_id(id).await
}

fn failed_meanwhile(vm: &Vm) -> Error {
    match vm.boot.as_ref().and_then(|boot| boot.failure.as_ref()) {
        Some(failure) => Error::failed(format!("machine `{}` did not boot: {}", vm.name, failure.message))
            .with_hint(failure.hint.clone()),
        None => Error::failed(format!("machine `{}` failed meanwhile", vm.name)),
    }
}
