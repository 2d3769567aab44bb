//! What somebody should know.

use super::*;

fn with_uuid(byte: u8, mac: Mac) -> Packet {
    let mut packet = pxe(mac, DISCOVER);
    let mut uuid = [byte; 17];
    uuid[0] = 0;
    packet.options.set(code::UUID, uuid);
    packet
}

#[test]
fn two_machines_with_one_address_are_told_once_a_minute() {
    let mut wire = Wire::new(adopted());
    assert_eq!(problems(&wire.ask(&with_uuid(1, MAC))), [""; 0]);
    let effects = wire.ask(&with_uuid(2, MAC));
    let [text] = problems(&effects)[..] else {
        panic!("{effects:?}");
    };
    for part in [
        "n1",
        "eth0",
        "52:54:00:12:34:56",
        "01010101-0101",
        "02020202-0202",
    ] {
        assert!(text.contains(part), "{text}");
    }
    assert_eq!(reply(&effects), (OFFER, FIXED));
    let mut told = Vec::new();
    for second in 1..130 {
        wire.pass_s(1);
        let byte = if second % 2 == 0 { 2 } else { 1 };
        let effects = wire.ask(&with_uuid(byte, MAC));
        told.extend(problems(&effects).iter().map(|_| second));
    }
    assert_eq!(told, [60, 120]);
}

#[test]
fn one_machine_is_not_two() {
    let mut wire = Wire::new(adopted());
    let mut uuid: Vec<u8> = (0..17).collect();
    let mut packet = pxe(MAC, DISCOVER);
    packet.options.set(code::UUID, uuid.clone());
    assert_eq!(problems(&wire.ask(&packet)), [""; 0]);
    // Firmware and iPXE may see its first numbers in the other order.
    uuid[1..5].reverse();
    uuid[5..7].reverse();
    uuid[7..9].reverse();
    packet.options.set(code::UUID, uuid);
    assert_eq!(problems(&wire.ask(&packet)), [""; 0]);
    // Firmware, iPXE, an initramfs and its system call themselves differently.
    for name in [
        "ipxe-bios-discover",
        "udhcpc-discover",
        "networkd-discover",
        "dhclient-discover",
    ] {
        let mut packet = Packet::parse(&captured(name)).expect("a packet");
        packet.options.set(code::UUID, []);
        assert_eq!(problems(&wire.ask(&packet)), [""; 0], "{name}");
    }
    // A card that was moved to another machine.
    let mut wire = Wire::new(adopted());
    assert_eq!(problems(&wire.ask(&with_uuid(1, MAC))), [""; 0]);
    wire.pass_s(601);
    assert_eq!(problems(&wire.ask(&with_uuid(2, MAC))), [""; 0]);
}

#[test]
fn two_systems_that_take_turns_are_two_machines() {
    let mut wire = Wire::new(adopted());
    let mut packet = message(MAC, DISCOVER);
    let mut told = Vec::new();
    for turn in 0..4_u8 {
        wire.pass_s(5);
        packet.options.set(code::CLIENT, [255, turn % 2]);
        let effects = wire.ask(&packet);
        told.extend(problems(&effects).iter().map(|_| turn));
    }
    assert_eq!(told, [2]);
}

#[test]
fn an_adopted_machine_that_declines_keeps_its_address() {
    let mut wire = Wire::new(adopted());
    let effects = wire.bytes(&captured("decline"));
    let [text] = problems(&effects)[..] else {
        panic!("{effects:?}");
    };
    for part in ["n1", "10.77.0.15", "eth0"] {
        assert!(text.contains(part), "{text}");
    }
    assert_eq!(reply(&wire.ask(&pxe(MAC, DISCOVER))), (OFFER, FIXED));
    assert_eq!(wire.bytes(&captured("decline")), [], "once a minute");
}

#[test]
fn an_address_that_can_not_be_given_is_told() {
    let elsewhere = Ipv4Addr::new(10, 99, 0, 1);
    let broadcast = Ipv4Addr::new(10, 77, 0, 255);
    let gateway = Ipv4Addr::new(10, 77, 0, 1);
    for address in [
        elsewhere,
        HEAD,
        gateway,
        broadcast,
        Ipv4Addr::new(10, 77, 0, 0),
    ] {
        let machines = vec![machine(MAC, "n1", address)];
        let mut wire = Wire::new(settings(AddressService::Full, machines));
        let effects = wire.ask(&pxe(MAC, DISCOVER));
        assert!(is_silent(&effects), "{address}");
        assert!(problems(&effects)[0].contains("n1"), "{address}");
        assert_eq!(sightings(&effects).len(), 1);
    }
    let machines = vec![machine(OTHER, "n0", FIXED), machine(MAC, "n1", FIXED)];
    let mut wire = Wire::new(settings(AddressService::Full, machines));
    assert_eq!(reply(&wire.ask(&pxe(OTHER, DISCOVER))), (OFFER, FIXED));
    let effects = wire.ask(&pxe(MAC, DISCOVER));
    assert!(is_silent(&effects));
    assert_eq!(problems(&effects).len(), 1);
}
