//! The machines that somebody adopted, and what is known of each.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use wiglaf_wire::boot::{BootMachine, Mac};

use super::seen::Track;
use super::twins::Twins;

/// RFC 1035's bound on a label.
const MAX_HOST_NAME: usize = 63;
/// Machines that were adopted once and are remembered.
const MAX_FORGOTTEN: usize = 1_024;

/// One of them.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) name: String,
    pub(super) address: Ipv4Addr,
    /// An earlier one in the settings has the same address.
    pub(super) is_second: bool,
    pub(super) track: Track,
    pub(super) twins: Twins,
}

impl Machine {
    /// Its name as clients take it: the settings are the head's, but the packet is ours.
    pub(super) fn host_name(&self) -> Option<&[u8]> {
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        let bytes = self.name.as_bytes();
        let is_fit = (1..=MAX_HOST_NAME).contains(&bytes.len());
        (is_fit && bytes.iter().copied().all(is_name)).then_some(bytes)
    }
}

/// All of them, by their Ethernet addresses.
#[derive(Debug, Default)]
pub(super) struct Machines {
    by_mac: BTreeMap<Mac, Machine>,
    addresses: BTreeSet<Ipv4Addr>,
    /// Which address those had that are nobody's any more.
    forgotten: BTreeMap<Mac, Ipv4Addr>,
}

impl Machines {
    /// Replaces the table; what was seen of those that stay is kept.
    pub(super) fn configure(&mut self, machines: &[BootMachine]) {
        let mut before = std::mem::take(&mut self.by_mac);
        self.addresses.clear();
        for machine in machines {
            if self.by_mac.contains_key(&machine.mac) {
                continue;
            }
            let (track, twins) = match before.remove(&machine.mac) {
                Some(known) => (known.track, known.twins),
                None => (Track::default(), Twins::default()),
            };
            let entry = Machine {
                name: machine.name.clone(),
                address: machine.address,
                is_second: !self.addresses.insert(machine.address),
                track,
                twins,
            };
            self.by_mac.insert(machine.mac, entry);
        }
        for (mac, machine) in before {
            if self.forgotten.len() < MAX_FORGOTTEN {
                self.forgotten.insert(mac, machine.address);
            }
        }
        self.forgotten
            .retain(|mac, _| !self.by_mac.contains_key(mac));
    }

    /// Whether this address was a machine's own before it was forgotten.
    pub(super) fn had(&self, mac: Mac, address: Ipv4Addr) -> bool {
        self.forgotten.get(&mac) == Some(&address)
    }

    /// It has its address from somebody else now.
    pub(super) fn is_anothers(&mut self, mac: Mac) {
        self.forgotten.remove(&mac);
    }

    pub(super) fn get(&self, mac: Mac) -> Option<&Machine> {
        self.by_mac.get(&mac)
    }

    pub(super) fn get_mut(&mut self, mac: Mac) -> Option<&mut Machine> {
        self.by_mac.get_mut(&mac)
    }

    /// Whether an address is one's own.
    pub(super) fn have(&self, address: Ipv4Addr) -> bool {
        self.addresses.contains(&address)
    }

    pub(super) fn addresses(&self) -> impl Iterator<Item = Ipv4Addr> {
        self.addresses.iter().copied()
    }
}
