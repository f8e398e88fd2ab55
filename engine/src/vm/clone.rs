//! Cloning: a new machine on the frozen disks of another.
//!
//! The clone is a row, its leases and what its disks lie on; its folder and its overlays come with
//! its first start, as with every machine.

use std::time::Instant;

use super::lock::VmGuard;
use super::record::{Creation, Vm, VmSettings, VmState};
use super::{Shared, create, layer, snapshot};
use crate::clock;
use crate::error::{Error, Result};
use crate::identifier::{VmId, check_name};
use crate::network::address;
use crate::operation::Operation;
use crate::store;

/// Makes the clone; the caller holds the original's lock. The same settings and labels, but an
/// address and host ports of its own.
pub(super) async fn clone(
    shared: &Shared,
    guard: &VmGuard,
    original: &Vm,
    name: Option<String>,
    operation: &Operation,
) -> Result<Vm> {
    let (started, started_at) = (Instant::now(), clock::now());
    if let Some(name) = &name {
        check_name("a machine", name)?;
        let wanted = name.clone();
        let taken = shared.store.read(move |connection| store::vms::by_name(connection, &wanted)).await?;
        if taken.is_some() {
            // Told before anything is frozen; the transaction looks again.
            return Err(Error::conflict(format!("there is already a machine named `{name}`"))
                .with_hint("choose another name, or delete that machine first"));
        }
    }
    if original.state == VmState::Running {
        snapshot::sync(shared, guard, original, operation).await;
    }
    let routes = tokio::task::spawn_blocking(address::host_routes).await.unwrap_or_default();
    let (pool, original_row) = (shared.addresses.clone(), original.clone());
    let make = move |transaction: &store::Transaction<'_>, frozen: Option<layer::Frozen>| {
        let original = original_row;
        let name = match name {
            Some(name) => name,
            None => create::free_name(transaction)?,
        };
        // What is on record, not what the original happens to run with.
        let (kernel, settings) = (original.next_kernel().to_owned(), original.next_settings());
        let mut ports = settings.ports.clone();
        ports.iter_mut().for_each(|forward| forward.host_port = 0);
        create::choose_ports(transaction, &mut ports)?;
        let mut vm = Vm {
            id: VmId::random(),
            name,
            state: VmState::Created,
            created_at: clock::now(),
            kernel,
            settings: VmSettings { ports, ..settings },
            pending: None,
            run: None,
            address: None,
            boot: None,
            ended: None,
            creation: Some(Creation {
                started_at,
                resolve_ms: 0,
                reserve_ms: create::milliseconds_since(started),
            }),
            ..original
        };
        store::vms::insert(transaction, &vm)?;
        create::lease_ports(transaction, &vm.id, &vm.settings.ports)?;
        vm.address = create::lease_address(transaction, &vm, &pool, &routes)?;
        if let Some(frozen) = frozen {
            store::layers::set_base(transaction, &vm.id, layer::Disk::Root, &frozen.root)?;
            if let Some(work) = &frozen.work {
                store::layers::set_base(transaction, &vm.id, layer::Disk::Work, work)?;
            }
        }
        Ok(vm)
    };
    let bases = layer::bases(shared, &original.id).await?;
    let has_disks = layer::present(shared, guard, original, &bases).await?.is_some() || !bases.is_empty();
    if has_disks {
        layer::freeze(shared, guard, original, operation, |transaction, frozen| {
            make(transaction, Some(frozen))
        })
        .await
    } else {
        // Never started: both begin as the image is.
        shared.store.transaction(move |transaction| make(transaction, None)).await
    }
}
