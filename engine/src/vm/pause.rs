//! Letting a machine stand still, and go on.
//!
//! The hypervisor writes down when its guest stops and goes on, so a vmdeck that is killed between
//! the command and the record leaves nothing false for long ([`super::settle`]).

use super::Shared;
use super::lock::VmGuard;
use super::record::{Vm, VmState};
use crate::error::{Error, Result};

/// Stops the CPUs of a machine that runs. The caller holds its lock.
pub(super) async fn pause(shared: &Shared, guard: &VmGuard, vm: &Vm) -> Result<Vm> {
    let run = vm.run.as_ref().ok_or_else(|| no_process(vm))?;
    shared.vmm.attach(guard.directory(), &run.process).await?.pause().await?;
    shared.set_state(&vm.id, VmState::Paused, Some(run)).await?;
    shared.by_id(&vm.id).await
}

/// Lets them go on. The caller holds the machine's lock.
pub(super) async fn resume(shared: &Shared, guard: &VmGuard, vm: &Vm) -> Result<Vm> {
    let run = vm.run.as_ref().ok_or_else(|| no_process(vm))?;
    shared.vmm.attach(guard.directory(), &run.process).await?.resume().await?;
    shared.set_state(&vm.id, VmState::Running, Some(run)).await?;
    shared.by_id(&vm.id).await
}

fn no_process(vm: &Vm) -> Error {
    Error::failed(format!("machine `{}` is {} without a process on record", vm.name, vm.state.as_str()))
}
