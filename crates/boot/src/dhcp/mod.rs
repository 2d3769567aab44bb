//! DHCP, BOOTP and ProxyDHCP (PXE 2.1) as a pure machine: packets and time in, effects out.
//!
//! Machines that somebody adopted are answered from the head's table: nothing that anybody sends
//! takes room or addresses away from them (B1). All others share what is bounded: a pool of
//! addresses for a short while, and a list of those lately seen. Of them, only firmware and iPXE
//! are answered at all, so that a telephone on the wire finds us silent (B2).
//!
//! Two heads on one wire: each gives its own machines theirs. A machine of the other head is one
//! that nobody knows here, and may be told so first; its own head's answer is for it to choose.

use std::net::{Ipv4Addr, SocketAddrV4};

use wiglaf_wire::boot::{Mac, Sighting};

mod client;
mod full;
mod leases;
mod loaders;
mod machines;
mod network;
pub mod options;
pub mod packet;
mod proxy;
mod reply;
mod seen;
mod server;
mod told;
mod twins;

#[cfg(test)]
mod tests;

pub use leases::MAX_POOL;
pub use server::Server;

/// Where servers listen, and relays.
pub const SERVER_PORT: u16 = 67;
/// Where clients listen.
pub const CLIENT_PORT: u16 = 68;
/// Where a ProxyDHCP server listens, too (PXE 2.1, section 2.2.4).
pub const PROXY_PORT: u16 = 4011;
/// What a machine that nobody knows gets an address for.
pub const UNKNOWN_LEASE_S: u32 = 120;
/// What an adopted machine gets its address for: it is its own, so this is only how soon another
/// system there hears of a new one.
const ADOPTED_LEASE_S: u32 = 24 * 3_600;
/// What our own `/init` gets it for. It asks again much sooner, so that it hears of another head
/// or router; a head that is away for a while is no reason to give the address up.
const AGENT_LEASE_S: u32 = 3_600;
const AGENT_RENEW_S: u32 = 30;
const AGENT_REBIND_S: u32 = 45;

/// The port that a packet arrived at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// 67.
    Server,
    /// 4011.
    Proxy,
}

/// What is to be done, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Durable before anything after it is sent.
    Keep(Lease),
    /// A packet, from the port that the one it answers arrived at.
    Send {
        /// The interface's index in the settings.
        interface: usize,
        /// To whom.
        to: Destination,
        /// The packet.
        bytes: Vec<u8>,
    },
    /// For the head's tables.
    Seen(Sighting),
    /// For somebody's eyes.
    Problem {
        /// The interface's index in the settings.
        interface: usize,
        /// What, and what to do.
        text: String,
    },
}

/// Where a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// To somebody who answers ARP.
    Address(SocketAddrV4),
    /// To a client that has no address yet, by its Ethernet address; UDP port 68.
    Hardware {
        /// Its Ethernet address.
        mac: Mac,
        /// The address it is given, for the IP header.
        address: Ipv4Addr,
    },
    /// To 255.255.255.255, UDP port 68.
    Broadcast,
}

/// That an address of the pool is a machine's. A later one about the same address replaces it,
/// and one that is over has been given back. Adopted machines need none: theirs are settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Whose.
    pub mac: Mac,
    /// Which.
    pub address: Ipv4Addr,
    /// Until when, in seconds of UNIX time.
    pub until_s: i64,
}
