//! The packet filter's rules, in nft's own language (nft(8)). Pure.
//!
//! Every name and address in them is of our own making. Each script replaces its table as one
//! transaction, whatever was there.

use std::net::Ipv4Addr;

use super::PREFIX;

/// What the bridge's table is made of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Network<'a> {
    pub(super) bridge: &'a str,
    pub(super) gateway: Ipv4Addr,
}

/// One machine at its tap.
#[derive(Clone, Copy, Debug)]
pub(super) struct Station<'a> {
    pub(super) tap: &'a str,
    pub(super) mac: &'a str,
    pub(super) address: Ipv4Addr,
}

impl Network<'_> {
    /// Who passes between the bridge and the rest of the world, and under which address.
    ///
    /// Guests talk to one another within the bridge; where br_netfilter has such frames pass here, the
    /// first rule lets them. From outside only answers come in, and what the host's administrator
    /// translated to a guest on purpose.
    pub(super) fn table(&self) -> String {
        let Self { bridge, gateway } = self;
        let network = Ipv4Addr::from(u32::from(*gateway) & (u32::MAX << (32 - u32::from(PREFIX))));
        format!(
            r#"{}
table ip {bridge} {{
    chain forward {{
        type filter hook forward priority filter; policy accept;
        iifname "{bridge}" oifname "{bridge}" accept
        iifname "{bridge}" ip saddr != {network}/{PREFIX} drop
        oifname "{bridge}" ct state established,related accept
        oifname "{bridge}" ct status dnat accept
        oifname "{bridge}" drop
    }}
    chain postrouting {{
        type nat hook postrouting priority srcnat; policy accept;
        ip saddr {network}/{PREFIX} oifname != "{bridge}" masquerade
    }}
}}
"#,
            without_network(bridge)
        )
    }
}

impl Station<'_> {
    /// What the machine may send: IPv4 and ARP in its own name, as [`crate::network::lan`] has it.
    /// Whoever asks whether an address is taken has none yet (RFC 5227).
    pub(super) fn table(&self) -> String {
        let Self { tap, mac, address } = self;
        format!(
            r#"{}
table netdev {tap} {{
    chain ingress {{
        type filter hook ingress device "{tap}" priority filter; policy drop;
        ether saddr != {mac} drop
        ip saddr {address} accept
        arp saddr ether {mac} arp saddr ip {{ {address}, 0.0.0.0 }} accept
    }}
}}
"#,
            without_station(tap)
        )
    }
}

/// Removes a bridge's table. `add` before `delete`: nft before 1.0.7 has no `destroy`.
pub(super) fn without_network(bridge: &str) -> String {
    format!("add table ip {bridge}\ndelete table ip {bridge}\n")
}

/// Removes a tap's table.
pub(super) fn without_station(tap: &str) -> String {
    format!("add table netdev {tap}\ndelete table netdev {tap}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_networks_own_addresses_go_out_and_only_answers_come_in() {
        let network = Network { bridge: "vmdeck-1a2b3c4d", gateway: Ipv4Addr::new(10, 80, 3, 1) };
        let rules = network.table();
        assert!(
            rules.starts_with("add table ip vmdeck-1a2b3c4d\ndelete table ip vmdeck-1a2b3c4d\n"),
            "{rules}"
        );
        assert!(
            rules.contains(r#"ip saddr 10.80.3.0/24 oifname != "vmdeck-1a2b3c4d" masquerade"#),
            "{rules}"
        );
        let at = |rule: &str| rules.find(rule).unwrap_or_else(|| panic!("`{rule}` is not in {rules}"));
        assert!(at("ct state established,related accept") < at("oifname \"vmdeck-1a2b3c4d\" drop"));
        assert!(!rules.contains("flush ruleset"), "others' tables are none of ours");
    }

    #[test]
    fn a_machine_speaks_in_its_own_name_or_not_at_all() {
        let station = Station {
            tap: "vt1a2b-01234567",
            mac: "5a:01:02:03:04:05",
            address: Ipv4Addr::new(10, 80, 3, 2),
        };
        let rules = station.table();
        assert!(rules.contains(r#"device "vt1a2b-01234567" priority filter; policy drop;"#), "{rules}");
        let accepting: Vec<&str> =
            rules.lines().map(str::trim).filter(|line| line.ends_with(" accept")).collect();
        assert_eq!(
            accepting,
            [
                "ip saddr 10.80.3.2 accept",
                "arp saddr ether 5a:01:02:03:04:05 arp saddr ip { 10.80.3.2, 0.0.0.0 } accept",
            ]
        );
        assert!(rules.contains("ether saddr != 5a:01:02:03:04:05 drop"), "{rules}");
    }
}
