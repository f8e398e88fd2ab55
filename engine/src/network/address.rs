//! Which address a guest gets.

use std::collections::BTreeSet;
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// Where in its /24 a guest is.
const GUEST_HOST_NUMBER: u32 = 15;

/// Where guests are in a /24 that they share: the first address is the network's own, and the last is
/// everybody's.
const SHARED_HOST_NUMBERS: std::ops::RangeInclusive<u32> = 2..=254;

/// A range of IPv4 addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subnet {
    first: u32,
    prefix: u8,
}

impl Subnet {
    /// `None` for a prefix beyond 32; host bits are cleared.
    pub fn new(address: Ipv4Addr, prefix: u8) -> Option<Self> {
        (prefix <= 32).then(|| Self { first: u32::from(address) & mask(prefix), prefix })
    }

    pub fn overlaps(self, other: Self) -> bool {
        let shorter = mask(self.prefix.min(other.prefix));
        self.first & shorter == other.first & shorter
    }

    pub fn prefix(self) -> u8 {
        self.prefix
    }

    fn last(self) -> u32 {
        self.first | !mask(self.prefix)
    }
}

impl FromStr for Subnet {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || format!("`{}` is no network like 10.80.0.0/12", text.escape_default());
        let (address, prefix) = text.split_once('/').ok_or_else(wrong)?;
        let address = address.parse().map_err(|_| wrong())?;
        prefix.parse().ok().and_then(|prefix| Self::new(address, prefix)).ok_or_else(wrong)
    }
}

impl fmt::Display for Subnet {
    /// `10.80.0.0/24`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", Ipv4Addr::from(self.first), self.prefix)
    }
}

fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
}

/// The ranges that guests' networks are cut from, the preferred one first.
#[derive(Clone, Debug)]
pub struct AddressPool {
    ranges: Vec<Subnet>,
    /// Which /24 of the pool is looked at first for a network that this host sees, of which those of
    /// several data directories should not meet.
    begin: u32,
}

impl Default for AddressPool {
    /// Private ranges (RFC 1918) that home routers, container engines and cloud networks use least.
    fn default() -> Self {
        let range = |a, b, c, prefix| Subnet { first: u32::from(Ipv4Addr::new(a, b, c, 0)), prefix };
        Self::new(vec![range(10, 80, 0, 12), range(172, 24, 0, 13), range(192, 168, 128, 17)])
    }
}

impl AddressPool {
    pub fn new(ranges: Vec<Subnet>) -> Self {
        Self { ranges, begin: 0 }
    }

    /// The same pool, in which networks that this host sees are looked for from this one on.
    #[must_use]
    pub fn beginning_at(self, begin: u32) -> Self {
        Self { begin, ..self }
    }

    /// The first guest address whose /24 is neither leased nor, if that can be had, on a route of
    /// this host: a guest could not reach a host behind an address of its own network.
    pub fn allocate(&self, leased: &BTreeSet<Ipv4Addr>, routes: &[Subnet]) -> Option<Ipv4Addr> {
        self.network(0, leased, routes).map(|network| Ipv4Addr::from(network | GUEST_HOST_NUMBER))
    }

    /// The lowest free address of the network that machines share, which those in `shared` tell; a
    /// fresh network, chosen as [`Self::allocate`] does, when nobody has an address there yet.
    pub fn allocate_shared(
        &self,
        shared: &BTreeSet<Ipv4Addr>,
        leased: &BTreeSet<Ipv4Addr>,
        routes: &[Subnet],
    ) -> Option<Ipv4Addr> {
        Self::neighbour(shared, || self.network(0, leased, routes))
    }

    /// The same for a network that this host sees, too.
    pub fn allocate_bridged(
        &self,
        bridged: &BTreeSet<Ipv4Addr>,
        leased: &BTreeSet<Ipv4Addr>,
        routes: &[Subnet],
    ) -> Option<Ipv4Addr> {
        Self::neighbour(bridged, || self.network(self.begin, leased, routes))
    }

    fn neighbour(shared: &BTreeSet<Ipv4Addr>, fresh: impl FnOnce() -> Option<u32>) -> Option<Ipv4Addr> {
        let network = match shared.first() {
            Some(address) => u32::from(*address) & mask(24),
            None => fresh()?,
        };
        SHARED_HOST_NUMBERS.map(|host| Ipv4Addr::from(network | host)).find(|free| !shared.contains(free))
    }

    /// A network that nobody has yet, looked for from this one on and around.
    fn network(&self, begin: u32, leased: &BTreeSet<Ipv4Addr>, routes: &[Subnet]) -> Option<u32> {
        let taken: BTreeSet<u32> = leased.iter().map(|address| u32::from(*address) & mask(24)).collect();
        let free = |network: &u32| !taken.contains(network);
        let off_route = |network: &u32| {
            let subnet = Subnet { first: *network, prefix: 24 };
            !routes.iter().any(|route| route.overlaps(subnet))
        };
        let count = self.networks().count().max(1);
        let begin = usize::try_from(begin).unwrap_or_default() % count;
        let networks = || self.networks().skip(begin).chain(self.networks().take(begin));
        networks().filter(free).find(off_route).or_else(|| networks().find(free))
    }

    /// The network addresses of every /24 in the pool.
    fn networks(&self) -> impl Iterator<Item = u32> + '_ {
        self.ranges.iter().flat_map(|range| (range.first..=range.last()).step_by(256))
    }
}

/// The networks this host has routes to, the default route aside. Nothing where the kernel does not
/// tell: then no network is known to be avoided.
pub fn host_routes() -> Vec<Subnet> {
    routes().into_iter().map(|(_, subnet)| subnet).collect()
}

/// The same but for those by one interface, each with its interface.
pub(crate) fn routes_beside(interface: &str) -> Vec<(String, Subnet)> {
    routes().into_iter().filter(|(name, _)| name != interface).collect()
}

fn routes() -> Vec<(String, Subnet)> {
    std::fs::read_to_string("/proc/net/route").map(|text| parse_routes(&text)).unwrap_or_default()
}

/// Reads `/proc/net/route` (proc_pid_net(5)): addresses are words in network order, printed as
/// numbers of this host.
fn parse_routes(text: &str) -> Vec<(String, Subnet)> {
    let address = |field: &str| u32::from_str_radix(field, 16).ok().map(u32::from_be);
    text.lines()
        .skip(1)
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_ascii_whitespace().collect();
            let (destination, mask) = (address(fields.get(1)?)?, address(fields.get(7)?)?);
            let prefix = u8::try_from(mask.leading_ones()).ok().filter(|prefix| *prefix > 0)?;
            Some(((*fields.first()?).to_owned(), Subnet::new(Ipv4Addr::from(destination), prefix)?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leased(addresses: &[&str]) -> BTreeSet<Ipv4Addr> {
        addresses.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn addresses_are_lowest_first_and_gaps_are_filled() {
        let pool = AddressPool::default();
        let next = |taken: &[&str]| pool.allocate(&leased(taken), &[]).unwrap().to_string();
        assert_eq!(next(&[]), "10.80.0.15");
        assert_eq!(next(&["10.80.0.15"]), "10.80.1.15");
        assert_eq!(next(&["10.80.0.15", "10.80.2.15"]), "10.80.1.15");
    }

    #[test]
    fn machines_that_share_a_network_have_neighbouring_addresses() {
        let pool = AddressPool::default();
        let next = |shared: &[&str], taken: &[&str]| {
            pool.allocate_shared(&leased(shared), &leased(taken), &[]).map(|address| address.to_string())
        };
        assert_eq!(next(&[], &["10.80.0.15"]).unwrap(), "10.80.1.2");
        assert_eq!(next(&["10.80.1.2", "10.80.1.4"], &[]).unwrap(), "10.80.1.3");
        let full: Vec<String> = (2..=254).map(|host| format!("10.80.1.{host}")).collect();
        assert_eq!(next(&full.iter().map(String::as_str).collect::<Vec<_>>(), &[]), None);
    }

    #[test]
    fn networks_that_the_host_sees_begin_where_they_are_told_to() {
        let pool = AddressPool::new(vec!["10.80.0.0/22".parse().unwrap(), "10.90.0.0/24".parse().unwrap()]);
        let next = |begin, bridged: &[&str], taken: &[&str]| {
            let pool = pool.clone().beginning_at(begin);
            pool.allocate_bridged(&leased(bridged), &leased(taken), &[]).map(|address| address.to_string())
        };
        assert_eq!(next(2, &[], &[]).unwrap(), "10.80.2.2");
        assert_eq!(next(2, &["10.80.1.2"], &[]).unwrap(), "10.80.1.3", "where the others are");
        assert_eq!(next(4 + 5, &[], &[]).unwrap(), "10.90.0.2", "around");
        assert_eq!(next(4, &[], &["10.90.0.15"]).unwrap(), "10.80.0.2", "from the end to the beginning");
    }

    #[test]
    fn routes_of_the_host_are_avoided_while_there_is_anything_else() {
        let pool = AddressPool::new(vec!["10.80.0.0/23".parse().unwrap(), "10.90.0.0/24".parse().unwrap()]);
        let next = |taken: &[&str], route: &str| {
            pool.allocate(&leased(taken), &[route.parse().unwrap()]).map(|address| address.to_string())
        };
        assert_eq!(next(&[], "10.80.0.0/16").unwrap(), "10.90.0.15");
        assert_eq!(next(&[], "10.80.0.128/25").unwrap(), "10.80.1.15");
        assert_eq!(next(&[], "10.0.0.0/8").unwrap(), "10.80.0.15", "better a shadowed network than none");
        assert_eq!(next(&["10.80.0.15", "10.80.1.15", "10.90.0.15"], "10.0.0.0/8"), None);
    }

    #[test]
    fn the_kernels_route_table_is_read() {
        let text = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
            eth0\t00000000\t0100000A\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
            eth0\t0000500A\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\nbroken line\n";
        if cfg!(target_endian = "little") {
            let subnet: Subnet = "10.80.0.0/16".parse().unwrap();
            assert_eq!(parse_routes(text), [("eth0".to_owned(), subnet)]);
            assert_eq!(subnet.to_string(), "10.80.0.0/16");
        }
        assert!("10.80.0.0".parse::<Subnet>().is_err());
        assert!("10.80.0.0/33".parse::<Subnet>().is_err());
        assert_eq!(Subnet::new(Ipv4Addr::UNSPECIFIED, 0).unwrap().last(), u32::MAX);
    }
}
