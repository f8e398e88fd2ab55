//! The bridged network (`--network bridge`), for root or who has CAP_NET_ADMIN.
//!
//! ```text
//!  machine a: QEMU ─ descriptor of tap vt1a2b-… ─┐
//!                                                ├ bridge vmdeck-1a2b3c4d ─ host ─ masquerade ─▶ out
//!  machine b: QEMU ─ descriptor of tap vt1a2b-… ─┘   gateway, .1
//! ```
//!
//! A machine has an address of its own, at which this host and the other machines on the bridge reach
//! it; what it sends beyond bears this host's address. From beyond nobody reaches it, unless a rule of
//! the host's administrator translates an address to it.
//!
//! - [`host`] makes all of it before a machine starts, and removes it after the last one.
//! - [`tap`] makes a machine's end: a device that lives as long as its descriptor is open, which only
//!   QEMU has. However that ends, the kernel removes the device.
//! - [`link`] is the bridge and what is plugged into it, by rtnetlink.
//! - [`rules`] are the packet filter's: one table of the family `ip` for the bridge, and one of the
//!   family `netdev` for each tap, in which nothing passes that bears another's hardware or IPv4
//!   address. They are handed to the host's `nft` ([`nft`]) as text, which is what it shows of them as
//!   well; no other table is changed.
//! - [`foreign`] tells of tables of others that keep machines from reaching beyond the host.
//! - [`forwarding`] is the one setting of the whole host that has to be changed, and is put back.
//! - [`record`] is what is on disk of it: written before anything is made, removed last. A vmdeck that
//!   finds it knows what a killed one left.
//! - [`rights`] tells whether this process may do it, and [`resolvers`] whom guests can ask for names.
//!
//! Names are made of the data directory's place, so that two of them never share a bridge, and end
//! within the 15 bytes that the kernel has for a name.

pub(crate) mod foreign;
mod forwarding;
mod host;
mod link;
mod nft;
mod record;
mod resolvers;
pub(crate) mod rights;
mod rules;
mod tap;

use std::net::Ipv4Addr;
use std::path::Path;

use sha2::{Digest, Sha256};

pub(crate) use host::{Bridge, obstacle};
pub(crate) use resolvers::of_this_host as resolvers;

use crate::identifier::VmId;
use crate::vm::record::{NetworkMode, Vm};

/// Length of the network's prefix.
pub(crate) const PREFIX: u8 = 24;

/// Where in the network the host is.
const GATEWAY_HOST_NUMBER: u32 = 1;

/// How names of bridges begin.
const BRIDGE_PREFIX: &str = "vmdeck-";
/// How names of taps begin.
const TAP_PREFIX: &str = "vt";

/// This host's address in the network of a machine.
pub(crate) fn gateway(machine: Ipv4Addr) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(machine) & !0xff | GATEWAY_HOST_NUMBER)
}

/// The address at which a machine is reached from this host without any forward, where it is.
pub fn reachable(vm: &Vm) -> Option<Ipv4Addr> {
    vm.address.filter(|_| vm.settings.network == NetworkMode::Bridge)
}

/// A number that is the same for a data directory as long as it stays where it is.
pub(crate) fn seed(data: &Path) -> u32 {
    use std::os::unix::ffi::OsStrExt;
    let place = std::fs::canonicalize(data).unwrap_or_else(|_| data.to_owned());
    let digest = Sha256::digest(place.as_os_str().as_bytes());
    digest.iter().take(4).fold(0, |number, byte| number << 8 | u32::from(*byte))
}

/// Name of a data directory's bridge and of its table: `vmdeck-1a2b3c4d`.
pub(crate) fn bridge_name(seed: u32) -> String {
    format!("{BRIDGE_PREFIX}{seed:08x}")
}

/// Hardware address of a bridge: locally administered, and of no machine (those begin with 5a or 5e).
/// One that is set does not change with what is plugged in.
fn bridge_mac(seed: u32) -> [u8; 6] {
    let [a, b, c, d] = seed.to_be_bytes();
    [0x56, 0x6d, a, b, c, d]
}

/// Name of a machine's tap and of its table: four digits of its bridge, eight of the machine's id.
fn tap_name(bridge: &str, id: &VmId) -> String {
    let bridge: String = bridge.strip_prefix(BRIDGE_PREFIX).unwrap_or(bridge).chars().take(4).collect();
    let id: String = id.as_str().chars().filter(char::is_ascii_alphanumeric).take(8).collect();
    format!("{TAP_PREFIX}{bridge}-{id}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernel's IFNAMSIZ, without the zero at the end.
    const LONGEST: usize = 15;

    #[test]
    fn names_fit_and_tell_data_directories_apart() {
        let folder = tempfile::tempdir().unwrap();
        let place = |name: &str| {
            let path = folder.path().join(name);
            std::fs::create_dir(&path).unwrap();
            path
        };
        let (first, second) = (place("a"), place("b"));
        let name = bridge_name(seed(&first));
        assert_eq!(name.len(), LONGEST, "{name}");
        assert_ne!(name, bridge_name(seed(&second)));
        std::os::unix::fs::symlink(&first, folder.path().join("link")).unwrap();
        assert_eq!(name, bridge_name(seed(&folder.path().join("link"))), "the same folder");

        assert_eq!(bridge_name(0x1a2b), "vmdeck-00001a2b");
        let tap = tap_name("vmdeck-1a2b3c4d", &VmId::from_stored("0123456789ab".into()));
        assert_eq!((tap.as_str(), tap.len()), ("vt1a2b-01234567", LONGEST));
        assert_eq!(bridge_mac(0x0102_0304)[0] & 0b11, 0b10, "locally administered, not multicast");
        assert_eq!(gateway(Ipv4Addr::new(10, 80, 3, 17)), Ipv4Addr::new(10, 80, 3, 1));
    }
}
