//! RFC 2131's states of a client.

use super::*;

fn conversation(settings: BootSettings, packet: &Packet) -> Vec<Effect> {
    Wire::new(settings).ask(packet)
}

#[test]
fn selecting_takes_its_own_address_and_no_other() {
    let effects = conversation(adopted(), &take(pxe(MAC, REQUEST), FIXED));
    assert_eq!(reply(&effects), (ACK, FIXED));
    assert_eq!(kept(&effects), [], "settings are durable already");
    assert_eq!(sightings(&effects)[0].stage, Stage::Addressed);

    let effects = conversation(adopted(), &take(pxe(MAC, REQUEST), POOL_FIRST));
    assert_eq!(reply(&effects), (NAK, Ipv4Addr::UNSPECIFIED));
    assert_eq!(replies(&effects)[0].0, Destination::Broadcast);
}

#[test]
fn what_was_offered_before_its_adoption_may_be_taken() {
    let mut wire = Wire::new(strange());
    assert_eq!(reply(&wire.ask(&pxe(MAC, DISCOVER))), (OFFER, POOL_FIRST));
    wire.server.configure(adopted());
    let effects = wire.ask(&take(pxe(MAC, REQUEST), POOL_FIRST));
    assert_eq!(reply(&effects), (ACK, POOL_FIRST));
    let ack = &replies(&effects)[0].1;
    let lease = ack.options.get(code::LEASE_TIME);
    assert_eq!(lease, Some(&120_u32.to_be_bytes()[..]));
    assert_eq!(kept(&effects).len(), 1, "nobody else gets it meanwhile");
    // From then on it has its own.
    assert_eq!(reply(&wire.ask(&pxe(MAC, DISCOVER))), (OFFER, FIXED));
    let effects = wire.ask(&take(pxe(MAC, REQUEST), FIXED));
    assert_eq!(reply(&effects), (ACK, FIXED));
    // What was not offered is refused, as is what an operating system wants.
    let other = Ipv4Addr::new(10, 77, 0, 201);
    assert_eq!(reply(&wire.ask(&take(pxe(MAC, REQUEST), other))).0, NAK);
    let system = take(message(MAC, REQUEST), POOL_FIRST);
    assert_eq!(reply(&wire.ask(&system)).0, NAK);
}

#[test]
fn selecting_another_server_is_none_of_ours() {
    let mut packet = take(pxe(MAC, REQUEST), FIXED);
    packet.options.set(code::SERVER, [10, 77, 0, 1]);
    let mut wire = Wire::new(adopted());
    let effects = wire.ask(&packet);
    assert!(is_silent(&effects));
    assert!(problems(&effects)[0].contains("10.77.0.1"));
    assert_eq!(problems(&wire.ask(&packet)), [""; 0], "once a minute");

    // An unknown machine's offer is free again.
    let mut wire = Wire::new(strange());
    let offered = reply(&wire.ask(&pxe(MAC, DISCOVER))).1;
    assert!(is_silent(&wire.ask(&packet)));
    wire.pass_s(1);
    assert_eq!(reply(&wire.ask(&take(pxe(MAC, REQUEST), offered))).0, NAK);
}

#[test]
fn init_reboot_is_confirmed_refused_or_ignored() {
    let mut packet = message(MAC, REQUEST);
    packet.options.set(code::REQUESTED, FIXED.octets());
    assert_eq!(reply(&conversation(adopted(), &packet)), (ACK, FIXED));
    assert!(
        is_silent(&conversation(strange(), &packet)),
        "it may be somebody else's client"
    );
    packet.options.set(code::REQUESTED, [192, 168, 1, 5]);
    assert_eq!(reply(&conversation(adopted(), &packet)).0, NAK);
}

#[test]
fn renewing_and_rebinding_are_answered_at_the_address() {
    let mut packet = message(MAC, REQUEST);
    packet.client = FIXED;
    for is_broadcast in [false, true] {
        packet.broadcast = is_broadcast;
        let effects = conversation(adopted(), &packet);
        assert_eq!(reply(&effects), (ACK, FIXED));
        let to = Destination::Address(SocketAddrV4::new(FIXED, 68));
        assert_eq!(replies(&effects)[0].0, to);
    }
    packet.client = Ipv4Addr::new(10, 77, 0, 99);
    assert_eq!(reply(&conversation(adopted(), &packet)).0, NAK);
    assert!(is_silent(&conversation(strange(), &packet)));
}

#[test]
fn an_answer_goes_where_the_client_can_hear_it() {
    let mut packet = pxe(MAC, DISCOVER);
    let to = |packet: &Packet| replies(&conversation(adopted(), packet))[0].0;
    assert_eq!(
        to(&packet),
        Destination::Hardware {
            mac: MAC,
            address: FIXED
        }
    );
    packet.broadcast = true;
    assert_eq!(to(&packet), Destination::Broadcast);
    // Whatever it writes there, no answer of ours goes to an address that it doesn't have.
    let mut packet = take(pxe(MAC, REQUEST), FIXED);
    packet.client = Ipv4Addr::new(8, 8, 8, 8);
    assert_eq!(
        to(&packet),
        Destination::Hardware {
            mac: MAC,
            address: FIXED
        }
    );
}

#[test]
fn inform_tells_an_adopted_machine_the_rest() {
    let mut packet = message(MAC, INFORM);
    packet.client = FIXED;
    let effects = conversation(adopted(), &packet);
    assert_eq!(reply(&effects), (ACK, Ipv4Addr::UNSPECIFIED));
    let (to, ack) = &replies(&effects)[0];
    assert_eq!(*to, Destination::Address(SocketAddrV4::new(FIXED, 68)));
    assert_eq!(ack.options.get(code::LEASE_TIME), None);
    assert_eq!(ack.options.get(code::HOST_NAME), Some(&b"n1"[..]));
    assert!(is_silent(&conversation(strange(), &packet)));
    packet.client = Ipv4Addr::new(8, 8, 8, 8);
    assert!(is_silent(&conversation(adopted(), &packet)));
}

#[test]
fn a_lease_is_for_a_day_or_for_a_while() {
    let offer = |settings| {
        replies(&conversation(settings, &pxe(MAC, DISCOVER)))[0]
            .1
            .options
            .clone()
    };
    let ours = offer(adopted());
    let seconds = |seconds: u32| seconds.to_be_bytes().to_vec();
    let times = |options: &crate::dhcp::options::Options| {
        [code::LEASE_TIME, code::RENEW, code::REBIND]
            .map(|code| options.get(code).expect("a time").to_vec())
    };
    assert_eq!(
        times(&ours),
        [seconds(86_400), seconds(43_200), seconds(75_600)]
    );
    let strangers = offer(strange());
    assert_eq!(
        strangers.get(code::LEASE_TIME),
        Some(&120_u32.to_be_bytes()[..])
    );
    assert_eq!(strangers.get(code::RENEW), Some(&60_u32.to_be_bytes()[..]));
    assert_eq!(
        strangers.get(code::REBIND),
        Some(&105_u32.to_be_bytes()[..])
    );
    assert_eq!(strangers.get(code::HOST_NAME), None);
}

/// A running node's question whether all is as it was.
fn renewal(address: Ipv4Addr) -> Packet {
    let mut packet = message(MAC, REQUEST);
    packet.options.set(code::CLASS, *b"wiglaf");
    packet.client = address;
    packet
}

#[test]
fn a_running_node_asks_often_and_is_not_seen_booting() {
    let effects = conversation(adopted(), &renewal(FIXED));
    assert_eq!(reply(&effects), (ACK, FIXED));
    let ack = &replies(&effects)[0].1;
    let renew = ack.options.get(code::RENEW);
    assert_eq!(renew, Some(&30_u32.to_be_bytes()[..]));
    let told = ack.options.get(code::WIGLAF).expect("the head");
    assert!(told.starts_with(format!("head={HEAD}:").as_bytes()));
    // A permit to join comes of being seen.
    assert!(sightings(&effects).is_empty());
    // Other clients of its machine are seen.
    let mut firmware = renewal(FIXED);
    firmware.options.set(code::CLASS, *b"PXEClient");
    assert!(!sightings(&conversation(adopted(), &firmware)).is_empty());
}

#[test]
fn a_node_of_the_network_that_was_here_before_is_told_that_it_has_no_address() {
    let old = Ipv4Addr::new(10, 99, 0, 5);
    let from = SocketAddrV4::new(old, 68);
    let ask = |settings: BootSettings, packet: &Packet| {
        let mut server = Server::new(settings, Vec::new());
        let bytes = packet.emit(usize::MAX);
        server.packet(START_MS, 0, from, Port::Server, &bytes)
    };
    let effects = ask(adopted(), &renewal(old));
    assert_eq!(reply(&effects).0, NAK);
    assert_eq!(replies(&effects)[0].0, Destination::Broadcast);
    // Nobody else is answered at an address of another network.
    assert!(ask(strange(), &renewal(old)).is_empty());
    let mut inform = renewal(old);
    inform.options.set(code::MESSAGE_TYPE, [INFORM]);
    assert!(ask(adopted(), &inform).is_empty());
    assert!(ask(adopted(), &pxe(MAC, DISCOVER)).is_empty());
}

#[test]
fn a_machine_that_was_forgotten_while_it_runs_is_told_that_its_address_is_not_its_own() {
    let mut wire = Wire::new(adopted());
    assert_eq!(reply(&wire.ask(&renewal(FIXED))), (ACK, FIXED));
    wire.server.configure(strange());
    // Its /init, or the system that it runs, by all that either asks.
    let effects = wire.ask(&renewal(FIXED));
    assert_eq!(reply(&effects), (NAK, Ipv4Addr::UNSPECIFIED));
    assert_eq!(replies(&effects)[0].0, Destination::Broadcast);
    let mut system = message(MAC, REQUEST);
    system.client = FIXED;
    assert_eq!(reply(&wire.ask(&system)).0, NAK);
    // Nothing is said of addresses that it did not have from us, nor to others.
    assert!(is_silent(&wire.ask(&renewal(Ipv4Addr::new(10, 77, 0, 99)))));
    system.hardware = OTHER;
    assert!(is_silent(&wire.ask(&system)));
    // It starts anew: as any machine that nobody knows.
    assert_eq!(reply(&wire.ask(&pxe(MAC, DISCOVER))), (OFFER, POOL_FIRST));
    // Adopted again, it has its own again.
    wire.server.configure(adopted());
    assert_eq!(reply(&wire.ask(&renewal(FIXED))), (ACK, FIXED));
    wire.server.configure(strange());
    // Somebody else's client now.
    let mut elsewhere = message(MAC, REQUEST);
    elsewhere.options.set(code::SERVER, [10, 77, 0, 1]);
    elsewhere.options.set(code::REQUESTED, FIXED.octets());
    assert!(is_silent(&wire.ask(&elsewhere)));
    assert!(is_silent(&wire.ask(&renewal(FIXED))));
}

#[test]
fn beside_another_server_a_running_node_asks_where_the_head_is() {
    let mut inform = renewal(FIXED);
    inform.options.set(code::MESSAGE_TYPE, [INFORM]);
    let proxy = || settings(AddressService::Proxy, vec![machine(MAC, "n1", FIXED)]);
    let effects = conversation(proxy(), &inform);
    let (message, address) = reply(&effects);
    assert_eq!((message, address), (ACK, Ipv4Addr::UNSPECIFIED));
    assert!(replies(&effects)[0].1.options.get(code::WIGLAF).is_some());
    assert!(sightings(&effects).is_empty());
    // Its renewals are the other server's.
    assert!(conversation(proxy(), &renewal(FIXED)).is_empty());
}

#[test]
fn only_an_adopted_machines_agent_learns_of_the_head() {
    let packet = captured("wiglaf-discover");
    let effects = Wire::new(adopted()).bytes(&packet);
    let told = replies(&effects)[0].1.options.clone();
    let text = &b"head=10.77.0.2:7400 boot=10.77.0.2:7480 cluster=c1"[..];
    assert_eq!(told.get(code::WIGLAF), Some(text));
    let effects = Wire::new(strange()).bytes(&packet);
    assert!(is_silent(&effects));
    assert_eq!(
        sightings(&effects).len(),
        1,
        "but it has its place in the list"
    );
}

#[test]
fn what_is_no_client_is_ignored() {
    let mut wire = Wire::new(adopted());
    let mut packet = pxe(MAC, DISCOVER);
    packet.operation = Operation::Reply;
    assert_eq!(wire.ask(&packet), []);
    for mac in [Mac([0; 6]), Mac([255; 6]), Mac([1, 0, 94, 0, 0, 1])] {
        assert_eq!(wire.ask(&pxe(mac, DISCOVER)), []);
    }
    for number in [0, OFFER, ACK, NAK, 9, 255] {
        assert!(is_silent(&wire.ask(&message(MAC, number))), "{number}");
    }
    let mut packet = pxe(MAC, DISCOVER);
    packet.options.set(code::MESSAGE_TYPE, [1, 1]);
    assert!(is_silent(&wire.ask(&packet)), "neither DHCP nor BOOTP");
}
