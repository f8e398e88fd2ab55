//! What systemd is told before it starts as the image's init, in `/run`: nothing of the image is
//! changed.
//!
//! An image made for containers has systemd but no udev. Then no device unit ever becomes active,
//! and what waits for one waits 90 seconds: above all the login on the serial console that
//! systemd-getty-generator makes because of `console=ttyS0`.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

use vmdeck_protocol::settings::{Lan, Network, Settings};

use crate::log;

use super::network::interface;

const UNITS: &str = "/run/systemd/system";

/// Units that wait for udev, or for a network that it has announced.
const WITHOUT_UDEV: [&str; 6] = [
    "serial-getty@ttyS0.service",
    "serial-getty@hvc0.service",
    "dev-ttyS0.device",
    "systemd-networkd-wait-online.service",
    "systemd-udev-settle.service",
    "systemd-udev-trigger.service",
];

/// Where udev's daemon is in the images that have it.
const UDEV: [&str; 3] = ["/usr/lib/systemd/systemd-udevd", "/lib/systemd/systemd-udevd", "/sbin/udevd"];

const STATIC_NODES: &str = "kmod-static-nodes.service";

/// Where kmod is in the images that have it.
const KMOD: [&str; 3] = ["/usr/bin/kmod", "/bin/kmod", "/sbin/kmod"];

/// Prepares the image's root, which is `/` already.
pub(super) fn prepare(settings: &Settings) {
    let has_udev = UDEV.iter().any(crate::command::is_executable);
    if !has_udev {
        for unit in WITHOUT_UDEV {
            warn(unit, mask(unit));
        }
    }
    // It begins when there are static device nodes to make, and we brought the list of them along.
    if !KMOD.iter().any(crate::command::is_executable) {
        warn(STATIC_NODES, mask(STATIC_NODES));
    }
    warn("/etc/machine-id", machine_id());
    warn("the network of systemd", keep_networks(settings));
}

fn mask(unit: &str) -> io::Result<()> {
    fs::create_dir_all(UNITS)?;
    symlink("/dev/null", Path::new(UNITS).join(unit))
}

/// Gives the machine an id of its own where the image has none. With an empty one systemd takes this
/// for the first boot of an installation, and some images then ask questions on the console.
fn machine_id() -> io::Result<()> {
    let path = "/etc/machine-id";
    let present = fs::read_to_string(path).unwrap_or_default();
    if !matches!(present.trim(), "" | "uninitialized") {
        return Ok(());
    }
    let id = fs::read_to_string("/proc/sys/kernel/random/uuid")?;
    fs::write(path, format!("{}\n", id.trim().replace('-', "")))
}

/// Tells those who might configure the interfaces that they have what they need.
fn keep_networks(settings: &Settings) -> io::Result<()> {
    let mut macs = Vec::new();
    if let Some(network) = &settings.network {
        keep("00-vmdeck", &network.mac, &network_unit(network))?;
        let resolvers: Vec<String> = network.resolvers.iter().map(ToString::to_string).collect();
        if !resolvers.is_empty() {
            let text = format!("[Resolve]\nDNS={}\n", resolvers.join(" "));
            write_below("/run/systemd/resolved.conf.d", "00-vmdeck.conf", &text)?;
        }
        macs.push(network.mac.as_str());
    }
    if let Some(lan) = &settings.lan {
        keep("00-vmdeck-lan", &lan.mac, &lan_unit(lan))?;
        macs.push(lan.mac.as_str());
    }
    if macs.is_empty() {
        return Ok(());
    }
    if fs::exists("/etc/network/interfaces").unwrap_or(false) {
        // What ifupdown takes for "is up already" (ifup(8), FILES).
        let lines = macs.iter().filter_map(|mac| interface(mac)).map(|name| format!("{name}={name}\n"));
        write_below("/run/network", "ifstate", &lines.collect::<String>())?;
    }
    let macs: Vec<String> = macs.iter().map(|mac| format!("mac:{mac}")).collect();
    let unmanaged = format!("[keyfile]\nunmanaged-devices={}\n", macs.join(";"));
    write_below("/run/NetworkManager/conf.d", "00-vmdeck.conf", &unmanaged)
}

/// The first file by name that matches an interface counts (systemd.network(5)), and so does the first
/// for its name (systemd.link(5)): a rename would leave our routes without their interface.
fn keep(name: &str, mac: &str, unit: &str) -> io::Result<()> {
    let matching = format!("[Match]\nMACAddress={mac}\n\n");
    write_below("/run/systemd/network", &format!("{name}.network"), &format!("{matching}{unit}"))?;
    write_below("/run/systemd/network", &format!("{name}.link"), &format!("{matching}[Link]\nNamePolicy=\n"))
}

fn network_unit(network: &Network) -> String {
    let mut text = format!(
        "[Network]\nDHCP=no\nLinkLocalAddressing=ipv6\nAddress={}/{}\nGateway={}\n",
        network.address, network.prefix, network.gateway
    );
    for resolver in &network.resolvers {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "DNS={resolver}");
    }
    text
}

/// Its resolver is asked for its domain only, where there is a systemd-resolved that tells them apart.
fn lan_unit(lan: &Lan) -> String {
    format!(
        "[Network]\nDHCP=no\nLinkLocalAddressing=no\nAddress={}/{}\nDNS={}\nDomains={}\nDNSDefaultRoute=no\n",
        lan.address, lan.prefix, lan.resolver, lan.domain
    )
}

fn write_below(folder: &str, name: &str, text: &str) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    fs::write(Path::new(folder).join(name), text)
}

fn warn(what: &str, result: io::Result<()>) {
    if let Err(error) = result {
        log::warning(&format!("{what} cannot be prepared: {error}"));
    }
}
