//! Several wires.

use super::*;

const SECOND_POOL: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 200);

fn two(machines: Vec<BootMachine>) -> BootSettings {
    let mut settings = settings(AddressService::Full, machines);
    settings.interfaces.push(BootInterface {
        name: "eth1".to_owned(),
        address: Ipv4Addr::new(10, 88, 0, 2),
        prefix: 24,
        service: AddressService::Full,
        unknown: (SECOND_POOL, SECOND_POOL),
        gateway: None,
    });
    settings
}

fn ask_on(server: &mut Server, interface: usize, packet: &Packet) -> Vec<Effect> {
    let bytes = packet.emit(usize::MAX);
    server.packet(START_MS, interface, NOWHERE, Port::Server, &bytes)
}

#[test]
fn each_wire_has_its_own_addresses() {
    let mut server = Server::new(two(Vec::new()), Vec::new());
    assert_eq!(
        reply(&ask_on(&mut server, 0, &pxe(MAC, DISCOVER))).1,
        POOL_FIRST
    );
    let effects = ask_on(&mut server, 1, &pxe(MAC, DISCOVER));
    assert_eq!(reply(&effects).1, SECOND_POOL);
    let is_there = |effect: &Effect| match effect {
        Effect::Send { interface, .. } | Effect::Problem { interface, .. } => *interface == 1,
        Effect::Seen(sighting) => sighting.interface == "eth1",
        Effect::Keep(_) => true,
    };
    assert!(effects.iter().all(is_there), "{effects:?}");
    assert_eq!(
        replies(&effects)[0].1.options.address(code::SERVER),
        Some(Ipv4Addr::new(10, 88, 0, 2))
    );
}

#[test]
fn an_adopted_machine_on_the_wrong_wire_gets_nothing_there() {
    let mut server = Server::new(two(vec![machine(MAC, "n1", FIXED)]), Vec::new());
    let effects = ask_on(&mut server, 1, &pxe(MAC, DISCOVER));
    assert!(is_silent(&effects));
    assert!(problems(&effects)[0].contains("eth1"));
    assert_eq!(
        reply(&ask_on(&mut server, 0, &pxe(MAC, DISCOVER))),
        (OFFER, FIXED)
    );
}

#[test]
fn leases_stay_with_their_addresses_when_interfaces_change_places() {
    let mut server = Server::new(two(Vec::new()), Vec::new());
    let offer = ask_on(&mut server, 1, &pxe(MAC, DISCOVER));
    assert_eq!(reply(&offer).1, SECOND_POOL);
    let mut packet = take(pxe(MAC, REQUEST), SECOND_POOL);
    packet.options.set(code::SERVER, [10, 88, 0, 2]);
    assert_eq!(reply(&ask_on(&mut server, 1, &packet)), (ACK, SECOND_POOL));
    let mut turned = two(Vec::new());
    turned.interfaces.reverse();
    server.configure(turned);
    assert!(is_silent(&ask_on(&mut server, 0, &pxe(OTHER, DISCOVER))));
    assert_eq!(
        reply(&ask_on(&mut server, 0, &pxe(MAC, DISCOVER))).1,
        SECOND_POOL
    );
    assert_eq!(
        reply(&ask_on(&mut server, 1, &pxe(OTHER, DISCOVER))).1,
        POOL_FIRST
    );
}

#[test]
fn a_pool_is_no_larger_than_its_bound_and_gives_no_address_of_another_network() {
    let mut settings = strange();
    settings.interfaces[0].unknown = (Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST);
    let mut wire = Wire::new(settings);
    assert!(is_silent(&wire.ask(&pxe(MAC, DISCOVER))));
    let mut settings = strange();
    settings.interfaces[0].prefix = 8;
    settings.interfaces[0].unknown = (Ipv4Addr::new(10, 0, 0, 0), Ipv4Addr::new(10, 255, 255, 255));
    let mut wire = Wire::new(settings);
    assert_eq!(
        reply(&wire.ask(&pxe(MAC, DISCOVER))).1,
        Ipv4Addr::new(10, 0, 0, 1)
    );
}
