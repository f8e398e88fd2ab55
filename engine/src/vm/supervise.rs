//! Keeping the record true while an engine is open.
//!
//! One task per engine. It sleeps until the store changes or a hypervisor ends (a pidfd tells), so
//! that machines that just run cost next to nothing: a glance every few seconds at whether they stand
//! still. Boots that lost their vmdeck are taken over: there is
//! nothing to hear their loss by, so it looks, though only while some machine is between states and
//! this process is not the one that works on it.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio_util::sync::CancellationToken;

use super::admission::Request;
use super::record::{Vm, VmState};
use super::{Shared, boot, change, channels, hold, settle};
use crate::error::{Error, Result};
use crate::identifier::VmId;
use crate::network::lan::process::needs_switch;
use crate::operation::record::OperationKind;
use crate::process::{PidFd, ProcessIdentity};
use crate::store::change::ChangeWatch;
use crate::store::{self, Generations};

/// How often machines between states are looked at.
const BETWEEN_STATES: Duration = Duration::from_secs(2);
/// How often a hypervisor's own notes are read: a full disk of the host makes a guest stand still.
const STANDING: Duration = Duration::from_secs(5);
/// Pause after a hypervisor ended while somebody works on its machine, who mostly will record it.
const HELD: Duration = Duration::from_millis(500);
/// Recording an end takes milliseconds; so long it is waited for.
const RECORDED: Duration = Duration::from_secs(2);
/// A boot without a vmdeck gets so much of a short-lived process's time.
const GLANCE: Duration = Duration::from_millis(250);

/// Sets every machine's record to what is true. For the opening of an engine, and for whoever wants
/// to be sure.
pub(super) async fn establish(shared: &Shared) -> Result<()> {
    let vms = with_process(shared).await?;
    for vm in &vms {
        let looked = match look_after(shared, vm).await {
            Ok(false) => await_record(shared, vm).await,
            result => result.map(drop),
        };
        if let Err(error) = looked {
            tracing::warn!(vm = %vm.name, %error, "a machine's state could not be established");
        }
    }
    keep_connected(shared, &vms).await;
    shared.tidy_networks().await;
    Ok(())
}

/// Removes folders without a row, and ends what was begun with frozen disks.
pub(super) async fn tidy(shared: &Shared) -> Result<()> {
    super::delete::sweep(shared).await?;
    super::layer::reconcile(shared).await
}

/// Waits for whoever holds a machine whose process is gone, perhaps this engine's own supervisor, to
/// record its end: what is said of it next is to be true.
async fn await_record(shared: &Shared, vm: &Vm) -> Result<()> {
    let begun = Instant::now();
    while begun.elapsed() < RECORDED {
        let Ok(now) = shared.by_id(&vm.id).await else { return Ok(()) };
        let is_gone = settle::look(&now, &shared.data.vm(&vm.id)) == settle::Finding::Gone;
        if !is_gone || look_after(shared, &now).await? {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

/// Starts the network between machines again if it was killed.
async fn keep_connected(shared: &Shared, vms: &[Vm]) {
    if vms.iter().any(needs_switch)
        && let Err(error) = shared.lan.ensure().await
    {
        tracing::warn!(%error, "machines do not reach each other");
    }
}

async fn with_process(shared: &Shared) -> Result<Vec<Vm>> {
    shared.store.read(|connection| store::vms::with_process(connection)).await
}

/// Brings one machine's record in line, unless somebody works on it. Returns whether that was so.
async fn look_after(shared: &Shared, vm: &Vm) -> Result<bool> {
    let finding = settle::look(vm, &shared.data.vm(&vm.id));
    if finding == settle::Finding::AsRecorded
        && matches!(vm.state, VmState::Running | VmState::Paused)
        && settle::standing(shared, vm, &shared.data.vm(&vm.id)) == vm.state
        && change::ports_agree(vm)
    {
        return Ok(true);
    }
    let Some((guard, vm)) = hold::try_hold(shared, &vm.id, Request::Start).await? else { return Ok(false) };
    let vm = settle::settle(shared, &guard, vm).await?;
    if let (VmState::Starting, Some(run)) = (vm.state, &vm.run) {
        // Perhaps it is ready by now. If not, it goes on booting, and that is what is on record.
        let glance = CancellationToken::new();
        let expire = glance.clone();
        let timer = tokio::spawn(async move {
            tokio::time::sleep(GLANCE).await;
            expire.cancel();
        });
        let up = boot::take_over(shared, &guard, &vm, run, boot::OnCancel::LeaveBoot, &glance).await;
        timer.abort();
        match up {
            Ok(up) => shared.channels.put(&vm.id, &up.run.process, up.channel),
            Err(error) => tracing::debug!(vm = %vm.name, %error, "not ready yet"),
        }
    }
    Ok(true)
}

/// Starts the task; it ends with the service. Must be called within a tokio runtime.
pub(super) fn spawn(shared: &Arc<Shared>, closing: CancellationToken) {
    let changes = ChangeWatch::new(shared.data.database());
    let supervisor = Supervisor {
        shared: Arc::downgrade(shared),
        generation: None,
        watched: HashMap::new(),
        ends: FuturesUnordered::new(),
        between_states: Vec::new(),
    };
    tokio::spawn(async move {
        tokio::select! {
            () = closing.cancelled() => {}
            () = supervisor.run(changes) => {}
        }
    });
}

struct Supervisor {
    shared: Weak<Shared>,
    /// Of the table of machines, as of the last look.
    generation: Option<i64>,
    watched: HashMap<VmId, ProcessIdentity>,
    /// One per watched process; there are no more than machines that run.
    ends: FuturesUnordered<BoxFuture<'static, (VmId, ProcessIdentity)>>,
    /// Starting or stopping, by whomever.
    between_states: Vec<Vm>,
}

impl Supervisor {
    async fn run(mut self, mut changes: ChangeWatch) {
        // The engine that opens reconciles by itself.
        loop {
            let Some(shared) = self.shared.upgrade() else { return };
            if let Err(error) = self.refresh(&shared).await {
                tracing::warn!(%error, "the machines cannot be read");
            }
            drop(shared);
            tokio::select! {
                changed = changes.changed() => {
                    if let Err(error) = changed {
                        tracing::error!(%error, "machines are not watched over any more");
                        return;
                    }
                    // Progress of other work also changes the store: several changes make one look.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Some((id, process)) = self.ends.next() => self.ended(id, process).await,
                () = tokio::time::sleep(BETWEEN_STATES), if !self.between_states.is_empty() => {
                    self.adopt().await;
                }
                () = tokio::time::sleep(STANDING), if !self.watched.is_empty() => self.look().await,
            }
        }
    }

    /// Reads the machines again if any changed.
    async fn refresh(&mut self, shared: &Shared) -> Result<()> {
        let before = self.generation;
        let read = shared
            .store
            .read(move |connection| {
                let generation = Generations::read(connection)?.vms;
                if before == Some(generation) {
                    return Ok(None);
                }
                Ok(Some((generation, store::vms::with_process(connection)?)))
            })
            .await?;
        let Some((generation, vms)) = read else { return Ok(()) };
        self.generation = Some(generation);
        self.watched.retain(|id, process| {
            vms.iter().any(|vm| vm.id == *id && vm.run.as_ref().is_some_and(|run| run.process == *process))
        });
        let settled = |vm: &Vm| matches!(vm.state, VmState::Running | VmState::Paused);
        self.between_states = vms.iter().filter(|vm| !settled(vm)).cloned().collect();
        for vm in vms {
            if let Some(run) = vm.run
                && self.watched.get(&vm.id) != Some(&run.process)
            {
                self.watched.insert(vm.id.clone(), run.process.clone());
                self.ends.push(Box::pin(end_of(vm.id, run.process)));
            }
        }
        Ok(())
    }

    async fn ended(&mut self, id: VmId, process: ProcessIdentity) {
        let Some(shared) = self.shared.upgrade() else { return };
        if self.watched.get(&id) != Some(&process) {
            return;
        }
        let looked = async {
            let vm = shared.by_id(&id).await?;
            look_after(&shared, &vm).await
        };
        match looked.await {
            Ok(true) => shared.tidy_networks().await,
            // Whoever holds it records the end, or leaves it to be found.
            Ok(false) => self.ends.push(Box::pin(async move {
                tokio::time::sleep(HELD).await;
                (id, process)
            })),
            Err(error) => tracing::debug!(%id, %error, "a machine that ended could not be looked after"),
        }
    }

    /// Looks whether guests stand still that are on record as running, or the other way round.
    async fn look(&mut self) {
        let Some(shared) = self.shared.upgrade() else { return };
        let vms = match with_process(&shared).await {
            Ok(vms) => vms,
            Err(error) => return tracing::warn!(%error, "the machines cannot be read"),
        };
        for vm in vms.iter().filter(|vm| matches!(vm.state, VmState::Running | VmState::Paused)) {
            if let Err(error) = look_after(&shared, vm).await {
                tracing::warn!(vm = %vm.name, %error, "a machine cannot be looked after");
            }
        }
        keep_connected(&shared, &vms).await;
        shared.tidy_networks().await;
    }

    /// Takes over boots and stops that nobody works on.
    async fn adopt(&mut self) {
        let Some(shared) = self.shared.upgrade() else { return };
        // Looked at again at the next change, or below if the lock is still held.
        for vm in &self.between_states {
            match shared.locks.try_acquire(&vm.id) {
                Ok(Some(guard)) => drop(guard),
                Ok(None) => continue,
                Err(error) => {
                    tracing::warn!(vm = %vm.name, %error, "a machine cannot be looked after");
                    continue;
                }
            }
            if vm.state == VmState::Starting {
                resume(&shared, vm);
            } else if let Err(error) = look_after(&shared, vm).await {
                tracing::warn!(vm = %vm.name, %error, "a machine cannot be looked after");
            }
        }
    }
}

async fn end_of(id: VmId, process: ProcessIdentity) -> (VmId, ProcessIdentity) {
    match PidFd::open(&process) {
        Ok(Some(descriptor)) => {
            if let Err(error) = descriptor.wait().await {
                tracing::warn!(%id, %error, "the end of a hypervisor cannot be waited for");
                std::future::pending::<()>().await;
            }
        }
        Ok(None) => {}
        Err(error) => {
            tracing::warn!(%id, %error, "a hypervisor cannot be watched");
            std::future::pending::<()>().await;
        }
    }
    (id, process)
}

/// Watches over the rest of a boot, as an operation for all to see. When this process ends before the
/// boot does, the boot goes on; when the operation is cancelled on request, it ends.
fn resume(shared: &Arc<Shared>, vm: &Vm) {
    let (shared, id) = (Arc::clone(shared), vm.id.clone());
    let operations = shared.operations.clone();
    let _running = operations.spawn(OperationKind::VmStart, &vm.name, None, |operation| async move {
        let Some((guard, vm)) = hold::try_hold(&shared, &id, Request::Start).await? else {
            return Err(Error::cancelled());
        };
        guard.tell(&super::lock::Holder {
            request: Request::Start,
            operation: Some(operation.id().clone()),
        })?;
        let vm = settle::settle(&shared, &guard, vm).await?;
        let (VmState::Starting, Some(run)) = (vm.state, &vm.run) else { return Ok(()) };
        operation.log("its boot was begun by a vmdeck that is gone; taking it over").await;
        let on_cancel = boot::OnCancel::AsRequested(operation.id().clone());
        let up = boot::take_over(&shared, &guard, &vm, run, on_cancel, operation.cancelled()).await?;
        shared.channels.put(&id, &up.run.process, up.channel);
        Ok(())
    });
}

/// Gives back connections to guests when they were not used for a while.
pub(super) fn purge_channels_later(shared: &Arc<Shared>) {
    let shared = Arc::downgrade(shared);
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(channels::KEPT).await;
            let Some(shared) = shared.upgrade() else { return };
            if !shared.channels.purge() {
                return;
            }
        }
    });
}
