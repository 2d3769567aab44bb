//! Who gets which address behind an interface.

use std::net::Ipv4Addr;

use wiglaf_wire::boot::BootInterface;

/// Bits of the network's part, at least: more than 65,534 machines share no wire.
const SHORTEST_PREFIX: u8 = 16;
/// At most: fewer than five machines are not worth a pool.
const LONGEST_PREFIX: u8 = 29;
/// Addresses kept for machines that nobody knows, at most.
const MOST_UNKNOWN: u32 = 4096;

/// The addresses behind an interface: `first..=last` for machines that were adopted, then the pool
/// for those that were not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ranges {
    pub(super) first: u32,
    pub(super) last: u32,
    pub(super) unknown: (u32, u32),
}

/// Divides a network: a quarter at its end, bounded, is for the unknown.
pub(super) fn ranges(address: Ipv4Addr, prefix: u8) -> Result<Ranges, String> {
    if !(SHORTEST_PREFIX..=LONGEST_PREFIX).contains(&prefix) {
        return Err(format!(
            "a network of /{prefix} does not do: between /{SHORTEST_PREFIX} and /{LONGEST_PREFIX}"
        ));
    }
    if !address.is_private() && !address.is_link_local() {
        return Err(format!(
            "{address} is no private address (RFC 1918): machines that boot need a network of their own"
        ));
    }
    let size = 1_u32 << (32 - prefix);
    let network = u32::from(address) & !(size - 1);
    let broadcast = network + (size - 1);
    let unknown = (size / 4).min(MOST_UNKNOWN);
    let pool = broadcast - unknown;
    let own = u32::from(address);
    if own == network || own == broadcast {
        return Err(format!(
            "{address}/{prefix} is a whole network, not a machine's address in it"
        ));
    }
    Ok(Ranges {
        first: network + 1,
        last: pool - 1,
        unknown: (pool, broadcast - 1),
    })
}

/// Whether an address is behind the interface.
pub(super) fn is_behind(interface: &BootInterface, address: Ipv4Addr) -> bool {
    overlap((interface.address, interface.prefix), (address, 32))
}

/// Whether two networks have an address in common.
pub(super) fn overlap(one: (Ipv4Addr, u8), other: (Ipv4Addr, u8)) -> bool {
    let bits = u32::from(one.1.min(other.1));
    let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
    u32::from(one.0) & mask == u32::from(other.0) & mask
}

/// An address for a machine: the one that its name's number suggests, where that is free, so that
/// `n7` is the seventh.
pub(super) fn free_address(
    interface: &BootInterface,
    name: &str,
    is_taken: impl Fn(Ipv4Addr) -> bool,
) -> Option<Ipv4Addr> {
    let ranges = ranges(interface.address, interface.prefix).ok()?;
    let is_free = |address: &u32| {
        (ranges.first..=ranges.last).contains(address)
            && *address != u32::from(interface.address)
            && !is_taken(Ipv4Addr::from(*address))
    };
    let number: Option<u32> = name
        .trim_start_matches(|c: char| !c.is_ascii_digit())
        .parse()
        .ok();
    // The head usually has the first one.
    let wished = number.and_then(|number| ranges.first.checked_add(number));
    wished
        .filter(is_free)
        .or_else(|| (ranges.first..=ranges.last).find(is_free))
        .map(Ipv4Addr::from)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use wiglaf_wire::boot::AddressService;

    use super::*;

    fn interface(address: Ipv4Addr, prefix: u8) -> BootInterface {
        BootInterface {
            name: "eth1".into(),
            address,
            prefix,
            service: AddressService::Full,
            unknown: (address, address),
            gateway: None,
        }
    }

    #[test]
    fn a_number_in_a_name_is_a_number_in_the_address() {
        let wire = interface(Ipv4Addr::new(10, 77, 0, 1), 24);
        let free = free_address(&wire, "n7", |_| false);
        assert_eq!(free, Some(Ipv4Addr::new(10, 77, 0, 8)));
        let second = free_address(&wire, "n7", |address| Some(address) == free);
        assert_eq!(second, Some(Ipv4Addr::new(10, 77, 0, 2)));
    }

    #[test]
    fn a_wire_of_the_outer_world_is_refused() {
        assert!(ranges(Ipv4Addr::new(8, 8, 8, 8), 24).is_err());
        assert!(ranges(Ipv4Addr::new(10, 0, 0, 0), 24).is_err());
        assert!(ranges(Ipv4Addr::new(10, 0, 0, 1), 8).is_err());
    }

    proptest! {
        #[test]
        fn nobody_gets_the_heads_address_or_one_of_the_pool(
            host in 1_u32..6, prefix in SHORTEST_PREFIX..=LONGEST_PREFIX, number in 0_u32..100_000,
        ) {
            let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 1, 0, 0)) + host);
            let ranges = ranges(address, prefix).unwrap();
            prop_assert!(ranges.last < ranges.unknown.0 && ranges.unknown.0 <= ranges.unknown.1);
            let wire = interface(address, prefix);
            if let Some(free) = free_address(&wire, &format!("n{number}"), |_| false) {
                prop_assert_ne!(free, address);
                prop_assert!(is_behind(&wire, free));
                prop_assert!(u32::from(free) < ranges.unknown.0);
            }
        }
    }
}
