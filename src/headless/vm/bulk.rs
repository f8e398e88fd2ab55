//! One command for several machines: all are begun at once, each that fails is told, and what was
//! done is the result.

use serde::Serialize;
use vmdeck_engine::operation::Task;
use vmdeck_engine::vm::StopOutcome;
use vmdeck_engine::vm::record::{Vm, VmState};
use vmdeck_engine::{Engine, Error, Result};

use super::{print_vm, print_vms, warn};
use crate::cli::vm::Selection;
use crate::headless::several::Ended;
use crate::headless::{Context, Outcome};

pub(super) async fn start(context: &Context, which: Selection) -> Outcome {
    started(context, which, |_| true, |engine, name| engine.vms().start(name, None)).await
}

pub(super) async fn restart(context: &Context, which: Selection, force: bool) -> Outcome {
    started(context, which, VmState::has_process, |engine, name| engine.vms().restart(name, force, None))
        .await
}

pub(super) async fn pause(context: &Context, which: Selection) -> Outcome {
    let runs = |state| state == VmState::Running;
    vms(context, which, runs, |engine, name| engine.vms().pause(name, None)).await
}

pub(super) async fn resume(context: &Context, which: Selection) -> Outcome {
    let paused = |state| state == VmState::Paused;
    vms(context, which, paused, |engine, name| engine.vms().resume(name, None)).await
}

pub(super) async fn reset(context: &Context, which: Selection) -> Outcome {
    vms(context, which, |_| true, |engine, name| engine.vms().reset(name, None)).await
}

pub(super) async fn stop(context: &Context, which: Selection, force: bool) -> Outcome {
    #[derive(Serialize)]
    struct Stopped {
        name: String,
        outcome: StopOutcome,
    }
    let names = select(context, which, VmState::has_process).await?;
    let ended = each(context, names, |engine, name| engine.vms().stop(name, force, None)).await;
    let stopped: Vec<Stopped> =
        ended.done.iter().map(|(name, outcome)| Stopped { name: name.clone(), outcome: *outcome }).collect();
    if !context.output.json(&stopped)? {
        for Stopped { name, outcome } in &stopped {
            let how = match outcome {
                StopOutcome::AlreadyStopped => "was not running",
                StopOutcome::Agent => "synced and powered off",
                StopOutcome::PowerButton => "obeyed the power button",
                StopOutcome::Killed => "was killed: it may have lost what it had not synced",
            };
            context.output.message(&format!("{name} {how}"));
            context.output.text(&format!("{name}\n"))?;
        }
    }
    ended.outcome()
}

pub(super) async fn delete(context: &Context, which: Selection, force: bool) -> Outcome {
    let names = select(context, which, |_| true).await?;
    let ended = each(context, names, |engine, name| engine.vms().delete(name, force, None)).await;
    let names: Vec<&String> = ended.done.iter().map(|(name, ())| name).collect();
    if !context.output.json(&names)? {
        names.iter().try_for_each(|name| context.output.text(&format!("{name}\n")))?;
    }
    ended.outcome()
}

/// A command after which machines run that it has booted.
async fn started(
    context: &Context,
    which: Selection,
    sense: impl Fn(VmState) -> bool,
    begin: impl Fn(&Engine, &str) -> Task<Vm>,
) -> Outcome {
    vms_then(context, which, sense, begin, |vm| warn(context, vm)).await
}

/// A command whose result is the machine.
async fn vms(
    context: &Context,
    which: Selection,
    sense: impl Fn(VmState) -> bool,
    begin: impl Fn(&Engine, &str) -> Task<Vm>,
) -> Outcome {
    vms_then(context, which, sense, begin, |_| ()).await
}

async fn vms_then(
    context: &Context,
    which: Selection,
    sense: impl Fn(VmState) -> bool,
    begin: impl Fn(&Engine, &str) -> Task<Vm>,
    tell: impl Fn(&Vm),
) -> Outcome {
    let single = which.names.len() == 1;
    let names = select(context, which, sense).await?;
    let ended = each(context, names, begin).await;
    ended.done.iter().for_each(|(_, vm)| tell(vm));
    let vms: Vec<Vm> = ended.done.iter().map(|(_, vm)| vm.clone()).collect();
    // One machine that was named is one document; several are an array, however many there turn out to be.
    match vms.as_slice() {
        [vm] if single => print_vm(context, vm)?,
        [] if single => 0,
        vms => print_vms(context, vms)?,
    };
    ended.outcome()
}

/// The machines that a command is for. Those that were not named are only taken where the command
/// makes sense for their state.
async fn select(context: &Context, which: Selection, sense: impl Fn(VmState) -> bool) -> Result<Vec<String>> {
    if !which.names.is_empty() {
        let mut names = which.names;
        let mut seen = std::collections::HashSet::new();
        names.retain(|name| seen.insert(name.clone()));
        return Ok(names);
    }
    let vms = context.engine.vms().list().await?;
    let meant = vms.into_iter().filter(|vm| which.labels.iter().all(|label| label.fits(vm)));
    let (fitting, others): (Vec<Vm>, Vec<Vm>) = meant.partition(|vm| sense(vm.state));
    let names: Vec<String> = fitting.into_iter().map(|vm| vm.name).collect();
    match others.as_slice() {
        _ if !names.is_empty() => {}
        [] => context.output.message("there is no such machine: nothing was done"),
        [vm] => {
            let state = vm.state.as_str();
            context.output.message(&format!("`{}` is {state}: nothing was done", vm.name));
        }
        others => {
            let count = others.len();
            context
                .output
                .message(&format!("none of the {count} machines is in a state for it: nothing was done"));
        }
    }
    Ok(names)
}

/// One operation per name: all are begun, all are waited for. An interrupt cancels all.
async fn each<T: Send + 'static>(
    context: &Context,
    names: Vec<String>,
    begin: impl Fn(&Engine, &str) -> Task<T>,
) -> Ended<(String, T)> {
    let tasks: Vec<(String, Task<T>)> = names
        .into_iter()
        .map(|name| {
            let task = begin(&context.engine, &name);
            (name, task)
        })
        .collect();
    let operations: Vec<_> = tasks.iter().map(|(_, task)| task.operation().clone()).collect();
    let mut ended = Ended::new(context);
    for (name, task) in tasks {
        let result = context.follow(task).await;
        if result.as_ref().is_err_and(Error::is_cancelled) {
            operations.iter().for_each(|operation| operation.cancel());
        }
        ended.add(result.map(|done| (name, done)));
    }
    ended
}
