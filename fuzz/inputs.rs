//! Bytes of a peer through each part of the boot service that reads them. For libFuzzer, and for
//! the test in `crates/boot/tests/corpus.rs`.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4};
use std::rc::Rc;

use wiglaf_boot::dhcp::packet::{MAX_BYTES, Operation, Packet};
use wiglaf_boot::dhcp::{Effect, Port, Server};
use wiglaf_boot::dns;
use wiglaf_boot::http::connection::{Answer, Connection, Next};
use wiglaf_boot::http::request::{self, Method};
use wiglaf_boot::http::site::{Asker, Site};
use wiglaf_boot::{router, tftp};
use wiglaf_wire::boot::{AddressService, BootInterface, BootMachine, BootSettings, Mac};
use wiglaf_wire::names::{NameService, Resolver};

const HEAD: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
const MACHINE: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 15);
const START_MS: u64 = 1_700_000_000_000;
/// A TFTP client's packets stand one after the other in an input, each after its length.
const LENGTH_BYTES: usize = 2;

fn settings(service: AddressService, is_adopted: bool) -> BootSettings {
    let machine = BootMachine {
        mac: Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56]),
        name: "n1".to_owned(),
        address: MACHINE,
        image: "default".to_owned(),
        arguments: String::new(),
    };
    BootSettings {
        interfaces: vec![BootInterface {
            name: "eth0".to_owned(),
            address: HEAD,
            prefix: 24,
            service,
            unknown: (Ipv4Addr::new(10, 77, 0, 200), Ipv4Addr::new(10, 77, 0, 203)),
            gateway: None,
        }],
        head_port: 7_400,
        http_port: 7_480,
        cluster: "c1".to_owned(),
        machines: if is_adopted {
            vec![machine]
        } else {
            Vec::new()
        },
    }
}

/// One packet, to servers that know its sender and servers that don't.
pub(crate) fn dhcp(bytes: &[u8]) {
    if let Ok(packet) = Packet::parse(bytes) {
        let again = packet.emit(usize::MAX);
        if again.len() <= MAX_BYTES {
            assert_eq!(
                Packet::parse(&again),
                Ok(packet),
                "written otherwise than read"
            );
        }
    }
    let froms = [Ipv4Addr::UNSPECIFIED, MACHINE];
    for service in [AddressService::Full, AddressService::Proxy] {
        for is_adopted in [true, false] {
            let mut server = Server::new(settings(service, is_adopted), Vec::new());
            let probe = server.probe(0, 1);
            server.other_server(0, 1, bytes);
            assert!(Packet::parse(&probe).is_ok());
            for (second, from) in froms.iter().cycle().take(4).enumerate() {
                for port in [Port::Server, Port::Proxy] {
                    let from = SocketAddrV4::new(*from, 68);
                    let now_ms = START_MS + 40_000 * second as u64;
                    check(&server.packet(now_ms, 0, from, port, bytes));
                }
            }
        }
    }
}

fn check(effects: &[Effect]) {
    assert!(effects.len() <= 4, "{effects:?}");
    for effect in effects {
        if let Effect::Send { bytes, .. } = effect {
            let reply = Packet::parse(bytes).expect("what we write can be read");
            assert_eq!(reply.operation, Operation::Reply);
            assert!(
                (300..=1_472).contains(&bytes.len()),
                "{} bytes",
                bytes.len()
            );
        }
    }
}

/// A client's packets: the first asks, the others go to the transfer.
pub(crate) fn tftp(bytes: &[u8]) {
    let mut packets = Vec::new();
    let mut rest = bytes;
    while let Some((length, after)) = rest.split_at_checked(LENGTH_BYTES) {
        let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
        let (packet, after) = after.split_at(length.min(after.len()));
        packets.push(packet);
        rest = after;
    }
    let _ = tftp::parse(bytes);
    let mut packets = packets.into_iter();
    let Some(Ok(tftp::Packet::Read(asked))) = packets.next().map(tftp::parse) else {
        return;
    };
    let _ = tftp::loader_named(&asked.name);
    let file: Rc<[u8]> = vec![7; 70_000].into();
    let (mut transfer, mut sent) = tftp::Transfer::new(START_MS, &asked, file);
    for (index, packet) in packets.enumerate() {
        sent.extend(transfer.packet(START_MS + index as u64, packet));
        assert!(
            sent.iter().map(Vec::len).sum::<usize>() <= 8 << 20,
            "one packet begets megabytes"
        );
        sent.clear();
    }
}

/// A client's bytes, at once and one by one.
pub(crate) fn http(bytes: &[u8]) {
    let _ = request::parse(bytes);
    for pieces in [bytes.len().max(1), 1] {
        let mut site = Site::new(settings(AddressService::Full, true));
        let mut connection = Connection::new(START_MS);
        for piece in bytes.chunks(pieces) {
            if !connection.wants_bytes() {
                break;
            }
            connection.received(START_MS, piece);
            serve(&mut connection, &mut site);
        }
    }
}

fn serve(connection: &mut Connection, site: &mut Site) {
    let asker = Asker {
        interface: 0,
        address: MACHINE,
        hardware: None,
    };
    loop {
        match connection.next_request(START_MS) {
            Ok(Some((asked, body))) => {
                let mut initramfs_for = |image: &str, card| Some(format!("{image}-{card}"));
                let _ = site.decide(START_MS, asker, &asked, &body, &mut initramfs_for);
                connection.answer(START_MS, 0, asked.method, Answer::text(200, "so"));
            }
            Ok(None) if !connection.is_sending() => return,
            Ok(None) => {}
            Err(refusal) => {
                connection.answer(
                    START_MS,
                    0,
                    Method::Get,
                    Answer::text(refusal.status(), "no"),
                );
            }
        }
        while let Next::Bytes(bytes, _) = connection.next() {
            let count = bytes.len();
            connection.sent(START_MS, count);
        }
        if connection.is_over() {
            return;
        }
    }
}

/// An ICMPv6 message.
pub(crate) fn router(bytes: &[u8]) {
    let local = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
    for from in [local, Ipv6Addr::UNSPECIFIED, Ipv6Addr::LOCALHOST] {
        if let Some(to) = router::asker(bytes, from, Some(255)) {
            assert!(to == local || to.is_multicast());
            assert_eq!(router::asker(bytes, from, Some(64)), None);
        }
    }
}

/// A node's message, also as what a server says, as bytes of a connection, and as a `resolv.conf`.
pub(crate) fn dns(bytes: &[u8]) {
    let server = "127.0.0.53:53".parse().expect("an address");
    let names = dns::Names::new(&NameService {
        nodes: vec![("n1".to_owned(), MACHINE.into())],
        head: "head".to_owned(),
        domains: vec!["example.org".to_owned()],
        servers: vec![server],
    });
    let _ = dns::judge(bytes, &names, HEAD);
    let asker = dns::Asker {
        wire: 0,
        peer: SocketAddrV4::new(MACHINE, 4_000),
    };
    let mut relay = dns::Relay::default();
    match relay.query(START_MS, asker, bytes, (&names, &[server], HEAD), 7) {
        None => {}
        Some(dns::Effect::Answer(_, said)) => {
            assert!((12..=dns::LONG_BYTES).contains(&said.len()));
            assert!(
                dns::parse_question(&said).is_err(),
                "an answer is no question"
            );
        }
        Some(dns::Effect::Ask(key, _, sent)) => {
            assert_eq!(sent.len(), bytes.len());
            relay.reply(START_MS, key, bytes, &[server]);
            let mut said = sent;
            said[2] |= 0x80;
            relay.reply(START_MS, key, &said, &[server]);
            for second in 0..8 {
                relay.tick(START_MS + second * 1_000, &[server]);
            }
            assert!(relay.is_empty());
        }
        Some(other) => panic!("{other:?}"),
    }
    let mut stream = dns::Stream::default();
    for byte in bytes {
        stream.received(&[*byte]);
        while stream.take().is_some() {}
    }
    assert!(Resolver::parse(bytes).servers.len() <= 3);
}
