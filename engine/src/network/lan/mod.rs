//! The network between machines (`--network lan`): a switch of our own in a process of its own.
//!
//! ```text
//!  machine a: QEMU ─ vms/<a>/lan-guest.sock ⇄ vms/<a>/lan.sock ─┐
//!                                                               ├ vmdeck lan-switch
//!  machine b: QEMU ─ vms/<b>/lan-guest.sock ⇄ vms/<b>/lan.sock ─┘
//! ```
//!
//! A machine has a second network card for it, beside that of the hypervisor's user-mode network, which
//! leads to the internet and takes the forwarded ports. Frames travel as datagrams between unix sockets
//! in the machine's folder: there is no connection, so that either end may be started anew and the
//! other goes on. Nothing needs root, a device, or a port of the host.
//!
//! - [`frame`] judges what a machine sends: it is known which hardware and IPv4 address each has, and
//!   nothing is passed on that claims another one. So nothing has to be learned, and nobody can make
//!   the switch learn something wrong.
//! - [`names`] answers for the names of machines, at the network's first address.
//! - [`hub`] moves the frames; a machine that does not take them loses them, and holds up nobody.
//! - [`process`] is the switch's process: it reads the store for who is there, and ends with the last.
//! - [`keeper`] makes sure that it runs.
//!
//! Others are not involved in one's traffic: a switch that was killed is started again by whichever
//! vmdeck process next looks at the machines.

mod frame;
mod hub;
mod keeper;
mod names;
pub mod process;

use std::net::Ipv4Addr;

pub(crate) use keeper::Keeper;
pub use names::DOMAIN;

use super::{host_name, mac_with};
use crate::identifier::VmId;
use crate::vm::record::{NetworkMode, Vm};

/// The verb of the program that is the switch.
pub const VERB: &str = "lan-switch";

/// Names within a machine's folder: the switch's end of its cable, and the machine's.
pub(crate) const SWITCH_SOCKET: &str = "lan.sock";
pub(crate) const GUEST_SOCKET: &str = "lan-guest.sock";

/// Length of the network's prefix.
pub(crate) const PREFIX: u8 = 24;

/// Where in the network the switch itself is, to be asked for names.
const RESOLVER_HOST_NUMBER: u32 = 1;

/// Address at which the switch of a machine's network answers for names.
pub(crate) fn resolver(machine: Ipv4Addr) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(machine) & !0xff | RESOLVER_HOST_NUMBER)
}

/// The name by which other machines reach this one, where they do.
pub fn name(vm: &Vm) -> Option<String> {
    (vm.settings.network == NetworkMode::Lan).then(|| format!("{}.{DOMAIN}", host_name(&vm.name)))
}

/// Hardware address of a machine's second network card.
pub(crate) fn mac(id: &VmId) -> String {
    mac_with(0x5e, id)
}
