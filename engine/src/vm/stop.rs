//! Stopping: three ways, each with a bound, the kindest first.
//!
//! ```text
//! agent: stop services, sync, power off ─▶ ACPI power button ─▶ end the hypervisor
//! ```

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::lock::VmGuard;
use super::record::{Vm, VmEnd, VmEndCause, VmRun, VmState};
use super::{Shared, StopOutcome, boot, settle};
use crate::clock;
use crate::error::{Error, Result};
use crate::guest::GuestChannel;
use crate::operation::Operation;
use crate::process::{PidFd, ProcessIdentity};
use crate::vmm::Machine;

/// For the agent to answer the request.
const AGENT_ANSWER: Duration = Duration::from_secs(5);
/// For the guest to power off once the agent agreed: it gives services 10 s, and then goes by itself.
const AGENT_POWER_OFF: Duration = Duration::from_secs(45);
/// For the guest to power off after its power button was pressed.
const BUTTON_POWER_OFF: Duration = Duration::from_secs(20);
/// For a killed process to be gone: it may have to wait for a slow disk.
const KILLED: Duration = Duration::from_secs(30);

/// Stops a machine that has a process. The caller holds its lock. When cancelled, the machine is
/// left to what it makes of what it was asked so far.
pub(super) async fn stop(
    shared: &Shared,
    guard: &VmGuard,
    vm: &Vm,
    force: bool,
    operation: &Operation,
) -> Result<StopOutcome> {
    let Some(run) = &vm.run else { return Ok(StopOutcome::AlreadyStopped) };
    shared.set_state(&vm.id, VmState::Stopping, Some(run)).await?;
    match bring_down(shared, guard, vm, run, force, operation).await {
        Ok(outcome) => {
            shared.channels.forget(&vm.id);
            let ended = ended(outcome);
            if vm.state == VmState::Starting {
                let lines =
                    boot::console::LogTail::from_offset(boot::console_log(guard), run.console_start).lines();
                boot::abandon(shared, vm, VmState::Stopped, ended, &lines).await?;
            } else {
                shared.set_ended(&vm.id, VmState::Stopped, ended).await?;
            }
            Ok(outcome)
        }
        Err(error) => {
            // It runs as before, but that a paused one may go on by now; if it does not run,
            // whoever looks next will see.
            let state = settle::standing(shared, vm, guard.directory());
            shared.set_state(&vm.id, state, Some(run)).await?;
            Err(error)
        }
    }
}

fn ended(outcome: StopOutcome) -> VmEnd {
    let (cause, message) = match outcome {
        StopOutcome::AlreadyStopped => (VmEndCause::GuestEnded, "it had ended by itself"),
        StopOutcome::Agent => {
            (VmEndCause::StoppedByAgent, "stopped: the agent synced the disks and powered off")
        }
        StopOutcome::PowerButton => {
            (VmEndCause::StoppedByPowerButton, "stopped: the guest obeyed its power button")
        }
        StopOutcome::Killed => {
            (VmEndCause::Killed, "the hypervisor was ended; the guest had no chance to sync")
        }
    };
    VmEnd { at: clock::now(), cause, message: message.into() }
}

/// Returns when the process is gone.
async fn bring_down(
    shared: &Shared,
    guard: &VmGuard,
    vm: &Vm,
    run: &VmRun,
    force: bool,
    operation: &Operation,
) -> Result<StopOutcome> {
    let cancel = operation.cancelled();
    let fail = |error| Error::io(format!("cannot watch the hypervisor of machine `{}`", vm.name), error);
    let Some(process) = PidFd::open(&run.process).map_err(fail)? else {
        return Ok(StopOutcome::AlreadyStopped);
    };
    if !force && vm.state == VmState::Paused {
        // Only a guest that goes on can sync its disks.
        let machine = shared.vmm.attach(guard.directory(), &run.process).await;
        let resumed = match machine {
            Ok(machine) => machine.resume().await,
            Err(error) => Err(error),
        };
        if let Err(error) = resumed {
            operation.log(format!("it cannot be made to go on: {}", error.full_message())).await;
        }
    }
    if !force && vm.state != VmState::Starting {
        operation.phase("agent").await;
        match ask_agent(shared, guard, vm, run, cancel).await {
            Ok(()) => {
                if gone_within(&process, AGENT_POWER_OFF, cancel).await? {
                    return Ok(StopOutcome::Agent);
                }
                operation.log("the agent agreed to power off, and the guest did not").await;
            }
            Err(error) if error.is_cancelled() => return Err(error),
            Err(error) => operation.log(format!("the agent cannot help: {}", error.full_message())).await,
        }
        operation.phase("power button").await;
        match shared.vmm.attach(guard.directory(), &run.process).await {
            Ok(machine) => {
                if let Err(error) = machine.press_power_button().await {
                    operation
                        .log(format!("the power button cannot be pressed: {}", error.full_message()))
                        .await;
                } else if gone_within(&process, BUTTON_POWER_OFF, cancel).await? {
                    return Ok(StopOutcome::PowerButton);
                } else {
                    operation.log("the guest does not obey its power button").await;
                }
            }
            Err(error) => {
                operation.log(format!("the hypervisor does not answer: {}", error.full_message())).await
            }
        }
    }
    operation.phase("kill").await;
    // Not cancelled any more: half killed is nothing to return to.
    end(shared, guard, &run.process).await?;
    Ok(StopOutcome::Killed)
}

/// Asks the agent to power off, within a bound.
async fn ask_agent(
    shared: &Shared,
    guard: &VmGuard,
    vm: &Vm,
    run: &VmRun,
    cancel: &CancellationToken,
) -> Result<()> {
    let asking = async {
        let channel = match shared.channels.get(&vm.id, &run.process) {
            Some(channel) => channel,
            None => GuestChannel::connect(guard.directory(), cancel).await?,
        };
        channel.power_off().await
    };
    tokio::select! {
        result = tokio::time::timeout(AGENT_ANSWER, asking) => {
            result.unwrap_or_else(|_| Err(Error::failed(format!("no answer within {} s", AGENT_ANSWER.as_secs()))))
        }
        () = cancel.cancelled() => Err(Error::cancelled()),
    }
}

async fn gone_within(process: &PidFd, bound: Duration, cancel: &CancellationToken) -> Result<bool> {
    tokio::select! {
        result = process.wait() => {
            result.map_err(|error| Error::io("cannot wait for the hypervisor", error))?;
            Ok(true)
        }
        () = tokio::time::sleep(bound) => Ok(false),
        () = cancel.cancelled() => Err(Error::cancelled()),
    }
}

/// Ends a machine's process, by its control socket where that answers, else by a signal. Returns when
/// it is gone.
pub(super) async fn end(shared: &Shared, guard: &VmGuard, identity: &ProcessIdentity) -> Result<()> {
    let by_socket = async {
        let machine: Box<dyn Machine> = shared.vmm.attach(guard.directory(), identity).await?;
        machine.terminate().await
    };
    match tokio::time::timeout(Duration::from_secs(5), by_socket).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a hypervisor does not obey"),
        Err(_) => tracing::debug!("a hypervisor does not answer"),
    }
    let fail = |error| Error::io(format!("cannot end process {}", identity.pid), error);
    let Some(process) = PidFd::open(identity).map_err(fail)? else { return Ok(()) };
    process.kill().map_err(fail)?;
    match tokio::time::timeout(KILLED, process.wait()).await {
        Ok(result) => result.map_err(fail),
        Err(_) => Err(Error::failed(format!("process {} does not end though it was killed", identity.pid))
            .with_hint("a disk may hang: `cat /proc/PID/stack` as root says where it waits")),
    }
}
