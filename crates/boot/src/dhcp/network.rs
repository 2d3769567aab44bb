//! An interface's network: which addresses are its own, and which may be given away.

use std::net::Ipv4Addr;

use wiglaf_wire::boot::{AddressService, BootInterface};

/// The longest prefix whose network has a broadcast address (RFC 3021).
const MAX_BROADCAST_PREFIX: u8 = 30;

/// What an interface of the settings means for addresses.
#[derive(Clone, Debug)]
pub(super) struct Network {
    pub(super) name: String,
    pub(super) address: Ipv4Addr,
    pub(super) service: AddressService,
    pub(super) gateway: Option<Ipv4Addr>,
    pub(super) unknown: (Ipv4Addr, Ipv4Addr),
    prefix: u8,
}

impl Network {
    pub(super) fn new(interface: &BootInterface) -> Network {
        Network {
            name: interface.name.clone(),
            address: interface.address,
            service: interface.service,
            gateway: interface.gateway,
            unknown: interface.unknown,
            prefix: interface.prefix.min(32),
        }
    }

    pub(super) fn mask(&self) -> Ipv4Addr {
        let host_bits = u32::from(32 - self.prefix);
        Ipv4Addr::from(u32::MAX.checked_shl(host_bits).unwrap_or(0))
    }

    pub(super) fn contains(&self, address: Ipv4Addr) -> bool {
        let mask = u32::from(self.mask());
        u32::from(address) & mask == u32::from(self.address) & mask
    }

    pub(super) fn broadcast(&self) -> Option<Ipv4Addr> {
        let host = !u32::from(self.mask());
        (self.prefix <= MAX_BROADCAST_PREFIX)
            .then(|| Ipv4Addr::from(u32::from(self.address) | host))
    }

    /// Whether it may be a machine's: in the network, and nobody's by its nature.
    pub(super) fn is_giveable(&self, address: Ipv4Addr) -> bool {
        let first = Ipv4Addr::from(u32::from(self.address) & u32::from(self.mask()));
        self.contains(address)
            && address != self.address
            && Some(address) != self.gateway
            && Some(address) != self.broadcast()
            && (self.prefix > MAX_BROADCAST_PREFIX || address != first)
    }
}
