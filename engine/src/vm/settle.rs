//! What is true of a machine, whatever its row says.
//!
//! | on record | found | becomes |
//! |---|---|---|
//! | any with a process | the host was restarted since | stopped |
//! | starting | no process on record | stopped, the boot abandoned |
//! | starting, running, stopping | the process is gone | stopped or failed, as the console tells |
//! | any with a process | the process works in another folder | stopped: this directory is a copy |
//! | stopping | the process runs | running |
//! | running, paused | the guest stands still or not | paused, running |
//! | any with a process | its ports were being changed | its hypervisor forwards what is on record |
//! | starting | the process runs | starting: it is taken over by whoever watches |

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::boot::console::LogTail;
use super::lock::VmGuard;
use super::record::{Vm, VmEnd, VmEndCause, VmRun, VmState};
use super::{Shared, boot, change};
use crate::clock;
use crate::error::Result;
use crate::process;
use crate::vmm::Ending;

/// What the process table says of a machine that has a process on record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Finding {
    /// There is none to have, or it runs.
    AsRecorded,
    /// The boot never came to a process.
    NeverStarted,
    HostRestarted,
    Elsewhere,
    Gone,
}

/// Looks. Cheap: two files of `/proc` for a machine that runs, nothing for one that does not.
pub(super) fn look(vm: &Vm, directory: &Path) -> Finding {
    match &vm.run {
        _ if !vm.state.has_process() => Finding::AsRecorded,
        None => Finding::NeverStarted,
        Some(run) if run.process.boot_id != process::boot_id() => Finding::HostRestarted,
        Some(run) if !run.process.is_alive() => Finding::Gone,
        Some(run) if !works_in(run, directory) => Finding::Elsewhere,
        Some(_) => Finding::AsRecorded,
    }
}

/// The state of a machine that is as recorded but for whether its guest stands still. Nobody works on
/// it: one on record as stopping was left by a vmdeck that was killed.
pub(super) fn standing(shared: &Shared, vm: &Vm, directory: &Path) -> VmState {
    match (vm.state, &vm.run) {
        (VmState::Running | VmState::Paused | VmState::Stopping, Some(_)) => {
            match shared.vmm.standing_still(directory) {
                Some(true) => VmState::Paused,
                Some(false) => VmState::Running,
                None if vm.state == VmState::Paused => VmState::Paused,
                None => VmState::Running,
            }
        }
        _ => vm.state,
    }
}

/// Whether the process's working directory is the machine's folder, by whatever path.
fn works_in(run: &VmRun, directory: &Path) -> bool {
    match (fs::metadata(format!("/proc/{}/cwd", run.process.pid)), fs::metadata(directory)) {
        (Ok(there), Ok(here)) => there.ino() == here.ino() && there.dev() == here.dev(),
        (Ok(_), Err(_)) => false,
        // What may not be looked at cannot be said to be another one.
        (Err(_), _) => true,
    }
}

/// Brings the record in line with what is true. The caller holds the machine's lock, so nobody works
/// on it: `starting` and `stopping` are then what a killed vmdeck left.
pub(super) async fn settle(shared: &Shared, guard: &VmGuard, vm: Vm) -> Result<Vm> {
    let finding = look(&vm, guard.directory());
    if finding == Finding::AsRecorded {
        let state = standing(shared, &vm, guard.directory());
        if state != vm.state {
            tracing::info!(vm = %vm.name, from = vm.state.as_str(), to = state.as_str(), "bringing the record in line");
            shared.set_state(&vm.id, state, vm.run.as_ref()).await?;
        }
        if !change::ports_agree(&vm) {
            change::settle_ports(shared, guard, &vm, state).await;
        }
        return shared.by_id(&vm.id).await;
    }
    tracing::info!(vm = %vm.name, state = vm.state.as_str(), ?finding, "bringing the record in line");
    let run = vm.run.clone().unwrap_or_else(never);
    let console = LogTail::from_offset(boot::console_log(guard), run.console_start).lines();
    let (state, cause, message) = match finding {
        // What is as recorded was dealt with above.
        Finding::NeverStarted | Finding::AsRecorded => (
            VmState::Stopped,
            VmEndCause::Abandoned,
            "the vmdeck process that started it ended before there was a hypervisor".to_owned(),
        ),
        Finding::HostRestarted => {
            (VmState::Stopped, VmEndCause::HostRestarted, "the host was restarted while it ran".to_owned())
        }
        Finding::Elsewhere => (
            VmState::Stopped,
            VmEndCause::Elsewhere,
            "it runs in the data directory that this one was copied from".to_owned(),
        ),
        Finding::Gone => {
            let hypervisor = LogTail::from_offset(boot::hypervisor_log(guard), 0).lines();
            how_it_ended(vm.state, shared.vmm.ending(guard.directory()), &console, &hypervisor)
        }
    };
    shared.channels.forget(&vm.id);
    let ended = VmEnd { at: clock::now(), cause, message };
    if vm.state == VmState::Starting {
        boot::abandon(shared, &vm, state, ended, &console).await?;
    } else {
        shared.set_ended(&vm.id, state, ended).await?;
    }
    shared.by_id(&vm.id).await
}

/// Stands for the run of a machine that has none: nothing of its logs is to be skipped.
fn never() -> VmRun {
    VmRun {
        process: process::ProcessIdentity { pid: 0, start_time: 0, boot_id: String::new() },
        accelerator: crate::vmm::Accelerator::Tcg,
        started_at: 0,
        console_start: 0,
        forwards: None,
        started_with: None,
    }
}

/// How a run ended whose process is gone: what the hypervisor wrote down, and the guest's last words.
/// A guest whose kernel panics restarts, which is all that a hypervisor may see of it.
pub(super) fn how_it_ended(
    state: VmState,
    ending: Ending,
    console: &[String],
    hypervisor: &[String],
) -> (VmState, VmEndCause, String) {
    let panic = console.iter().rev().find(|line| line.contains("Kernel panic - not syncing"));
    let panicked = |line: &str| {
        (VmState::Failed, VmEndCause::GuestPanicked, format!("the guest's kernel panicked: {line}"))
    };
    match (ending, panic) {
        (Ending::PoweredOff, _) => {
            (VmState::Stopped, VmEndCause::GuestEnded, "the guest powered itself off".into())
        }
        (Ending::Panicked | Ending::Reset, Some(line)) => panicked(line),
        (Ending::Panicked, None) => panicked("it did not say why"),
        (Ending::Reset, None) => (
            VmState::Stopped,
            VmEndCause::GuestEnded,
            "the guest restarted itself, which ends a machine; start it again".into(),
        ),
        (Ending::Quit, _) => (VmState::Stopped, VmEndCause::Killed, "the hypervisor was told to quit".into()),
        (Ending::Signal | Ending::Unknown, _) if state == VmState::Stopping => {
            (VmState::Stopped, VmEndCause::Killed, "it ended while it was being stopped".into())
        }
        (Ending::Signal | Ending::Unknown, _) => {
            let words = match hypervisor.last() {
                Some(line) => format!("the hypervisor ended: {line}"),
                None => "the hypervisor was killed from outside, or crashed".into(),
            };
            (VmState::Failed, VmEndCause::HypervisorEnded, words)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endings() {
        let check = |state, ending, console: &[&str], expected| {
            let console: Vec<_> = console.iter().map(|line| (*line).to_owned()).collect();
            let (state, cause, _) = how_it_ended(state, ending, &console, &[]);
            assert_eq!((state, cause), expected, "{ending:?} {console:?}");
        };
        use VmEndCause::{GuestEnded, GuestPanicked, HypervisorEnded, Killed};
        use VmState::{Failed, Running, Stopped, Stopping};
        let panic = "[ 3.0] Kernel panic - not syncing: x";
        check(Running, Ending::PoweredOff, &["a panic of an earlier time", panic], (Stopped, GuestEnded));
        check(Running, Ending::Reset, &["[ 9.1] reboot: Restarting system"], (Stopped, GuestEnded));
        check(Running, Ending::Reset, &[panic], (Failed, GuestPanicked));
        check(Running, Ending::Panicked, &[], (Failed, GuestPanicked));
        check(Running, Ending::Quit, &[], (Stopped, Killed));
        check(Running, Ending::Signal, &["login:"], (Failed, HypervisorEnded));
        check(Running, Ending::Unknown, &[], (Failed, HypervisorEnded));
        check(Stopping, Ending::Unknown, &[], (Stopped, Killed));
    }
}
