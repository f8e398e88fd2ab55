//! What a machine may send, and to whom it goes: pure, so that every forgery can be tried.
//!
//! Ethernet II frames (IEEE 802.3, 3.2.6) with IPv4 (RFC 791) or ARP (RFC 826) in them. IPv6 is not
//! passed on: the addresses that nobody else may claim are leases, and there are none for it.

use std::net::Ipv4Addr;

/// Longest frame: a header, and a payload of 1500 bytes. Machines are told no larger one.
pub(super) const MAX_FRAME: usize = ETHERNET + 1500;

const ETHERNET: usize = 14;
const ARP: u16 = 0x0806;
const IPV4: u16 = 0x0800;
/// Length of an ARP message for Ethernet and IPv4.
const ARP_LENGTH: usize = 28;
/// Length of an IPv4 header without options.
const IPV4_HEADER: usize = 20;
const UDP: u8 = 17;
const UDP_HEADER: usize = 8;
const ARP_REQUEST: u16 = 1;
const ARP_REPLY: u16 = 2;
/// The port of name servers.
const DOMAIN_PORT: u16 = 53;

/// A hardware address.
pub(super) type Mac = [u8; 6];

/// Who is at the end of a cable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Station {
    pub(super) mac: Mac,
    pub(super) address: Ipv4Addr,
}

/// What becomes of a frame.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fate<'a> {
    To(Mac),
    /// To all but its sender.
    Everyone,
    /// The sender asks who has the resolver's address.
    WhoIsResolver,
    /// It asks the resolver, from this port.
    Asks {
        port: u16,
        question: &'a [u8],
    },
    Dropped(Offence),
}

/// Why a frame goes nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Offence {
    Malformed,
    /// It claims to come from somebody else.
    Forged,
    /// Neither IPv4 nor ARP, or nothing that the switch answers.
    Unwanted,
}

/// Judges a frame that came from the machine `sender`.
pub(super) fn judge<'a>(frame: &'a [u8], sender: &Station, resolver: &Station) -> Fate<'a> {
    let (to, kind, payload) = match (bytes::<6>(frame, 0), bytes::<6>(frame, 6), word(frame, 12)) {
        (Some(_), Some(from), Some(_)) if from != sender.mac => return Fate::Dropped(Offence::Forged),
        (Some(to), Some(_), Some(kind)) if frame.len() <= MAX_FRAME => (to, kind, &frame[ETHERNET..]),
        _ => return Fate::Dropped(Offence::Malformed),
    };
    let special = match kind {
        ARP => arp(payload, sender, resolver),
        IPV4 => ipv4(payload, to, sender, resolver),
        _ => Some(Fate::Dropped(Offence::Unwanted)),
    };
    // The lowest bit of the first byte: to a group, of which all is one.
    special.unwrap_or(if to[0] & 1 == 1 { Fate::Everyone } else { Fate::To(to) })
}

fn arp<'a>(message: &[u8], sender: &Station, resolver: &Station) -> Option<Fate<'a>> {
    let read = || -> Option<_> {
        // Ethernet and IPv4, with addresses of 6 and 4 bytes.
        (bytes::<6>(message, 0)? == [0, 1, 8, 0, 6, 4]).then_some(())?;
        let target = address(message, 24)?;
        Some((word(message, 6)?, bytes::<6>(message, 8)?, address(message, 14)?, target))
    };
    let Some((operation, mac, address, target)) = read() else {
        return Some(Fate::Dropped(Offence::Malformed));
    };
    // Whoever asks whether an address is taken has none yet (RFC 5227).
    if mac != sender.mac || !(address == sender.address || address.is_unspecified()) {
        return Some(Fate::Dropped(Offence::Forged));
    }
    (operation == ARP_REQUEST && target == resolver.address).then_some(Fate::WhoIsResolver)
}

fn ipv4<'a>(packet: &'a [u8], to: Mac, sender: &Station, resolver: &Station) -> Option<Fate<'a>> {
    let Some((first, source)) = packet.first().zip(address(packet, 12)) else {
        return Some(Fate::Dropped(Offence::Malformed));
    };
    if first >> 4 != 4 || packet.len() < IPV4_HEADER {
        return Some(Fate::Dropped(Offence::Malformed));
    }
    if source != sender.address {
        return Some(Fate::Dropped(Offence::Forged));
    }
    (to == resolver.mac).then(|| question(packet, resolver).unwrap_or(Fate::Dropped(Offence::Unwanted)))
}

/// A whole datagram to the resolver's port.
fn question<'a>(packet: &'a [u8], resolver: &Station) -> Option<Fate<'a>> {
    let header = usize::from(packet.first()? & 0xf) * 4;
    // What lies behind the packet is padding.
    let packet = packet.get(..usize::from(word(packet, 2)?))?;
    // More fragments, or not the first.
    let is_fragment = word(packet, 6)? & 0x3fff != 0;
    let is_for_us = *packet.get(9)? == UDP && address(packet, 16)? == resolver.address;
    if header < IPV4_HEADER || is_fragment || !is_for_us {
        return None;
    }
    let datagram = packet.get(header..)?;
    if word(datagram, 2)? != DOMAIN_PORT {
        return None;
    }
    let question = datagram.get(UDP_HEADER..usize::from(word(datagram, 4)?))?;
    Some(Fate::Asks { port: word(datagram, 0)?, question })
}

/// Tells a machine which hardware address the resolver has.
pub(super) fn resolver_is_at(to: &Station, resolver: &Station) -> Vec<u8> {
    let mut frame = header(to, resolver, ARP);
    frame.extend([0, 1, 8, 0, 6, 4]);
    frame.extend(ARP_REPLY.to_be_bytes());
    for station in [resolver, to] {
        frame.extend(station.mac);
        frame.extend(station.address.octets());
    }
    debug_assert_eq!(frame.len(), ETHERNET + ARP_LENGTH);
    frame
}

/// A datagram from the resolver's port to a machine. `None` when it does not fit a frame.
pub(super) fn answer(to: &Station, port: u16, resolver: &Station, payload: &[u8]) -> Option<Vec<u8>> {
    let datagram = UDP_HEADER + payload.len();
    let packet = IPV4_HEADER + datagram;
    if ETHERNET + packet > MAX_FRAME {
        return None;
    }
    let mut frame = header(to, resolver, IPV4);
    // Neither options nor fragments; a lifetime of 64.
    let mut ip = vec![0x45, 0];
    ip.extend(u16::try_from(packet).ok()?.to_be_bytes());
    ip.extend([0, 0, 0x40, 0, 64, UDP, 0, 0]);
    ip.extend(resolver.address.octets());
    ip.extend(to.address.octets());
    let sum = checksum(&ip).to_be_bytes();
    ip[10..12].copy_from_slice(&sum);
    frame.extend(ip);
    frame.extend(DOMAIN_PORT.to_be_bytes());
    frame.extend(port.to_be_bytes());
    frame.extend(u16::try_from(datagram).ok()?.to_be_bytes());
    // No checksum: the cable is memory of this host.
    frame.extend([0, 0]);
    frame.extend(payload);
    Some(frame)
}

fn header(to: &Station, from: &Station, kind: u16) -> Vec<u8> {
    let mut frame = Vec::with_capacity(MAX_FRAME);
    frame.extend(to.mac);
    frame.extend(from.mac);
    frame.extend(kind.to_be_bytes());
    frame
}

/// The checksum of RFC 1071 over an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let sum: u32 = bytes.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    // A header's sum carries at most twice.
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    !u16::try_from(folded).unwrap_or(u16::MAX)
}

fn bytes<const N: usize>(from: &[u8], at: usize) -> Option<[u8; N]> {
    from.get(at..at + N)?.try_into().ok()
}

fn word(from: &[u8], at: usize) -> Option<u16> {
    bytes(from, at).map(u16::from_be_bytes)
}

fn address(from: &[u8], at: usize) -> Option<Ipv4Addr> {
    bytes::<4>(from, at).map(Ipv4Addr::from)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(in super::super) const A: Station =
        Station { mac: [0x5e, 0, 0, 0, 0, 1], address: Ipv4Addr::new(10, 80, 0, 2) };
    pub(in super::super) const B: Station =
        Station { mac: [0x5e, 0, 0, 0, 0, 2], address: Ipv4Addr::new(10, 80, 0, 3) };
    pub(in super::super) const RESOLVER: Station =
        Station { mac: [0x56, 0, 0, 0, 0, 9], address: Ipv4Addr::new(10, 80, 0, 1) };

    /// An IPv4 packet of a protocol that nobody looks at.
    pub(in super::super) fn packet(from: &Station, to: &Station, payload: &[u8]) -> Vec<u8> {
        let mut frame = answer(to, 7, from, payload).unwrap();
        frame[ETHERNET + 9] = 1;
        frame
    }

    fn question_to(resolver: &Station, from: &Station, question: &[u8]) -> Vec<u8> {
        let mut frame = answer(resolver, DOMAIN_PORT, from, question).unwrap();
        frame[ETHERNET + IPV4_HEADER..][..2].copy_from_slice(&4000_u16.to_be_bytes());
        frame
    }

    fn who_has(sender: &Station, target: Ipv4Addr) -> Vec<u8> {
        let everybody = Station { mac: [0xff; 6], address: target };
        let mut frame = resolver_is_at(&everybody, sender);
        frame[ETHERNET + 7] = 1;
        frame
    }

    fn check(frame: &[u8], expected: Fate<'_>) {
        assert_eq!(judge(frame, &A, &RESOLVER), expected);
    }

    #[test]
    fn honest_frames_go_where_they_are_meant_to() {
        check(&packet(&A, &B, b"x"), Fate::To(B.mac));
        check(&packet(&A, &Station { mac: [0xff; 6], ..B }, b"x"), Fate::Everyone);
        check(&packet(&A, &B, &[0; 1472]), Fate::To(B.mac));
        check(&who_has(&A, B.address), Fate::Everyone);
        check(&who_has(&Station { address: Ipv4Addr::UNSPECIFIED, ..A }, B.address), Fate::Everyone);
        check(&resolver_is_at(&B, &A), Fate::To(B.mac));
        check(&who_has(&A, RESOLVER.address), Fate::WhoIsResolver);
    }

    #[test]
    fn the_resolver_is_asked_by_whole_datagrams_to_its_port() {
        let asked = question_to(&RESOLVER, &A, b"question");
        check(&asked, Fate::Asks { port: 4000, question: b"question" });
        let mut padded = asked.clone();
        padded.extend([0; 20]);
        check(&padded, Fate::Asks { port: 4000, question: b"question" });
        let dropped = || Fate::Dropped(Offence::Unwanted);
        check(&packet(&A, &RESOLVER, b"ping"), dropped());
        check(&question_to(&Station { address: B.address, ..RESOLVER }, &A, b"question"), dropped());
        for (at, value) in [(ETHERNET + 6, 0x20), (ETHERNET, 0x44), (ETHERNET + 3, 5), (ETHERNET + 25, 1)] {
            let mut frame = asked.clone();
            frame[at] = value;
            check(&frame, dropped());
        }
    }

    #[test]
    fn what_claims_to_be_another_s_is_dropped() {
        let forged = || Fate::Dropped(Offence::Forged);
        check(&packet(&B, &RESOLVER, b"x"), forged());
        check(&packet(&Station { mac: A.mac, ..B }, &B, b"x"), forged());
        check(&packet(&Station { address: A.address, ..B }, &A, b"x"), forged());
        // ARP: another's address, another's hardware address, the resolver's.
        check(&resolver_is_at(&B, &Station { mac: A.mac, ..RESOLVER }), forged());
        check(&who_has(&Station { mac: A.mac, ..B }, RESOLVER.address), forged());
        let mut frame = resolver_is_at(&B, &A);
        frame[ETHERNET + 8..ETHERNET + 14].copy_from_slice(&B.mac);
        check(&frame, forged());
    }

    #[test]
    fn other_protocols_and_frames_of_a_wrong_length_are_dropped() {
        let mut ipv6 = packet(&A, &B, b"x");
        ipv6[12..14].copy_from_slice(&0x86dd_u16.to_be_bytes());
        check(&ipv6, Fate::Dropped(Offence::Unwanted));
        let malformed = || Fate::Dropped(Offence::Malformed);
        check(&[], malformed());
        let mut long = packet(&A, &B, &[0; 1472]);
        long.push(0);
        check(&long, malformed());
        check(&packet(&A, &B, b"")[..ETHERNET + 19], malformed());
        check(&resolver_is_at(&B, &A)[..ETHERNET + ARP_LENGTH - 1], malformed());
        let mut version = packet(&A, &B, b"x");
        version[ETHERNET] = 0x65;
        check(&version, malformed());
    }

    #[test]
    fn the_checksum_of_a_header_is_right() {
        // RFC 1071 has the sum over a header with its checksum be zero.
        let frame = answer(&A, 4000, &RESOLVER, b"x").unwrap();
        assert_eq!(checksum(&frame[ETHERNET..ETHERNET + IPV4_HEADER]), 0);
        assert!(answer(&A, 4000, &RESOLVER, &[0; 1473]).is_none());
    }

    proptest! {
        /// Whatever is sent: nothing panics, and nothing with another source is passed on.
        #[test]
        fn nothing_forged_is_passed_on(frame in prop::collection::vec(any::<u8>(), 0..1600), honest: bool) {
            let mut frame = frame;
            if honest && frame.len() >= ETHERNET {
                frame[6..12].copy_from_slice(&A.mac);
                frame[12..14].copy_from_slice(&[8, 0]);
            }
            if let Fate::To(_) | Fate::Everyone | Fate::Asks { .. } = judge(&frame, &A, &RESOLVER) {
                prop_assert_eq!(&frame[6..12], &A.mac);
                let source = if frame[12..14] == [8, 0] { 26 } else { 28 };
                prop_assert!(frame[source..source + 4] == A.address.octets() || frame[source..source + 4] == [0; 4]);
            }
        }
    }
}
