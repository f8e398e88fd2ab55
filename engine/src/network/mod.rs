//! Addresses and ports: what no two machines may have at once, and how they are chosen.
//!
//! Choosing is pure ([`address`], [`port`]); that nobody else chooses the same is the store's work:
//! the choice is made and leased within the transaction that inserts the machine's row, and goes with
//! that row. A machine keeps its address and its ports while it is stopped.

pub mod address;
pub mod bridge;
pub mod lan;
pub mod port;

use std::net::Ipv4Addr;

use crate::identifier::VmId;
use crate::vmm::UserNetwork;

/// The network around a leased guest address, laid out as QEMU's user mode has it by default:
/// gateway `.2`, resolver `.3`, guest `.15`, in a /24 of its own.
pub fn user_network(guest: Ipv4Addr) -> UserNetwork {
    let [a, b, c, _] = guest.octets();
    UserNetwork {
        network: Ipv4Addr::new(a, b, c, 0),
        prefix: 24,
        gateway: Ipv4Addr::new(a, b, c, 2),
        resolver: Ipv4Addr::new(a, b, c, 3),
        guest,
    }
}

/// The machine's MAC address: locally administered (IEEE 802-2014, 8.4), the same at every boot, as
/// guests name their interfaces by it and keep leases for it.
pub fn mac(id: &VmId) -> String {
    mac_with(0x5a, id)
}

/// An address of the same kind that begins with this byte: one for each network card.
fn mac_with(first: u8, id: &VmId) -> String {
    let digits: Vec<u8> = id.as_str().bytes().filter(u8::is_ascii_hexdigit).take(10).collect();
    let mut mac = format!("{first:02x}");
    for index in 0..5 {
        let octet = digits.get(index * 2..index * 2 + 2).and_then(|pair| std::str::from_utf8(pair).ok());
        mac.push(':');
        mac.push_str(octet.unwrap_or("00"));
    }
    mac
}

/// The bytes of a hardware address as [`mac`] writes it.
fn octets(mac: &str) -> Option<[u8; 6]> {
    let mut octets = [0; 6];
    let mut parts = mac.split(':');
    for octet in &mut octets {
        *octet = u8::from_str_radix(parts.next()?, 16).ok()?;
    }
    parts.next().is_none().then_some(octets)
}

/// A machine's name as a host name (RFC 1123, 2.1): letters, digits and hyphens, none at an end.
pub fn host_name(name: &str) -> String {
    let name: String = name
        .chars()
        .map(|character| if character.is_ascii_alphanumeric() { character } else { '-' })
        .collect();
    name.trim_matches('-').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mac_is_local_unicast_and_derived_from_the_id() {
        let id = VmId::from_stored("0123456789ab".into());
        assert_eq!(mac(&id), "5a:01:23:45:67:89");
        assert_eq!(0x5a & 0b11, 0b10, "locally administered, not multicast");
        assert_eq!(mac(&VmId::from_stored("x".into())), "5a:00:00:00:00:00");
        assert_eq!(octets(&lan::mac(&id)), Some([0x5e, 0x01, 0x23, 0x45, 0x67, 0x89]));
        assert_eq!(octets("5a:01:23:45:67"), None);
    }

    #[test]
    fn a_name_becomes_a_host_name() {
        assert_eq!(host_name("web_1.test+x"), "web-1-test-x");
        assert_eq!(host_name("a."), "a");
    }
}
