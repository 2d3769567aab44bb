//! What whole conversations come to.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;

use wiglaf_wire::boot::{
    AddressService, BootInterface, BootMachine, BootSettings, Mac, Sighting, Stage,
};

use super::options::code;
use super::packet::{Operation, Packet};
use super::{Destination, Effect, Lease, PROXY_PORT, Port, Server};

mod answers;
mod interfaces;
mod pool;
mod problems;
mod random;
mod states;

/// Whose packets the corpus holds.
const MAC: Mac = Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56]);
const OTHER: Mac = Mac([0x52, 0x54, 0, 0, 0, 2]);
const HEAD: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
const FIXED: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 15);
const POOL_FIRST: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 200);
const POOL_LAST: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 203);
const NOWHERE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 68);
const START_MS: u64 = 1_700_000_000_000;

const DISCOVER: u8 = 1;
const OFFER: u8 = 2;
const REQUEST: u8 = 3;
const DECLINE: u8 = 4;
const ACK: u8 = 5;
const NAK: u8 = 6;
const RELEASE: u8 = 7;
const INFORM: u8 = 8;

fn machine(mac: Mac, name: &str, address: Ipv4Addr) -> BootMachine {
    BootMachine {
        mac,
        name: name.to_owned(),
        address,
        image: "default".to_owned(),
        arguments: String::new(),
    }
}

fn settings(service: AddressService, machines: Vec<BootMachine>) -> BootSettings {
    let interface = BootInterface {
        name: "eth0".to_owned(),
        address: HEAD,
        prefix: 24,
        service,
        unknown: (POOL_FIRST, POOL_LAST),
        gateway: Some(Ipv4Addr::new(10, 77, 0, 1)),
    };
    BootSettings {
        interfaces: vec![interface],
        head_port: 7_400,
        http_port: 7_480,
        cluster: "c1".to_owned(),
        machines,
    }
}

/// One that knows the corpus' machine.
fn adopted() -> BootSettings {
    settings(AddressService::Full, vec![machine(MAC, "n1", FIXED)])
}

/// One that knows nobody.
fn strange() -> BootSettings {
    settings(AddressService::Full, Vec::new())
}

fn corpus() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/dhcp")
}

fn captured(name: &str) -> Vec<u8> {
    let path = corpus().join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A server with a clock.
struct Wire {
    server: Server,
    now_ms: u64,
}

impl Wire {
    fn new(settings: BootSettings) -> Wire {
        Wire {
            server: Server::new(settings, Vec::new()),
            now_ms: START_MS,
        }
    }

    fn bytes(&mut self, bytes: &[u8]) -> Vec<Effect> {
        self.server
            .packet(self.now_ms, 0, NOWHERE, Port::Server, bytes)
    }

    fn ask(&mut self, packet: &Packet) -> Vec<Effect> {
        self.bytes(&packet.emit(usize::MAX))
    }

    fn ask_proxy(&mut self, from: Ipv4Addr, bytes: &[u8]) -> Vec<Effect> {
        let from = SocketAddrV4::new(from, PROXY_PORT);
        self.server.packet(self.now_ms, 0, from, Port::Proxy, bytes)
    }

    fn pass_s(&mut self, seconds: u64) {
        self.now_ms += seconds * 1_000;
    }
}

fn message(mac: Mac, number: u8) -> Packet {
    let mut packet = Packet::new(Operation::Request, 0x1234, mac);
    packet.options.set(code::MESSAGE_TYPE, [number]);
    packet
}

/// What firmware asks that boots by PXE.
fn pxe(mac: Mac, number: u8) -> Packet {
    let mut packet = message(mac, number);
    packet
        .options
        .set(code::CLASS, *b"PXEClient:Arch:00000:UNDI:002001");
    packet.options.set(code::ARCHITECTURE, [0, 0]);
    packet
}

/// A REQUEST that takes an offer of ours.
fn take(mut packet: Packet, address: Ipv4Addr) -> Packet {
    packet.options.set(code::MESSAGE_TYPE, [REQUEST]);
    packet.options.set(code::REQUESTED, address.octets());
    packet.options.set(code::SERVER, HEAD.octets());
    packet
}

fn replies(effects: &[Effect]) -> Vec<(Destination, Packet)> {
    let sent = effects.iter().filter_map(|effect| match effect {
        Effect::Send { to, bytes, .. } => Some((*to, bytes)),
        _ => None,
    });
    sent.map(|(to, bytes)| (to, Packet::parse(bytes).expect("our own packet")))
        .collect()
}

/// The one answer there has to be: its message, and the address that it gives.
fn reply(effects: &[Effect]) -> (u8, Ipv4Addr) {
    let replies = replies(effects);
    let [(_, reply)] = &replies[..] else {
        panic!("{} answers: {effects:?}", replies.len());
    };
    (
        reply.options.byte(code::MESSAGE_TYPE).unwrap_or(0),
        reply.your,
    )
}

fn is_silent(effects: &[Effect]) -> bool {
    replies(effects).is_empty()
}

fn problems(effects: &[Effect]) -> Vec<&str> {
    let told = effects.iter().filter_map(|effect| match effect {
        Effect::Problem { text, .. } => Some(text.as_str()),
        _ => None,
    });
    told.collect()
}

fn sightings(effects: &[Effect]) -> Vec<&Sighting> {
    let seen = effects.iter().filter_map(|effect| match effect {
        Effect::Seen(sighting) => Some(sighting),
        _ => None,
    });
    seen.collect()
}

fn kept(effects: &[Effect]) -> Vec<Lease> {
    let kept = effects.iter().filter_map(|effect| match effect {
        Effect::Keep(lease) => Some(*lease),
        _ => None,
    });
    kept.collect()
}
