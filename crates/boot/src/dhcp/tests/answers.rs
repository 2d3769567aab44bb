//! Each packet of the corpus with its answer, in one table to read. The packets of iPXE, OVMF,
//! udhcpc, dhclient and networkd were captured; a PXE ROM's, BOOTP's and the odd ones are made
//! by hand.

use std::fmt::Write as _;

use super::super::options::Options;
use super::*;

#[test]
fn each_known_client_is_answered_as_it_needs() {
    let mut names: Vec<String> = std::fs::read_dir(corpus())
        .expect("the corpus")
        .map(|entry| {
            entry
                .expect("its entries")
                .file_name()
                .into_string()
                .expect("plain names")
        })
        .collect();
    names.sort();
    assert!(names.len() > 20, "the corpus is not whole");
    let mut table = String::new();
    for name in names {
        let bytes = captured(&name);
        let mut proxied = adopted();
        proxied.interfaces[0].service = AddressService::Proxy;
        for (who, settings) in [
            ("adopted", adopted()),
            ("unknown", strange()),
            ("proxy", proxied),
        ] {
            let mut wire = Wire::new(settings);
            let effects = if name.contains("proxy") {
                wire.ask_proxy(FIXED, &bytes)
            } else {
                wire.bytes(&bytes)
            };
            writeln!(table, "{name}, {who}").expect("a string");
            for effect in &effects {
                write_effect(&mut table, effect);
            }
        }
    }
    insta::assert_snapshot!(table);
}

fn write_effect(table: &mut String, effect: &Effect) {
    match effect {
        Effect::Keep(lease) => writeln!(table, "  keep {} for {}", lease.address, lease.mac),
        Effect::Problem { text, .. } => writeln!(table, "  problem: {text}"),
        Effect::Seen(seen) => {
            let client = seen.client.as_deref().unwrap_or("-");
            let address = seen
                .address
                .map_or("-".to_owned(), |address| address.to_string());
            writeln!(table, "  seen {} {client} {address}", seen.stage.name())
        }
        Effect::Send { to, bytes, .. } => {
            let packet = Packet::parse(bytes).expect("our own packet");
            assert!(
                bytes.len() >= 300 && bytes.len() <= 548,
                "{} bytes",
                bytes.len()
            );
            let to = match to {
                Destination::Address(address) => address.to_string(),
                Destination::Hardware { mac, address } => format!("{mac} as {address}"),
                Destination::Broadcast => "all".to_owned(),
            };
            let file = String::from_utf8_lossy(&packet.file);
            let (your, next) = (packet.your, packet.next_server);
            writeln!(
                table,
                "  to {to}: yiaddr {your} siaddr {next} file {file:?}"
            )
            .and_then(|()| writeln!(table, "    {}", options_text(&packet.options)))
        }
    }
    .expect("a string");
}

fn options_text(options: &Options) -> String {
    let present = (1..=254).filter_map(|code| Some((code, options.get(code)?)));
    let texts = present.map(|(code, value)| match code {
        code::CLASS | code::HOST_NAME | code::WIGLAF | code::BOOT_FILE | code::MESSAGE => {
            format!("{code}={:?}", String::from_utf8_lossy(value))
        }
        _ => {
            let hex: String = value.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("{code}={hex}")
        }
    });
    texts.collect::<Vec<_>>().join(" ")
}

#[test]
fn ipxe_is_known_by_either_form_of_its_name_or_by_its_options() {
    for (code, value) in [
        (code::USER_CLASS, &b"iPXE"[..]),
        (code::USER_CLASS, &b"\x03abc\x04iPXE"[..]),
        (code::IPXE, &[0xb1, 1, 0][..]),
    ] {
        let mut packet = pxe(MAC, DISCOVER);
        packet.options.set(code, value);
        let effects = Wire::new(adopted()).ask(&packet);
        let (_, offer) = &replies(&effects)[0];
        assert_eq!(
            offer.file,
            b"http://10.77.0.2:7480/script/52-54-00-12-34-56"
        );
    }
    let mut packet = pxe(MAC, DISCOVER);
    packet.options.set(code::USER_CLASS, *b"\x09iPXE");
    let effects = Wire::new(adopted()).ask(&packet);
    assert_eq!(replies(&effects)[0].1.file, b"undionly.kpxe");
}

#[test]
fn the_boot_program_is_the_architectures() {
    let all = ["undionly.kpxe", "ipxe.efi", "snponly-arm64.efi"].map(str::to_owned);
    for (architecture, file) in [
        ([0, 0], Some("undionly.kpxe")),
        ([0, 7], Some("ipxe.efi")),
        ([0, 9], Some("ipxe.efi")),
        ([0, 11], Some("snponly-arm64.efi")),
        ([0, 6], None),
        ([0, 99], None),
    ] {
        let mut wire = Wire::new(strange());
        wire.server.set_loaders(all.clone());
        let mut packet = pxe(MAC, DISCOVER);
        packet.options.set(code::CLASS, *b"PXEClient");
        packet.options.set(code::ARCHITECTURE, architecture);
        let effects = wire.ask(&packet);
        let replies = replies(&effects);
        match file {
            Some(file) => assert_eq!(replies[0].1.file, file.as_bytes()),
            None => {
                assert!(replies.is_empty(), "an address without anything to boot");
                assert_eq!(problems(&effects).len(), 1);
            }
        }
    }
}

#[test]
fn an_answer_is_never_larger_than_its_client_takes() {
    let mut packet = pxe(MAC, DISCOVER);
    packet.relay = Ipv4Addr::new(10, 77, 0, 3);
    packet.options.set(code::RELAY, vec![7; 200]);
    packet.options.set(code::CLIENT, vec![8; 255]);
    for (told, limit) in [
        (None, 548),
        (Some(100), 548),
        (Some(65_280), 1_472),
        (Some(700), 672),
    ] {
        if let Some(told) = told {
            packet.options.set(code::MAX_SIZE, u16::to_be_bytes(told));
        }
        let effects = Wire::new(adopted()).ask(&packet);
        let Effect::Send { bytes, .. } = &effects[0] else {
            panic!("no answer");
        };
        assert!(
            (300..=limit).contains(&bytes.len()),
            "{} bytes",
            bytes.len()
        );
        let (_, offer) = &replies(&effects)[0];
        assert_eq!(
            offer.options.get(code::RELAY),
            Some(&[7; 200][..]),
            "the relay needs its own"
        );
        assert_eq!(offer.options.byte(code::MESSAGE_TYPE), Some(OFFER));
        assert_eq!(offer.options.get(code::CLIENT).is_some(), limit > 800);
    }
}

#[test]
fn a_relay_is_answered_if_it_is_of_our_network() {
    for (relay, is_answered) in [
        (Ipv4Addr::new(10, 77, 0, 3), true),
        (Ipv4Addr::new(10, 78, 0, 3), false),
        (HEAD, false),
        (Ipv4Addr::new(10, 77, 0, 255), false),
    ] {
        let mut packet = pxe(MAC, DISCOVER);
        packet.relay = relay;
        let effects = Wire::new(adopted()).ask(&packet);
        let to = replies(&effects).first().map(|(to, _)| *to);
        let expected = Destination::Address(SocketAddrV4::new(relay, 67));
        assert_eq!(to, is_answered.then_some(expected), "{relay}");
    }
}

#[test]
fn nobody_off_the_network_is_answered() {
    let packet = pxe(MAC, DISCOVER).emit(usize::MAX);
    let mut wire = Wire::new(adopted());
    for from in [
        Ipv4Addr::new(192, 168, 1, 1),
        HEAD,
        Ipv4Addr::new(10, 77, 0, 255),
    ] {
        let from = SocketAddrV4::new(from, 68);
        for port in [Port::Server, Port::Proxy] {
            assert_eq!(wire.server.packet(START_MS, 0, from, port, &packet), []);
        }
    }
    assert_eq!(
        wire.server
            .packet(START_MS, 1, NOWHERE, Port::Server, &packet),
        []
    );
}

#[test]
fn a_probe_finds_other_servers_and_not_ourselves() {
    let mut wire = Wire::new(adopted());
    let probe = wire.server.probe(0, 77);
    assert_eq!(wire.bytes(&probe), []);
    let asked = Packet::parse(&probe).expect("our own packet");
    let mut offer = Packet::new(Operation::Reply, asked.transaction, asked.hardware);
    let other = Ipv4Addr::new(10, 77, 0, 1);
    offer.options.set(code::SERVER, other.octets());
    let answer = |packet: &Packet| wire.server.other_server(0, 77, &packet.emit(usize::MAX));
    assert_eq!(answer(&offer), Some(other));
    offer.options.set(code::SERVER, HEAD.octets());
    assert_eq!(answer(&offer), None);
    offer.options.set(code::SERVER, other.octets());
    offer.transaction = 78;
    assert_eq!(answer(&offer), None);
}

#[test]
fn who_resolves_names_is_told_to_machines_that_were_adopted() {
    let told = |settings, resolves| {
        let mut wire = Wire::new(settings);
        wire.server.resolve_names(resolves);
        let effects = wire.ask(&pxe(MAC, DISCOVER));
        let (_, offer) = replies(&effects).remove(0);
        offer.options.get(code::NAME_SERVER).map(<[u8]>::to_vec)
    };
    assert_eq!(told(adopted(), true), Some(HEAD.octets().to_vec()));
    assert_eq!(told(adopted(), false), None);
    assert_eq!(told(strange(), true), None);
}
