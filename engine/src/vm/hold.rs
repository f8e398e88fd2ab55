//! Coming to hold a machine: waiting for, interrupting or being refused by whoever works on it, and
//! then knowing what is true of it.

use std::time::Duration;

use super::admission::{Admission, Request, admit, admit_behind};
use super::lock::{Holder, VmGuard};
use super::record::Vm;
use super::{Shared, change, layer, settle};
use crate::error::{ErrorKind, Result};
use crate::identifier::VmId;
use crate::operation::Operation;

/// How long an interrupted holder is waited for before it is looked at again who holds the lock.
const PATIENCE: Duration = Duration::from_secs(2);

/// A machine whose lock is held, as it truly is.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) guard: VmGuard,
    pub(super) vm: Vm,
    /// What was waited for, if anything was.
    pub(super) waited_for: Option<Request>,
}

/// A machine whose lock is held, and that is in a state that admits what was asked.
#[derive(Debug)]
pub(super) struct Admitted {
    pub(super) guard: VmGuard,
    pub(super) vm: Vm,
    /// Nothing is left to do.
    pub(super) done: bool,
}

/// Comes to hold the machine with this name for a request that its state admits.
pub(super) async fn admitted(
    shared: &Shared,
    name: &str,
    request: Request,
    operation: &Operation,
) -> Result<Admitted> {
    let id = shared.find(name).await?.id;
    let Held { guard, vm, .. } = hold(shared, &id, request, operation).await?;
    match admit(request, vm.state) {
        Admission::Denied(denial) => Err(denial.error(&vm.name, request)),
        admission => Ok(Admitted { guard, vm, done: admission == Admission::AlreadyDone }),
    }
}

/// Comes to hold the machine.
pub(super) async fn hold(
    shared: &Shared,
    id: &VmId,
    request: Request,
    operation: &Operation,
) -> Result<Held> {
    let mut waited_for = None;
    let guard = loop {
        // Also makes sure that no folder is made for a machine that is not there.
        let vm = shared.by_id(id).await?;
        if let Some(guard) = shared.locks.try_acquire(id)? {
            break guard;
        }
        let holder = shared.locks.holder(id);
        if waited_for.is_none() {
            waited_for = holder.as_ref().map(|holder| holder.request);
            operation.phase("wait").await;
        }
        let behind = holder.as_ref().map_or(Admission::Wait, |holder| admit_behind(request, holder.request));
        match behind {
            Admission::Denied(denial) => return Err(denial.error(&vm.name, request)),
            Admission::Interrupt => {
                interrupt(shared, holder.as_ref(), operation).await?;
                let waiting = shared.locks.acquire(id, operation.cancelled());
                if let Ok(guard) = tokio::time::timeout(PATIENCE, waiting).await {
                    break guard?;
                }
            }
            _ => break shared.locks.acquire(id, operation.cancelled()).await?,
        }
    };
    guard.tell(&Holder { request, operation: Some(operation.id().clone()) })?;
    let vm = current(shared, guard).await?;
    let (guard, vm) = (vm.0, vm.1);
    let vm = settle::settle(shared, &guard, vm).await?;
    change::settle_reset(shared, &guard).await?;
    if let Err(error) = layer::settle(shared, &guard, &vm).await {
        // One that runs goes on with the disks it has; one that does not must have the right ones.
        if !vm.state.has_process() {
            return Err(error);
        }
        operation.log(format!("a snapshot that was not finished stays so: {}", error.full_message())).await;
    }
    Ok(Held { guard, vm, waited_for })
}

/// Holds the machine if nobody else does; for what no operation asked for.
pub(super) async fn try_hold(shared: &Shared, id: &VmId, request: Request) -> Result<Option<(VmGuard, Vm)>> {
    let Some(guard) = shared.locks.try_acquire(id)? else { return Ok(None) };
    guard.tell(&Holder { request, operation: None })?;
    current(shared, guard).await.map(Some)
}

/// The machine as it is on record now that its lock is held: it may have been deleted in between.
async fn current(shared: &Shared, guard: VmGuard) -> Result<(VmGuard, Vm)> {
    match shared.by_id(guard.id()).await {
        Ok(vm) => {
            super::delete::forget_intent(&guard)?;
            Ok((guard, vm))
        }
        Err(error) => {
            if error.kind() == ErrorKind::NotFound {
                guard.discard();
            }
            Err(error)
        }
    }
}

async fn interrupt(shared: &Shared, holder: Option<&Holder>, operation: &Operation) -> Result<()> {
    let Some(other) = holder.and_then(|holder| holder.operation.as_ref()) else { return Ok(()) };
    operation.log(format!("interrupting operation {other}")).await;
    match shared.operations.cancel(other.as_str()).await {
        // It has just ended.
        Err(error) if matches!(error.kind(), ErrorKind::Conflict | ErrorKind::NotFound) => Ok(()),
        result => result.map(drop),
    }
}
