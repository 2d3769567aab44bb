//! Whatever comes, in whatever order.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;

use super::super::packet::MAX_BYTES;
use super::*;

const MACHINES: u8 = 3;
const MACS: u8 = 12;

fn mac(number: u8) -> Mac {
    Mac([0x52, 0x54, 0, 0, 0, number])
}

fn fixed(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, 10 + number)
}

/// The first machines are adopted; the last of those at an address within the pool.
fn some_adopted() -> BootSettings {
    these_adopted(MACHINES)
}

fn these_adopted(count: u8) -> BootSettings {
    let mut machines: Vec<_> = (0..count)
        .map(|number| machine(mac(number), &format!("n{number}"), fixed(number)))
        .collect();
    machines[usize::from(MACHINES) - 1].address = Ipv4Addr::new(10, 77, 0, 201);
    settings(AddressService::Full, machines)
}

fn address() -> impl Strategy<Value = Ipv4Addr> {
    prop_oneof![
        4 => (200..=203_u8).prop_map(|last| Ipv4Addr::new(10, 77, 0, last)),
        2 => (0..=15_u8).prop_map(|last| Ipv4Addr::new(10, 77, 0, last)),
        2 => Just(Ipv4Addr::UNSPECIFIED),
        1 => any::<u32>().prop_map(Ipv4Addr::from),
    ]
}

fn option() -> impl Strategy<Value = (u8, Vec<u8>)> {
    let class = prop_oneof![
        Just(b"PXEClient:Arch:00000:UNDI:002001".to_vec()),
        Just(b"PXEClient:Arch:00007".to_vec()),
        Just(b"HTTPClient:Arch:00016".to_vec()),
        Just(b"wiglaf".to_vec()),
        Just(b"MSFT 5.0".to_vec()),
    ];
    prop_oneof![
        3 => address().prop_map(|address| (code::REQUESTED, address.octets().to_vec())),
        2 => Just((code::SERVER, HEAD.octets().to_vec())),
        1 => address().prop_map(|address| (code::SERVER, address.octets().to_vec())),
        3 => class.prop_map(|class| (code::CLASS, class)),
        1 => Just((code::USER_CLASS, b"iPXE".to_vec())),
        1 => (0..20_u8).prop_map(|number| (code::ARCHITECTURE, vec![0, number])),
        1 => (any::<u8>(), vec(any::<u8>(), 0..40)),
    ]
}

prop_compose! {
    fn any_packet()(
        number in 0..MACS,
        kind in prop_oneof![6 => Just(DISCOVER), 6 => Just(REQUEST), 1 => 0..10_u8],
        client in prop_oneof![3 => Just(Ipv4Addr::UNSPECIFIED), 1 => address()],
        relay in prop_oneof![9 => Just(Ipv4Addr::UNSPECIFIED), 1 => address()],
        broadcast in any::<bool>(),
        options in vec(option(), 0..5),
    ) -> Packet {
        let mut packet = message(mac(number), kind);
        packet.client = client;
        packet.relay = relay;
        packet.broadcast = broadcast;
        for (code, value) in options {
            packet.options.set(code, value);
        }
        packet
    }
}

/// What a client does on an answer that gives it something.
#[derive(Clone, Debug)]
enum Step {
    Send(Packet),
    /// Takes the last offer that this one got.
    Take(u8),
    Pass(u64),
    Restart,
    /// Some that had to do with us as strangers are adopted.
    Adopt,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => any_packet().prop_map(Step::Send),
        3 => (0..MACS).prop_map(|number| Step::Send(pxe(mac(number), DISCOVER))),
        6 => (0..MACS).prop_map(Step::Take),
        3 => (0..90_000_u64).prop_map(Step::Pass),
        1 => Just(Step::Restart),
        1 => Just(Step::Adopt),
    ]
}

/// Who holds what until when, from what clients were told.
#[derive(Default)]
struct Holders(BTreeMap<Ipv4Addr, (Mac, u64)>);

impl Holders {
    fn hear(&mut self, now_ms: u64, effects: &[Effect]) {
        for (_, ack) in replies(effects) {
            let is_ack = ack.options.byte(code::MESSAGE_TYPE) == Some(ACK);
            if !is_ack || ack.your.is_unspecified() {
                continue;
            }
            let lease = ack.options.get(code::LEASE_TIME).expect("a lease");
            let lease_s = u32::from_be_bytes(lease.try_into().expect("four bytes"));
            let until_ms = now_ms + u64::from(lease_s) * 1_000;
            let before = self.0.insert(ack.your, (ack.hardware, until_ms));
            if let Some((holder, until_ms)) = before {
                let is_free = holder == ack.hardware || until_ms <= now_ms;
                assert!(is_free, "{} is {holder}'s and {}'s", ack.your, ack.hardware);
            }
        }
    }

    fn let_go(&mut self, packet: &Packet) {
        let kind = packet.options.byte(code::MESSAGE_TYPE);
        let of = match kind {
            Some(RELEASE) => Some(packet.client),
            Some(DECLINE) => packet.options.address(code::REQUESTED),
            _ => None,
        };
        let is_its = |address: &Ipv4Addr| {
            self.0
                .get(address)
                .is_some_and(|(mac, _)| *mac == packet.hardware)
        };
        if let Some(address) = of.filter(is_its) {
            self.0.remove(&address);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn no_two_machines_hold_one_address_and_adopted_ones_always_get_theirs(
        steps in vec(step(), 1..120),
        asks in 0..MACHINES,
    ) {
        let mut settings = some_adopted();
        let own = settings.machines[usize::from(asks)].address;
        let mut wire = Wire::new(settings.clone());
        let mut holders = Holders::default();
        let mut offers = BTreeMap::new();
        let mut journal = Vec::new();
        for step in steps {
            let packet = match step {
                Step::Pass(ms) => {
                    wire.now_ms += ms;
                    continue;
                }
                Step::Restart => {
                    wire.server = Server::new(settings.clone(), journal.clone());
                    continue;
                }
                Step::Adopt => {
                    settings = these_adopted(2 * MACHINES);
                    wire.server.configure(settings.clone());
                    continue;
                }
                Step::Take(number) => match offers.get(&mac(number)) {
                    Some(address) => take(pxe(mac(number), REQUEST), *address),
                    None => continue,
                },
                Step::Send(packet) => packet,
            };
            holders.let_go(&packet);
            let effects = wire.ask(&packet);
            journal.extend(kept(&effects));
            holders.hear(wire.now_ms, &effects);
            for (_, offer) in replies(&effects) {
                if offer.options.byte(code::MESSAGE_TYPE) == Some(OFFER) {
                    offers.insert(offer.hardware, offer.your);
                }
            }
            // B1, at every moment.
            let machine = mac(asks);
            prop_assert_eq!(reply(&wire.ask(&message(machine, DISCOVER))), (OFFER, own));
            let effects = wire.ask(&take(message(machine, REQUEST), own));
            prop_assert_eq!(reply(&effects), (ACK, own));
            holders.hear(wire.now_ms, &effects);
        }
    }

    #[test]
    fn a_packet_is_read_as_it_was_written(
        is_reply in any::<bool>(),
        numbers in any::<(u8, u32, u16, bool)>(),
        addresses in any::<[u32; 4]>(),
        mac in any::<[u8; 6]>(),
        server_name in vec(1..=255_u8, 0..=64),
        file in vec(1..=255_u8, 0..=128),
        options in vec((any::<u8>(), prop_oneof![
            9 => vec(any::<u8>(), 0..40),
            1 => vec(any::<u8>(), 240..400),
        ]), 0..12),
    ) {
        let operation = if is_reply { Operation::Reply } else { Operation::Request };
        let mut packet = Packet::new(operation, numbers.1, Mac(mac));
        packet.hops = numbers.0;
        packet.seconds = numbers.2;
        packet.broadcast = numbers.3;
        let [client, your, next_server, relay] = addresses.map(Ipv4Addr::from);
        packet.client = client;
        packet.your = your;
        packet.next_server = next_server;
        packet.relay = relay;
        packet.server_name = server_name;
        packet.file = file;
        for (code, value) in options {
            packet.options.set(code, value);
        }
        let bytes = packet.emit(usize::MAX);
        prop_assert!(bytes.len() >= 300);
        if bytes.len() <= MAX_BYTES {
            prop_assert_eq!(Packet::parse(&bytes), Ok(packet.clone()));
        }
        for limit in [300, 400, 548] {
            let bytes = packet.emit(limit);
            prop_assert!(bytes.len() <= limit);
            prop_assert!(Packet::parse(&bytes).is_ok());
        }
    }

    #[test]
    fn no_bytes_make_it_panic_or_send_nonsense(
        bytes in vec(any::<u8>(), 0..600),
        options in vec(any::<u8>(), 0..400),
        from in any::<u32>(),
    ) {
        let mut wire = Wire::new(some_adopted());
        let from = SocketAddrV4::new(Ipv4Addr::from(from), 68);
        let mut shaped = message(mac(0), DISCOVER).emit(usize::MAX)[..240].to_vec();
        shaped.extend(options);
        for bytes in [bytes, shaped] {
            for port in [Port::Server, Port::Proxy] {
                let effects = wire.server.packet(wire.now_ms, 0, from, port, &bytes);
                for (_, reply) in replies(&effects) {
                    prop_assert_eq!(reply.operation, Operation::Reply);
                }
            }
        }
    }
}
