//! Which ports of this host lead into a guest.

use std::collections::HashSet;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::ops::RangeInclusive;
use std::os::fd::AsRawFd;

use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrIn, sockopt};

use crate::error::{Error, Result};
use crate::vm::record::{PortForward, Protocol};

/// Ports given out when none is asked for: below what Linux hands to outgoing connections
/// (`net.ipv4.ip_local_port_range` begins at 32768), so that a port stays free while its machine is
/// stopped.
pub const AUTOMATIC: RangeInclusive<u16> = 20000..=32767;

impl Protocol {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

impl std::fmt::Display for PortForward {
    /// `127.0.0.1:8080 → 80/tcp`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { protocol, host_address, host_port, guest_port } = self;
        write!(f, "{host_address}:{host_port} → {guest_port}/{}", protocol.as_str())
    }
}

/// The host's side of a forward as the lease names it: `tcp/127.0.0.1/8080`.
pub fn lease(forward: &PortForward) -> String {
    format!("{}/{}/{}", forward.protocol.as_str(), forward.host_address, forward.host_port)
}

/// Checks forwards as a user gives them; a host port of 0 is one to be chosen.
pub fn check(forwards: &[PortForward]) -> Result<()> {
    let mut seen = HashSet::new();
    for forward in forwards {
        if forward.guest_port == 0 {
            return Err(
                Error::usage("a port of the guest cannot be 0").with_hint("write HOST:GUEST, as in 8080:80")
            );
        }
        if !forward.host_address.is_loopback() {
            return Err(Error::usage(format!(
                "ports are forwarded from this host only, not from `{}`",
                forward.host_address
            ))
            .with_hint("leave the address out, or use one that begins with 127."));
        }
        if forward.host_port != 0 && !seen.insert(lease(forward)) {
            return Err(Error::usage(format!("port {} is forwarded twice", forward.host_port))
                .with_hint("give each forward a port of its own, or 0 for any free one"));
        }
    }
    Ok(())
}

/// Whether a program could listen on the host's side now. Another one may take it right after.
pub fn probe(protocol: Protocol, address: Ipv4Addr, port: u16) -> io::Result<()> {
    match protocol {
        Protocol::Tcp => {
            // Bound, not listened on. A child that another task has just forked has a copy of the socket
            // until it executes its program, and QEMU gets a port that is bound so, but none that is
            // listened on (SO_REUSEADDR, socket(7)).
            let socket = socket::socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
            socket::setsockopt(&socket, sockopt::ReuseAddr, &true)?;
            Ok(socket::bind(socket.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(address, port)))?)
        }
        Protocol::Udp => UdpSocket::bind(SocketAddrV4::new(address, port)).map(drop),
    }
}

/// The error for a port that [`probe`] could not take.
pub fn unavailable(forward: &PortForward, error: io::Error) -> Error {
    let port = forward.host_port;
    let (message, hint) = match error.kind() {
        io::ErrorKind::AddrInUse => (
            format!("port {port} of this host is used by another program"),
            format!("`ss -lnp 'sport = :{port}'` shows which; choose another, or 0 for any free one"),
        ),
        io::ErrorKind::PermissionDenied => (
            format!("port {port} of this host needs privileges"),
            "choose one above 1023, or 0 for any free one".to_owned(),
        ),
        _ => (
            format!("port {port} of {} cannot be listened on", forward.host_address),
            "choose another, or 0 for any free one".to_owned(),
        ),
    };
    Error::conflict(message).with_source(error).with_hint(hint)
}

/// The ports of the automatic range, each once, from `start` on and around.
pub fn candidates(start: u64) -> impl Iterator<Item = u16> {
    let count = u64::from(AUTOMATIC.end() - AUTOMATIC.start()) + 1;
    (0..count).map(move |step| {
        let offset = (start % count + step) % count;
        // Less than the count, which fits.
        AUTOMATIC.start() + u16::try_from(offset).unwrap_or_default()
    })
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::test_support::FreePort;

    fn tcp(host_port: u16, guest_port: u16) -> PortForward {
        PortForward { protocol: Protocol::Tcp, host_address: Ipv4Addr::LOCALHOST, host_port, guest_port }
    }

    #[test]
    fn forwards_are_checked() {
        assert!(check(&[tcp(8080, 80), tcp(8081, 80), tcp(0, 22), tcp(0, 23)]).is_ok());
        assert!(check(&[tcp(8080, 80), tcp(8080, 81)]).unwrap_err().to_string().contains("twice"));
        assert!(check(&[PortForward { protocol: Protocol::Udp, ..tcp(8080, 80) }, tcp(8080, 80)]).is_ok());
        assert!(check(&[tcp(8080, 0)]).is_err());
        let open = PortForward { host_address: Ipv4Addr::UNSPECIFIED, ..tcp(8080, 80) };
        assert!(check(&[open]).unwrap_err().to_string().contains("0.0.0.0"));
    }

    #[test]
    fn a_port_in_use_is_noticed() {
        let free = FreePort::new();
        let port = free.number();
        assert!(probe(Protocol::Tcp, Ipv4Addr::LOCALHOST, port).is_ok());
        let _listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
        let error = probe(Protocol::Tcp, Ipv4Addr::LOCALHOST, port).unwrap_err();
        assert!(unavailable(&tcp(port, 80), error).to_string().contains("another program"));
        let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        assert!(probe(Protocol::Udp, Ipv4Addr::LOCALHOST, udp.local_addr().unwrap().port()).is_err());
    }

    #[test]
    fn candidates_cover_the_range_once() {
        let all: HashSet<u16> = candidates(u64::MAX).collect();
        assert_eq!(all.len(), usize::from(AUTOMATIC.end() - AUTOMATIC.start()) + 1);
        assert!(all.iter().all(|port| AUTOMATIC.contains(port)));
        assert_eq!(candidates(0).next(), Some(20000));
    }
}
