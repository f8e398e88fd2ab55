//! The boot of a machine: a walk through phases, each of which can fail, be cancelled, and is undone.
//!
//! ```text
//! Recorder::begin ─▶ disk ─▶ network ─▶ vmm ─▶ kernel ─▶ init ─▶ agent ─▶ ready ─▶ running
//!       │              └─────────┴────────┴───────┴────────┴───────┴────────┘
//!       │                              failure or cancel: the process is ended, then on record
//!       └─ resolve and reserve were done by the creation
//! ```
//!
//! The holder of the machine's lock drives it. Disks stay when a boot fails: they are whole or not
//! there. The process is on record before it runs, so that whoever comes after a killed vmdeck finds
//! it, and takes the boot over ([`take_over`]).

mod classify;
pub(super) mod console;
mod prepare;
mod recorder;
mod stall;
mod timeline;
mod watch;

use std::path::{Path, PathBuf};

use tokio_util::sync::CancellationToken;

use self::classify::{Evidence, OwnRoot, Trouble, classify, is_timer_lost};
use self::console::LogTail;
use self::prepare::{Prepared, prepare};
use self::recorder::Recorder;
use self::watch::Outcome;
use super::Shared;
use super::layer::Disk;
use super::lock::VmGuard;
use super::pending::StartedWith;
use super::record::{
    BootFailure, BootFailureClass, BootPhaseName, NetworkMode, Vm, VmEnd, VmEndCause, VmRun, VmState,
};
use crate::clock;
use crate::error::{Error, ErrorKind, Result};
use crate::guest::GuestChannel;
use crate::identifier::OperationId;
use crate::image::record::Image;
use crate::kernel::record::Kernel;
use crate::network::{bridge, port};
use crate::operation::Operation;
use crate::store;
use crate::vmm::qemu::failure::AcceleratorFailed;
use crate::vmm::{Accelerator, Machine, MachineSpec};

/// A machine that is up.
#[derive(Debug)]
pub(super) struct Up {
    pub(super) run: VmRun,
    pub(super) channel: GuestChannel,
}

/// Boots a machine that has no process. The caller holds its lock.
pub(super) async fn boot(shared: &Shared, guard: &VmGuard, vm: &Vm, operation: &Operation) -> Result<Up> {
    let failed = match attempt(shared, guard, vm, operation).await? {
        Ok(up) => return Ok(up),
        Err(failed) => failed,
    };
    // Once, and only where the next boot has another prospect.
    let why = if failed.accelerator == Some(Accelerator::Kvm)
        && failed.failure.class == BootFailureClass::AcceleratorDied
    {
        shared.vmm.distrust_accelerator(Accelerator::Kvm, &failed.failure.message)?;
        format!("KVM does not run this guest ({}); booting again without it", failed.failure.message)
    } else if failed.timer_lost {
        "the guest's kernel waits for a timer that does not come, as now and then under TCG on a busy host; \
         booting again"
            .to_owned()
    } else {
        return Err(failed.error(&vm.name));
    };
    operation.log(why).await;
    let vm = shared.by_id(&vm.id).await?;
    attempt(shared, guard, &vm, operation).await?.map_err(|failed| failed.error(&vm.name))
}

pub(super) fn console_log(guard: &VmGuard) -> PathBuf {
    guard.directory().join("console.log")
}

pub(super) fn hypervisor_log(guard: &VmGuard) -> PathBuf {
    guard.directory().join("qemu.log")
}

/// A boot that failed and is on record as failed; nothing of it runs.
#[derive(Debug)]
struct Failed {
    failure: BootFailure,
    accelerator: Option<Accelerator>,
    /// See [`is_timer_lost`].
    timer_lost: bool,
    /// The error it began with, where the guest had no part in it.
    error: Option<Error>,
}

impl Failed {
    fn error(self, name: &str) -> Error {
        let Self { failure, error, .. } = self;
        match (failure.class, error) {
            (BootFailureClass::Cancelled, _) => Error::cancelled(),
            (BootFailureClass::Host | BootFailureClass::HypervisorMissing, Some(error)) => error,
            _ => Error::failed(format!("machine `{name}` did not boot: {}", failure.message))
                .with_hint(failure.hint),
        }
    }
}

/// Why the walk ended before its end.
enum Setback {
    Cancelled,
    /// This host, not the guest.
    Host(Error),
    /// No hypervisor to be had.
    Missing(Error),
    Guest(Trouble),
}

impl From<Error> for Setback {
    fn from(error: Error) -> Self {
        if error.is_cancelled() { Self::Cancelled } else { Self::Host(error) }
    }
}

/// One boot with one accelerator. The outer error is one of the store: nothing could be recorded.
async fn attempt(
    shared: &Shared,
    guard: &VmGuard,
    vm: &Vm,
    operation: &Operation,
) -> Result<Result<Up, Failed>> {
    // Before it is made: one that is not there yet begins as the image is.
    let had_root = super::disk::present(guard.directory())?.is_some();
    let mut recorder = Recorder::begin(&shared.store, vm, operation).await?;
    let mut console = LogTail::from_end(console_log(guard));
    let walk = walk(shared, guard, vm, operation, &mut recorder, &mut console);
    // Boxed: it holds a launch.
    match Box::pin(walk).await {
        Ok(up) => {
            let warnings = up.channel.progress().borrow().warnings.clone();
            recorder.ready(&up.run, warnings).await?;
            Ok(Ok(up))
        }
        Err(setback) => {
            let accelerator = recorder.boot().accelerator;
            let timer_lost = match &setback {
                Setback::Guest(trouble) => is_timer_lost(trouble, recorder.active(), accelerator),
                _ => false,
            };
            let (failure, error) = explain(shared, guard, setback, vm, had_root, &recorder, &console).await;
            record_failure(recorder, &failure).await?;
            Ok(Err(Failed { failure, accelerator, timer_lost, error }))
        }
    }
}

async fn record_failure(recorder: Recorder, failure: &BootFailure) -> Result<()> {
    let (state, cause) = match failure.class {
        BootFailureClass::Cancelled => (VmState::Stopped, VmEndCause::BootCancelled),
        _ => (VmState::Failed, VmEndCause::BootFailed),
    };
    let ended = VmEnd { at: clock::now(), cause, message: failure.message.clone() };
    recorder.failed(failure.clone(), state, ended).await
}

/// Walks through the phases. When it fails, no process is left.
async fn walk(
    shared: &Shared,
    guard: &VmGuard,
    vm: &Vm,
    operation: &Operation,
    recorder: &mut Recorder,
    console: &mut LogTail,
) -> Result<Up, Setback> {
    let cancel = operation.cancelled();
    let alive = || if cancel.is_cancelled() { Err(Setback::Cancelled) } else { Ok(()) };
    recorder.phase(BootPhaseName::Disk).await?;
    let (image, kernel) = materials(shared, vm).await?;
    let kernel = shared.kernels.ensure_current(&kernel).await?;

    let prepared = prepare_blocking(shared, guard.directory(), vm, &image, &kernel).await?;
    alive()?;
    recorder.phase(BootPhaseName::Network).await?;
    for forward in &vm.settings.ports {
        port::probe(forward.protocol, forward.host_address, forward.host_port)
            .map_err(|error| Setback::Host(port::unavailable(forward, error)))?;
    }
    let tap = match vm.settings.network {
        NetworkMode::Bridge => {
            if bridge::resolvers().is_empty() {
                operation
                    .log("it gets no name server: this host knows none but on its loopback interface")
                    .await;
            }
            let tap = shared.bridge.attach(&shared.store, vm, cancel).await?;
            let name = bridge::bridge_name(bridge::seed(shared.data.root()));
            if let Some(obstacle) = bridge::foreign::obstacle(&name).await {
                recorder.warn(format!("{}; {}", obstacle.finding(), obstacle.fix()));
            }
            Some(tap)
        }
        _ => None,
    };
    alive()?;
    recorder.phase(BootPhaseName::Vmm).await?;
    let verdict = shared.vmm.accelerator(cancel).await.map_err(from_proof)?;
    recorder.set_accelerator(verdict.accelerator);
    let spec = prepared.spec(guard.directory(), vm, &kernel, verdict.accelerator, tap);
    let launched = launch(shared, vm, &spec, console.start(), cancel).await?;
    // The tap is the hypervisor's alone from here on.
    drop(spec);
    let outcome = async {
        if vm.settings.network == NetworkMode::Lan {
            // Now that the process is on record, so that the switch knows that it is needed.
            shared.lan.ensure().await?;
        }
        recorder.phase(BootPhaseName::Kernel).await?;
        watch::watch(&*launched.machine, guard.directory(), verdict.accelerator, console, recorder, cancel)
            .await
    };
    match outcome.await {
        Ok(Outcome::Ready(channel)) => Ok(Up { run: launched.run, channel }),
        Ok(Outcome::Trouble(trouble)) => Err(launched.undo(Setback::Guest(trouble)).await),
        Ok(Outcome::Cancelled) => Err(launched.undo(Setback::Cancelled).await),
        Err(error) => Err(launched.undo(error.into()).await),
    }
}

/// What the machine is made of, as it is now.
async fn materials(shared: &Shared, vm: &Vm) -> Result<(Image, Kernel)> {
    let (root, image, kernel) = (shared.data.root().to_owned(), vm.image_id.clone(), vm.kernel.clone());
    // The rows cannot be gone: the machine's row refers to them.
    shared
        .store
        .read(move |connection| {
            let image = store::images::by_id_prefix(connection, &root, image.as_str())?.pop();
            let kernel = store::kernels::by_name(connection, &root, &kernel)?;
            image.zip(kernel).ok_or_else(|| Error::failed("the machine's image or kernel is not on record"))
        })
        .await
}

async fn prepare_blocking(
    shared: &Shared,
    directory: &Path,
    vm: &Vm,
    image: &Image,
    kernel: &Kernel,
) -> Result<Prepared> {
    let bases = super::layer::bases(shared, &vm.id).await?;
    let (data, addresses, directory) = (shared.data.clone(), shared.addresses.clone(), directory.to_owned());
    let (vm, image, kernel) = (vm.clone(), image.clone(), kernel.clone());
    tokio::task::spawn_blocking(move || prepare(&data, &addresses, &directory, &vm, &image, &kernel, &bases))
        .await
        .map_err(|error| Error::failed("preparing the machine's disks failed").with_source(error))?
}

/// A process that has to be ended when the boot does not succeed.
struct Launched {
    machine: Box<dyn Machine>,
    run: VmRun,
}

impl Launched {
    async fn undo(self, why: Setback) -> Setback {
        if let Err(error) = self.machine.terminate().await {
            tracing::error!(process = ?self.run.process, %error, "a hypervisor could not be ended");
        }
        why
    }
}

async fn launch(
    shared: &Shared,
    vm: &Vm,
    spec: &MachineSpec,
    console_start: u64,
    cancel: &CancellationToken,
) -> Result<Launched, Setback> {
    let (store, id, accelerator, started_at) =
        (shared.store.clone(), vm.id.clone(), spec.accelerator, clock::now());
    let (forwards, with) = (vm.settings.ports.clone(), StartedWith::of(vm));
    let run_of = move |process| VmRun {
        process,
        accelerator,
        started_at,
        console_start,
        forwards: Some(forwards.clone()),
        started_with: Some(with.clone()),
    };
    let recorded = run_of.clone();
    let record = Box::new(move |process| {
        let run = recorded(process);
        let write = async move {
            store
                .write_relaxed(move |transaction| {
                    store::vms::set_state(transaction, &id, VmState::Starting, Some(&run), None)
                })
                .await
        };
        Box::pin(write) as futures_util::future::BoxFuture<'static, Result<()>>
    });
    let machine = shared.vmm.launch(spec, record, cancel).await.map_err(from_launch)?;
    let run = run_of(machine.process().clone());
    Ok(Launched { machine, run })
}

/// What a launch that failed tells of.
fn from_launch(error: Error) -> Setback {
    let accelerator =
        std::error::Error::source(&error).and_then(|cause| cause.downcast_ref::<AcceleratorFailed>());
    if let Some(AcceleratorFailed(words)) = accelerator {
        return Setback::Guest(Trouble::Accelerator(words.clone()));
    }
    match error.kind() {
        ErrorKind::Cancelled => Setback::Cancelled,
        // No memory, a port or a disk in use.
        ErrorKind::HostCannot | ErrorKind::Conflict => Setback::Host(error),
        _ => Setback::Guest(Trouble::Launch(error.full_message())),
    }
}

/// Without a hypervisor there is no accelerator to be asked for.
fn from_proof(error: Error) -> Setback {
    match error.kind() {
        ErrorKind::Cancelled => Setback::Cancelled,
        ErrorKind::HostCannot => Setback::Missing(error),
        _ => Setback::Host(error),
    }
}

/// What is recorded of a setback. `had_root`: the machine had its root disk before this boot.
async fn explain(
    shared: &Shared,
    guard: &VmGuard,
    setback: Setback,
    vm: &Vm,
    had_root: bool,
    recorder: &Recorder,
    console: &LogTail,
) -> (BootFailure, Option<Error>) {
    let of_host = |class, error: Error| {
        let failure = BootFailure {
            class,
            message: error.full_message(),
            hint: error.hint().unwrap_or("`vmdeck doctor` looks at this host").to_owned(),
            console_tail: Vec::new(),
        };
        (failure, Some(error))
    };
    match setback {
        Setback::Missing(error) => of_host(BootFailureClass::HypervisorMissing, error),
        Setback::Host(error) => of_host(BootFailureClass::Host, error),
        Setback::Cancelled => {
            let failure = BootFailure {
                class: BootFailureClass::Cancelled,
                message: "the boot was cancelled".into(),
                hint: format!("`vmdeck vm start {}` starts it again", vm.name),
                console_tail: console::last(&console.lines(), console::TAIL_LINES),
            };
            (failure, None)
        }
        Setback::Guest(trouble) => {
            let own_root = own_root(shared, vm, had_root, recorder.boot().id).await.unwrap_or_else(|error| {
                tracing::warn!(vm = %vm.name, %error, "its earlier boots cannot be read");
                None
            });
            let evidence = Evidence {
                trouble,
                phase: recorder.active(),
                accelerator: recorder.boot().accelerator,
                ending: shared.vmm.ending(guard.directory()),
                console: &console.lines(),
                hypervisor: &LogTail::from_offset(hypervisor_log(guard), 0).lines(),
                name: &vm.name,
                image: &vm.image,
                kernel: &vm.kernel,
                memory_mib: vm.settings.memory_mib,
                own_root,
            };
            (classify(&evidence), None)
        }
    }
}

/// What stands behind the root of a machine beside its image: `None` while that is the image's alone.
///
/// A root that has booted, or that began as another machine's, is the machine's own to answer for.
async fn own_root(shared: &Shared, vm: &Vm, had_root: bool, boot: i64) -> Result<Option<OwnRoot>> {
    let id = vm.id.clone();
    shared
        .store
        .read(move |connection| {
            // Newest first.
            let boots = store::vms::boots(connection, &id)?;
            let newest_good = boots.iter().find(|earlier| earlier.id < boot && earlier.succeeded());
            let on_layer = store::layers::bases(connection, &id)?.iter().any(|base| base.disk == Disk::Root);
            if !on_layer && (!had_root || newest_good.is_none()) {
                return Ok(None);
            }
            // What was kept after the first boot that failed may hold what that one failed of.
            let failing = boots.iter().filter(|boot| newest_good.is_none_or(|good| boot.id > good.id));
            let since = failing.map(|boot| boot.started_at).min().unwrap_or_else(clock::now);
            let snapshots = store::layers::snapshots(connection, &id)?;
            let before = snapshots.into_iter().rev().find(|snapshot| snapshot.created_at < since);
            Ok(Some(OwnRoot { snapshot: before.map(|snapshot| snapshot.name) }))
        })
        .await
}

/// What a cancel ends: the watching always, and the boot itself?
#[derive(Clone, Debug)]
pub(super) enum OnCancel {
    EndBoot,
    LeaveBoot,
    /// The boot, if somebody asked for the operation to be cancelled; not when this process just ends.
    AsRequested(OperationId),
}

/// Watches a boot to its end that another vmdeck process began and did not live to see: its
/// hypervisor runs. The caller holds the machine's lock.
pub(super) async fn take_over(
    shared: &Shared,
    guard: &VmGuard,
    vm: &Vm,
    run: &VmRun,
    on_cancel: OnCancel,
    cancel: &CancellationToken,
) -> Result<Up> {
    let Some(boot) = vm.boot.clone() else {
        return Err(Error::failed(format!("machine `{}` starts without a boot on record", vm.name)));
    };
    let machine = shared.vmm.attach(guard.directory(), &run.process).await?;
    let launched = Launched { machine, run: run.clone() };
    let mut recorder = Recorder::resume(&shared.store, &vm.id, boot);
    let mut console = LogTail::from_offset(console_log(guard), run.console_start);
    // It may have been killed before it could record that the guest's kernel began.
    recorder.phase(BootPhaseName::Kernel).await?;
    let watched = watch::watch(
        &*launched.machine,
        guard.directory(),
        run.accelerator,
        &mut console,
        &mut recorder,
        cancel,
    )
    .await?;
    let setback = match watched {
        Outcome::Ready(channel) => {
            let warnings = channel.progress().borrow().warnings.clone();
            recorder.ready(run, warnings).await?;
            return Ok(Up { run: launched.run, channel });
        }
        Outcome::Cancelled => {
            let end = match on_cancel {
                OnCancel::EndBoot => true,
                OnCancel::LeaveBoot => false,
                OnCancel::AsRequested(id) => {
                    shared.operations.find(id.as_str()).await.is_ok_and(|record| record.cancel_requested)
                }
            };
            if !end {
                return Err(Error::cancelled());
            }
            Setback::Cancelled
        }
        Outcome::Trouble(trouble) => Setback::Guest(trouble),
    };
    let setback = launched.undo(setback).await;
    let accelerator = Some(run.accelerator);
    let (failure, error) = explain(shared, guard, setback, vm, true, &recorder, &console).await;
    record_failure(recorder, &failure).await?;
    Err(Failed { failure, accelerator, timer_lost: false, error }.error(&vm.name))
}

/// Records that the process which drove a boot ended before there was a hypervisor, or together
/// with it.
pub(super) async fn abandon(
    shared: &Shared,
    vm: &Vm,
    state: VmState,
    ended: VmEnd,
    lines: &[String],
) -> Result<()> {
    let failure = BootFailure {
        class: BootFailureClass::Abandoned,
        message: ended.message.clone(),
        hint: format!("`vmdeck vm start {}` starts it again", vm.name),
        console_tail: console::last(lines, console::TAIL_LINES),
    };
    match vm.boot.clone() {
        Some(boot) if boot.failure.is_none() => {
            Recorder::resume(&shared.store, &vm.id, boot).failed(failure, state, ended).await
        }
        _ => shared.set_ended(&vm.id, state, ended).await,
    }
}

#[cfg(test)]
pub(super) use timeline::Timeline;
