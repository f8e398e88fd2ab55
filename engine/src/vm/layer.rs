//! Layers: frozen disks that overlays lie on. A snapshot is a name for some, a clone a machine that
//! shares them.
//!
//! ```text
//! images/<id>/rootfs.ext4 ◀─ layers/<a>/disk.qcow2 ◀─ layers/<b>/disk.qcow2 ◀─ vms/<x>/root.qcow2
//!                                      ▲ clone: vms/<y>/root.qcow2
//! ```
//!
//! All folders are equally deep, so that a file keeps its relative way to what it lies on when it
//! moves from a machine into a layer. Freezing a disk is a **switch** from one base to another, in
//! three steps, so that a kill at any point loses nothing:
//!
//! 1. In staging: the layer (a hard link to the disk) and a new overlay on it. One transaction puts
//!    both in their places, the overlay beside the disk, and records what the disk is *about* to lie on.
//! 2. The hypervisor, where one runs, is told to go on with the overlay.
//! 3. The overlay is renamed over the disk, and the record says what it lies on.
//!
//! Whoever next holds the machine finishes what it finds begun ([`settle`]): for a machine without a
//! process the overlay is always right, since until step 2 it holds nothing and shows the disk below
//! it; for one that runs, the hypervisor knows which file it writes.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::Shared;
use super::disk::{self, DiskFile};
use super::lock::VmGuard;
use super::record::Vm;
use crate::data_directory::DataDirectory;
use crate::error::{Error, Result};
use crate::guest::settings::{ROOT_SERIAL, WORK_SERIAL};
use crate::identifier::{LayerId, VmId};
use crate::operation::Operation;
use crate::staging::Staging;
use crate::store::{self, Transaction};
use crate::vmm::{DiskFormat, DiskOverlay, Machine, qcow2};

/// Longest chain of layers: each costs the guest's reads a little, and the hypervisor an open file.
const MAX_DEPTH: usize = 32;

/// Which disk of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disk {
    Root,
    Work,
}

impl Disk {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Work => "work",
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        [Self::Root, Self::Work].into_iter().find(|disk| disk.as_str() == text)
    }

    fn serial(self) -> &'static str {
        match self {
            Self::Root => ROOT_SERIAL,
            Self::Work => WORK_SERIAL,
        }
    }
}

/// A frozen disk on record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    pub id: LayerId,
    pub parent: Option<LayerId>,
    pub format: DiskFormat,
}

impl Layer {
    /// Its file.
    pub(super) fn path(&self, data: &DataDirectory) -> PathBuf {
        data.layer(&self.id).join(file_name(self.format))
    }
}

fn file_name(format: DiskFormat) -> &'static str {
    match format {
        DiskFormat::Raw => "disk.ext4",
        DiskFormat::Qcow2 => "disk.qcow2",
    }
}

/// What one disk of a machine lies on, other than its image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base {
    pub disk: Disk,
    /// `None` while it lies on the image and is about to lie on `next`.
    pub layer: Option<LayerId>,
    /// Of that layer.
    pub format: DiskFormat,
    pub next: Option<LayerId>,
}

impl Base {
    /// The layer's file as an overlay in a machine's folder names it.
    pub(super) fn backing(&self) -> Option<(PathBuf, DiskFormat)> {
        self.layer.as_ref().map(|id| (backing(id, self.format), self.format))
    }
}

/// A layer's file as any file in a machine's or a layer's folder names it.
fn backing(id: &LayerId, format: DiskFormat) -> PathBuf {
    Path::new("../../layers").join(id.as_str()).join(file_name(format))
}

/// What the disks of a machine lie on.
pub(super) async fn bases(shared: &Shared, vm: &VmId) -> Result<Vec<Base>> {
    let vm = vm.clone();
    shared.store.read(move |connection| store::layers::bases(connection, &vm)).await
}

/// Layers that hold what a machine's disks held at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Frozen {
    pub(super) root: LayerId,
    pub(super) work: Option<LayerId>,
}

/// One disk's way from its present base to the next.
#[derive(Clone, Debug)]
struct Step {
    disk: Disk,
    /// The layer it will lie on.
    layer: Layer,
    /// Whether that layer is made of the disk as it is now.
    freezes: bool,
    overlay: PathBuf,
}

/// Name of the overlay on its way, in the machine's folder. New with each switch: hypervisors take
/// files by name.
fn overlay_name(disk: Disk, next: &LayerId) -> String {
    format!("{}-{next}.qcow2", disk.as_str())
}

/// Root and work disk of a machine, as [`disk::present`] has them: one that was reset has its next root, too.
pub(super) async fn present(
    shared: &Shared,
    guard: &VmGuard,
    vm: &Vm,
    bases: &[Base],
) -> Result<Option<(DiskFile, Option<DiskFile>)>> {
    let image = shared.images.find(vm.image_id.as_str()).await?;
    disk::complete(guard.directory(), &shared.data.images(), &image, &vm.settings, bases)?;
    disk::present(guard.directory())
}

/// Freezes the disks of a machine, and gives it overlays to go on with. `finish` is part of the
/// transaction that completes it. The caller holds the machine's lock; when it runs, its guest is
/// frozen between two writes, as a power cut would leave its disks.
pub(super) async fn freeze<T: Send + 'static>(
    shared: &Shared,
    guard: &VmGuard,
    vm: &Vm,
    operation: &Operation,
    finish: impl FnOnce(&Transaction<'_>, Frozen) -> Result<T> + Send + 'static,
) -> Result<T> {
    let bases = bases(shared, &vm.id).await?;
    check_settled(vm, &bases)?;
    let of = |disk| bases.iter().find(|base| base.disk == disk);
    let layer_of = |disk| of(disk).and_then(|base| base.layer.clone());
    let files = present(shared, guard, vm, &bases).await?;
    let Some((root, work)) = files else {
        // A clone that never ran has no disks of its own: it is what it lies on.
        let Some(root) = layer_of(Disk::Root) else {
            return Err(Error::conflict(format!(
                "machine `{}` was never started: it has no disks yet",
                vm.name
            ))
            .with_hint(format!("its content is that of the image `{}`", vm.image)));
        };
        let frozen = Frozen { root, work: layer_of(Disk::Work) };
        return shared.store.transaction(move |transaction| finish(transaction, frozen)).await;
    };
    check_depth(shared, vm, layer_of(Disk::Root)).await?;
    operation.phase("freeze").await;
    let staging = Staging::create(&shared.data, operation.id()).await?;
    let mut steps = Vec::new();
    // A work disk that is switched off stands still anyway, but is part of what is frozen.
    for (disk, file) in [(Disk::Root, Some(root)), (Disk::Work, work)] {
        if let Some(file) = file {
            steps.push(stage_freeze(&staging, disk, &file, layer_of(disk))?);
        }
    }
    let id_of = |disk| steps.iter().find(|step| step.disk == disk).map(|step| step.layer.id.clone());
    let Some(root) = id_of(Disk::Root) else { return Err(Error::failed("a machine without a root disk")) };
    let frozen = Frozen { root, work: id_of(Disk::Work).or_else(|| layer_of(Disk::Work)) };
    switch(shared, guard, vm, steps, staging, move |transaction| finish(transaction, frozen)).await
}

/// Puts the disks of a machine that does not run back to what layers hold. What was written since is
/// lost. A disk that no layer is given for stays as it is.
pub(super) async fn restore(
    shared: &Shared,
    guard: &VmGuard,
    vm: &Vm,
    layers: Vec<(Disk, Layer)>,
    operation: &Operation,
) -> Result<()> {
    check_settled(vm, &bases(shared, &vm.id).await?)?;
    operation.phase("restore").await;
    let staging = Staging::create(&shared.data, operation.id()).await?;
    let mut steps = Vec::new();
    for (disk, layer) in layers {
        let length = qcow2::virtual_size(&layer.path(&shared.data), layer.format)?;
        let overlay = staging.path().join(overlay_name(disk, &layer.id));
        qcow2::create_overlay(&overlay, &backing(&layer.id, layer.format), layer.format, length)?;
        steps.push(Step { disk, layer, freezes: false, overlay });
    }
    switch(shared, guard, vm, steps, staging, |_| Ok(())).await
}

fn check_settled(vm: &Vm, bases: &[Base]) -> Result<()> {
    if bases.iter().all(|base| base.next.is_none()) {
        return Ok(());
    }
    Err(Error::conflict(format!("an earlier snapshot of machine `{}` is not finished", vm.name)).with_hint(
        format!("its hypervisor does not answer; `vmdeck vm stop {}` lets it be finished", vm.name),
    ))
}

async fn check_depth(shared: &Shared, vm: &Vm, base: Option<LayerId>) -> Result<()> {
    let layers = shared.store.read(|connection| store::layers::list(connection)).await?;
    if chain(&layers, base.as_ref()).len() < MAX_DEPTH {
        return Ok(());
    }
    Err(Error::conflict(format!("the disks of machine `{}` have {MAX_DEPTH} layers already", vm.name))
        .with_hint(format!(
            "`vmdeck image promote --from-vm {} NEW` makes one image of them, to create a machine from",
            vm.name
        )))
}

/// A layer and all that it lies on.
pub(super) fn chain<'a>(layers: &'a [Layer], top: Option<&LayerId>) -> Vec<&'a Layer> {
    let find = |id: &LayerId| layers.iter().find(|layer| layer.id == *id);
    let mut chain: Vec<&Layer> = Vec::new();
    let mut next = top.and_then(find);
    while let Some(layer) = next {
        chain.push(layer);
        // A damaged store must not make this endless.
        next = layer.parent.as_ref().filter(|_| chain.len() <= layers.len()).and_then(find);
    }
    chain
}

/// Links a disk into a layer in the making, and makes an overlay for it.
fn stage_freeze(staging: &Staging, disk: Disk, file: &DiskFile, parent: Option<LayerId>) -> Result<Step> {
    let (path, format) = file;
    let layer = Layer { id: LayerId::random(), parent, format: *format };
    let folder = staging.path().join(layer.id.as_str());
    let link = || -> io::Result<()> {
        fs::create_dir(&folder)?;
        fs::hard_link(path, folder.join(file_name(*format)))?;
        fs::File::open(&folder)?.sync_all()
    };
    link().map_err(|error| {
        Error::io(format!("cannot freeze the disk `{}`", path.display()), error)
            .with_hint("the data directory must be on one file system that has hard links")
    })?;
    let overlay = staging.path().join(overlay_name(disk, &layer.id));
    let length = qcow2::virtual_size(path, *format)?;
    qcow2::create_overlay(&overlay, &backing(&layer.id, *format), *format, length)?;
    Ok(Step { disk, layer, freezes: true, overlay })
}

async fn switch<T: Send + 'static>(
    shared: &Shared,
    guard: &VmGuard,
    vm: &Vm,
    steps: Vec<Step>,
    staging: Staging,
    finish: impl FnOnce(&Transaction<'_>) -> Result<T> + Send + 'static,
) -> Result<T> {
    begin(shared, guard, vm, steps.clone()).await?;
    drop(staging);
    if let Err(error) = hand_over(shared, guard, vm, &steps).await {
        // An answer that was lost is no refusal: what the hypervisor writes now tells. Where it does not
        // say, the switch stays begun, and whoever holds the machine next finishes it.
        if let Err(unsettled) = settle(shared, guard, vm).await {
            tracing::warn!(vm = %vm.name, error = %unsettled, "a snapshot stays unfinished");
        }
        return Err(error);
    }
    complete(shared, guard, vm, steps.iter().map(|step| (step.disk, step.layer.id.clone())), finish).await
}

/// The first step: everything in its place, and on record.
async fn begin(shared: &Shared, guard: &VmGuard, vm: &Vm, steps: Vec<Step>) -> Result<()> {
    let (data, id, folder) = (shared.data.clone(), vm.id.clone(), guard.directory().to_owned());
    shared
        .store
        .transaction(move |transaction| {
            for Step { disk, layer, freezes, overlay } in &steps {
                let place = || -> io::Result<()> {
                    if *freezes {
                        // Beside its overlay in staging.
                        let staged = overlay.with_file_name(layer.id.as_str());
                        fs::rename(staged, data.layer(&layer.id))?;
                    }
                    fs::rename(overlay, folder.join(overlay_name(*disk, &layer.id)))
                };
                place().map_err(|error| Error::io("cannot put a frozen disk in its place", error))?;
                if *freezes {
                    store::layers::insert(transaction, layer)?;
                }
                store::layers::begin_switch(transaction, &id, *disk, &layer.id)?;
            }
            for folder in [data.layers(), folder] {
                sync_folder(&folder)?;
            }
            Ok(())
        })
        .await
}

/// The second step: a hypervisor goes on with the overlays.
async fn hand_over(shared: &Shared, guard: &VmGuard, vm: &Vm, steps: &[Step]) -> Result<()> {
    let Some(run) = vm.run.as_ref().filter(|_| vm.state.has_process()) else { return Ok(()) };
    let machine = shared.vmm.attach(guard.directory(), &run.process).await?;
    let mut overlays = Vec::new();
    for step in steps {
        let serial = step.disk.serial();
        // It may run without its work disk.
        if let Some(file) = machine.disk_file(serial).await? {
            if !disk::is_open_name(&file, step.disk) {
                return Err(Error::conflict(format!(
                    "machine `{}` was started by an earlier vmdeck, whose name for its disk does not last",
                    vm.name
                ))
                .with_hint(format!("`vmdeck vm restart {}` first", vm.name)));
            }
            let path = disk::open(&guard.directory().join(overlay_name(step.disk, &step.layer.id)))?;
            overlays.push(DiskOverlay { serial: serial.into(), path });
        }
    }
    machine.snapshot_disks(&overlays).await
}

/// The third step: the overlays are the disks.
async fn complete<T: Send + 'static>(
    shared: &Shared,
    guard: &VmGuard,
    vm: &Vm,
    disks: impl Iterator<Item = (Disk, LayerId)>,
    finish: impl FnOnce(&Transaction<'_>) -> Result<T> + Send + 'static,
) -> Result<T> {
    for (disk, next) in disks {
        disk::adopt(guard.directory(), disk, &overlay_name(disk, &next))?;
    }
    sync_folder(guard.directory())?;
    let id = vm.id.clone();
    let (result, unused) = shared
        .store
        .transaction(move |transaction| {
            store::layers::finish_switch(transaction, &id)?;
            let result = finish(transaction)?;
            Ok((result, store::layers::take_unused(transaction)?))
        })
        .await?;
    remove(&shared.data, &unused);
    Ok(result)
}

/// Takes the first step back.
async fn abort(
    shared: &Shared,
    guard: &VmGuard,
    vm: &Vm,
    disks: impl Iterator<Item = (Disk, LayerId)>,
) -> Result<()> {
    for (role, next) in disks {
        let path = guard.directory().join(overlay_name(role, &next));
        remove_file(&disk::open_name(&path))?;
        remove_file(&path)?;
    }
    let id = vm.id.clone();
    let unused = shared
        .store
        .transaction(move |transaction| {
            store::layers::abort_switch(transaction, &id)?;
            store::layers::take_unused(transaction)
        })
        .await?;
    remove(&shared.data, &unused);
    Ok(())
}

/// Finishes or takes back what a killed vmdeck began. The caller holds the machine's lock, and `vm`
/// is what is true.
pub(super) async fn settle(shared: &Shared, guard: &VmGuard, vm: &Vm) -> Result<()> {
    let pending: Vec<(Disk, LayerId)> = bases(shared, &vm.id)
        .await?
        .into_iter()
        .filter_map(|base| base.next.map(|next| (base.disk, next)))
        .collect();
    if pending.is_empty() {
        return Ok(());
    }
    let handed_over = match vm.run.as_ref().filter(|_| vm.state.has_process()) {
        None => true,
        Some(run) => {
            let machine = shared.vmm.attach(guard.directory(), &run.process).await?;
            writes_overlays(&*machine, &pending).await?
        }
    };
    tracing::info!(vm = %vm.name, handed_over, "settling a snapshot that was not finished");
    if handed_over {
        complete(shared, guard, vm, pending.into_iter(), |_| Ok(())).await
    } else {
        abort(shared, guard, vm, pending.into_iter()).await
    }
}

/// Whether the hypervisor writes the overlays: all or none, as they were handed over at one moment.
async fn writes_overlays(machine: &dyn Machine, pending: &[(Disk, LayerId)]) -> Result<bool> {
    for (disk, next) in pending {
        if let Some(file) = machine.disk_file(disk.serial()).await? {
            return Ok(file.contains(&overlay_name(*disk, next)));
        }
    }
    // It has none of these disks.
    Ok(true)
}

/// Settles machines that nobody holds, and removes the folders of layers that are not on record.
pub(super) async fn reconcile(shared: &Shared) -> Result<()> {
    let unsettled = shared.store.read(|connection| store::layers::unsettled(connection)).await?;
    for id in unsettled {
        let held = super::hold::try_hold(shared, &id, super::admission::Request::EditDisks).await;
        let settled = async {
            let Some((guard, vm)) = held? else { return Ok(()) };
            let vm = super::settle::settle(shared, &guard, vm).await?;
            settle(shared, &guard, &vm).await
        };
        if let Err(error) = settled.await {
            tracing::warn!(%id, %error, "a snapshot that was not finished is left as it is");
        }
    }
    sweep(shared).await
}

/// Removes the folders of layers without a row. Looked at again under the write lock: a layer is put
/// in its place within the transaction that records it.
async fn sweep(shared: &Shared) -> Result<()> {
    let root = shared.data.layers();
    let fail = |error| Error::io(format!("cannot clean `{}`", root.display()), error);
    let mut found = Vec::new();
    for entry in fs::read_dir(&root).map_err(fail)? {
        if let Ok(name) = entry.map_err(fail)?.file_name().into_string() {
            found.push(LayerId::from_stored(name));
        }
    }
    let unknown = |connection: &store::Connection, found: Vec<LayerId>| {
        let mut unknown = Vec::new();
        for id in found {
            if !store::layers::exists(connection, &id)? {
                unknown.push(id);
            }
        }
        Ok(unknown)
    };
    let found = shared.store.read(move |connection| unknown(connection, found)).await?;
    if found.is_empty() {
        return Ok(());
    }
    let data = shared.data.clone();
    shared
        .store
        .transaction(move |transaction| {
            remove(&data, &unknown(transaction, found)?);
            Ok(())
        })
        .await
}

/// Removes the folders of layers that are on record no more. What fails is swept later.
pub(super) fn remove(data: &DataDirectory, unused: &[LayerId]) {
    for id in unused {
        let path = data.layer(id);
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %path.display(), %error, "an unused layer stays for now");
            }
            _ => {}
        }
    }
}

pub(super) fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io(format!("cannot remove the disk `{}`", path.display()), error))
        }
        _ => Ok(()),
    }
}

fn sync_folder(path: &Path) -> Result<()> {
    fs::File::open(path)
        .and_then(|folder| folder.sync_all())
        .map_err(|error| Error::io(format!("cannot write the folder `{}`", path.display()), error))
}
