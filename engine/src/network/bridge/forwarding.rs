//! Whether this host passes packets on: without it, machines on the bridge reach this host only.
//!
//! It is one switch for all interfaces (`net.ipv4.ip_forward`; Linux, ip-sysctl.rst). The tables of the
//! bridge see to it that what passes to machines is theirs; between its other interfaces a host that had
//! it off passes packets on as well, until it is put back.

use std::fs;
use std::io;

use serde::{Deserialize, Serialize};

const SWITCH: &str = "/proc/sys/net/ipv4/ip_forward";

/// That it was off, and which interfaces this host had then.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct WasOff {
    pub(super) interfaces: Vec<String>,
}

impl WasOff {
    /// Whether somebody else may have come to need it: another one's bridge or tunnel that has appeared
    /// since found it on, and has no reason to say so.
    pub(super) fn newcomer<'a>(&self, now: &'a [String]) -> Option<&'a str> {
        now.iter().find(|name| !self.interfaces.contains(name)).map(String::as_str)
    }
}

pub(super) fn is_on() -> io::Result<bool> {
    Ok(fs::read_to_string(SWITCH)?.trim() != "0")
}

pub(super) fn set(on: bool) -> io::Result<()> {
    fs::write(SWITCH, if on { "1" } else { "0" })
}

/// Keeps an interface free of IPv6, for which machines have no leases. Where the kernel has none, there
/// is nothing to do.
pub(super) fn without_ipv6(interface: &str) {
    if let Err(error) = fs::write(format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6"), "1") {
        tracing::debug!(interface, %error, "IPv6 is not switched off");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newcomer_is_told_from_who_was_there() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let before = WasOff { interfaces: names(&["lo", "eth0"]) };
        assert_eq!(before.newcomer(&names(&["lo", "eth0"])), None);
        assert_eq!(before.newcomer(&names(&["lo"])), None);
        assert_eq!(before.newcomer(&names(&["lo", "eth0", "docker0"])), Some("docker0"));
    }
}
