//! Values as they are written on the command line of `vmdeck vm …`.

use std::net::Ipv4Addr;

use vmdeck_engine::vm::record::{PortForward, Protocol, Vm};

/// A label that a machine must have, with this value where one is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LabelFilter {
    pub(crate) key: String,
    pub(crate) value: Option<String>,
}

impl LabelFilter {
    pub(crate) fn fits(&self, vm: &Vm) -> bool {
        vm.labels.get(&self.key).is_some_and(|found| self.value.as_ref().is_none_or(|value| value == found))
    }
}

/// `KEY=VALUE`
pub(super) fn parse_label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write KEY=VALUE, for example tier=web")?;
    check_label(key, value)?;
    Ok((key.to_owned(), value.to_owned()))
}

/// A number of MiB, or one with a unit.
pub(super) fn parse_mebibytes(text: &str) -> Result<u64, String> {
    parse_size(text, &[("M", 1), ("G", 1 << 10), ("T", 1 << 20)])
        .ok_or_else(|| "write a number of MiB, or one with its unit, for example 512M or 2G".to_owned())
}

/// A number of GiB, or one with a unit.
pub(super) fn parse_gibibytes(text: &str) -> Result<u64, String> {
    parse_size(text, &[("G", 1), ("T", 1 << 10)])
        .ok_or_else(|| "write a number of GiB, or one with its unit, for example 20G or 1T".to_owned())
}

/// Units are powers of two, as machines have them, whether written `G`, `GB` or `GiB`.
fn parse_size(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = (text[..digits].parse::<u64>().ok()?, text[digits..].to_ascii_uppercase());
    let unit = unit.strip_suffix("IB").or(unit.strip_suffix('B')).unwrap_or(&unit);
    let factor = if text[digits..].is_empty() {
        1
    } else {
        units.iter().find(|(name, _)| *name == unit).map(|(_, factor)| *factor)?
    };
    number.checked_mul(factor)
}

/// `KEY[=VALUE]`
pub(super) fn parse_label_filter(text: &str) -> Result<LabelFilter, String> {
    let (key, value) = match text.split_once('=') {
        Some((key, value)) => (key, Some(value)),
        None => (text, None),
    };
    check_label(key, value.unwrap_or_default())?;
    Ok(LabelFilter { key: key.to_owned(), value: value.map(str::to_owned) })
}

fn check_label(key: &str, value: &str) -> Result<(), String> {
    vmdeck_engine::vm::check_label(key, value).map_err(|error| error.to_string())
}

/// `[ADDRESS:]HOST:GUEST[/tcp|/udp]`
pub(super) fn parse_forward(text: &str) -> Result<PortForward, String> {
    let (ports, protocol) = protocol(text)?;
    let (rest, guest) = ports.rsplit_once(':').ok_or("write HOST:GUEST, for example 8080:80")?;
    let (address, host) = match rest.rsplit_once(':') {
        Some((address, host)) => (loopback(address)?, host),
        None => (Ipv4Addr::LOCALHOST, rest),
    };
    let guest_port = port(guest)?;
    if guest_port == 0 {
        return Err("the guest's port cannot be 0".into());
    }
    let host_port = if host.is_empty() { 0 } else { port(host)? };
    Ok(PortForward { protocol, host_address: address, host_port, guest_port })
}

/// `[ADDRESS:]HOST[:GUEST][/tcp|/udp]`: which forward there is; the guest's port is not needed.
pub(super) fn parse_host_side(text: &str) -> Result<PortForward, String> {
    let (ports, protocol) = protocol(text)?;
    let (address, ports) = match ports.split_once(':') {
        Some((address, ports)) if address.contains('.') => (loopback(address)?, ports),
        _ => (Ipv4Addr::LOCALHOST, ports),
    };
    let (host, guest) = ports.split_once(':').unwrap_or((ports, "0"));
    let (host_port, guest_port) = (port(host)?, port(guest)?);
    Ok(PortForward { protocol, host_address: address, host_port, guest_port })
}

fn protocol(text: &str) -> Result<(&str, Protocol), String> {
    match text.rsplit_once('/') {
        None => Ok((text, Protocol::Tcp)),
        Some((ports, "tcp")) => Ok((ports, Protocol::Tcp)),
        Some((ports, "udp")) => Ok((ports, Protocol::Udp)),
        Some((_, other)) => Err(format!("`{other}` is neither tcp nor udp")),
    }
}

fn port(text: &str) -> Result<u16, String> {
    text.parse::<u16>().map_err(|_| format!("`{text}` is no port number"))
}

fn loopback(text: &str) -> Result<Ipv4Addr, String> {
    let address: Ipv4Addr = text.parse().map_err(|_| format!("`{text}` is no IPv4 address"))?;
    if address.is_loopback() {
        Ok(address)
    } else {
        Err(format!("{address} is not a loopback address: forwards are bound to 127.0.0.0/8 only"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units_or_none() {
        let read = |text| (parse_mebibytes(text).ok(), parse_gibibytes(text).ok());
        assert_eq!(read("512"), (Some(512), Some(512)));
        assert_eq!(read("512M"), (Some(512), None));
        assert_eq!(read("2g"), (Some(2048), Some(2)));
        assert_eq!((read("2GiB"), read("2GB")), (read("2G"), read("2G")));
        assert_eq!(read("1T"), (Some(1 << 20), Some(1024)));
        for bad in ["", "M", "-1", "1.5G", "1K", "1B", "1Gi", "99999999999999999999", "18446744073709551615T"]
        {
            assert_eq!(read(bad), (None, None), "{bad}");
        }
    }

    #[test]
    fn forwards_are_read_as_documented() {
        let forward = |host: [u8; 4], host_port, guest_port, protocol| {
            Ok(PortForward { protocol, host_address: host.into(), host_port, guest_port })
        };
        assert_eq!(parse_forward("8080:80"), forward([127, 0, 0, 1], 8080, 80, Protocol::Tcp));
        assert_eq!(parse_forward(":80"), forward([127, 0, 0, 1], 0, 80, Protocol::Tcp));
        assert_eq!(parse_forward("127.0.0.2:53:53/udp"), forward([127, 0, 0, 2], 53, 53, Protocol::Udp));
        for bad in ["80", "a:80", "80:0", "0.0.0.0:80:80", "80:80/sctp", "1:2:3:4", "70000:1", ""] {
            assert!(parse_forward(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_forward_is_found_by_its_host_side() {
        let forward = |host: [u8; 4], host_port, guest_port, protocol| {
            Ok(PortForward { protocol, host_address: host.into(), host_port, guest_port })
        };
        assert_eq!(parse_host_side("8080"), forward([127, 0, 0, 1], 8080, 0, Protocol::Tcp));
        assert_eq!(parse_host_side("8080:80"), forward([127, 0, 0, 1], 8080, 80, Protocol::Tcp));
        assert_eq!(parse_host_side("127.0.0.2:53/udp"), forward([127, 0, 0, 2], 53, 0, Protocol::Udp));
        assert_eq!(parse_host_side("127.0.0.2:53:53/udp"), forward([127, 0, 0, 2], 53, 53, Protocol::Udp));
        for bad in ["", "a", "10.0.0.1:80", "1:2:3", "80/sctp"] {
            assert!(parse_host_side(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn labels_are_a_key_and_a_value() {
        assert_eq!(parse_label("tier=web=1"), Ok(("tier".into(), "web=1".into())));
        assert_eq!(parse_label("empty="), Ok(("empty".into(), String::new())));
        for bad in ["tier", "=web", "a b=c", "key=a\nb"] {
            assert!(parse_label(bad).is_err(), "{bad}");
        }
        let filter = parse_label_filter("tier").unwrap();
        assert_eq!((filter.key.as_str(), filter.value), ("tier", None));
        assert_eq!(parse_label_filter("tier=").unwrap().value, Some(String::new()));
    }
}
