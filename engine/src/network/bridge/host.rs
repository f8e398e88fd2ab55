//! Making the bridge and what belongs to it, and removing it.
//!
//! ```text
//! attach:  record ▶ bridge, address, up ▶ table ▶ forwarding ▶ tap, plugged ▶ its table ▶ up
//! tidy:    tables of taps that are gone ─ no machine left ▶ bridge ▶ forwarding ▶ tables ▶ record
//! ```
//!
//! Both pass one lock, and both can be done again after a vmdeck that was killed in the middle: making
//! finds what is there, removing what is not. Whether a machine needs the bridge the store tells: it is
//! on record as starting before it is attached, and nobody settles a machine that somebody works on.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::forwarding::{self, WasOff};
use super::link::{Link, Links};
use super::record::{self, Place, Record};
use super::{bridge_mac, bridge_name, gateway, nft, rights, rules, seed, tap, tap_name};
use crate::data_directory::DataDirectory;
use crate::error::{Error, Result};
use crate::lock::FileLock;
use crate::network::address::{self, Subnet};
use crate::network::mac;
use crate::store::{self, Store};
use crate::vm::record::{NetworkMode, Vm};

/// How long another vmdeck may take with the bridge. It takes less than a second.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why machines of this kind cannot be run here by this process, if they cannot.
pub(crate) fn obstacle() -> Option<Error> {
    if !rights::may_administer_networks() {
        return Some(not_permitted());
    }
    if nft::program().is_none() {
        return Some(nft::missing());
    }
    tap::available().err().map(|error| {
        let hint = match error.kind() {
            io::ErrorKind::PermissionDenied => {
                "hosts mostly let everybody open it: `sudo chmod 666 /dev/net/tun`; --network lan needs it not"
            }
            _ => "`sudo modprobe tun` may bring it; --network lan needs it not",
        };
        Error::host_cannot(format!("the bridged network needs `{}`, which cannot be opened", tap::DEVICE))
            .with_source(error)
            .with_hint(hint)
    })
}

fn not_permitted() -> Error {
    Error::host_cannot("the bridged network needs root or CAP_NET_ADMIN, which this vmdeck does not have")
        .with_hint("use --network lan for machines that reach each other, or user: they need no root")
}

/// The bridge of a data directory.
#[derive(Clone, Debug)]
pub(crate) struct Bridge {
    data: DataDirectory,
}

impl Bridge {
    pub(crate) fn new(data: DataDirectory) -> Self {
        Self { data }
    }

    /// Makes a machine's end of the network, and of the network what is missing. The machine has to be
    /// on record as one that has a process or is about to.
    pub(crate) async fn attach(
        &self,
        store: &Store,
        vm: &Vm,
        cancel: &CancellationToken,
    ) -> Result<Arc<OwnedFd>> {
        if let Some(error) = obstacle() {
            return Err(error);
        }
        let address =
            vm.address.ok_or_else(|| Error::failed(format!("machine `{}` has no address", vm.name)))?;
        let _lock = self.lock(cancel).await?;
        let mut record = self.record_for(store, vm).await?;
        let tap = tap_name(&record.bridge, &vm.id);
        avoid_routes(&record.bridge, address)?;
        let links = open_links()?;
        if !forwarding::is_on().map_err(forwarding_error)? && record.forwarding.is_none() {
            let interfaces = links.names().await.map_err(|error| denied("this host's interfaces", error))?;
            record.forwarding = Some(WasOff { interfaces });
        }
        if !record.taps.contains(&tap) {
            record.taps.push(tap.clone());
        }
        record.write(&self.data)?;

        let bridge = bridge(&links, &record.bridge, bridge_mac(seed(self.data.root())), address).await?;
        nft::run(&rules::Network { bridge: &record.bridge, gateway: gateway(address) }.table()).await?;
        if record.forwarding.is_some() {
            forwarding::set(true).map_err(forwarding_error)?;
        }
        let descriptor = tap::make(&tap).map_err(|error| denied(&format!("the tap `{tap}`"), error))?;
        let fail = |error| denied(&format!("the tap `{tap}`"), error);
        let end =
            links.find(&tap).await.map_err(fail)?.ok_or_else(|| fail(io::ErrorKind::NotFound.into()))?;
        forwarding::without_ipv6(&tap);
        links.plug(end, bridge).await.map_err(fail)?;
        // Before anything passes.
        nft::run(&rules::Station { tap: &tap, mac: &mac(&vm.id), address }.table()).await?;
        links.up(end).await.map_err(fail)?;
        tracing::info!(machine = vm.name, tap, bridge = record.bridge, %address, "plugged in a machine");
        Ok(Arc::new(descriptor))
    }

    /// Removes what no machine needs any more. Costs nothing where there is no bridge.
    pub(crate) async fn tidy(&self, store: &Store) -> Result<()> {
        if !record::is_there(&self.data) {
            return Ok(());
        }
        let _lock = self.lock(&CancellationToken::new()).await?;
        let Some(mut record) = Record::read(&self.data)? else { return Ok(()) };
        let here = Place::here(&self.data)?;
        if !record.place.still_is(&here) {
            // Of another boot, or another's.
            return record::remove(&self.data);
        }
        if record.place != here {
            tracing::debug!("the bridge is in another network name space");
            return Ok(());
        }
        // A tap may stay for a moment after its machine, while the last threads of QEMU end.
        let needed: Vec<String> =
            bridged(store).await?.iter().map(|vm| tap_name(&record.bridge, &vm.id)).collect();
        let is_needed = !needed.is_empty();
        let gone: Vec<String> = record.taps.iter().filter(|tap| !needed.contains(tap)).cloned().collect();
        if is_needed && gone.is_empty() {
            return Ok(());
        }
        if !rights::may_administer_networks() {
            return Err(not_permitted());
        }
        let tables: String = gone.iter().map(|tap| rules::without_station(tap)).collect();
        if is_needed {
            nft::run(&tables).await?;
            record.taps.retain(|tap| !gone.contains(tap));
            return record.write(&self.data);
        }
        let links = open_links()?;
        let fail = |error| denied(&format!("the bridge `{}`", record.bridge), error);
        if let Some(link) = links.find(&record.bridge).await.map_err(fail)? {
            links.remove(link).await.map_err(fail)?;
        }
        if let Some(was_off) = &record.forwarding {
            let mut now = links.names().await.map_err(fail)?;
            now.retain(|name| !record.taps.contains(name));
            match was_off.newcomer(&now) {
                Some(interface) => tracing::warn!(
                    interface,
                    "net.ipv4.ip_forward stays on: an interface has come since that may need it"
                ),
                None => forwarding::set(false).map_err(forwarding_error)?,
            }
        }
        // Last: without their interfaces the rules do nothing, should `nft` be gone meanwhile.
        nft::run(&format!("{tables}{}", rules::without_network(&record.bridge))).await?;
        tracing::info!(bridge = record.bridge, "the bridge is removed: no machine needs it");
        record::remove(&self.data)
    }

    /// The record of what is there, or of what is to be.
    async fn record_for(&self, store: &Store, vm: &Vm) -> Result<Record> {
        let place = Place::here(&self.data)?;
        match Record::read(&self.data)?.filter(|record| record.place.still_is(&place)) {
            Some(record) if record.place == place => Ok(record),
            Some(_) if bridged(store).await?.iter().any(|other| other.id != vm.id) => Err(Error::conflict(
                "bridged machines of this data directory run in another network name space",
            )
            .with_hint("start it where they were started, or stop them first")),
            _ => Ok(Record {
                bridge: bridge_name(seed(self.data.root())),
                taps: Vec::new(),
                forwarding: None,
                place,
            }),
        }
    }

    async fn lock(&self, cancel: &CancellationToken) -> Result<FileLock> {
        let path = self.data.locks().join("bridge");
        tokio::time::timeout(PATIENCE, FileLock::acquire(&path, cancel)).await.unwrap_or_else(|_| {
            Err(Error::failed("another vmdeck has been busy with the bridge of the machines for too long"))
        })
    }
}

/// Finds or makes the bridge; it has its address and is up afterwards.
async fn bridge(links: &Links, name: &str, mac: [u8; 6], machine: Ipv4Addr) -> Result<Link> {
    let fail = |error| denied(&format!("the bridge `{name}`"), error);
    let link = match links.find(name).await.map_err(fail)? {
        Some(link) if link.is_bridge => link,
        Some(_) => {
            return Err(Error::conflict(format!("the interface `{name}` of this host is no bridge"))
                .with_hint(format!("`ip -d link show {name}` tells what it is; remove it")));
        }
        None => {
            links.make_bridge(name, mac).await.map_err(fail)?;
            let made = links.find(name).await.map_err(fail)?;
            made.ok_or_else(|| fail(io::ErrorKind::NotFound.into()))?
        }
    };
    forwarding::without_ipv6(name);
    links.set_address(link, gateway(machine)).await.map_err(fail)?;
    links.up(link).await.map_err(fail)?;
    Ok(link)
}

/// Machines with this network that have a process, or are about to.
async fn bridged(store: &Store) -> Result<Vec<Vm>> {
    let mut vms = store.read(|connection| store::vms::with_process(connection)).await?;
    vms.retain(|vm| vm.settings.network == NetworkMode::Bridge);
    Ok(vms)
}

/// This host may have joined a network since the machines got theirs.
fn avoid_routes(bridge: &str, machine: Ipv4Addr) -> Result<()> {
    let Some(network) = Subnet::new(machine, super::PREFIX) else { return Ok(()) };
    let others = address::routes_beside(bridge);
    // A wider route loses to the bridge's, and goes on to lead to all the rest.
    let is_ambiguous = |route: Subnet| route.prefix() >= super::PREFIX && route.overlaps(network);
    match others.into_iter().find(|(_, route)| is_ambiguous(*route)) {
        None => Ok(()),
        Some((interface, _)) => Err(Error::conflict(format!(
            "the network of the bridged machines, {network}, is one of this host's interface `{interface}` now"
        ))
        .with_hint("leave that network, or delete all bridged machines: new ones get another one")),
    }
}

fn open_links() -> Result<Links> {
    Links::open().map_err(|error| Error::io("cannot talk to the kernel about its interfaces", error))
}

fn denied(what: &str, error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::PermissionDenied => not_permitted().with_source(error),
        _ if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
            Error::host_cannot(format!("this kernel cannot make {what}"))
                .with_source(error)
                .with_hint("does it have the modules `bridge` and `tun`? --network lan needs neither")
        }
        _ => Error::io(format!("cannot set up {what}"), error),
    }
}

fn forwarding_error(error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            Error::host_cannot("net.ipv4.ip_forward cannot be switched on, without which machines on the bridge reach this host only")
                .with_source(error)
                .with_hint("switch it on by `sysctl net.ipv4.ip_forward=1`")
        }
        _ => Error::io("cannot set net.ipv4.ip_forward", error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nothing_is_asked_of_the_kernel_where_there_is_no_bridge_or_it_is_not_ours() {
        let folder = tempfile::tempdir().unwrap();
        let data = DataDirectory::open(folder.path().join("data")).unwrap();
        let store = Store::open(&data.database()).unwrap();
        let bridge = Bridge::new(data.clone());
        bridge.tidy(&store).await.unwrap();

        // The record came with a copy of another data directory, whose machines may run.
        let elsewhere = DataDirectory::open(folder.path().join("original")).unwrap();
        let record = Record {
            bridge: "lo".into(),
            taps: vec!["lo".into()],
            forwarding: Some(WasOff { interfaces: vec![] }),
            place: Place::here(&elsewhere).unwrap(),
        };
        record.write(&data).unwrap();
        bridge.tidy(&store).await.unwrap();
        assert!(!record::is_there(&data));
        assert!(nix::net::if_::if_nametoindex("lo").is_ok());
    }

    #[test]
    fn what_is_missing_is_named_with_the_next_step() {
        if let Some(error) = obstacle() {
            assert_eq!(error.kind(), crate::ErrorKind::HostCannot);
            assert!(error.hint().is_some_and(|hint| hint.contains("--network lan")), "{error:?}");
        }
        let denied = denied("the tap `x`", io::Error::from_raw_os_error(libc::EPERM));
        assert_eq!(denied.kind(), crate::ErrorKind::HostCannot);
        assert!(denied.to_string().contains("CAP_NET_ADMIN"), "{denied}");
        assert_eq!(
            forwarding_error(io::ErrorKind::ReadOnlyFilesystem.into()).kind(),
            crate::ErrorKind::HostCannot
        );
    }
}
