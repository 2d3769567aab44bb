//! What an answer consists of, and where it goes.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddrV4};

use wiglaf_wire::boot::AddressService;

use super::client::{Architecture, Client, Fetch, Kind};
use super::loaders::Loaders;
use super::network::Network;
use super::options::code;
use super::packet::{Operation, Packet};
use super::{
    ADOPTED_LEASE_S, AGENT_LEASE_S, AGENT_REBIND_S, AGENT_RENEW_S, CLIENT_PORT, Destination,
    SERVER_PORT, UNKNOWN_LEASE_S,
};

/// What every client takes (RFC 2131, section 2), and the most that an Ethernet frame holds;
/// both with the headers of IP and UDP.
const MIN_DATAGRAM: u16 = 576;
const MAX_DATAGRAM: u16 = 1_500;
const IP_AND_UDP: u16 = 28;
/// What BOOTP's clients take: 64 bytes of options.
const BOOTP_BYTES: usize = 300;
/// `file` holds this and a zero.
const MAX_FILE: usize = 127;
/// A cluster's identifier is the head's; it is cut to what an option should be.
const MAX_CLUSTER: usize = 64;

/// PXE's own option 6: take the boot file that is named here, and look for no other server.
const PXE_DIRECTLY: [u8; 3] = [6, 1, 8];
/// PXE's own option 71: which of a boot server's files.
const PXE_ITEM: u8 = 71;
const PXE_ITEM_BYTES: u8 = 4;
const PXE_END: u8 = 255;
/// iPXE's own option 176: don't wait for a ProxyDHCP server.
const IPXE_NO_PROXY: [u8; 3] = [176, 1, 1];

/// DHCP's messages (option 53).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Message {
    Discover,
    Offer,
    Request,
    Decline,
    Ack,
    Nak,
    Release,
    Inform,
}

impl Message {
    pub(super) fn of(packet: &Packet) -> Option<Message> {
        Some(match packet.options.byte(code::MESSAGE_TYPE)? {
            1 => Message::Discover,
            2 => Message::Offer,
            3 => Message::Request,
            4 => Message::Decline,
            5 => Message::Ack,
            6 => Message::Nak,
            7 => Message::Release,
            8 => Message::Inform,
            _ => return None,
        })
    }

    pub(super) fn number(self) -> u8 {
        match self {
            Message::Discover => 1,
            Message::Offer => 2,
            Message::Request => 3,
            Message::Decline => 4,
            Message::Ack => 5,
            Message::Nak => 6,
            Message::Release => 7,
            Message::Inform => 8,
        }
    }
}

/// The head's ports and its cluster.
#[derive(Clone, Debug)]
pub(super) struct Head {
    pub(super) port: u16,
    pub(super) http_port: u16,
    pub(super) cluster: String,
    /// Machines that were adopted can ask us for names.
    pub(super) resolves: bool,
}

/// What every answer has: whose it is, whom it answers, and what is sent back as it came.
/// `None` is BOOTP.
pub(super) fn answer(network: &Network, asked: &Packet, message: Option<Message>) -> Packet {
    let mut reply = Packet::new(Operation::Reply, asked.transaction, asked.hardware);
    reply.broadcast = asked.broadcast;
    reply.relay = asked.relay;
    if matches!(message, Some(Message::Ack) | None) {
        reply.client = asked.client;
    }
    let Some(message) = message else {
        return reply;
    };
    reply.options.set(code::MESSAGE_TYPE, [message.number()]);
    reply.options.set(code::SERVER, network.address.octets());
    // RFC 6842 for the client's identifier, RFC 4578 for the UUID, RFC 3046 for the relay's.
    for code in [code::CLIENT, code::UUID, code::RELAY] {
        if let Some(value) = asked.options.get(code) {
            reply.options.set(code, value);
        }
    }
    reply
}

/// An address with its network's particulars.
pub(super) fn add_network(reply: &mut Packet, network: &Network, name: Option<&[u8]>) {
    let options = &mut reply.options;
    options.set(code::SUBNET_MASK, network.mask().octets());
    if let Some(gateway) = network.gateway {
        options.set(code::ROUTER, gateway.octets());
    }
    if let Some(broadcast) = network.broadcast() {
        options.set(code::BROADCAST, broadcast.octets());
    }
    if let Some(name) = name {
        options.set(code::HOST_NAME, name);
    }
}

/// Whom a machine that was adopted can ask for names.
pub(super) fn add_resolver(reply: &mut Packet, network: &Network, head: &Head) {
    if head.resolves {
        let address = network.address.octets();
        reply.options.set(code::NAME_SERVER, address);
    }
}

/// For how long, and when to ask again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Term {
    lease_s: u32,
    renew_s: u32,
    rebind_s: u32,
}

impl Term {
    /// RFC 2131's half and seven eighths (section 4.4.5).
    fn usual(lease_s: u32) -> Term {
        Term {
            lease_s,
            renew_s: lease_s / 2,
            rebind_s: lease_s - lease_s / 8,
        }
    }

    pub(super) fn of(kind: Kind, is_ours: bool) -> Term {
        match kind {
            _ if !is_ours => Term::usual(UNKNOWN_LEASE_S),
            Kind::Agent => Term {
                lease_s: AGENT_LEASE_S,
                renew_s: AGENT_RENEW_S,
                rebind_s: AGENT_REBIND_S,
            },
            _ => Term::usual(ADOPTED_LEASE_S),
        }
    }
}

pub(super) fn add_lease(reply: &mut Packet, term: Term) {
    let options = &mut reply.options;
    options.set(code::LEASE_TIME, term.lease_s.to_be_bytes());
    options.set(code::RENEW, term.renew_s.to_be_bytes());
    options.set(code::REBIND, term.rebind_s.to_be_bytes());
}

/// What to boot. The second is false if there is no boot program for the client.
pub(super) fn add_boot(
    reply: &mut Packet,
    network: &Network,
    head: &Head,
    loaders: &Loaders,
    asked: &Packet,
    client: &Client,
) -> bool {
    let is_proxy = network.service == AddressService::Proxy;
    let http = SocketAddrV4::new(network.address, head.http_port);
    let architecture = match client.kind {
        Kind::System => return true,
        Kind::Agent => {
            add_wiglaf(reply, network, head);
            return true;
        }
        Kind::Ipxe => {
            // With hyphens: iPXE would write colons as %3A.
            let mac = asked.hardware.to_string().replace(':', "-");
            let mut script = format!("http://{http}/script/{mac}");
            if let Some(card) = client.card {
                let _ = write!(script, "?card={card}");
            }
            if is_proxy {
                reply.options.set(code::CLASS, *b"PXEClient");
            } else {
                reply.options.set(code::IPXE, IPXE_NO_PROXY);
            }
            add_file(reply, network, asked, &script);
            return true;
        }
        Kind::Bootp => Architecture::Bios,
        Kind::Firmware(_, architecture) => architecture,
    };
    let Some(loader) = loaders.of(architecture) else {
        return false;
    };
    match client.kind {
        Kind::Firmware(Fetch::Http, _) => {
            reply.options.set(code::CLASS, *b"HTTPClient");
            add_file(
                reply,
                network,
                asked,
                &format!("http://{http}/loader/{loader}"),
            );
        }
        Kind::Firmware(Fetch::Tftp, _) => {
            // UEFI takes a server that calls itself PXE's for one that has menus, and asks it
            // again at port 4011: there and as a proxy we have to, else it is a detour.
            if is_proxy || architecture == Architecture::Bios {
                reply.options.set(code::CLASS, *b"PXEClient");
            }
            if architecture == Architecture::Bios {
                let mut vendor = PXE_DIRECTLY.to_vec();
                vendor.push(PXE_END);
                reply.options.set(code::VENDOR, vendor);
            }
            add_file(reply, network, asked, loader);
        }
        _ => add_file(reply, network, asked, loader),
    }
    true
}

/// A boot server's answer at port 4011 names the item that was asked for.
pub(super) fn add_boot_server(reply: &mut Packet, asked: &Packet) {
    reply.options.set(code::CLASS, *b"PXEClient");
    if let Some(item) = asked.options.get(code::VENDOR).and_then(item_in) {
        let mut vendor = vec![PXE_ITEM, PXE_ITEM_BYTES];
        vendor.extend_from_slice(item);
        vendor.push(PXE_END);
        reply.options.set(code::VENDOR, vendor);
    }
}

fn item_in(mut vendor: &[u8]) -> Option<&[u8]> {
    while let Some((&code, rest)) = vendor.split_first() {
        match code {
            0 => vendor = rest,
            PXE_END => return None,
            _ => {
                let (&length, rest) = rest.split_first()?;
                let (value, rest) = rest.split_at_checked(usize::from(length))?;
                if code == PXE_ITEM && length == PXE_ITEM_BYTES {
                    return Some(value);
                }
                vendor = rest;
            }
        }
    }
    None
}

fn add_wiglaf(reply: &mut Packet, network: &Network, head: &Head) {
    let address = network.address;
    let cluster = head
        .cluster
        .chars()
        .filter(char::is_ascii_graphic)
        .take(MAX_CLUSTER);
    let cluster: String = cluster.collect();
    let (port, http_port) = (head.port, head.http_port);
    let text = format!("head={address}:{port} boot={address}:{http_port} cluster={cluster}");
    reply.options.set(code::CLASS, *b"wiglaf");
    reply.options.set(code::WIGLAF, text);
}

/// In the header, where every client looks; as options, too, for those that ask for them.
fn add_file(reply: &mut Packet, network: &Network, asked: &Packet, file: &str) {
    reply.next_server = network.address;
    let wanted = asked.options.get(code::WANTED).unwrap_or_default();
    if file.len() <= MAX_FILE {
        reply.file = file.as_bytes().to_vec();
    }
    if file.len() > MAX_FILE || wanted.contains(&code::BOOT_FILE) {
        reply.options.set(code::BOOT_FILE, file);
    }
    if wanted.contains(&code::TFTP_SERVER) {
        reply
            .options
            .set(code::TFTP_SERVER, network.address.to_string());
    }
}

/// Its bytes, no more than the client takes.
pub(super) fn emit(reply: &Packet, asked: &Packet) -> Vec<u8> {
    if reply.options.get(code::MESSAGE_TYPE).is_none() {
        return reply.emit(BOOTP_BYTES);
    }
    let takes = asked.options.short(code::MAX_SIZE).unwrap_or(MIN_DATAGRAM);
    let takes = takes.clamp(MIN_DATAGRAM, MAX_DATAGRAM) - IP_AND_UDP;
    reply.emit(usize::from(takes))
}

/// Where an answer to port 67 goes (RFC 2131, section 4.1).
pub(super) fn destination(reply: &Packet) -> Destination {
    let is_nak = Message::of(reply) == Some(Message::Nak);
    if !reply.relay.is_unspecified() {
        Destination::Address(SocketAddrV4::new(reply.relay, SERVER_PORT))
    } else if is_nak {
        Destination::Broadcast
    } else if !reply.client.is_unspecified() {
        Destination::Address(SocketAddrV4::new(reply.client, CLIENT_PORT))
    } else if reply.broadcast || reply.your.is_unspecified() {
        Destination::Broadcast
    } else {
        Destination::Hardware {
            mac: reply.hardware,
            address: reply.your,
        }
    }
}

/// A client's own address, if it has one.
pub(super) fn own_address(asked: &Packet) -> Option<Ipv4Addr> {
    (!asked.client.is_unspecified()).then_some(asked.client)
}
