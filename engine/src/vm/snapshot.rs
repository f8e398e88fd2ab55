//! Snapshots: names for what a machine's disks held at one moment.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Shared;
use super::layer::{self, Disk, Layer, chain};
use super::lock::VmGuard;
use super::record::{Vm, VmState};
use crate::clock::{self, Milliseconds};
use crate::error::{Error, Result};
use crate::guest::{self, ExecRequest, ExecStatus, GuestChannel};
use crate::identifier::{LayerId, check_name};
use crate::operation::Operation;
use crate::store::{self, layers::SnapshotRow};

/// For the guest to write out what it holds in memory.
const SYNC: Duration = Duration::from_secs(5);

/// How: by the image's own program, which not every image has under the first name.
const SYNC_COMMANDS: [&[&str]; 3] = [&["sync"], &["busybox", "sync"], &["toybox", "sync"]];

/// A snapshot as it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmSnapshot {
    pub name: String,
    pub created_at: Milliseconds,
    #[serde(flatten)]
    pub detail: SnapshotDetail,
    /// What its own layers take on the disk, without what those lie on.
    pub allocated_bytes: u64,
}

/// How it was taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotDetail {
    /// Whether the machine ran: then its disks are as a power cut would have left them.
    pub running: bool,
    /// Whether the guest wrote out what it held in memory right before.
    pub synced: bool,
}

/// What became of a snapshot that was deleted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeletedSnapshot {
    pub name: String,
    pub freed_bytes: u64,
    /// Machines and `machine/snapshot` whose disks lie on it: for them its layers stay.
    pub kept_for: Vec<String>,
}

pub(super) async fn create(
    shared: &Shared,
    guard: &VmGuard,
    vm: &Vm,
    name: Option<String>,
    operation: &Operation,
) -> Result<VmSnapshot> {
    if let Some(name) = &name {
        check_name("a snapshot", name)?;
    }
    let existing = rows(shared, vm).await?;
    if name.as_ref().is_some_and(|name| existing.iter().any(|row| row.name == *name)) {
        // Told before anything is frozen; the transaction looks again.
        return Err(Error::conflict(format!(
            "machine `{}` has a snapshot `{}` already",
            vm.name,
            name.unwrap_or_default()
        ))
        .with_hint("choose another name, or delete that snapshot first"));
    }
    let name = name.unwrap_or_else(|| free_name(&existing));
    let running = vm.state.has_process();
    let synced = vm.state == VmState::Running && sync(shared, guard, vm, operation).await;
    let detail = SnapshotDetail { running, synced: synced || !running };
    let row = move |frozen: layer::Frozen, vm_id| SnapshotRow {
        vm_id,
        name,
        created_at: clock::now(),
        root: frozen.root,
        work: frozen.work,
        detail,
    };
    let vm_id = vm.id.clone();
    let row = layer::freeze(shared, guard, vm, operation, move |transaction, frozen| {
        let row = row(frozen, vm_id);
        store::layers::insert_snapshot(transaction, &row)?;
        Ok(row)
    })
    .await?;
    let layers = shared.store.read(|connection| store::layers::list(connection)).await?;
    Ok(shown(shared, &layers, row))
}

/// `s1`, `s2`, …
fn free_name(existing: &[SnapshotRow]) -> String {
    let taken = |name: &String| existing.iter().any(|row| row.name == *name);
    (1_usize..).map(|number| format!("s{number}")).find(|name| !taken(name)).unwrap_or_default()
}

/// Has the guest write out what it holds in memory, as far as it can.
pub(super) async fn sync(shared: &Shared, guard: &VmGuard, vm: &Vm, operation: &Operation) -> bool {
    let Some(run) = &vm.run else { return false };
    operation.phase("sync").await;
    let syncing = async {
        let channel = match shared.channels.get(&vm.id, &run.process) {
            Some(channel) => channel,
            None => GuestChannel::connect(guard.directory(), operation.cancelled()).await?,
        };
        match channel.sync().await {
            Err(error) if guest::is_unknown(&error) => sync_by_command(&channel).await,
            result => result,
        }
    };
    let why = match tokio::time::timeout(SYNC, syncing).await {
        Ok(Ok(())) => return true,
        Ok(Err(error)) => error.full_message(),
        Err(_) => "it took too long".to_owned(),
    };
    operation.log(format!("the guest did not sync its disks: {why}")).await;
    false
}

/// For an agent that is older: what the image has for it.
async fn sync_by_command(channel: &GuestChannel) -> Result<()> {
    let mut last = Error::failed("the image has no `sync`");
    for command in SYNC_COMMANDS {
        let command = command.iter().map(|&word| word.to_owned()).collect();
        let ended = match channel.exec(ExecRequest { command, ..ExecRequest::default() }).await {
            Ok(mut session) => session.end.status().await,
            Err(error) => Err(error),
        };
        match ended {
            Ok(ExecStatus::Exited(0)) => return Ok(()),
            Ok(status) => last = Error::failed(format!("`sync` ended with {status:?}")),
            Err(error) => last = error,
        }
    }
    Err(last)
}

pub(super) async fn list(shared: &Shared, vm: &Vm) -> Result<Vec<VmSnapshot>> {
    let id = vm.id.clone();
    let (rows, layers) = shared
        .store
        .read(move |connection| {
            Ok((store::layers::snapshots(connection, &id)?, store::layers::list(connection)?))
        })
        .await?;
    Ok(rows.into_iter().map(|row| shown(shared, &layers, row)).collect())
}

async fn rows(shared: &Shared, vm: &Vm) -> Result<Vec<SnapshotRow>> {
    let id = vm.id.clone();
    shared.store.read(move |connection| store::layers::snapshots(connection, &id)).await
}

fn shown(shared: &Shared, layers: &[Layer], row: SnapshotRow) -> VmSnapshot {
    let allocated_bytes = own_layers(&row).map(|id| allocated(shared, layers, id)).sum();
    VmSnapshot { name: row.name, created_at: row.created_at, detail: row.detail, allocated_bytes }
}

fn own_layers(row: &SnapshotRow) -> impl Iterator<Item = &LayerId> {
    std::iter::once(&row.root).chain(row.work.as_ref())
}

/// Bytes that a layer takes on the disk; what cannot be looked at counts for nothing.
fn allocated(shared: &Shared, layers: &[Layer], id: &LayerId) -> u64 {
    let layer = layers.iter().find(|layer| layer.id == *id);
    layer
        .and_then(|layer| fs::metadata(layer.path(&shared.data)).ok())
        .map_or(0, |metadata| metadata.blocks() * 512)
}

async fn find(shared: &Shared, vm: &Vm, name: &str) -> Result<SnapshotRow> {
    let found = rows(shared, vm).await?.into_iter().find(|row| row.name == name);
    found.ok_or_else(|| {
        Error::not_found(format!("machine `{}` has no snapshot `{}`", vm.name, name.escape_default()))
            .with_hint(format!("`vmdeck vm snapshot list {}` shows them", vm.name))
    })
}

pub(super) async fn restore(
    shared: &Shared,
    guard: &VmGuard,
    vm: &Vm,
    name: &str,
    operation: &Operation,
) -> Result<()> {
    let row = find(shared, vm, name).await?;
    let layers = shared.store.read(|connection| store::layers::list(connection)).await?;
    let layer = |id: &LayerId| {
        layers
            .iter()
            .find(|layer| layer.id == *id)
            .cloned()
            .ok_or_else(|| Error::failed(format!("layer {id} of snapshot `{name}` is not on record")))
    };
    let mut disks = vec![(Disk::Root, layer(&row.root)?)];
    if let Some(work) = &row.work {
        disks.push((Disk::Work, layer(work)?));
    }
    layer::restore(shared, guard, vm, disks, operation).await
}

pub(super) async fn delete(shared: &Shared, vm: &Vm, name: &str) -> Result<DeletedSnapshot> {
    let row = find(shared, vm, name).await?;
    let sizes: Vec<(LayerId, u64)> = {
        let layers = shared.store.read(|connection| store::layers::list(connection)).await?;
        layers.iter().map(|layer| (layer.id.clone(), allocated(shared, &layers, &layer.id))).collect()
    };
    let (id, forgotten) = (vm.id.clone(), row.clone());
    let (unused, kept_for) = shared
        .store
        .transaction(move |transaction| {
            store::layers::delete_snapshot(transaction, &id, &forgotten.name)?;
            let unused = store::layers::take_unused(transaction)?;
            let layers = store::layers::list(transaction)?;
            let lies_on = |top: &LayerId| {
                let chain = chain(&layers, Some(top));
                own_layers(&forgotten).any(|own| chain.iter().any(|layer| layer.id == *own))
            };
            let mut kept_for: Vec<String> = Vec::new();
            for (machine, top) in store::layers::users(transaction)? {
                if lies_on(&top) && !kept_for.contains(&machine) {
                    kept_for.push(machine);
                }
            }
            for machine in store::vms::list(transaction)? {
                for other in store::layers::snapshots(transaction, &machine.id)? {
                    if own_layers(&other).any(lies_on) {
                        kept_for.push(format!("{}/{}", machine.name, other.name));
                    }
                }
            }
            Ok((unused, kept_for))
        })
        .await?;
    let freed_bytes = sizes.iter().filter(|(id, _)| unused.contains(id)).map(|(_, bytes)| bytes).sum();
    layer::remove(&shared.data, &unused);
    Ok(DeletedSnapshot { name: row.name, freed_bytes, kept_for })
}
