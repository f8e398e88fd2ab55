//! Whom a guest on the bridge can ask for names: this host's own name servers, as far as they can be
//! reached from elsewhere.

use std::net::{IpAddr, Ipv4Addr};

/// Where to look, in this order: the second is what systemd-resolved asks when the first names only
/// itself, on this host's loopback interface.
const FILES: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];

/// As many as programs look at (resolv.conf(5), MAXNS).
const MOST: usize = 3;

/// The servers; none where this host knows only such that guests cannot reach.
pub(crate) fn of_this_host() -> Vec<Ipv4Addr> {
    FILES
        .iter()
        .filter_map(|path| std::fs::read_to_string(path).ok())
        .map(|text| servers(&text))
        .find(|servers| !servers.is_empty())
        .unwrap_or_default()
}

/// Those of a resolv.conf(5) that are not this host itself. IPv4 only, as guests have no other.
fn servers(text: &str) -> Vec<Ipv4Addr> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_ascii_whitespace();
            (words.next()? == "nameserver").then_some(())?;
            match words.next()?.parse().ok()? {
                IpAddr::V4(address) => Some(address),
                IpAddr::V6(_) => None,
            }
        })
        .filter(|address| !address.is_loopback() && !address.is_unspecified())
        .take(MOST)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_that_only_this_host_reaches_are_left_out() {
        let text = "# comment\nsearch example.org\nnameserver 127.0.0.53\nnameserver 10.0.0.2 \n\
            nameserver ::1\nnameserver 2001:db8::1\nnameserver 192.0.2.1\nnameserver\nnameserver x\n";
        assert_eq!(servers(text), [Ipv4Addr::new(10, 0, 0, 2), Ipv4Addr::new(192, 0, 2, 1)]);
        assert!(servers("nameserver 127.0.0.53\noptions edns0\n").is_empty());
        let many: String = (1..9).map(|host| format!("nameserver 192.0.2.{host}\n")).collect();
        assert_eq!(servers(&many).len(), MOST);
    }
}
