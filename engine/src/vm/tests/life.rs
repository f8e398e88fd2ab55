//! Boots that are cancelled, interrupted and abandoned, and what is true after each.

use std::process::{Child, Command};
use std::sync::Arc;
use std::time::Duration;

use super::super::StopOutcome;
use super::super::boot::Timeline;
use super::super::record::{
    BootFailureClass, BootPhaseName, BootPhaseStatus, Vm, VmEndCause, VmRun, VmState,
};
use super::fake::{Fake, Script};
use super::{Deck, Process};
use crate::clock;
use crate::error::ErrorKind;
use crate::operation::record::{OperationKind, OperationState};
use crate::process::ProcessIdentity;
use crate::store;
use crate::vmm::Accelerator;

/// Waits until the machine is as wished for.
async fn until(process: &Process, name: &str, wish: impl Fn(&Vm) -> bool) -> Vm {
    for _ in 0..3000 {
        let vm = process.vms.find(name).await.unwrap();
        if wish(&vm) {
            return vm;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("it did not become so: {:?}", process.vms.find(name).await.unwrap());
}

async fn until_booting(process: &Process, name: &str) -> VmRun {
    until(process, name, |vm| vm.state == VmState::Starting && vm.run.is_some()).await.run.unwrap()
}

/// A process in some folder that is on record as the hypervisor of a machine. Killed at the end.
pub(super) struct Stray {
    child: Child,
}

impl Stray {
    pub(super) fn in_folder(folder: &std::path::Path) -> Self {
        std::fs::create_dir_all(folder).unwrap();
        Self { child: Command::new("sleep").arg("600").current_dir(folder).spawn().unwrap() }
    }

    pub(super) fn run(&self) -> VmRun {
        VmRun {
            process: ProcessIdentity::of(i32::try_from(self.child.id()).unwrap()).unwrap(),
            accelerator: Accelerator::Tcg,
            started_at: clock::now(),
            console_start: 0,
            forwards: None,
            started_with: None,
        }
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Stray {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a vmdeck that is gone left on record.
pub(super) async fn leave(process: &Process, vm: &Vm, state: VmState, run: Option<VmRun>) {
    let (id, first) = (vm.id.clone(), vm.creation);
    process
        .store
        .transaction(move |transaction| {
            let mut timeline = Timeline::new(clock::now(), first);
            if state == VmState::Running {
                timeline.finish(clock::now());
            } else {
                timeline.begin(BootPhaseName::Kernel, clock::now());
            }
            store::vms::insert_boot(transaction, &id, timeline.boot())?;
            store::vms::set_state(transaction, &id, state, run.as_ref(), None)
        })
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_boot_leaves_no_process_and_says_so() {
    let deck = Deck::new().await;
    let process = deck.open_with(Fake::hanging());
    process.create("a").await.unwrap();
    let mut start = process.vms.start("a", None);
    let run = until_booting(&process, "a").await;
    start.operation().cancel();
    assert!(start.wait().await.unwrap_err().is_cancelled());
    assert!(!run.process.is_alive());
    let vm = process.vms.find("a").await.unwrap();
    assert_eq!((vm.state, vm.run), (VmState::Stopped, None));
    assert_eq!(vm.ended.unwrap().cause, VmEndCause::BootCancelled);
    let boot = vm.boot.unwrap();
    assert_eq!(boot.failure.unwrap().class, BootFailureClass::Cancelled);
    assert!(boot.phases.iter().all(|phase| phase.status != BootPhaseStatus::Active));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_ends_a_boot_of_another_process() {
    let deck = Deck::new().await;
    let (here, there) = (deck.open_with(Fake::hanging()), deck.open_with(Fake::hanging()));
    here.create("a").await.unwrap();
    // Requests of other processes are heard by the publisher.
    let _publisher =
        crate::snapshot::Publisher::start(&here.data, here.store.clone(), here.operations.clone());
    let mut start = here.vms.start("a", None);
    let run = until_booting(&there, "a").await;
    let error = there.vms.delete("a", false, None).wait().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(error.to_string().contains("being started"), "{error}");
    let outcome = there.vms.stop("a", false, None).wait().await.unwrap();
    assert_eq!(outcome, StopOutcome::AlreadyStopped);
    assert!(start.wait().await.unwrap_err().is_cancelled());
    assert!(!run.process.is_alive());
    assert_eq!(there.vms.find("a").await.unwrap().state, VmState::Stopped);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forced_delete_ends_a_boot_and_leaves_nothing() {
    let deck = Deck::new().await;
    let process = deck.open_with(Fake::hanging());
    process.create("a").await.unwrap();
    let mut start = process.vms.start("a", None);
    let run = until_booting(&process, "a").await;
    process.vms.delete("a", true, None).wait().await.unwrap();
    assert!(start.wait().await.unwrap_err().is_cancelled());
    assert!(!run.process.is_alive());
    assert_eq!(process.count("vms").await, 0);
    for folder in [process.data.vms(), process.data.staging_root()] {
        assert_eq!(std::fs::read_dir(folder).unwrap().count(), 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_boot_that_kvm_does_not_survive_is_repeated_without_it() {
    let deck = Deck::new().await;
    let fake = Fake::new(Accelerator::Kvm, &[Script::Refuse("qemu: error: failed to set MSR 0x10a")]);
    let process = deck.open_with(Arc::clone(&fake) as _);
    process.create("a").await.unwrap();
    let mut start = process.vms.start("a", None);
    until_booting(&process, "a").await;
    start.operation().cancel();
    assert!(start.wait().await.unwrap_err().is_cancelled());
    assert_eq!(*fake.launches.lock().unwrap(), [Accelerator::Kvm, Accelerator::Tcg]);
    let vm = process.vms.find("a").await.unwrap();
    let boots = process.vms.boots(&vm).await.unwrap();
    let classes: Vec<_> = boots.iter().map(|boot| boot.failure.as_ref().unwrap().class).collect();
    assert_eq!(classes, [BootFailureClass::Cancelled, BootFailureClass::AcceleratorDied]);
    let log = process.operations.log_lines(start.operation().id()).await.unwrap();
    assert!(log.iter().any(|(_, line)| line.contains("without it")), "{log:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kernel_that_panics_fails_the_boot_with_its_words() {
    let deck = Deck::new().await;
    let words = "[ 1.0] Kernel panic - not syncing: Attempted to kill init!\n";
    let process = deck.open_with(Fake::new(Accelerator::Tcg, &[Script::EndSaying(words)]));
    process.create("a").await.unwrap();
    let error = process.vms.start("a", None).wait().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Failed);
    assert!(error.to_string().contains("Attempted to kill init"), "{error}");
    assert!(error.hint().is_some());
    let vm = process.vms.find("a").await.unwrap();
    assert_eq!(vm.state, VmState::Failed);
    let boot = vm.boot.unwrap();
    let failed: Vec<_> = boot
        .phases
        .iter()
        .filter(|phase| phase.status == BootPhaseStatus::Failed)
        .map(|phase| phase.name)
        .collect();
    assert_eq!(failed, [BootPhaseName::Kernel]);
    let failure = boot.failure.unwrap();
    assert_eq!(failure.class, BootFailureClass::KernelPanic);
    assert_eq!(failure.console_tail.len(), 1);
    // Nothing has to be repaired: the next start boots.
    let mut again = process.vms.start("a", None);
    until_booting(&process, "a").await;
    again.operation().cancel();
    assert!(again.wait().await.unwrap_err().is_cancelled());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_hypervisor_the_host_cannot() {
    let deck = Deck::new().await;
    let process = deck.open_with(Fake::new(Accelerator::Tcg, &[Script::Missing]));
    process.create("a").await.unwrap();
    let error = process.vms.start("a", None).wait().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::HostCannot);
    let vm = process.vms.find("a").await.unwrap();
    assert_eq!(vm.boot.unwrap().failure.unwrap().class, BootFailureClass::Host);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_starts_are_one_boot() {
    let deck = Deck::new().await;
    let fake = Fake::hanging();
    let (here, there) = (deck.open_with(Arc::clone(&fake) as _), deck.open_with(Arc::clone(&fake) as _));
    here.create("a").await.unwrap();
    let mut first = here.vms.start("a", None);
    let run = until_booting(&here, "a").await;
    let mut second = there.vms.start("a", None);
    while second.operation().current_phase().as_deref() != Some("wait") {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // The guest dies: both hear of it, and the second does not boot once more.
    crate::process::PidFd::open(&run.process).unwrap().unwrap().kill().unwrap();
    assert_eq!(first.wait().await.unwrap_err().kind(), ErrorKind::Failed);
    let error = second.wait().await.unwrap_err();
    assert!(error.to_string().contains("did not boot"), "{error}");
    assert_eq!(fake.launches.lock().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_boot_abandoned_before_its_hypervisor_is_no_boot() {
    let deck = Deck::new().await;
    let process = deck.open_with(Fake::hanging());
    let vm = process.create("a").await.unwrap();
    leave(&process, &vm, VmState::Starting, None).await;
    let other = deck.open_with(Fake::hanging());
    other.vms.reconcile().await.unwrap();
    let vm = other.vms.find("a").await.unwrap();
    assert_eq!(vm.state, VmState::Stopped);
    assert_eq!(vm.boot.unwrap().failure.unwrap().class, BootFailureClass::Abandoned);
    assert_eq!(vm.ended.unwrap().cause, VmEndCause::Abandoned);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_a_hypervisor_is_noticed_by_itself() {
    let deck = Deck::new().await;
    let process = deck.open_with(Fake::hanging());
    let vm = process.create("a").await.unwrap();
    let mut stray = Stray::in_folder(&process.data.vm(&vm.id));
    leave(&process, &vm, VmState::Running, Some(stray.run())).await;
    process.vms.reconcile().await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(process.vms.find("a").await.unwrap().state, VmState::Running);
    stray.kill();
    let vm = until(&process, "a", |vm| vm.state != VmState::Running).await;
    assert_eq!(vm.state, VmState::Failed);
    assert_eq!(vm.ended.unwrap().cause, VmEndCause::HypervisorEnded);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_host_was_restarted() {
    let deck = Deck::new().await;
    let process = deck.open_with(Fake::hanging());
    let stray = Stray::in_folder(&process.data.root().join("elsewhere"));
    for (name, state) in [("a", VmState::Running), ("b", VmState::Starting), ("c", VmState::Stopping)] {
        let vm = process.create(name).await.unwrap();
        let mut run = stray.run();
        run.process.boot_id = "another boot".into();
        leave(&process, &vm, state, Some(run)).await;
    }
    let other = deck.open_with(Fake::hanging());
    other.vms.reconcile().await.unwrap();
    for name in ["a", "b", "c"] {
        let vm = other.vms.find(name).await.unwrap();
        assert_eq!((vm.state, vm.run), (VmState::Stopped, None), "{name}");
        assert_eq!(vm.ended.unwrap().cause, VmEndCause::HostRestarted, "{name}");
    }
    assert!(stray.run().process.is_alive(), "a process with the same pid is none of ours");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copied_data_directory_does_not_claim_the_originals_processes() {
    let deck = Deck::new().await;
    let process = deck.open_with(Fake::hanging());
    let vm = process.create("a").await.unwrap();
    let original = tempfile::tempdir().unwrap();
    let stray = Stray::in_folder(original.path());
    std::fs::create_dir_all(process.data.vm(&vm.id)).unwrap();
    leave(&process, &vm, VmState::Running, Some(stray.run())).await;
    process.vms.reconcile().await.unwrap();
    let vm = process.vms.find("a").await.unwrap();
    assert_eq!((vm.state, vm.ended.unwrap().cause), (VmState::Stopped, VmEndCause::Elsewhere));
    process.vms.delete("a", true, None).wait().await.unwrap();
    assert!(stray.run().process.is_alive());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_abandoned_boot_is_taken_over_and_can_be_stopped() {
    let deck = Deck::new().await;
    let process = deck.open_with(Fake::hanging());
    let vm = process.create("a").await.unwrap();
    let mut stray = Stray::in_folder(&process.data.vm(&vm.id));
    leave(&process, &vm, VmState::Starting, Some(stray.run())).await;
    process.vms.reconcile().await.unwrap();
    let vm = process.vms.find("a").await.unwrap();
    assert_eq!(vm.state, VmState::Starting, "its hypervisor runs, and nothing says that it will not come up");
    let mut adopted = None;
    for _ in 0..3000 {
        let operations = process.operations.list(10).await.unwrap();
        adopted = operations.into_iter().find(|operation| {
            operation.kind == OperationKind::VmStart && operation.state == OperationState::Running
        });
        if adopted.is_some() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(adopted.is_some(), "nobody watches over the boot");
    process.vms.stop("a", false, None).wait().await.unwrap();
    assert_eq!(process.vms.find("a").await.unwrap().state, VmState::Stopped);
    assert!(!stray.run().process.is_alive());
    stray.kill();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_ends_leaves_the_boot_it_watches_over() {
    let deck = Deck::new().await;
    let process = deck.open_with(Fake::hanging());
    let vm = process.create("a").await.unwrap();
    let stray = Stray::in_folder(&process.data.vm(&vm.id));
    leave(&process, &vm, VmState::Starting, Some(stray.run())).await;
    let watcher = deck.open_with(Fake::hanging());
    for _ in 0..3000 {
        if watcher
            .operations
            .list(1)
            .await
            .unwrap()
            .iter()
            .any(|operation| operation.kind == OperationKind::VmStart)
        {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    watcher.operations.shutdown(Duration::from_secs(5)).await;
    process.operations.shutdown(Duration::from_secs(5)).await;
    assert!(stray.run().process.is_alive());
    assert_eq!(process.vms.find("a").await.unwrap().state, VmState::Starting);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_without_an_agent_is_stopped_by_its_power_button() {
    let deck = Deck::new().await;
    let process = deck.open_with(Fake::hanging());
    let vm = process.create("a").await.unwrap();
    let stray = Stray::in_folder(&process.data.vm(&vm.id));
    leave(&process, &vm, VmState::Running, Some(stray.run())).await;
    let error = process.vms.delete("a", false, None).wait().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert_eq!(process.vms.stop("a", false, None).wait().await.unwrap(), StopOutcome::PowerButton);
    let vm = process.vms.find("a").await.unwrap();
    assert_eq!((vm.state, vm.ended.unwrap().cause), (VmState::Stopped, VmEndCause::StoppedByPowerButton));
    assert_eq!(process.vms.stop("a", false, None).wait().await.unwrap(), StopOutcome::AlreadyStopped);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_stop_leaves_a_machine_that_runs() {
    let deck = Deck::new().await;
    let process = deck.open_with(Fake::hanging());
    let vm = process.create("a").await.unwrap();
    let stray = Stray::in_folder(&process.data.vm(&vm.id));
    leave(&process, &vm, VmState::Stopping, Some(stray.run())).await;
    process.vms.reconcile().await.unwrap();
    assert_eq!(process.vms.find("a").await.unwrap().state, VmState::Running);
    assert_eq!(process.vms.stop("a", true, None).wait().await.unwrap(), StopOutcome::Killed);
    assert!(!stray.run().process.is_alive());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exec_says_why_it_cannot() {
    let deck = Deck::new().await;
    let process = deck.open_with(Fake::hanging());
    let vm = process.create("a").await.unwrap();
    let error = process.vms.exec("a", Default::default()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(error.hint().unwrap().contains("vm start"), "{error}");
    let mut stray = Stray::in_folder(&process.data.vm(&vm.id));
    let run = stray.run();
    stray.kill();
    leave(&process, &vm, VmState::Running, Some(run)).await;
    let error = process.vms.exec("a", Default::default()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
    assert_eq!(process.vms.find("a").await.unwrap().state, VmState::Failed);
}
