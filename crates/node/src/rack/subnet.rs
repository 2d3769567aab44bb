//! Which addresses the virtual nodes get: a pure choice.

use std::net::Ipv4Addr;

/// The prefix length of a rack's network.
pub(crate) const PREFIX_LEN: u8 = 24;
/// The head's address is the first one.
const HEAD_HOST: u8 = 1;
/// Nodes begin here: n1 is .11.
const FIRST_NODE_HOST: u8 = 11;
/// As many nodes as have addresses in one rack.
pub(crate) const MAX_NODES: usize = 240;
/// A route that covers more than this stands for "everywhere else" (a default route, a
/// tunnel's two halves of the address space); a rack's own, longer one wins over it.
const WIDEST_ROUTE_THAT_COUNTS: u8 = 5;

/// The networks tried in this order: three private ranges, since a site's own route often
/// covers one of them as a whole.
const CANDIDATES: [([u8; 2], std::ops::RangeInclusive<u8>); 3] = [
    ([10, 77], 0..=15),
    ([172, 29], 77..=84),
    ([192, 168], 177..=184),
];

/// An IPv4 network.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Network {
    address: Ipv4Addr,
    prefix_len: u8,
}

impl Network {
    /// The network that `address` lies in; a longer prefix than 32 is taken as 32.
    pub(crate) fn new(address: Ipv4Addr, prefix_len: u8) -> Network {
        let prefix_len = prefix_len.min(32);
        let address = Ipv4Addr::from_bits(address.to_bits() & mask(prefix_len));
        Network {
            address,
            prefix_len,
        }
    }

    fn overlaps(self, other: Network) -> bool {
        let mask = mask(self.prefix_len.min(other.prefix_len));
        self.address.to_bits() & mask == other.address.to_bits() & mask
    }

    fn host(self, host: u8) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.address.to_bits() | u32::from(host))
    }

    /// The head's address in a rack's network.
    pub(crate) fn head(self) -> Ipv4Addr {
        self.host(HEAD_HOST)
    }

    /// The address of the node `index`, counted from 0; `None` when there are no more.
    pub(crate) fn node(self, index: usize) -> Option<Ipv4Addr> {
        let host = u8::try_from(index).ok()?.checked_add(FIRST_NODE_HOST)?;
        (index < MAX_NODES).then(|| self.host(host))
    }
}

impl std::fmt::Display for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix_len)
    }
}

fn mask(prefix_len: u8) -> u32 {
    u32::MAX
        .checked_shl(32 - u32::from(prefix_len))
        .unwrap_or(0)
}

/// The networks that a rack can take, those in use left out.
pub(crate) fn free_networks(in_use: &[Network]) -> impl Iterator<Item = Network> {
    CANDIDATES
        .into_iter()
        .flat_map(|([a, b], thirds)| {
            thirds.map(move |c| Network::new(Ipv4Addr::new(a, b, c, 0), PREFIX_LEN))
        })
        .filter(|&candidate| {
            !in_use.iter().any(|network| {
                network.prefix_len > WIDEST_ROUTE_THAT_COUNTS && network.overlaps(candidate)
            })
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(text: &str) -> Network {
        let (address, prefix_len) = text.split_once('/').expect("a slash");
        Network::new(
            address.parse().expect("an address"),
            prefix_len.parse().expect("a length"),
        )
    }

    fn chosen(in_use: &[&str]) -> Option<String> {
        let in_use: Vec<_> = in_use.iter().map(|text| network(text)).collect();
        free_networks(&in_use).next().map(|found| found.to_string())
    }

    #[test]
    fn the_first_free_network_is_chosen() {
        let first = Some("10.77.0.0/24".to_owned());
        assert_eq!(chosen(&[]), first);
        assert_eq!(chosen(&["192.0.2.2/24", "10.76.0.0/16"]), first);
        assert_eq!(chosen(&["10.77.0.1/24"]), Some("10.77.1.0/24".into()));
        assert_eq!(
            chosen(&["10.77.0.200/32", "10.77.1.128/25", "10.77.2.0/23"]),
            Some("10.77.4.0/24".into())
        );
        assert_eq!(chosen(&["10.0.0.0/8"]), Some("172.29.77.0/24".into()));
        assert_eq!(
            chosen(&["10.0.0.0/8", "172.16.0.0/12"]),
            Some("192.168.177.0/24".into())
        );
        assert_eq!(
            chosen(&["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"]),
            None
        );
    }

    #[test]
    fn routes_to_everywhere_do_not_count() {
        let first = Some("10.77.0.0/24".to_owned());
        assert_eq!(chosen(&["0.0.0.0/0", "0.0.0.0/1", "128.0.0.0/1"]), first);
    }

    #[test]
    fn every_node_has_an_address_of_its_own() {
        let rack = network("10.77.3.0/24");
        assert_eq!(rack.head(), Ipv4Addr::new(10, 77, 3, 1));
        assert_eq!(rack.node(0), Some(Ipv4Addr::new(10, 77, 3, 11)));
        assert_eq!(
            rack.node(MAX_NODES - 1),
            Some(Ipv4Addr::new(10, 77, 3, 250))
        );
        assert_eq!(rack.node(MAX_NODES), None);
    }
}
