//! Changing a machine that exists: its settings, its ports, its root disk.
//!
//! Settings go into the row at once. What a machine that runs was started with stays as it is until
//! it is started again. Ports are an exception, which the hypervisor opens and closes as it runs; disks
//! are the other, which grow as they are used.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::create::{self, HostCapacity};
use super::lock::VmGuard;
use super::record::{PortForward, Vm, VmRun, VmState};
use super::{Shared, disk, layer};
use crate::error::{Error, ErrorKind, Result};
use crate::guest::settings::{ROOT_SERIAL, WORK_SERIAL};
use crate::identifier::check_name;
use crate::network::port;
use crate::store::{self, Transaction};

/// What to change; what is not given stays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChangeVm {
    pub name: Option<String>,
    pub cpus: Option<u32>,
    pub memory_mib: Option<u64>,
    /// Both disks grow to this length, and the file systems on them follow.
    pub disk_gib: Option<u64>,
    pub kernel: Option<String>,
    /// Replaces the command; an empty one gives the image's back.
    pub command: Option<Vec<String>>,
    /// `NAME=value` sets, `NAME` alone takes away.
    pub environment: Vec<String>,
    /// Whether the work disk is attached; its content stays either way.
    pub work_disk: Option<bool>,
    pub add_ports: Vec<PortForward>,
    /// Host sides as in the forwards there are; the guest's port is not looked at.
    pub remove_ports: Vec<PortForward>,
    /// `None` as a value takes a label away.
    pub labels: BTreeMap<String, Option<String>>,
}

/// When a change takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TakesEffect {
    Now,
    NextStart,
}

/// What a setting was and what it is to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step<T> {
    pub from: T,
    pub to: T,
}

/// A setting that was changed, named as in the record of a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "setting", rename_all = "snake_case")]
pub enum Setting {
    Name(Step<String>),
    Labels(Step<BTreeMap<String, String>>),
    Ports(Step<Vec<PortForward>>),
    Cpus(Step<u32>),
    MemoryMib(Step<u64>),
    DiskBytes(Step<u64>),
    Kernel(Step<String>),
    /// Empty for the image's own.
    Command(Step<Vec<String>>),
    Environment(Step<Vec<String>>),
    WorkDisk(Step<bool>),
}

impl Setting {
    /// What people call it.
    pub fn term(&self) -> &'static str {
        match self {
            Self::Name(_) => "name",
            Self::Labels(_) => "labels",
            Self::Ports(_) => "ports",
            Self::Cpus(_) => "cpus",
            Self::MemoryMib(_) => "memory",
            Self::DiskBytes(_) => "disk",
            Self::Kernel(_) => "kernel",
            Self::Command(_) => "command",
            Self::Environment(_) => "environment",
            Self::WorkDisk(_) => "work disk",
        }
    }
}

/// One part of a change, and when it takes effect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeEffect {
    #[serde(flatten)]
    pub setting: Setting,
    pub takes_effect: TakesEffect,
}

/// A machine after a change, and when each part of it takes effect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changed {
    pub vm: Vm,
    pub effects: Vec<ChangeEffect>,
    /// Why something takes effect later that mostly does at once. Sentences for a person.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// How long a guest may take to grow its file systems.
const GROW: Duration = Duration::from_secs(120);

/// Changes a machine. The caller holds its lock, and `vm` is what is true.
pub(super) async fn change(shared: &Shared, guard: &VmGuard, vm: &Vm, request: ChangeVm) -> Result<Changed> {
    check(vm, &request)?;
    if let Some(kernel) = &request.kernel {
        shared.kernels.find(kernel).await?;
    }
    let before = vm.settings.ports.clone();
    let (id, wanted) = (vm.id.clone(), request.clone());
    // Row and leases together; what fails here has changed nothing.
    shared.store.transaction(move |transaction| write(transaction, &id, &wanted)).await?;
    let changed = shared.by_id(&vm.id).await?;
    if let Err(error) = apply_ports(shared, guard, vm, vm.state, &before, &changed.settings.ports).await {
        let (id, ports) = (vm.id.clone(), before);
        shared.store.transaction(move |transaction| put_ports(transaction, &id, ports)).await?;
        return Err(error);
    }
    let mut notes = Vec::new();
    let changed = match disk_to_grow(vm, &changed, &request) {
        None => changed,
        // It is on record, and done at the next start if it is not done now.
        Some(bytes) => match grow_now(shared, guard, &changed, bytes).await {
            Ok(()) => shared.by_id(&vm.id).await?,
            Err(why) => {
                notes.push(format!("the disk grows at the next start: {why}"));
                changed
            }
        },
    };
    Ok(Changed { effects: effects(vm, &changed), vm: changed, notes })
}

/// The length that the disks of a machine that runs are to have, where somebody asks for it and they
/// have it not, also when an earlier attempt failed.
fn disk_to_grow(before: &Vm, after: &Vm, request: &ChangeVm) -> Option<u64> {
    let (run, _) = after.run.as_ref().zip(request.disk_gib)?;
    let wanted = after.next_settings().disk_bytes;
    let has = match run.started_with {
        Some(_) => after.settings.disk_bytes,
        None => before.settings.disk_bytes,
    };
    (has != wanted).then_some(wanted)
}

fn check(vm: &Vm, request: &ChangeVm) -> Result<()> {
    let settings = vm.next_settings();
    if let Some(name) = &request.name {
        check_name("a machine", name)?;
    }
    if request.cpus.is_some() || request.memory_mib.is_some() {
        create::check_capacity(
            request.cpus.unwrap_or(settings.cpus),
            request.memory_mib.unwrap_or(settings.memory_mib),
            HostCapacity::of_this_host(),
        )?;
    }
    if let Some(gib) = request.disk_gib {
        create::check_disk(gib)?;
        if gib << 30 < settings.disk_bytes {
            return Err(Error::usage(format!(
                "the disk of machine `{}` has {} GiB and cannot be made smaller",
                vm.name,
                settings.disk_bytes.div_ceil(1 << 30)
            ))
            .with_hint("disks only grow; make a new machine for a smaller one"));
        }
    }
    for variable in &request.environment {
        if variable.is_empty() || variable.starts_with('=') {
            return Err(Error::usage(format!("`{}` is no environment variable", variable.escape_default()))
                .with_hint("write NAME=value to set one, NAME to take it away"));
        }
    }
    for (key, value) in &request.labels {
        super::check_label(key, value.as_deref().unwrap_or_default())?;
    }
    create::check_forwards(settings.network, vm.address, &request.add_ports)
}

fn write(transaction: &Transaction<'_>, id: &crate::identifier::VmId, request: &ChangeVm) -> Result<()> {
    let gone = || Error::not_found(format!("machine {id} is not there any more"));
    let vm = store::vms::by_id(transaction, id)?.ok_or_else(gone)?;
    let mut settings = vm.next_settings();
    settings.cpus = request.cpus.unwrap_or(settings.cpus);
    settings.memory_mib = request.memory_mib.unwrap_or(settings.memory_mib);
    settings.disk_bytes = request.disk_gib.map_or(settings.disk_bytes, |gib| gib << 30);
    settings.work_disk = request.work_disk.unwrap_or(settings.work_disk);
    if let Some(command) = &request.command {
        settings.command.clone_from(command);
    }
    for variable in &request.environment {
        let name = variable.split_once('=').map_or(variable.as_str(), |(name, _)| name);
        let count = settings.environment.len();
        settings.environment.retain(|known| known.split_once('=').is_none_or(|(known, _)| known != name));
        if variable.contains('=') {
            settings.environment.push(variable.clone());
        } else if settings.environment.len() == count {
            return Err(no_variable(&vm.name, name, &settings.environment));
        }
    }
    for forward in &request.remove_ports {
        let count = settings.ports.len();
        settings.ports.retain(|known| port::lease(known) != port::lease(forward));
        if settings.ports.len() == count {
            return Err(Error::not_found(format!(
                "machine `{}` forwards no port {}:{}/{}",
                vm.name,
                forward.host_address,
                forward.host_port,
                forward.protocol.as_str()
            ))
            .with_hint(format!("`vmdeck vm ports {}` lists them", vm.name)));
        }
    }
    let mut added = request.add_ports.clone();
    for forward in &added {
        if settings.ports.iter().any(|known| port::lease(known) == port::lease(forward)) {
            return Err(Error::conflict(format!(
                "machine `{}` forwards port {} already",
                vm.name, forward.host_port
            ))
            .with_hint("remove that forward first, or choose another port"));
        }
    }
    let ports = settings.ports.clone();
    // What it gives up may be taken by what it adds.
    store::leases::release_ports(transaction, id)?;
    create::choose_ports(transaction, &mut added)?;
    settings.ports.extend(added);
    create::lease_ports(transaction, id, &settings.ports)?;
    tracing::debug!(%id, before = ?ports, after = ?settings.ports, "ports");
    store::vms::set_settings(transaction, id, &settings)?;
    if let Some(kernel) = &request.kernel {
        store::vms::set_kernel(transaction, id, kernel)?;
    }
    if let Some(name) = request.name.as_ref().filter(|name| **name != vm.name) {
        store::vms::rename(transaction, id, name)?;
    }
    let mut labels = vm.labels;
    for (label, value) in &request.labels {
        match value {
            Some(value) => drop(labels.insert(label.clone(), value.clone())),
            None if labels.remove(label).is_some() => {}
            None => return Err(no_label(&vm.name, label, labels.keys())),
        }
    }
    store::vms::set_labels(transaction, id, &labels)
}

fn no_variable(machine: &str, name: &str, there: &[String]) -> Error {
    let there = there.iter().filter_map(|variable| variable.split_once('='));
    let there: Vec<String> = there.map(|(name, _)| format!("`{name}`")).collect();
    let name = name.escape_default();
    let error = Error::not_found(format!("machine `{machine}` sets no variable `{name}` of its own"));
    if there.is_empty() {
        error.with_hint("it sets none beside its image's; `--env NAME=value` sets one")
    } else {
        error.with_hint(format!("it sets {}", there.join(", ")))
    }
}

fn no_label<'a>(machine: &str, label: &str, there: impl Iterator<Item = &'a String>) -> Error {
    let there: Vec<String> = there.map(|label| format!("`{label}`")).collect();
    let error = Error::not_found(format!("machine `{machine}` has no label `{label}`"));
    if there.is_empty() {
        error.with_hint("it has none at all; `--label KEY=VALUE` puts one on it")
    } else {
        error.with_hint(format!("its labels are {}", there.join(", ")))
    }
}

/// Sets the ports back to what they were.
fn put_ports(
    transaction: &Transaction<'_>,
    id: &crate::identifier::VmId,
    ports: Vec<PortForward>,
) -> Result<()> {
    let Some(vm) = store::vms::by_id(transaction, id)? else { return Ok(()) };
    store::leases::release_ports(transaction, id)?;
    create::lease_ports(transaction, id, &ports)?;
    let settings = super::record::VmSettings { ports, ..vm.next_settings() };
    store::vms::set_settings(transaction, id, &settings)
}

/// Opens and closes ports of a machine that runs; undoes what it did when one cannot be opened.
async fn apply_ports(
    shared: &Shared,
    guard: &VmGuard,
    vm: &Vm,
    state: VmState,
    before: &[PortForward],
    after: &[PortForward],
) -> Result<()> {
    let Some(run) = vm.run.as_ref().filter(|_| before != after) else { return Ok(()) };
    let machine = shared.vmm.attach(guard.directory(), &run.process).await?;
    let without = |from: &[PortForward], other: &[PortForward]| -> Vec<PortForward> {
        from.iter().filter(|forward| !other.contains(forward)).cloned().collect()
    };
    let (closed, opened) = (without(before, after), without(after, before));
    for forward in &closed {
        match machine.remove_forward(forward).await {
            // As wished for.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            result => result?,
        }
    }
    for (index, forward) in opened.iter().enumerate() {
        if let Err(error) = machine.add_forward(forward).await {
            for undone in &opened[..index] {
                let _ = machine.remove_forward(undone).await;
            }
            for undone in &closed {
                if let Err(error) = machine.add_forward(undone).await {
                    tracing::warn!(forward = %undone, %error, "a port could not be opened again");
                }
            }
            return Err(error);
        }
    }
    let run = VmRun { forwards: Some(after.to_vec()), ..run.clone() };
    shared.set_state(&vm.id, state, Some(&run)).await
}

/// Whether the hypervisor forwards what is on record, as far as is known.
pub(super) fn ports_agree(vm: &Vm) -> bool {
    let forwards = vm.run.as_ref().and_then(|run| run.forwards.as_ref());
    forwards.is_none_or(|forwards| *forwards == vm.settings.ports)
}

/// Finishes what a killed vmdeck began to change. It is not known how far that came: what was to be
/// opened is closed first.
pub(super) async fn settle_ports(shared: &Shared, guard: &VmGuard, vm: &Vm, state: VmState) {
    let Some((run, forwards)) = vm.run.as_ref().and_then(|run| Some((run, run.forwards.as_ref()?))) else {
        return;
    };
    let (before, after) = (forwards, &vm.settings.ports);
    let settled = async {
        let machine = shared.vmm.attach(guard.directory(), &run.process).await?;
        for forward in after.iter().filter(|forward| !before.contains(forward)) {
            match machine.remove_forward(forward).await {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                result => result?,
            }
        }
        apply_ports(shared, guard, vm, state, before, after).await
    };
    if let Err(error) = settled.await {
        tracing::warn!(vm = %vm.name, error = error.full_message(), "ports are not what they should be");
    }
}

/// Makes the disks of a machine that runs longer, and has its guest grow the file systems on them.
/// When that fails, it says why.
async fn grow_now(shared: &Shared, guard: &VmGuard, vm: &Vm, bytes: u64) -> std::result::Result<(), String> {
    let Some(run) = vm.run.as_ref().filter(|_| vm.state == VmState::Running) else {
        return Err(format!("the machine is {} now", vm.state.as_str()));
    };
    let grow = async {
        let machine = shared.vmm.attach(guard.directory(), &run.process).await?;
        for serial in [ROOT_SERIAL, WORK_SERIAL] {
            // Without its work disk it has one less.
            if machine.disk_file(serial).await?.is_some() {
                machine.grow_disk(serial, bytes).await?;
            }
        }
        let channel = match shared.channels.get(&vm.id, &run.process) {
            Some(channel) => channel,
            None => super::answering(guard.directory(), &vm.name).await?,
        };
        channel.grow(bytes).await
    };
    match tokio::time::timeout(GROW, grow).await {
        Ok(result) => result.map_err(|error| error.full_message())?,
        Err(_) => return Err("the guest takes too long".to_owned()),
    }
    let mut run = run.clone();
    if let Some(with) = &mut run.started_with {
        with.disk_bytes = bytes;
    }
    shared.set_state(&vm.id, vm.state, Some(&run)).await.map_err(|error| error.full_message())
}

/// What of a change takes effect when. `before` and `after` are the machine as it was and is shown: with
/// what it runs with.
fn effects(before: &Vm, after: &Vm) -> Vec<ChangeEffect> {
    let (old, new, now) = (before.next_settings(), after.next_settings(), &after.settings);
    let mut effects = Vec::new();
    let mut add = |setting, takes_effect| effects.push(ChangeEffect { setting, takes_effect });
    if let Some(step) = step(&before.name, &after.name) {
        add(Setting::Name(step), TakesEffect::Now);
    }
    if let Some(step) = step(&before.labels, &after.labels) {
        add(Setting::Labels(step), TakesEffect::Now);
    }
    if let Some(step) = step(&old.ports, &new.ports) {
        add(Setting::Ports(step), TakesEffect::Now);
    }
    if let Some((step, when)) = later(after, [&old.cpus, &new.cpus, &now.cpus]) {
        add(Setting::Cpus(step), when);
    }
    if let Some((step, when)) = later(after, [&old.memory_mib, &new.memory_mib, &now.memory_mib]) {
        add(Setting::MemoryMib(step), when);
    }
    if let Some(step) = step(&before.settings.disk_bytes, &now.disk_bytes) {
        add(Setting::DiskBytes(step), TakesEffect::Now);
    } else if let Some((step, when)) = later(after, [&old.disk_bytes, &new.disk_bytes, &now.disk_bytes]) {
        add(Setting::DiskBytes(step), when);
    }
    let (old_kernel, new_kernel) = (before.next_kernel().to_owned(), after.next_kernel().to_owned());
    if let Some((step, when)) = later(after, [&old_kernel, &new_kernel, &after.kernel]) {
        add(Setting::Kernel(step), when);
    }
    if let Some((step, when)) = later(after, [&old.command, &new.command, &now.command]) {
        add(Setting::Command(step), when);
    }
    if let Some((step, when)) = later(after, [&old.environment, &new.environment, &now.environment]) {
        add(Setting::Environment(step), when);
    }
    if let Some((step, when)) = later(after, [&old.work_disk, &new.work_disk, &now.work_disk]) {
        add(Setting::WorkDisk(step), when);
    }
    effects
}

fn step<T: Clone + PartialEq>(from: &T, to: &T) -> Option<Step<T>> {
    (from != to).then(|| Step { from: from.clone(), to: to.clone() })
}

/// A setting that a machine that runs is given at its start: what was on record, what is on record, and
/// what it has.
fn later<T: Clone + PartialEq>(after: &Vm, [old, new, now]: [&T; 3]) -> Option<(Step<T>, TakesEffect)> {
    let step = step(old, new)?;
    match &after.run {
        Some(run) if run.started_with.is_none() => Some((step, TakesEffect::NextStart)),
        // One that is put back to what it runs with has nothing to wait for.
        Some(_) if now != new => Some((Step { from: now.clone(), ..step }, TakesEffect::NextStart)),
        _ => Some((step, TakesEffect::Now)),
    }
}

/// What a root disk is called that is being thrown away.
const DISCARDED: &str = "root.discarded";

/// Throws the root disk away; the next boot makes a fresh one from the image. The work disk stays.
/// The caller holds the lock of a machine that does not run.
///
/// It is put aside first, then forgotten, then removed: a kill in between leaves a machine that
/// [`settle_reset`] gives its disk back, or that is reset.
pub(super) async fn reset(shared: &Shared, guard: &VmGuard) -> Result<()> {
    put(guard, disk::ROOT, DISCARDED)?;
    let id = guard.id().clone();
    let unused = shared
        .store
        .transaction(move |transaction| {
            store::layers::forget_base(transaction, &id, layer::Disk::Root)?;
            store::layers::take_unused(transaction)
        })
        .await?;
    // The disk before what it lies on.
    layer::remove_file(&guard.directory().join(DISCARDED))?;
    layer::remove(&shared.data, &unused);
    Ok(())
}

/// Takes back or finishes a reset that a killed vmdeck began. The caller holds the machine's lock.
pub(super) async fn settle_reset(shared: &Shared, guard: &VmGuard) -> Result<()> {
    let discarded = guard.directory().join(DISCARDED);
    if !discarded.exists() {
        return Ok(());
    }
    let bases = layer::bases(shared, guard.id()).await?;
    if bases.iter().any(|base| base.disk == layer::Disk::Root) {
        // Not forgotten yet: what it lies on is there, and so is it.
        tracing::info!(vm = %guard.id(), "a reset that was not finished is taken back");
        return put(guard, DISCARDED, disk::ROOT);
    }
    layer::remove_file(&discarded)
}

fn put(guard: &VmGuard, from: &str, to: &str) -> Result<()> {
    let (from, to) = (guard.directory().join(from), guard.directory().join(to));
    match std::fs::rename(&from, &to) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::io(format!("cannot rename the disk `{}`", from.display()), error))
        }
        _ => Ok(()),
    }
}
