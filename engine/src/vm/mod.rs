//! The machine service: create in three phases, boot, lifecycle, exec.
//!
//! ```text
//!            create                     start (the whole boot)
//!  request ──────────▶ row `created` ─────────────────────────▶ running ─ exec …
//!            resolve,                                              │ stop
//!            reserve            delete: row, then files ◀──── stopped, failed
//! ```
//!
//! **Who works on a machine.** One task at a time: the one that holds the machine's lock, in whichever
//! vmdeck process ([`lock`], [`hold`]). What becomes of a request that finds the lock held, or that
//! holds it, is decided by two pure functions ([`admission`]). There is no task that outlives its
//! request, as there is no daemon: a machine's hypervisor is a process of its own.
//!
//! **What is true.** Whoever comes to hold a machine first brings its row in line with the process
//! table ([`settle`]), so a row that a killed vmdeck left says something false only until somebody
//! asks. An engine that stays open watches ([`supervise`]).
//!
//! This service does not know how a hypervisor is driven ([`crate::vmm`]) nor how a guest is talked
//! to ([`crate::guest`]).

mod admission;
mod boot;
mod change;
mod channels;
mod clone;
mod copy;
mod create;
mod delete;
mod disk;
mod hold;
mod label;
pub mod layer;
mod lock;
mod name;
mod observe;
mod pause;
pub mod pending;
mod promote;
pub mod record;
mod settle;
pub mod snapshot;
mod start;
mod stats;
mod stop;
mod supervise;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio_util::sync::{CancellationToken, DropGuard};

use self::admission::Request;
pub use self::change::{ChangeEffect, ChangeVm, Changed, Setting, Step, TakesEffect};
use self::channels::Channels;
pub use self::copy::Copied;
pub use self::create::{MAXIMUM_DISK_GIB, MINIMUM_MEMORY_MIB};
use self::hold::{Admitted, admitted};
pub use self::label::check_label;
use self::lock::VmLocks;
pub use self::observe::{ConsoleChunk, ConsoleOutput, HostUsage, VmFile};
pub use self::stats::{VmRates, VmStats};
use crate::data_directory::DataDirectory;
use crate::error::{Error, ErrorKind, Result};
use crate::guest::{ExecRequest, ExecSession, GuestChannel};
use crate::identifier::VmId;
use crate::image::ImageService;
use crate::image::record::Image;
use crate::kernel::KernelService;
use crate::network::address::AddressPool;
use crate::network::bridge::{self, Bridge};
use crate::network::lan;
use crate::operation::record::OperationKind;
use crate::operation::{Operation, Operations, Task};
use crate::store::{self, Store};
use crate::vmm::{Console, Vmm};
use record::{Boot, NetworkMode, PortForward, Vm, VmEnd, VmRun, VmState};
use snapshot::{DeletedSnapshot, VmSnapshot};

/// The service: a cheap handle.
#[derive(Clone, Debug)]
pub struct VmService {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    data: DataDirectory,
    store: Store,
    operations: Operations,
    images: ImageService,
    kernels: KernelService,
    vmm: Arc<dyn Vmm>,
    addresses: AddressPool,
    /// The network between machines.
    lan: lan::Keeper,
    /// The network that this host sees, too.
    bridge: Bridge,
    locks: VmLocks,
    channels: Channels,
    /// Ends the supervisor with the service.
    _closing: DropGuard,
}

/// What to create; what is not given is decided by the engine.
#[derive(Clone, Debug, Default)]
pub struct CreateVm {
    /// Generated when not given.
    pub name: Option<String>,
    /// Name of an image, or a reference to pull.
    pub image: String,
    pub kernel: Option<String>,
    pub cpus: Option<u32>,
    pub memory_mib: Option<u64>,
    pub disk_gib: Option<u64>,
    pub network: Option<NetworkMode>,
    pub ports: Vec<PortForward>,
    /// Replaces the image's command.
    pub command: Vec<String>,
    pub environment: Vec<String>,
    pub labels: BTreeMap<String, String>,
    /// Whether it gets a work disk at the home of root; it does when nothing is said.
    pub work_disk: Option<bool>,
    /// Allow plain HTTP when the image has to be pulled.
    pub plain_http: bool,
}

/// How a machine was stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopOutcome {
    AlreadyStopped,
    /// The agent synced the disks and powered off.
    Agent,
    /// The guest obeyed the ACPI power button.
    PowerButton,
    /// The hypervisor was ended.
    Killed,
}

impl VmService {
    /// Must be called within a tokio runtime: it starts the task that watches over machines.
    pub fn new(
        data: DataDirectory,
        store: Store,
        operations: Operations,
        images: ImageService,
        kernels: KernelService,
        vmm: Arc<dyn Vmm>,
    ) -> Self {
        let closing = CancellationToken::new();
        let shared = Arc::new(Shared {
            lan: lan::Keeper::new(data.clone()),
            bridge: Bridge::new(data.clone()),
            addresses: AddressPool::default().beginning_at(bridge::seed(data.root())),
            locks: VmLocks::new(data.clone()),
            data,
            store,
            operations,
            images,
            kernels,
            vmm,
            channels: Channels::default(),
            _closing: closing.clone().drop_guard(),
        });
        supervise::spawn(&shared, closing);
        Self { shared }
    }

    pub async fn list(&self) -> Result<Vec<Vm>> {
        self.shared.store.read(|connection| store::vms::list(connection)).await
    }

    /// The machine with this name, else the only one whose id begins so.
    pub async fn find(&self, name: &str) -> Result<Vm> {
        self.shared.find(name).await
    }

    /// All boots on record, newest first.
    pub async fn boots(&self, vm: &Vm) -> Result<Vec<Boot>> {
        let id = vm.id.clone();
        self.shared.store.read(move |connection| store::vms::boots(connection, &id)).await
    }

    /// Resolves, reserves; the machine is `created` after it.
    pub fn create(&self, request: CreateVm, parent: Option<&Operation>) -> Task<Vm> {
        // A made-up name is there from the beginning, so that all that is told is told of one thing.
        let name = request.name.clone().unwrap_or_else(create::made_up_name);
        let (shared, target) = (Arc::clone(&self.shared), name.clone());
        self.shared.operations.spawn(OperationKind::VmCreate, target, parent, |operation| async move {
            Box::pin(create::create(&shared, request, name, &operation)).await
        })
    }

    /// Boots; ready when it is done. A machine that runs is left as it is; a boot under way, here or
    /// in another process, is waited for.
    pub fn start(&self, name: &str, parent: Option<&Operation>) -> Task<Vm> {
        let (shared, name) = (Arc::clone(&self.shared), name.to_owned());
        self.shared.operations.spawn(OperationKind::VmStart, name.clone(), parent, |operation| async move {
            let id = shared.find(&name).await?.id;
            let started = Box::pin(start::start(&shared, &id, &operation)).await;
            if started.is_err() {
                shared.tidy_networks().await;
            }
            supervise::purge_channels_later(&shared);
            started
        })
    }

    /// Stops: gracefully first, unless `force`. Ends a boot that is under way.
    pub fn stop(&self, name: &str, force: bool, parent: Option<&Operation>) -> Task<StopOutcome> {
        let (shared, name) = (Arc::clone(&self.shared), name.to_owned());
        self.shared.operations.spawn(
            OperationKind::VmStop,
            name.clone(),
            parent,
            move |operation| async move {
                let request = Request::Stop { force };
                let Admitted { guard, vm, done } = admitted(&shared, &name, request, &operation).await?;
                if done {
                    return Ok(StopOutcome::AlreadyStopped);
                }
                let stopped = stop::stop(&shared, &guard, &vm, force, &operation).await;
                shared.tidy_networks().await;
                stopped
            },
        )
    }

    /// Stops and starts. A machine that does not run is started.
    pub fn restart(&self, name: &str, force: bool, parent: Option<&Operation>) -> Task<Vm> {
        let (service, name) = (self.clone(), name.to_owned());
        self.shared.operations.spawn(
            OperationKind::VmRestart,
            name.clone(),
            parent,
            move |operation| async move {
                operation.phase("stop").await;
                service.stop(&name, force, Some(&operation)).wait().await?;
                operation.phase("start").await;
                service.start(&name, Some(&operation)).wait().await
            },
        )
    }

    /// Deletes; a machine that runs is a conflict unless `force`.
    pub fn delete(&self, name: &str, force: bool, parent: Option<&Operation>) -> Task<()> {
        let (shared, name) = (Arc::clone(&self.shared), name.to_owned());
        self.shared.data.use_reserve();
        self.shared.operations.spawn(
            OperationKind::VmDelete,
            name.clone(),
            parent,
            move |operation| async move {
                let request = Request::Delete { force };
                let Admitted { guard, vm, .. } = admitted(&shared, &name, request, &operation).await?;
                let deleted = delete::delete(&shared, guard, &vm, &operation).await;
                shared.tidy_networks().await;
                deleted
            },
        )
    }

    /// Makes a new image of the disks of a machine that does not run.
    pub fn promote(&self, name: &str, new_name: &str, parent: Option<&Operation>) -> Task<Image> {
        let (shared, name, new_name) = (Arc::clone(&self.shared), name.to_owned(), new_name.to_owned());
        self.shared.operations.spawn(
            OperationKind::ImagePromote,
            name.clone(),
            parent,
            move |operation| async move {
                let request = Request::EditDisks;
                let Admitted { guard, vm, .. } = admitted(&shared, &name, request, &operation).await?;
                promote::promote(&shared, &guard, &vm, new_name, &operation).await
            },
        )
    }

    /// Changes settings; says what of it takes effect when.
    pub fn change(&self, name: &str, change: ChangeVm, parent: Option<&Operation>) -> Task<Changed> {
        let (shared, name) = (Arc::clone(&self.shared), name.to_owned());
        self.shared.operations.spawn(OperationKind::VmSet, name.clone(), parent, |operation| async move {
            let Admitted { guard, vm, .. } = admitted(&shared, &name, Request::Edit, &operation).await?;
            change::change(&shared, &guard, &vm, change).await
        })
    }

    /// Gives a machine that does not run a fresh root disk; its work disk stays.
    pub fn reset(&self, name: &str, parent: Option<&Operation>) -> Task<Vm> {
        let (shared, name) = (Arc::clone(&self.shared), name.to_owned());
        self.shared.operations.spawn(OperationKind::VmReset, name.clone(), parent, |operation| async move {
            let Admitted { guard, vm, .. } = admitted(&shared, &name, Request::EditDisks, &operation).await?;
            change::reset(&shared, &guard).await?;
            Ok(vm)
        })
    }

    /// Snapshots of a machine's disks, oldest first.
    pub async fn snapshots(&self, vm: &Vm) -> Result<Vec<VmSnapshot>> {
        snapshot::list(&self.shared, vm).await
    }

    /// Keeps what a machine's disks hold now, running or not, under a name; one is made up when none
    /// is given. Instant: nothing is copied.
    pub fn snapshot(&self, name: &str, new: Option<String>, parent: Option<&Operation>) -> Task<VmSnapshot> {
        let (shared, name) = (Arc::clone(&self.shared), name.to_owned());
        let kind = OperationKind::VmSnapshot;
        self.shared.operations.spawn(kind, name.clone(), parent, |operation| async move {
            let Admitted { guard, vm, .. } = admitted(&shared, &name, Request::Freeze, &operation).await?;
            Box::pin(snapshot::create(&shared, &guard, &vm, new, &operation)).await
        })
    }

    /// Puts the disks of a machine that does not run back to a snapshot. What was written since is lost.
    pub fn restore(&self, name: &str, snapshot: &str, parent: Option<&Operation>) -> Task<Vm> {
        let (shared, name, snapshot) = (Arc::clone(&self.shared), name.to_owned(), snapshot.to_owned());
        let kind = OperationKind::VmRestore;
        self.shared.operations.spawn(kind, name.clone(), parent, |operation| async move {
            let Admitted { guard, vm, .. } = admitted(&shared, &name, Request::EditDisks, &operation).await?;
            snapshot::restore(&shared, &guard, &vm, &snapshot, &operation).await.map(|()| vm)
        })
    }

    /// Forgets a snapshot, and frees what of it nothing else lies on.
    pub fn delete_snapshot(
        &self,
        name: &str,
        snapshot: &str,
        parent: Option<&Operation>,
    ) -> Task<DeletedSnapshot> {
        let (shared, name, snapshot) = (Arc::clone(&self.shared), name.to_owned(), snapshot.to_owned());
        let kind = OperationKind::VmSnapshotDelete;
        self.shared.operations.spawn(kind, name.clone(), parent, |operation| async move {
            let Admitted { guard: _guard, vm, .. } =
                admitted(&shared, &name, Request::Edit, &operation).await?;
            snapshot::delete(&shared, &vm, &snapshot).await
        })
    }

    /// Makes a machine whose disks begin as another one's are now, running or not. Instant: both lie
    /// on the same frozen disks from then on. A name is made up when none is given.
    pub fn clone_vm(&self, name: &str, new: Option<String>, parent: Option<&Operation>) -> Task<Vm> {
        let (shared, name) = (Arc::clone(&self.shared), name.to_owned());
        let kind = OperationKind::VmClone;
        self.shared.operations.spawn(kind, name.clone(), parent, |operation| async move {
            let Admitted { guard, vm, .. } = admitted(&shared, &name, Request::Freeze, &operation).await?;
            Box::pin(clone::clone(&shared, &guard, &vm, new, &operation)).await
        })
    }

    /// Lets a machine that runs stand still, in memory: nothing of it is lost, nothing goes on.
    pub fn pause(&self, name: &str, parent: Option<&Operation>) -> Task<Vm> {
        let (shared, name) = (Arc::clone(&self.shared), name.to_owned());
        self.shared.operations.spawn(OperationKind::VmPause, name.clone(), parent, |operation| async move {
            let Admitted { guard, vm, done } = admitted(&shared, &name, Request::Pause, &operation).await?;
            if done { Ok(vm) } else { pause::pause(&shared, &guard, &vm).await }
        })
    }

    /// Lets a paused machine go on.
    pub fn resume(&self, name: &str, parent: Option<&Operation>) -> Task<Vm> {
        let (shared, name) = (Arc::clone(&self.shared), name.to_owned());
        self.shared.operations.spawn(OperationKind::VmResume, name.clone(), parent, |operation| async move {
            let Admitted { guard, vm, done } = admitted(&shared, &name, Request::Resume, &operation).await?;
            if done { Ok(vm) } else { pause::resume(&shared, &guard, &vm).await }
        })
    }

    /// Connects to the serial console of a machine that has a process, as one client at a time can.
    /// A machine that stands still is silent.
    pub async fn console(&self, name: &str) -> Result<Console> {
        let shared = &self.shared;
        let vm = shared.find(name).await?;
        let Some(run) = vm.run.as_ref().filter(|_| vm.state.has_process()) else {
            return Err(not_running(&vm));
        };
        let attached =
            async { shared.vmm.attach(&shared.data.vm(&vm.id), &run.process).await?.console().await };
        match attached.await {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                // Nobody has noticed yet that it ended.
                supervise::establish(shared).await?;
                Err(not_running(&shared.by_id(&vm.id).await?))
            }
            result => result,
        }
    }

    /// Runs a command in a running machine.
    pub async fn exec(&self, name: &str, request: ExecRequest) -> Result<ExecSession> {
        self.channel(name).await?.exec(request).await
    }

    /// Copies a file or a folder out of a running machine, by the rules of `cp -R`: below a folder
    /// that is there, else as that path. Nothing is written anywhere else, whatever the guest says.
    pub fn copy_out(&self, name: &str, from: &str, to: PathBuf, parent: Option<&Operation>) -> Task<Copied> {
        let (service, name, from) = (self.clone(), name.to_owned(), from.to_owned());
        let operations = &self.shared.operations;
        operations.spawn(OperationKind::VmCopy, name.clone(), parent, move |operation| async move {
            let channel = service.channel(&name).await?;
            Box::pin(copy::out(&channel, from, to, &operation)).await
        })
    }

    /// Copies a file or a folder into a running machine, by the rules of `cp -R`; it is root's there.
    pub fn copy_in(&self, name: &str, from: PathBuf, to: &str, parent: Option<&Operation>) -> Task<Copied> {
        let (service, name, to) = (self.clone(), name.to_owned(), to.to_owned());
        let operations = &self.shared.operations;
        operations.spawn(OperationKind::VmCopy, name.clone(), parent, move |operation| async move {
            let channel = service.channel(&name).await?;
            Box::pin(copy::into(&channel, from, to, &operation)).await
        })
    }

    /// What a running machine is doing now. A screen that shows rates keeps the reading before and
    /// asks [`VmStats::since`].
    pub async fn stats(&self, name: &str) -> Result<VmStats> {
        let vm = self.find(name).await?;
        let guest = self.channel(&vm.name).await?.stats().await?;
        let (_, host) = self.usage(vec![vm.clone()]).await.pop().ok_or_else(|| not_running(&vm))?;
        Ok(VmStats { name: vm.name, guest, host })
    }

    /// A connection to a running machine's agent.
    pub async fn channel(&self, name: &str) -> Result<GuestChannel> {
        let shared = &self.shared;
        let vm = shared.find(name).await?;
        let Some(run) = vm.run.as_ref().filter(|_| vm.state == VmState::Running) else {
            return Err(not_running(&vm));
        };
        if let Some(channel) = shared.channels.get(&vm.id, &run.process) {
            return Ok(channel);
        }
        if !run.process.is_alive() {
            // Nobody has noticed yet.
            supervise::establish(shared).await?;
            return Err(not_running(&shared.by_id(&vm.id).await?));
        }
        let channel = answering(&shared.data.vm(&vm.id), &vm.name).await?;
        shared.channels.put(&vm.id, &run.process, channel.clone());
        supervise::purge_channels_later(shared);
        Ok(channel)
    }

    /// Path of the file that holds what the machine's serial console printed in its last boots. It
    /// is there once the machine was started.
    pub fn console_log(&self, vm: &Vm) -> std::path::PathBuf {
        self.shared.data.vm(&vm.id).join("console.log")
    }

    /// Sets the states on record to what is true, and removes what deleted machines left.
    pub async fn reconcile(&self) -> Result<()> {
        self.establish().await?;
        self.tidy().await
    }

    /// Sets the states on record to what is true. Costs a look at each machine that has a process.
    pub async fn establish(&self) -> Result<()> {
        supervise::establish(&self.shared).await
    }

    /// Removes the folders of machines that are gone, and ends switches of disks that were cut short.
    pub async fn tidy(&self) -> Result<()> {
        supervise::tidy(&self.shared).await
    }
}

/// How long an agent that is up may take to greet, connection by connection: a guest has others when
/// one of its ports hangs.
const GREETING: [Duration; 4] =
    [Duration::from_secs(2), Duration::from_secs(5), Duration::from_secs(10), Duration::from_secs(20)];

/// A connection to a guest that runs, once its agent has greeted.
async fn answering(directory: &Path, name: &str) -> Result<GuestChannel> {
    let mut hanging = Vec::new();
    for bound in GREETING {
        let connected = async {
            let channel = GuestChannel::connect(directory, &CancellationToken::new()).await?;
            let greeted = tokio::time::timeout(bound, channel.ready()).await;
            Ok::<_, Error>((channel, greeted))
        };
        let Ok(connected) = tokio::time::timeout(bound * 2, connected).await else { continue };
        match connected? {
            (channel, Ok(Ok(()))) => return Ok(channel),
            (_, Ok(Err(error))) => tracing::debug!(name, %error, "a connection to an agent broke"),
            // Kept until another one works, so that the next is not the same port.
            (channel, Err(_)) => hanging.push(channel),
        }
    }
    Err(Error::failed(format!("the agent of machine `{name}` does not answer")).with_hint(format!(
        "`vmdeck vm logs {name}` shows its console; `vmdeck vm restart {name} --force` starts it anew"
    )))
}

fn not_running(vm: &Vm) -> Error {
    let name = &vm.name;
    let why = match &vm.ended {
        Some(ended) if vm.state == VmState::Failed => format!(": {}", ended.message),
        _ => String::new(),
    };
    let error = Error::conflict(format!("machine `{name}` is not running: it is {}{why}", vm.state.as_str()));
    match vm.state {
        VmState::Starting => error.with_hint(format!("`vmdeck vm start {name}` waits until it is ready")),
        VmState::Paused => error.with_hint(format!("`vmdeck vm resume {name}` lets it go on")),
        _ => error.with_hint(format!("`vmdeck vm start {name}` starts it")),
    }
}

impl Shared {
    async fn find(&self, name: &str) -> Result<Vm> {
        let name = name.to_owned();
        self.store
            .read(move |connection| {
                if let Some(vm) = store::vms::by_name(connection, &name)? {
                    return Ok(vm);
                }
                let mut found = store::vms::by_id_prefix(connection, &name)?;
                match (found.pop(), found.is_empty() && name.len() >= 4) {
                    (Some(vm), true) => Ok(vm),
                    _ => Err(Error::not_found(format!("there is no machine `{}`", name.escape_default()))
                        .with_hint("`vmdeck vm list` shows them, `vmdeck vm create` makes one")),
                }
            })
            .await
    }

    async fn by_id(&self, id: &VmId) -> Result<Vm> {
        let id = id.clone();
        self.store
            .read(move |connection| {
                store::vms::by_id(connection, &id)?
                    .ok_or_else(|| Error::not_found(format!("machine {id} is not there any more")))
            })
            .await
    }

    /// Removes the bridge and what belongs to it as far as no machine needs it any more. What it cannot
    /// remove is tried again by whoever looks at the machines next.
    async fn tidy_networks(&self) {
        if let Err(error) = self.bridge.tidy(&self.store).await {
            tracing::warn!(error = error.full_message(), "what belongs to the bridge stays for now");
        }
    }

    /// A state that has a process.
    async fn set_state(&self, id: &VmId, state: VmState, run: Option<&VmRun>) -> Result<()> {
        let (id, run) = (id.clone(), run.cloned());
        self.store
            .write_relaxed(move |transaction| {
                store::vms::set_state(transaction, &id, state, run.as_ref(), None)
            })
            .await
    }

    /// A state without a process. The caller holds the machine's lock, and the process is gone.
    async fn set_ended(&self, id: &VmId, state: VmState, ended: VmEnd) -> Result<()> {
        if let Err(error) = disk::close(&self.data.vm(id)) {
            // They are taken away at the next start at the latest.
            tracing::warn!(%id, %error, "names of disks for a run that has ended stay");
        }
        let id = id.clone();
        self.store
            .write_relaxed(move |transaction| {
                store::vms::set_state(transaction, &id, state, None, Some(&ended))
            })
            .await
    }
}
