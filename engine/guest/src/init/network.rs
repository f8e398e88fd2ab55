//! The machine's network, set before the image's init could ask anybody for an address.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::Path;

use vmdeck_protocol::settings::{Lan, Network, Settings};

use crate::log;

use super::netlink::Netlink;

const INTERFACES: &str = "/sys/class/net";

/// Index of the loopback interface in a fresh network name space.
const LOOPBACK: u32 = 1;

/// Sets up loopback and, by their hardware addresses, the machine's interfaces. A machine without a
/// network still runs and can be looked into, so what fails is a warning.
pub(super) fn set_up(settings: &Settings) {
    let mut netlink = match Netlink::open() {
        Ok(netlink) => netlink,
        Err(error) => return log::warning(&format!("the network cannot be set up: {error}")),
    };
    if let Err(error) = netlink.link_up(LOOPBACK) {
        log::warning(&format!("the loopback interface cannot be set up: {error}"));
    }
    if let Some(Network { mac, address, prefix, gateway, .. }) = &settings.network {
        set_up_one(&mut netlink, mac, *address, *prefix, Some(*gateway));
    }
    if let Some(Lan { mac, address, prefix, .. }) = &settings.lan {
        set_up_one(&mut netlink, mac, *address, *prefix, None);
    }
}

fn set_up_one(netlink: &mut Netlink, mac: &str, address: Ipv4Addr, prefix: u8, gateway: Option<Ipv4Addr>) {
    let Some(name) = interface(mac) else {
        let hint = "has the kernel a driver for it (virtio_net)?";
        return log::warning(&format!("there is no network interface {mac}: {hint}"));
    };
    match configure(netlink, &name, address, prefix, gateway) {
        Ok(()) => log::info(&format!("{name} has {address}/{prefix}")),
        Err(error) => log::warning(&format!("the network interface {name} cannot be set up: {error}")),
    }
}

/// Name of the interface with this hardware address.
pub(super) fn interface(mac: &str) -> Option<String> {
    let entries = fs::read_dir(INTERFACES).ok()?;
    entries.flatten().find_map(|entry| {
        let address = fs::read_to_string(entry.path().join("address")).ok()?;
        address.trim_end().eq_ignore_ascii_case(mac).then(|| entry.file_name().to_string_lossy().into_owned())
    })
}

fn configure(
    netlink: &mut Netlink,
    name: &str,
    address: Ipv4Addr,
    prefix: u8,
    gateway: Option<Ipv4Addr>,
) -> io::Result<()> {
    let index = fs::read_to_string(Path::new(INTERFACES).join(name).join("ifindex"))?;
    let index = index.trim_end().parse().map_err(io::Error::other)?;
    if prefix > 32 {
        return Err(io::Error::other(format!("a prefix of {prefix} bits")));
    }
    let doing = |what: &'static str| move |error: io::Error| io::Error::other(format!("{what}: {error}"));
    netlink.add_address(index, address, prefix).map_err(doing("address"))?;
    netlink.link_up(index).map_err(doing("up"))?;
    gateway
        .map_or(Ok(()), |gateway| netlink.add_default_route(index, gateway).map_err(doing("default route")))
}
