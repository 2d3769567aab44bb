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
fn a_lease_is_for_ever_or_for_a_while() {
    let offer = |settings| {
        replies(&conversation(settings, &pxe(MAC, DISCOVER)))[0]
            .1
            .options
            .clone()
    };
    let ours = offer(adopted());
    assert_eq!(ours.get(code::LEASE_TIME), Some(&[255; 4][..]));
    assert_eq!(ours.get(code::RENEW), None);
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
