//! Creating a machine, in three phases of which the third, the boot, is [`super::start`].
//!
//! ```text
//! Checked ── resolve (image and kernel at once, pulling what is missing; no lock) ──▶ Resolved
//! Resolved ── reserve (one IMMEDIATE transaction, milliseconds) ──▶ the row `created`, its leases
//! ```
//!
//! Creates of different machines overlap but for that transaction. Nothing exists before it, so
//! neither a cancel nor a kill has anything to undo; a machine's folder comes with its first boot.

use std::collections::{BTreeSet, HashSet};
use std::net::Ipv4Addr;
use std::time::Instant;

use super::record::{Creation, NetworkMode, PortForward, Vm, VmSettings, VmState};
use super::{CreateVm, Shared, name};
use crate::clock::{self, Milliseconds};
use crate::error::{Error, Result};
use crate::identifier::{VmId, check_name};
use crate::image::PullImage;
use crate::image::record::{Image, ImageFiles};
use crate::kernel::OwnKernel;
use crate::kernel::record::Kernel;
use crate::network::address::{self, Subnet};
use crate::network::{bridge, port};
use crate::operation::Operation;
use crate::store::leases::LeaseKind;
use crate::store::{self, Transaction};

pub(super) const DEFAULT_MEMORY_MIB: u64 = 1024;
/// Less, and the kernel does not come up.
pub const MINIMUM_MEMORY_MIB: u64 = 128;
const DEFAULT_CPUS: u32 = 2;
const DEFAULT_DISK_BYTES: u64 = 8 << 30;
/// ext4 with 4 KiB blocks and 32-bit block numbers ends here; more than any laptop holds.
pub const MAXIMUM_DISK_GIB: u64 = 16 << 10;

/// An image or a kernel deleted between resolving and reserving is resolved anew, so often.
const ATTEMPTS: usize = 4;

/// What a machine may ask of this host.
#[derive(Clone, Copy, Debug)]
pub(super) struct HostCapacity {
    pub(super) cpus: u32,
    pub(super) memory_mib: u64,
}

impl HostCapacity {
    pub(super) fn of_this_host() -> Self {
        let cpus =
            std::thread::available_parallelism().map_or(1, |count| u32::try_from(count.get()).unwrap_or(1));
        let memory_mib = std::fs::read_to_string("/proc/meminfo")
            .ok()
            .and_then(|text| total_memory_mib(&text))
            // Where the kernel does not tell, QEMU will say it when it cannot get the memory.
            .unwrap_or(u64::MAX);
        Self { cpus, memory_mib }
    }
}

/// `MemTotal` of `/proc/meminfo` (proc_meminfo(5)).
fn total_memory_mib(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib / 1024)
}

/// A request whose numbers make sense on this host.
#[derive(Debug)]
struct Checked {
    request: CreateVm,
    cpus: u32,
    memory_mib: u64,
}

impl Checked {
    fn new(request: CreateVm, host: HostCapacity) -> Result<Self> {
        if let Some(name) = &request.name {
            check_name("a machine", name)?;
        }
        let cpus = request.cpus.unwrap_or(DEFAULT_CPUS.min(host.cpus));
        let memory_mib = request.memory_mib.unwrap_or(DEFAULT_MEMORY_MIB.min(host.memory_mib));
        check_capacity(cpus, memory_mib, host)?;
        request.disk_gib.map_or(Ok(()), check_disk)?;
        let network = request.network.unwrap_or(NetworkMode::User);
        check_forwards(network, None, &request.ports)?;
        if network == NetworkMode::Bridge
            && let Some(error) = bridge::obstacle()
        {
            return Err(error);
        }
        for variable in &request.environment {
            if variable.split_once('=').is_none_or(|(name, _)| name.is_empty()) {
                return Err(Error::usage(format!(
                    "`{}` is no environment variable",
                    variable.escape_default()
                ))
                .with_hint("write NAME=value"));
            }
        }
        for (key, value) in &request.labels {
            super::check_label(key, value)?;
        }
        Ok(Self { cpus, memory_mib, request })
    }
}

/// Checks forwards that a user gives, also to `vm set`: not every network has any.
pub(super) fn check_forwards(
    network: NetworkMode,
    address: Option<Ipv4Addr>,
    forwards: &[PortForward],
) -> Result<()> {
    match network {
        _ if forwards.is_empty() => Ok(()),
        NetworkMode::None => Err(Error::usage("a machine without a network has no ports to forward")
            .with_hint("leave out the port, or create a machine with --network user")),
        NetworkMode::Bridge => {
            let at = match address {
                Some(address) => format!("this one at {address}"),
                None => "`vmdeck vm show NAME` tells which, once it is created".to_owned(),
            };
            Err(Error::usage(
                "a bridged machine has no ports to forward: every port is reached at its address",
            )
            .with_hint(format!("leave out the port; {at}")))
        }
        NetworkMode::User | NetworkMode::Isolated | NetworkMode::Lan => port::check(forwards),
    }
}

/// Checks numbers that a user gives, also to `vm set`.
pub(super) fn check_capacity(cpus: u32, memory_mib: u64, host: HostCapacity) -> Result<()> {
    if cpus == 0 || cpus > host.cpus {
        return Err(Error::usage(format!("a machine on this host cannot have {cpus} CPUs"))
            .with_hint(format!("use --cpus 1 to {}", host.cpus)));
    }
    if memory_mib < MINIMUM_MEMORY_MIB || memory_mib > host.memory_mib {
        return Err(Error::usage(format!("a machine on this host cannot have {memory_mib} MiB of memory"))
            .with_hint(format!("use --memory {MINIMUM_MEMORY_MIB} to {}", host.memory_mib)));
    }
    Ok(())
}

pub(super) fn check_disk(gib: u64) -> Result<()> {
    if gib == 0 || gib > MAXIMUM_DISK_GIB {
        return Err(Error::usage(format!("a disk has 1 to {MAXIMUM_DISK_GIB} GiB"))
            .with_hint("leave out --disk for 8 GiB, or more where the image needs it"));
    }
    Ok(())
}

/// A request with what it is to be made of.
#[derive(Debug)]
struct Resolved {
    image: Image,
    kernel: Kernel,
    disk_bytes: u64,
    started_at: Milliseconds,
    resolve_ms: u64,
}

/// A name for a machine that is given none; another one takes its place where it is taken.
pub(super) fn made_up_name() -> String {
    name::candidates(random()).next().unwrap_or_default()
}

/// `name`: as requested, or made up.
pub(super) async fn create(
    shared: &Shared,
    request: CreateVm,
    name: String,
    operation: &Operation,
) -> Result<Vm> {
    let checked = Checked::new(request, HostCapacity::of_this_host())?;
    let (started, started_at) = (Instant::now(), clock::now());
    for attempt in 1.. {
        operation.phase("resolve").await;
        let (image, kernel) = resolve(shared, &checked, operation).await?;
        let disk_bytes = disk_bytes(&checked, &image)?;
        let resolved =
            Resolved { image, kernel, disk_bytes, started_at, resolve_ms: milliseconds_since(started) };
        if operation.cancelled().is_cancelled() {
            return Err(Error::cancelled());
        }
        operation.phase("reserve").await;
        match reserve(shared, &checked, resolved, name.clone()).await? {
            Reservation::Made(vm) => return Ok(*vm),
            Reservation::Vanished(what) if attempt < ATTEMPTS => {
                operation.log(format!("{what} was deleted meanwhile; resolving again")).await;
            }
            Reservation::Vanished(what) => {
                return Err(Error::conflict(format!("{what} is deleted again and again"))
                    .with_hint("something else deletes it; `vmdeck operation list` may show what"));
            }
        }
    }
    unreachable!("the last attempt returns")
}

/// Finds the image and the kernel, or pulls them, both at once.
async fn resolve(shared: &Shared, checked: &Checked, operation: &Operation) -> Result<(Image, Kernel)> {
    let request = &checked.request;
    // Before anything is fetched for it.
    let own_kernel = own_kernel(shared, &request.image).await?;
    let pull = PullImage {
        reference: request.image.clone(),
        plain_http: request.plain_http,
        ..PullImage::default()
    };
    let image = async {
        let image = shared.images.ensure_pulled(pull, operation).await;
        image.map_err(|error| not_here(&request.image, error))
    };
    let kernel = async {
        match (request.kernel.as_deref(), own_kernel) {
            (None, Some(own)) => shared.kernels.ensure_own(own, operation).await,
            (name, _) => shared.kernels.ensure(name, operation).await,
        }
    };
    // Boxed: each holds a whole pull.
    let (image, kernel) = tokio::try_join!(Box::pin(image), Box::pin(kernel))?;
    if image.architecture.as_ref().is_some_and(|architecture| *architecture != kernel.architecture) {
        return Err(Error::failed(format!(
            "image `{}` is for {}, kernel `{}` for {}",
            image.name,
            image.architecture.as_deref().unwrap_or_default(),
            kernel.name,
            kernel.architecture
        ))
        .with_hint("pull the image for this host's architecture, or name a kernel that fits with --kernel"));
    }
    Ok((image, kernel))
}

/// A bare name may be meant for an image that is here, or be mistyped.
fn not_here(image: &str, error: Error) -> Error {
    if error.is_cancelled() || image.contains(['/', ':', '@']) {
        return error;
    }
    let why = error.full_message();
    Error::new(
        error.kind(),
        format!("there is no image `{}` here, and it could not be pulled: {why}", image.escape_debug()),
    )
    .with_hint("`vmdeck image list` shows those that are here, `vmdeck image catalog` those known by name")
}

/// The kernel that an image brings along, which only registered ones do: they are here, or they are refused
/// where their files are not.
async fn own_kernel(shared: &Shared, image: &str) -> Result<Option<OwnKernel>> {
    let (root, name) = (shared.data.root().to_owned(), image.to_owned());
    let found = shared.store.read(move |connection| store::images::by_name(connection, &root, &name)).await?;
    let Some(image) = found else { return Ok(None) };
    image.require_files()?;
    let ImageFiles { kernel, modules, .. } = image.files;
    Ok(kernel.map(|kernel| OwnKernel { image: image.name, kernel, modules }))
}

fn disk_bytes(checked: &Checked, image: &Image) -> Result<u64> {
    let Some(gib) = checked.request.disk_gib else { return Ok(DEFAULT_DISK_BYTES.max(image.rootfs_bytes)) };
    let bytes = gib << 30;
    if bytes < image.rootfs_bytes {
        return Err(Error::usage(format!(
            "a disk of {gib} GiB cannot hold image `{}` of {} GiB",
            image.name,
            image.rootfs_bytes.div_ceil(1 << 30)
        ))
        .with_hint(format!("use --disk {} or more", image.rootfs_bytes.div_ceil(1 << 30))));
    }
    Ok(bytes)
}

enum Reservation {
    Made(Box<Vm>),
    /// What was resolved is gone.
    Vanished(String),
}

/// The second phase: one transaction, in which nothing waits.
async fn reserve(
    shared: &Shared,
    checked: &Checked,
    resolved: Resolved,
    name: String,
) -> Result<Reservation> {
    let started = Instant::now();
    let routes = tokio::task::spawn_blocking(address::host_routes).await.unwrap_or_default();
    let request = checked.request.clone();
    let (cpus, memory_mib, pool) = (checked.cpus, checked.memory_mib, shared.addresses.clone());
    let root = shared.data.root().to_owned();
    shared
        .store
        .transaction(move |transaction| {
            let Resolved { image, kernel, disk_bytes, started_at, resolve_ms } = resolved;
            if store::images::by_id_prefix(transaction, &root, image.id.as_str())?.is_empty() {
                return Ok(Reservation::Vanished(format!("image `{}`", image.name)));
            }
            if store::kernels::by_name(transaction, &root, &kernel.name)?.is_none() {
                return Ok(Reservation::Vanished(format!("kernel `{}`", kernel.name)));
            }
            let is_made_up = request.name.is_none();
            let name = match is_made_up && store::vms::by_name(transaction, &name)?.is_some() {
                true => free_name(transaction)?,
                false => name,
            };
            let network = request.network.unwrap_or(NetworkMode::User);
            let mut vm = Vm {
                id: VmId::random(),
                name,
                state: VmState::Created,
                image_id: image.id,
                image: image.name,
                kernel: kernel.name,
                created_at: clock::now(),
                settings: VmSettings {
                    cpus,
                    memory_mib,
                    disk_bytes,
                    network,
                    ports: request.ports,
                    command: request.command,
                    environment: request.environment,
                    work_disk: request.work_disk.unwrap_or(true),
                },
                pending: None,
                run: None,
                address: None,
                boot: None,
                ended: None,
                creation: None,
                labels: request.labels,
            };
            // The ports are chosen before the row is there and leased after it, as a lease names it.
            choose_ports(transaction, &mut vm.settings.ports)?;
            vm.creation = Some(Creation { started_at, resolve_ms, reserve_ms: milliseconds_since(started) });
            store::vms::insert(transaction, &vm)?;
            lease_ports(transaction, &vm.id, &vm.settings.ports)?;
            vm.address = lease_address(transaction, &vm, &pool, &routes)?;
            Ok(Reservation::Made(Box::new(vm)))
        })
        .await
}

pub(super) fn free_name(transaction: &Transaction<'_>) -> Result<String> {
    for name in name::candidates(random()) {
        if store::vms::by_name(transaction, &name)?.is_none() {
            return Ok(name);
        }
    }
    unreachable!("there is always another name")
}

/// Turns host ports of 0 into free ones, and makes sure that the others can be had.
pub(super) fn choose_ports(transaction: &Transaction<'_>, forwards: &mut [PortForward]) -> Result<()> {
    let mut leased: HashSet<String> =
        store::leases::list(transaction, LeaseKind::Port)?.into_iter().map(|(value, _)| value).collect();
    for forward in forwards.iter_mut() {
        if forward.host_port == 0 {
            let free = port::candidates(random()).find(|&candidate| {
                let forward = PortForward { host_port: candidate, ..forward.clone() };
                !leased.contains(&port::lease(&forward))
                    && port::probe(forward.protocol, forward.host_address, candidate).is_ok()
            });
            forward.host_port = free.ok_or_else(|| {
                Error::host_cannot("no port of this host is free")
                    .with_hint("delete some machines that hold ports")
            })?;
        } else if !leased.contains(&port::lease(forward)) {
            port::probe(forward.protocol, forward.host_address, forward.host_port)
                .map_err(|error| port::unavailable(forward, error))?;
        }
        leased.insert(port::lease(forward));
    }
    Ok(())
}

/// Leases ports to a machine whose row is there.
pub(super) fn lease_ports(transaction: &Transaction<'_>, vm: &VmId, forwards: &[PortForward]) -> Result<()> {
    for forward in forwards {
        let value = port::lease(forward);
        if !store::leases::take(transaction, LeaseKind::Port, &value, vm)? {
            let owner = store::leases::holder_name(transaction, LeaseKind::Port, &value)?;
            return Err(Error::conflict(format!(
                "port {} of this host belongs to machine `{}`",
                forward.host_port,
                owner.unwrap_or_default()
            ))
            .with_hint(
                "choose another, or 0 for any free one; a machine keeps its ports until it is deleted",
            ));
        }
    }
    Ok(())
}

/// Leases an address to a machine that has a network, and whose row is there.
pub(super) fn lease_address(
    transaction: &Transaction<'_>,
    vm: &Vm,
    pool: &address::AddressPool,
    routes: &[Subnet],
) -> Result<Option<Ipv4Addr>> {
    let list = |kind| -> Result<BTreeSet<Ipv4Addr>> {
        let leases = store::leases::list(transaction, kind)?;
        Ok(leases.into_iter().filter_map(|(value, _)| value.parse().ok()).collect())
    };
    let own = list(LeaseKind::Address)?;
    let (shared, bridged) = (list(LeaseKind::SharedAddress)?, list(LeaseKind::BridgedAddress)?);
    let all = own.iter().chain(&shared).chain(&bridged).copied().collect();
    let (kind, address) = match vm.settings.network {
        NetworkMode::None => return Ok(None),
        NetworkMode::User | NetworkMode::Isolated => (LeaseKind::Address, pool.allocate(&all, routes)),
        NetworkMode::Lan => (LeaseKind::SharedAddress, pool.allocate_shared(&shared, &all, routes)),
        NetworkMode::Bridge => (LeaseKind::BridgedAddress, pool.allocate_bridged(&bridged, &all, routes)),
    };
    let address = address.ok_or_else(|| {
        Error::host_cannot("every guest address is taken").with_hint("delete some machines: `vmdeck vm list`")
    })?;
    if !store::leases::take(transaction, kind, &address.to_string(), &vm.id)? {
        return Err(Error::failed(format!("the guest address {address} was just leased")));
    }
    Ok(Some(address))
}

fn random() -> u64 {
    getrandom::u64().expect("the kernel's random numbers are there once it runs programs")
}

pub(super) fn milliseconds_since(instant: Instant) -> u64 {
    u64::try_from(instant.elapsed().as_millis()).unwrap_or(u64::MAX)
}
